#!/usr/bin/env bash
# Makes the environment in .venv: Python packages, and mmcv's operators compiled on this machine. Safe to repeat.
set -euo pipefail
cd "$(dirname "$0")/.."
UV_VERSION=0.13.9

fail() { echo "setup: $1" >&2; exit 2; }

python=""
for candidate in "${PYTHON:-}" python3.11 python3.12 python3; do
    [ -n "$candidate" ] && command -v "$candidate" >/dev/null 2>&1 || continue
    if "$candidate" -c 'import sys; sys.exit(not (3, 11) <= sys.version_info[:2] <= (3, 12))' 2>/dev/null; then
        python=$candidate
        break
    fi
done
[ -n "$python" ] || fail "Python 3.11 or 3.12 is needed (Debian 12: apt-get install python3 python3-dev python3-venv; Ubuntu 22.04: python3.11 python3.11-dev python3.11-venv)."
"$python" -c 'import venv, ensurepip' 2>/dev/null || fail "the venv module is missing (Debian: apt-get install python3-venv)."
command -v g++ >/dev/null 2>&1 || fail "g++ is needed to compile mmcv's operators (Debian: apt-get install g++)."
"$python" -c 'import os, sysconfig, sys; sys.exit(not os.path.exists(os.path.join(sysconfig.get_paths()["include"], "Python.h")))' \
    || fail "Python's headers are missing (Debian: apt-get install python3-dev)."

for library in libGL.so.1 libglib-2.0.so.0; do
    "$python" -c "import ctypes; ctypes.CDLL('$library')" 2>/dev/null \
        || fail "$library is missing, which opencv needs (Debian: apt-get install libgl1 libglib2.0-0)."
done

if [ ! -x .uv/bin/uv ] || [ "$(.uv/bin/uv --version | cut -d' ' -f2)" != "$UV_VERSION" ]; then
    "$python" -m venv .uv
    .uv/bin/pip install --quiet --disable-pip-version-check "uv==$UV_VERSION" || fail "uv could not be installed (is the package registry reachable?)."
fi

# mmcv compiles for CUDA when it sees a GPU, and fails without a matching nvcc: then it is built for the CPU, and
# its operators on CUDA tensors go to torchvision and plain torch (smartclip_det/utils/compat.py).
hide_gpu=()
if command -v nvidia-smi >/dev/null 2>&1 && nvidia-smi -L >/dev/null 2>&1; then
    if command -v nvcc >/dev/null 2>&1 && nvcc --version | grep -q "release 13\."; then
        echo "setup: GPU and nvcc 13 found: operators are compiled for CUDA."
    else
        echo "setup: GPU without nvcc 13: operators are compiled for the CPU, CUDA tensors take other routes."
        hide_gpu=(env CUDA_VISIBLE_DEVICES= FORCE_CUDA=0)
    fi
fi

"${hide_gpu[@]}" .uv/bin/uv sync --quiet --python "$(command -v "$python")" --extra dev || fail "the environment could not be made; the lines above say why."
.venv/bin/python -m smartclip_det.utils.env > .venv/environment.txt || { cat .venv/environment.txt; fail "operators do not run."; }
tail -n 3 .venv/environment.txt
