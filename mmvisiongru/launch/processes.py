"""Starting the processes of a run, with and without GPUs."""

import atexit
import datetime
import os
import subprocess
import time

import torch
from mmengine.config import Config
from mmengine.device import get_device

from mmvisiongru.errors import InputError

# Where each launcher says which process this is.
RANK_VARIABLES = {
    'pytorch': dict(RANK='RANK', WORLD_SIZE='WORLD_SIZE', LOCAL_RANK='LOCAL_RANK'),
    'slurm': dict(RANK='SLURM_PROCID', WORLD_SIZE='SLURM_NTASKS', LOCAL_RANK='SLURM_LOCALID'),
    'mpi': dict(
        RANK='OMPI_COMM_WORLD_RANK',
        WORLD_SIZE='OMPI_COMM_WORLD_SIZE',
        LOCAL_RANK='OMPI_COMM_WORLD_LOCAL_RANK',
    ),
}
STARTED_BY = {
    'pytorch': 'tools/dist_train.sh or tools/dist_test.sh',
    'slurm': 'tools/slurm_train.sh or tools/slurm_test.sh',
    'mpi': 'mpirun with MASTER_ADDR set',
}


def has_gpu() -> bool:
    """Whether mmengine finds a device that trains with AMP and across processes."""
    return get_device() not in ('cpu', 'mps')


def prepare_launch(cfg: Config) -> list[str]:
    """Set the process up as ``cfg.launcher`` says, before a Runner is built.

    mmengine starts its process group on GPUs only. Without one it is started here, with gloo, and the model
    in ``cfg`` is adapted.

    Returns:
        list[str]: What was changed, for the log.

    Raises:
        InputError: The launcher of the config is not the one that started this process.
    """
    launcher = cfg.setdefault('launcher', 'none')
    if launcher == 'none':
        if int(os.environ.get('WORLD_SIZE', 1)) > 1:
            raise InputError(
                'several processes were started, but the launcher is none; add --launcher pytorch'
            )
        return []
    if launcher not in RANK_VARIABLES:
        raise InputError(f'launcher must be none, {", ".join(RANK_VARIABLES)}, got {launcher!r}')
    source = RANK_VARIABLES[launcher]
    if missing := [v for v in source.values() if v not in os.environ]:
        raise InputError(
            f'launcher {launcher} needs {missing[0]} in the environment; start with {STARTED_BY[launcher]}, '
            'or use --launcher none'
        )
    os.environ.update({name: os.environ[variable] for name, variable in source.items()})
    if launcher == 'slurm' and 'MASTER_PORT' not in os.environ:
        # Jobs that share a node must not share a port; this range is not handed out to clients.
        os.environ['MASTER_PORT'] = str(10000 + int(os.environ.get('SLURM_JOB_ID', 0)) % 20000)
    return [] if has_gpu() else _use_gloo(cfg)


def _slurm_master() -> str:
    """The first node of the job."""
    command = ['scontrol', 'show', 'hostnames', os.environ['SLURM_NODELIST']]
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout.split()[0]


def _use_gloo(cfg: Config) -> list[str]:
    env_cfg = cfg.setdefault('env_cfg', {})
    dist_cfg = env_cfg.setdefault('dist_cfg', {})
    dist_cfg['backend'] = 'gloo'
    if cfg.launcher == 'slurm' and 'MASTER_ADDR' not in os.environ:
        os.environ['MASTER_ADDR'] = _slurm_master()
    timeout = datetime.timedelta(seconds=dist_cfg.get('timeout', 1800))
    torch.distributed.init_process_group('gloo', timeout=timeout)
    # The threads of gloo need the interpreter to let go of their last tensors. One that asks for it when it
    # has begun to end aborts the process (pytorch/pytorch#190489), so they get it for a moment before.
    atexit.register(time.sleep, 0.5)
    cfg.model_wrapper_cfg = dict(
        dict(
            type='MMDistributedDataParallel',
            broadcast_buffers=False,
            find_unused_parameters=cfg.get('find_unused_parameters', False),
        ),
        **cfg.get('model_wrapper_cfg') or {},
        device_ids=None,
    )
    notes = [f'no GPU: {torch.distributed.get_world_size()} processes on the CPU, with gloo']
    # Batch norm across processes exists on GPUs only.
    if replace_sync_bn(cfg.model) + bool(cfg.pop('sync_bn', None)):
        notes.append('no GPU: SyncBN needs one, BN takes its place in the model')
    return notes


def replace_sync_bn(node) -> int:
    """Turn SyncBN into BN wherever a config names it: it needs processes on GPUs. Returns how often."""
    if isinstance(node, (list, tuple)):
        return sum(map(replace_sync_bn, node))
    if not isinstance(node, dict):
        return 0
    found = node.get('type') in ('SyncBN', 'MMSyncBN')
    if found:
        node['type'] = 'BN'
    return found + sum(map(replace_sync_bn, node.values()))
