#!/usr/bin/env bash
# Test on several GPUs, or on CPU processes where there is no GPU:
#
#   tools/dist_test.sh CONFIG CHECKPOINT GPUS [options of tools/test.py]
#
# For several nodes, see dist_train.sh.
set -euo pipefail

if [ $# -lt 3 ]; then
    echo "usage: $0 CONFIG CHECKPOINT GPUS [options of tools/test.py]" >&2
    exit 2
fi
CONFIG=$1
CHECKPOINT=$2
GPUS=$3
TOOLS=$(CDPATH= cd -- "$(dirname "$0")" && pwd)
# shellcheck source=tools/misc/rendezvous.sh
source "$TOOLS/misc/rendezvous.sh"
exec "${TORCHRUN[@]}" "$TOOLS/test.py" "$CONFIG" "$CHECKPOINT" --launcher pytorch "${@:4}"
