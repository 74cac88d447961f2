#!/usr/bin/env bash
# Train on several GPUs, or on several processes of a machine without one:
#   tools/dist_train.sh CONFIG GPUS [options of tools/train.py]
# On several machines set NNODES, NODE_RANK, MASTER_ADDR and PORT.
set -euo pipefail

[ $# -ge 2 ] || { sed -n '2,4s/^# //p' "$0" >&2; exit 2; }
config=$1
gpus=$2
shift 2

export PYTHONPATH="$(dirname "$0")/..:${PYTHONPATH:-}"
exec python -m torch.distributed.run \
    --nnodes="${NNODES:-1}" \
    --node_rank="${NODE_RANK:-0}" \
    --master_addr="${MASTER_ADDR:-127.0.0.1}" \
    --master_port="${PORT:-29500}" \
    --nproc_per_node="$gpus" \
    "$(dirname "$0")/train.py" "$config" --launcher pytorch "$@"
