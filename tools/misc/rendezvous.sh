# Sourced by dist_train.sh and dist_test.sh: sets TORCHRUN, the command that starts the processes of a node.
#
# NNODES, NODE_RANK, MASTER_ADDR and MASTER_PORT (or PORT) are read as in mmpretrain. One node takes a free port
# by itself; several must agree on one.
if [[ ! $GPUS =~ ^([0-9]+|auto|gpu|cpu)$ ]]; then
    echo "error: the number of GPUs comes after the config (and checkpoint), got '$GPUS'" >&2
    exit 2
fi
PORT=${MASTER_PORT:-${PORT:-}}
TORCHRUN=("${PYTHON:-python}" "$TOOLS/misc/torchrun.py" "--nproc-per-node=$GPUS")
if [ "${NNODES:-1}" = 1 ] && [ -z "$PORT" ]; then
    TORCHRUN+=(--standalone)
elif [ "${NNODES:-1}" != 1 ] && [ -z "${NODE_RANK:+${MASTER_ADDR:-}}" ]; then
    echo "error: NNODES=$NNODES needs NODE_RANK and MASTER_ADDR, the address of node 0" >&2
    exit 2
else
    TORCHRUN+=("--nnodes=${NNODES:-1}" "--node-rank=${NODE_RANK:-0}" "--master-addr=${MASTER_ADDR:-127.0.0.1}")
    TORCHRUN+=("--master-port=${PORT:-29500}")
fi
export PYTHONPATH="$TOOLS/..${PYTHONPATH:+:$PYTHONPATH}"
