"""One page about this machine: versions, devices, and which backend of each operator runs where."""

from importlib import metadata

import torch
from mmengine.utils.dl_utils import collect_env

from mmvisiongru.ops import native

from .check import devices, operators

PACKAGES = ('mmvisiongru', 'onedl-', 'mmengine', 'mmcv', 'mmseg', 'mmpretrain', 'triton', 'onnx')
# The first is long and the same for every build of a version.
SKIPPED = ('PyTorch compiling details', 'numpy_random_seed')


def page() -> str:
    """Text to paste into an issue."""
    lines = [f'{key}: {value}' for key, value in collect_env().items() if key not in SKIPPED]
    installed = {d.name: d.version for d in metadata.distributions() if d.name.startswith(PACKAGES)}
    lines += [f'{name}: {version}' for name, version in sorted(installed.items())]
    lines.append(f'threads: {torch.get_num_threads()}')
    for device in devices():
        for operator, table in operators().items():
            lines += [f'\n{operator} on {device}:', *(f'  {x:<10} {_state(table, x, device)}' for x in table)]
    try:
        lines.append(f'\ncache folder: {native.cache_folder()}')
    # RuntimeError: there is no home folder.
    except (OSError, RuntimeError) as error:
        lines.append(f'\nno cache folder: {error}')
    return '\n'.join(lines)


def _state(table, name: str, device: torch.device) -> str:
    """Whether a backend runs and, if not, why; for which types 'auto' takes it."""
    reasons = table.module(name).unsupported(device, torch.float32)
    if reasons or (reasons := [table.distrust(name, device)])[0]:
        return f'not used: {"; ".join(reasons)}'
    taken = [d for d in ('float32', 'bfloat16') if table.runnable(device, getattr(torch, d))[0] == name]
    return f'runs{(taken and ", taken for " + " and ".join(taken)) or ""}'
