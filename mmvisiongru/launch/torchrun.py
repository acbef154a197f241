"""torchrun as dist_train.sh and dist_test.sh call it: nodes from the environment, errors without noise.

python -m mmvisiongru.launch.torchrun PROCESSES SCRIPT [ARGS]
"""

import logging
import os
import signal
import sys
from collections.abc import Mapping

from torch.distributed import run
from torch.distributed.elastic.multiprocessing import SignalException
from torch.distributed.elastic.multiprocessing.errors import ChildFailedError

from mmvisiongru.errors import InputError


def rendezvous_args(env: Mapping[str, str]) -> list[str]:
    """Where the processes meet: NNODES, NODE_RANK, MASTER_ADDR, MASTER_PORT (or PORT) as torchrun options.

    One node takes a free port by itself unless a port is given. Nodes of several must agree on one: 29500.

    Raises:
        InputError: One of several nodes is not told where the others are.
    """
    nodes, port = int(env.get('NNODES', 1)), env.get('MASTER_PORT') or env.get('PORT')
    if nodes == 1 and not port:
        return ['--standalone']
    if nodes > 1 and not ('NODE_RANK' in env and 'MASTER_ADDR' in env):
        raise InputError(f'NNODES={nodes} needs NODE_RANK and MASTER_ADDR, the address of node 0')
    return [
        f'--nnodes={nodes}',
        f'--node_rank={env.get("NODE_RANK", 0)}',
        f'--master_addr={env.get("MASTER_ADDR", "127.0.0.1")}',
        f'--master_port={port or 29500}',
    ]


def main(processes: str, *command: str) -> None:
    """Run the script in its processes; exit as the first one that failed.

    A script that ends with code 2, or with 128 + a signal that asked it to stop, has said in one line what
    there is to say. Any other failure is reported as torchrun does, process by process.
    """
    if not processes.isdigit() and processes not in ('gpu', 'cpu', 'auto'):
        raise InputError(f'the number of GPUs comes after the config (and checkpoint), got {processes!r}')
    # The table of ChildFailedError says the same in full.
    logging.getLogger('torch.distributed.elastic.multiprocessing.api').setLevel(logging.CRITICAL)
    # The defaults of torchrun and mmengine, taken without their banners.
    for variable in ('OMP_NUM_THREADS', 'MKL_NUM_THREADS'):
        os.environ.setdefault(variable, '1')
    try:
        run.main([*rendezvous_args(os.environ), f'--nproc_per_node={processes}', *command])
    except ChildFailedError as error:
        code = error.get_first_failure()[1].exitcode
        if code not in (2, 128 + signal.SIGTERM, 128 + signal.SIGINT):
            print(error, file=sys.stderr)
        sys.exit(code if code > 0 else 128 - code)
    except SignalException as error:
        # By now the processes have got the signal too, and half a minute to save.
        print(f'stopped by {signal.Signals(error.sigval).name}', file=sys.stderr)
        sys.exit(128 + error.sigval)


if __name__ == '__main__':
    try:
        main(*sys.argv[1:])
    except InputError as error:
        print('error:', error, file=sys.stderr)
        sys.exit(2)
