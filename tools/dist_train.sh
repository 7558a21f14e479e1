#!/usr/bin/env bash
# Train on several processes of this machine (GPUs with NCCL, or CPU cores with gloo).
# Usage: tools/dist_train.sh CONFIG PROCESSES [arguments of tools/train.py]
# Environment: NNODES, NODE_RANK, MASTER_ADDR, MASTER_PORT for several machines.
set -euo pipefail

if [ "$#" -lt 2 ] || [ "${1:-}" = "--help" ] || [ "${1:-}" = "-h" ]; then
  sed -n '2,4p' "$0" | sed 's/^# //'
  [ "${1:-}" = "--help" ] || [ "${1:-}" = "-h" ] && exit 0
  exit 2
fi
config=$1
processes=$2
shift 2
case "$processes" in
  *[!0-9]* | 0 | '')
    echo "error: PROCESSES is '$processes'; expected a positive number" >&2
    exit 2
    ;;
esac
here=$(dirname "$0")
if [ -n "${NNODES:-}" ]; then
  rendezvous=(--nnodes="$NNODES" --node_rank="${NODE_RANK:-0}"
    --master_addr="${MASTER_ADDR:-127.0.0.1}" --master_port="${MASTER_PORT:-29500}")
else
  rendezvous=(--standalone)
fi
exec "${PYTHON:-python}" -m torch.distributed.run "${rendezvous[@]}" \
  --nproc_per_node="$processes" "$here/train.py" "$config" --launcher pytorch "$@"
