#!/usr/bin/env bash
# Train on a Slurm cluster:
#   tools/slurm_train.sh PARTITION JOB_NAME CONFIG WORK_DIR [options of tools/train.py]
# GPUS, GPUS_PER_NODE, CPUS_PER_TASK and SRUN_ARGS may be set.
set -euo pipefail

[ $# -ge 4 ] || { sed -n '2,4s/^# //p' "$0" >&2; exit 2; }
partition=$1
job=$2
config=$3
work_dir=$4
shift 4

export PYTHONPATH="$(dirname "$0")/..:${PYTHONPATH:-}"
# shellcheck disable=SC2086  # SRUN_ARGS holds several words
exec srun -p "$partition" \
    --job-name="$job" \
    --gres=gpu:"${GPUS_PER_NODE:-8}" \
    --ntasks="${GPUS:-8}" \
    --ntasks-per-node="${GPUS_PER_NODE:-8}" \
    --cpus-per-task="${CPUS_PER_TASK:-5}" \
    --kill-on-bad-exit=1 \
    ${SRUN_ARGS:-} \
    python -u "$(dirname "$0")/train.py" "$config" --work-dir "$work_dir" --launcher slurm "$@"
