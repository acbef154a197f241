# Sourced by slurm_train.sh and slurm_test.sh, with PARTITION, JOB_NAME and TOOLS: sets SRUN, the command that
# starts a task for each GPU.
#
# GPUS, GPUS_PER_NODE, CPUS_PER_TASK and SRUN_ARGS (split at spaces) are read as in mmpretrain.
GPUS=${GPUS:-8}
# One node is enough for fewer.
GPUS_PER_NODE=${GPUS_PER_NODE:-$((GPUS < 8 ? GPUS : 8))}
read -r -a EXTRA <<< "${SRUN_ARGS:-}"
SRUN=(
    srun
    --partition="$PARTITION"
    --job-name="$JOB_NAME"
    --gres="gpu:$GPUS_PER_NODE"
    --ntasks="$GPUS"
    --ntasks-per-node="$GPUS_PER_NODE"
    --cpus-per-task="${CPUS_PER_TASK:-5}"
    --kill-on-bad-exit=1
    ${EXTRA[@]+"${EXTRA[@]}"}
    "${PYTHON:-python}" -u
)
export PYTHONPATH="$TOOLS/..${PYTHONPATH:+:$PYTHONPATH}"
