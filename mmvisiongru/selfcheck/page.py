"""One page about this machine: versions, devices, and which backend of each operator runs where."""

from importlib import metadata
from itertools import product

import torch
from mmengine.utils.dl_utils import collect_env

from mmvisiongru.ops import native

from .check import DEVICES, OPERATORS

PACKAGES = ('mmvisiongru', 'onedl-', 'mmengine', 'mmcv', 'mmseg', 'mmpretrain', 'triton', 'onnx')
SKIPPED = ('PyTorch compiling details', 'numpy_random_seed')


def page() -> str:
    """Text to paste into an issue."""
    lines = [f'{key}: {value}' for key, value in collect_env().items() if key not in SKIPPED]
    installed = {d.name: d.version for d in metadata.distributions() if d.name.startswith(PACKAGES)}
    lines += [f'{name}: {version}' for name, version in sorted(installed.items())]
    lines.append(f'threads: {torch.get_num_threads()}')
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
