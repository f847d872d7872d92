"""``python -m tpcli.train``: processes started from here do not import it, nor torch with it."""

from tpcli.train.worker import main

main()
