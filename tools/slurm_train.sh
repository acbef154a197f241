#!/usr/bin/env bash
# Train under slurm:
#
#   [GPUS=8] [GPUS_PER_NODE=8] tools/slurm_train.sh PARTITION JOB_NAME CONFIG [options of tools/train.py]
#
# GPUS_PER_NODE is GPUS if those are fewer. CPUS_PER_TASK and SRUN_ARGS (split at spaces) reach srun.
set -euo pipefail

if [ $# -lt 3 ]; then
    echo "usage: $0 PARTITION JOB_NAME CONFIG [options of tools/train.py]" >&2
    exit 2
fi
PARTITION=$1
JOB_NAME=$2
CONFIG=$3
TOOLS=$(CDPATH= cd -- "$(dirname "$0")" && pwd)
# shellcheck source=tools/misc/srun.sh
source "$TOOLS/misc/srun.sh"
exec "${SRUN[@]}" "$TOOLS/train.py" "$CONFIG" --launcher slurm "${@:4}"
