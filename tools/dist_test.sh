#!/usr/bin/env bash
# Test on several GPUs, or on several processes of a machine without one:
#   tools/dist_test.sh CONFIG CHECKPOINT GPUS [options of tools/test.py]
# On several machines set NNODES, NODE_RANK, MASTER_ADDR and PORT.
set -euo pipefail

[ $# -ge 3 ] || { sed -n '2,4s/^# //p' "$0" >&2; exit 2; }
config=$1
checkpoint=$2
gpus=$3
shift 3

export PYTHONPATH="$(dirname "$0")/..:${PYTHONPATH:-}"
exec python -m torch.distributed.run \
    --nnodes="${NNODES:-1}" \
    --node_rank="${NODE_RANK:-0}" \
    --master_addr="${MASTER_ADDR:-127.0.0.1}" \
    --master_port="${PORT:-29500}" \
    --nproc_per_node="$gpus" \
    "$(dirname "$0")/test.py" "$config" "$checkpoint" --launcher pytorch "$@"
