"""Start the processes of a run, with and without GPUs."""

import atexit
import datetime
import os
import subprocess
import time

import torch
from mmengine.config import Config
from mmengine.device import get_device

from mmvisiongru.config import replace_sync_bn, type_name
from mmvisiongru.errors import InputError, in_one_line

# For each launcher what starts it, and the variables with rank, number of processes, and rank on the node.
LAUNCHERS = {
    'pytorch': ('tools/dist_train.sh or dist_test.sh', 'RANK', 'WORLD_SIZE', 'LOCAL_RANK'),
    'slurm': ('tools/slurm_train.sh or slurm_test.sh', 'SLURM_PROCID', 'SLURM_NTASKS', 'SLURM_LOCALID'),
    'mpi': ('mpirun with MASTER_ADDR set', *(f'OMPI_COMM_WORLD_{n}' for n in ('RANK', 'SIZE', 'LOCAL_RANK'))),
}


def has_gpu() -> bool:
    """Whether mmengine finds a device that trains with AMP and across processes."""
    return get_device() not in ('cpu', 'mps')


def prepare_launch(cfg: Config) -> list[str]:
    """Set the process up as ``cfg.launcher`` says, before a Runner is built. Returns what to log.

    mmengine starts its process group and mixed precision on GPUs only. Without a GPU, the group is started
    here, with gloo, and ``cfg`` is adapted. InputError if another launcher started this process.
    """
    wrapper, launcher = cfg.get('optim_wrapper') or {}, cfg.setdefault('launcher', 'none')
    if type_name(wrapper) == 'AmpOptimWrapper' and not has_gpu():
        wrapper['type'] = 'mmvisiongru.CPUAmpOptimWrapper'
    if launcher == 'none':
        if int(os.environ.get('WORLD_SIZE', 1)) > 1:
            raise InputError('several processes were started without a launcher; add --launcher pytorch')
        return []
    if launcher not in LAUNCHERS:
        raise InputError(f'launcher must be none, {", ".join(LAUNCHERS)}, got {launcher!r}')
    started_by, *variables = LAUNCHERS[launcher]
    needed = [*variables, 'MASTER_ADDR'] if launcher == 'mpi' else variables
    if missing := [variable for variable in needed if variable not in os.environ]:
        raise InputError(
            f'launcher {launcher} needs {missing[0]} in the environment; start with {started_by}, '
            'or use --launcher none'
        )
    for name, variable in zip(('RANK', 'WORLD_SIZE', 'LOCAL_RANK'), variables, strict=True):
        os.environ[name] = os.environ[variable]
    if launcher == 'slurm':
        # Jobs that share a node must not share a port; clients are not given ports of this range.
        os.environ.setdefault('MASTER_PORT', str(10000 + int(os.environ.get('SLURM_JOB_ID', 0)) % 20000))
    os.environ.setdefault('MASTER_PORT', '29500')
    return [] if has_gpu() else _use_gloo(cfg)


def _use_gloo(cfg: Config) -> list[str]:
    dist_cfg = cfg.setdefault('env_cfg', {}).setdefault('dist_cfg', {})
    dist_cfg['backend'] = 'gloo'
    timeout = datetime.timedelta(seconds=dist_cfg.get('timeout', 1800))
    try:
        if cfg.launcher == 'slurm' and 'MASTER_ADDR' not in os.environ:
            command = ['scontrol', 'show', 'hostnames', os.environ.get('SLURM_NODELIST', '')]
            nodes = subprocess.run(command, check=True, capture_output=True, text=True).stdout.split()
            os.environ['MASTER_ADDR'] = nodes[0]
        torch.distributed.init_process_group('gloo', timeout=timeout)
    except (RuntimeError, ValueError, OSError, subprocess.SubprocessError) as error:
        raise InputError(f'the processes cannot find each other: {in_one_line(error)}') from error
    # A gloo thread that needs the interpreter during its shutdown, to free a last tensor, aborts the process
    # (pytorch/pytorch#190489): give them a moment before.
    atexit.register(time.sleep, 0.5)
    wrapper = dict(type='MMDistributedDataParallel', broadcast_buffers=False)
    wrapper['find_unused_parameters'] = cfg.get('find_unused_parameters', False)
    cfg.model_wrapper_cfg = wrapper | (cfg.get('model_wrapper_cfg') or {}) | dict(device_ids=None)
    notes = [f'no GPU: {torch.distributed.get_world_size()} processes on the CPU, with gloo']
    if replace_sync_bn(cfg.model) | bool(cfg.pop('sync_bn', None)):
        notes.append('no GPU: SyncBN replaced by BN')
    return notes
