#!/usr/bin/env bash
# On a Slurm cluster: GPUS=8 bash tools/slurm_train.sh PARTITION JOB_NAME CONFIG [train.py options]
# GPUS_PER_NODE: GPUs per node, default 8. CPUS_PER_TASK: default one per data loader worker plus one for training;
# workers are 8 (the maximum in shipped configs), or train_dataloader.num_workers=N from the options.
set -euo pipefail
[ $# -ge 3 ] || { echo "usage: GPUS=8 bash tools/slurm_train.sh PARTITION JOB_NAME CONFIG [options]" >&2; exit 2; }
partition=$1 job=$2 config=$3
shift 3
gpus=${GPUS:-8} node=${GPUS_PER_NODE:-8} workers=8
per_node=$((gpus < node ? gpus : node))
for option in "$@"; do
    case $option in train_dataloader.num_workers=*) workers=${option#*=} ;; esac
done
cpus=${CPUS_PER_TASK:-$((workers + 1))}
here=$(cd "$(dirname "$0")" && pwd)
python=${PYTHON:-$here/../.venv/bin/python}
[ -x "$python" ] || python=python
exec srun -p "$partition" --job-name="$job" --gres="gpu:$per_node" --ntasks="$gpus" --ntasks-per-node="$per_node" \
    --cpus-per-task="$cpus" --kill-on-bad-exit=1 ${SRUN_ARGS:-} \
    "$python" -u "$here/train.py" "$config" --launcher slurm "$@"
