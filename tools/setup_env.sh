#!/usr/bin/env bash
# Creates the environment in .venv without compiling anything. Can be run again.
#
# PYTHON=python3.13 selects an interpreter. OPS=compiled compiles mmcv's operators instead of using
# smartclip_det/operators: this needs g++ and Python's headers, and takes minutes. The choice is kept for later calls;
# OPS=torch reverts it.
set -euo pipefail
cd "$(dirname "$0")/.."
UV_VERSION=0.13.9

fail() { echo "setup: $1" >&2; exit 2; }

OPS=${OPS:-$(cat .venv/operators 2>/dev/null || echo torch)}
case "$OPS" in
    torch) operators=det ;;
    compiled) operators=det-compiled ;;
    *) fail "OPS=$OPS is not known. Allowed: torch, compiled." ;;
esac

python=""
for candidate in ${PYTHON:-python3 python3.13 python3.12 python3.11}; do
    path=$(command -v "$candidate" 2>/dev/null) || continue
    if "$path" -c 'import sys; sys.exit(not (3, 11) <= sys.version_info[:2] <= (3, 13))' 2>/dev/null; then
        python=$path
        break
    fi
done
[ -n "$python" ] || fail "Python 3.11, 3.12 or 3.13 is needed${PYTHON:+; PYTHON=$PYTHON is none of them} (Debian 12: apt-get install python3 python3-venv)."
"$python" -c 'import venv, ensurepip' 2>/dev/null || fail "the venv module is missing (Debian: apt-get install python3-venv)."

hide_gpu=()
if [ "$operators" = det-compiled ]; then
    command -v g++ >/dev/null 2>&1 || fail "OPS=compiled needs g++ (Debian: apt-get install g++)."
    "$python" -c 'import os, sysconfig, sys; sys.exit(not os.path.exists(os.path.join(sysconfig.get_paths()["include"], "Python.h")))' \
        || fail "OPS=compiled needs Python's headers (Debian: apt-get install python3-dev)."
    # mmcv compiles for CUDA if it sees a GPU, and fails without a matching nvcc; it is then built for the CPU.
    if command -v nvidia-smi >/dev/null 2>&1 && nvidia-smi -L >/dev/null 2>&1; then
        if command -v nvcc >/dev/null 2>&1 && nvcc --version | grep -q "release 13\."; then
            echo "setup: found GPU and nvcc 13: compiling operators for CUDA."
        else
            echo "setup: found GPU, but not nvcc 13: compiling operators for the CPU only."
            hide_gpu=(env CUDA_VISIBLE_DEVICES= FORCE_CUDA=0)
        fi
    fi
fi

if [ ! -x .uv/bin/uv ] || [ "$(.uv/bin/uv --version | cut -d' ' -f2)" != "$UV_VERSION" ]; then
    "$python" -m venv --clear .uv
    .uv/bin/pip install --quiet --disable-pip-version-check "uv==$UV_VERSION" || fail "uv could not be installed (is the package registry reachable?)."
fi

"${hide_gpu[@]}" .uv/bin/uv sync --quiet --python "$python" --extra dev --extra "$operators" \
    || fail "the environment could not be made; the lines above say why."
echo "$OPS" > .venv/operators
cp smartclip_det/operators/smartclip_det.pth "$(.venv/bin/python -c 'import sysconfig; print(sysconfig.get_paths()["purelib"])')"
.venv/bin/python -m smartclip_det.utils.env > .venv/environment.txt || { cat .venv/environment.txt; fail "operators do not run."; }
tail -n 3 .venv/environment.txt
