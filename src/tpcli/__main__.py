"""``python -m tpcli``."""

from tpcli.cli.app import main

main()
