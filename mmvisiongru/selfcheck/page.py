"""One page about this machine: versions, devices, and which backend of each operator runs where."""

from contextlib import suppress
from importlib import metadata
from itertools import product

import torch
from mmengine.utils.dl_utils import collect_env

from mmvisiongru import measure
from mmvisiongru.ops import native
from mmvisiongru.version import __version__

from .check import DEVICES, OPERATORS

PACKAGES = ('onedl-', 'mmengine', 'mmcv', 'mmseg', 'mmpretrain', 'triton', 'onnx')
SKIPPED = ('PyTorch compiling details', 'numpy_random_seed')


def page() -> str:
    """Text to paste into an issue."""
    lines = [f'{key}: {value}' for key, value in collect_env().items() if key not in SKIPPED]
    # A distribution that is only half removed has no name.
    installed = {str(d.name): d.version for d in metadata.distributions()}
    names = sorted(name for name in installed if name.startswith(PACKAGES))
    lines += [f'mmvisiongru: {__version__}', *(f'{name}: {installed[name]}' for name in names)]
    processor = measure.describe_machine(torch.device('cpu'))['device']
    lines.append(f'processor: {processor}, {torch.get_num_threads()} threads')
    with suppress(OSError):
        lines.append(f'C++ compiler: {native.compiler()}')
    for device, (table, _) in product(DEVICES, OPERATORS):
        lines.append(f'\n{table.operator} on {device}:')
        for name in table:
            reasons = '; '.join(table.reasons(name, device, torch.float32))
            taken = ", taken by 'auto'" if table.runnable(device)[0] == name else ''
            lines.append(f'  {name:<10} {f"not used: {reasons}" if reasons else f"runs{taken}"}')
    try:
        lines.append(f'\ncache folder: {native.cache_folder()}')
    # RuntimeError: there is no home folder.
    except (OSError, RuntimeError) as error:
        lines.append(f'\nno cache folder: {error}')
    return '\n'.join(lines)
