"""Names of the released checkpoints of VisionGRU, and their conversion to ours and back."""

import re
from collections import Counter

import torch
from torch import nn

from mmvisiongru.errors import InputError
from mmvisiongru.models import VisionGRU

from .common import SEG_HEADS, first, require_fit, without_wrappers

# Modules of a block.
BLOCK = {
    'norm1': 'norm', 'mixer.dwconv': 'dw_conv', 'norm2': 'norm2', 'mlp.fc1': 'projection1',
    'mlp.fc2': 'projection2',
}  # fmt: skip


def name_table(depths, names):
    """Our names, with the released names of the parts of each and the dimension that joins them.

    ``depths`` are the blocks of each stage; ``names``, keys in either format, tell which heads exist.
    """
    modules = [(f'backbone.stem.{m}', f'tokenizer.{m}') for m in ('conv1', 'norm1', 'conv2', 'norm2')]
    table = []
    for i, depth in enumerate(depths):
        if i:
            here = f'backbone.stages.{i}.downsample'
            modules += [(f'{here}.{m}', f'snake_gru.{m}{i}') for m in ('conv', 'norm')]
        for j in range(depth):
            here, there = f'backbone.stages.{i}.blocks.{j}', f'snake_gru.layers.{i}.{j}'
            modules += [(f'{here}.{ours}', f'{there}.{theirs}') for ours, theirs in BLOCK.items()]
            # Path 0, 'row', is min_gru_1 and path 1, 'row_reverse', is min_gru_2. Rows of the input
            # projection are outputs, columns of the output projection are inputs of a path.
            for ours, theirs, dim in (('in_proj', 'to_hidden_and_gate', 0), ('out_proj', 'to_out', 1)):
                parts = tuple(f'{there}.min_gru_{p}.{theirs}.weight' for p in (1, 2))
                table.append((f'{here}.mixer.{ours}.weight', parts, dim))
    if any(name.startswith(('fc.', 'head.fc.')) for name in names):
        modules.append(('head.fc', 'fc'))
    table += [(f'{ours}.{p}', (f'{theirs}.{p}',), 0) for ours, theirs in modules for p in ('weight', 'bias')]
    return table + [(name, (name,), 0) for name in names if name.startswith(SEG_HEADS)]


def count_blocks(names, prefix):
    """Blocks of each stage, counted in names ``<prefix><stage>.<block>.``, with or without 'blocks.'."""
    pattern = re.compile(re.escape(prefix) + r'(\d+)\.(?:blocks\.)?(\d+)\.')
    blocks = {m.groups() for m in map(pattern.match, names) if m}
    count = Counter(int(stage) for stage, _ in blocks)
    if not count:
        raise InputError(f'none of {prefix}* among {len(names)} keys, first {first(names)}')
    missing = [f'{prefix}{stage}.*' for stage in range(max(count)) if not count[stage]]
    if missing:
        raise InputError(f'missing {first(missing)}, though there are later stages')
    return [count[stage] for stage in range(max(count) + 1)]


def require_names(expected, found):
    """Raise InputError with the number and the first of the names that only one of both holds."""
    known, lists = set(expected), dict(missing=[n for n in expected if n not in found])
    lists['unmapped'] = [n for n in found if n not in known]
    wrong = [f'{len(names)} {kind} keys, first {first(names)}' for kind, names in lists.items() if names]
    if wrong:
        raise InputError('; '.join(wrong))


def arch_of(state):
    """The ``arch`` argument of a model, from the shapes of its weights under our names."""
    depths = count_blocks(state, 'backbone.stages.')
    widths = [len(state[f'backbone.stages.{i}.blocks.0.norm1.weight']) for i in range(len(depths))]
    return dict(embed_dims=widths, depths=depths)


def name_of(state):
    """Name of the arch of a model, None if it has no name."""
    arch = arch_of(state)
    return next((name for name, known in VisionGRU.arch_settings.items() if known == arch), None)


def require_model(state):
    """Raise InputError unless names and shapes are those of the model with this ``arch_of``."""
    arch = arch_of(state)
    with torch.device('meta'):
        channels = state['backbone.stem.conv1.weight'].shape[1]
        backbone = VisionGRU(arch, in_channels=channels, out_indices=(-1,))
        model = nn.ModuleDict({'backbone': backbone})
        if 'head.fc.weight' in state:
            fc = nn.Linear(arch['embed_dims'][-1], len(state['head.fc.weight']))
            model['head'] = nn.ModuleDict({'fc': fc})
    require_fit(model, state)


def to_mmvisiongru(state):
    """Rename and fuse a released state dict, whatever wrappers it came through."""
    released = without_wrappers(state, r'((backbone\.)?vig\.)?')
    table = name_table(count_blocks(released, 'snake_gru.layers.'), released)
    require_names([name for _, parts, _ in table for name in parts], released)
    ours = {}
    for name, parts, dim in table:
        values = [released[part] for part in parts]
        if len({v.shape for v in values}) > 1:
            raise InputError(f'{" and ".join(parts)} differ in shape: {[tuple(v.shape) for v in values]}')
        ours[name] = torch.cat(values, dim) if len(values) > 1 else values[0]
    require_model(ours)
    return ours


def to_released(state):
    """Undo :func:`to_mmvisiongru`: a classifier gets plain names, a backbone ``vig.``, a segmentor both.

    The released model reads rows and their reverse with candidate 'g'. Weights do not tell whether theirs
    did; a model with other ``scan_paths`` of the same number, or another ``candidate``, has no released form.
    """
    table = name_table(count_blocks(state, 'backbone.stages.'), state)
    require_names([name for name, _, _ in table], state)
    require_model(state)
    prefix = '' if 'head.fc.weight' in state else 'vig.'
    if any(name.startswith(SEG_HEADS) for name in state):
        prefix = 'backbone.vig.'
    released = {}
    for name, parts, dim in table:
        for part, value in zip(parts, state[name].chunk(len(parts), dim), strict=True):
            # A slice would be saved with all of the tensor that it is cut from.
            released[part if part.startswith(SEG_HEADS) else prefix + part] = value.clone()
    return released
