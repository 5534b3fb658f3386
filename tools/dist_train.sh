#!/usr/bin/env bash
# Multi-process training on one machine: bash tools/dist_train.sh CONFIG PROCESSES [train.py options]
set -euo pipefail
[ $# -ge 2 ] || { echo "usage: bash tools/dist_train.sh CONFIG PROCESSES [options of tools/train.py]" >&2; exit 2; }
config=$1 processes=$2
shift 2
here=$(cd "$(dirname "$0")" && pwd)
python=${PYTHON:-$here/../.venv/bin/python}
[ -x "$python" ] || python=python
exec "$python" -m torch.distributed.run --nnodes="${NNODES:-1}" --node_rank="${NODE_RANK:-0}" --master_addr="${MASTER_ADDR:-127.0.0.1}" \
    --master_port="${MASTER_PORT:-29500}" --nproc_per_node="$processes" \
    "$here/train.py" "$config" --launcher pytorch "$@"
