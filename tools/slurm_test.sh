#!/usr/bin/env bash
# Test under slurm:
#
#   [GPUS=8] [GPUS_PER_NODE=8] tools/slurm_test.sh PARTITION JOB_NAME CONFIG CHECKPOINT [options of tools/test.py]
#
# GPUS_PER_NODE is GPUS if those are fewer. CPUS_PER_TASK and SRUN_ARGS (split at spaces) reach srun.
set -euo pipefail

if [ $# -lt 4 ]; then
    echo "usage: $0 PARTITION JOB_NAME CONFIG CHECKPOINT [options of tools/test.py]" >&2
    exit 2
fi
PARTITION=$1
JOB_NAME=$2
CONFIG=$3
CHECKPOINT=$4
TOOLS=$(CDPATH= cd -- "$(dirname "$0")" && pwd)
# shellcheck source=tools/misc/srun.sh
source "$TOOLS/misc/srun.sh"
exec "${SRUN[@]}" "$TOOLS/test.py" "$CONFIG" "$CHECKPOINT" --launcher slurm "${@:5}"
