#!/usr/bin/env bash
# Train on several GPUs, or on CPU processes where there is no GPU:
#
#   tools/dist_train.sh CONFIG GPUS [options of tools/train.py]
#
# On several nodes, run it on each, with NODE_RANK counting from 0:
#
#   NNODES=2 NODE_RANK=0 MASTER_ADDR=HOST [MASTER_PORT=29500] tools/dist_train.sh CONFIG GPUS_OF_A_NODE
set -euo pipefail

if [ $# -lt 2 ]; then
    echo "usage: $0 CONFIG GPUS [options of tools/train.py]" >&2
    exit 2
fi
CONFIG=$1
GPUS=$2
TOOLS=$(CDPATH= cd -- "$(dirname "$0")" && pwd)
# shellcheck source=tools/misc/rendezvous.sh
source "$TOOLS/misc/rendezvous.sh"
exec "${TORCHRUN[@]}" "$TOOLS/train.py" "$CONFIG" --launcher pytorch "${@:3}"
