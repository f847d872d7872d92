"""Scripts that are run by several processes at once."""

import subprocess
import sys
from pathlib import Path

HERE = Path(__file__).parent


def together(script: str, folder: Path, *, processes: int) -> None:
    """Run a script of this folder under torch.distributed; what it finds goes into ``folder``."""
    subprocess.run(
        [
            *(sys.executable, "-m", "torch.distributed.run", "--nproc_per_node", str(processes)),
            *("--master_port", "0", "--rdzv_backend", "c10d", "--rdzv_endpoint", "localhost:0"),
            *(str(HERE / script), str(folder)),
        ],
        check=True,
        cwd=HERE.parents[1],
        capture_output=True,
        timeout=240,
    )
