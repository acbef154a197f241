"""Names of the released checkpoints of VisionGRU, and the model that weights describe."""

import re
from collections import Counter

from mmvisiongru.errors import InputError
from mmvisiongru.models import VisionGRU

# Heads of a segmentor, whose names are the same in both formats.
SEG_HEADS = ('decode_head.', 'auxiliary_head.')
# Prefixes of the released names.
WRAPPERS = r'((backbone\.)?vig\.)?'
# Modules of a block.
BLOCK = {
    'norm1': 'norm', 'mixer.dwconv': 'dw_conv', 'norm2': 'norm2', 'mlp.fc1': 'projection1',
    'mlp.fc2': 'projection2',
}  # fmt: skip


def name_table(names):
    """Our names, with the released names of the parts of each and the dimension that joins them.

    ``names``, keys in either format, tell how many blocks there are and which heads.
    """
    ours = any(name.startswith('backbone.stages.') for name in names)
    depths = count_blocks(names, 'backbone.stages.' if ours else 'snake_gru.layers.')
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


def first(names):
    """The first three of a list, for a message of one line."""
    return ', '.join(map(str, list(names)[:3]))


def released_prefix(names):
    """Of the released names: a classifier has none."""
    if 'head.fc.weight' in names:
        return ''
    return 'backbone.vig.' if any(name.startswith(SEG_HEADS) for name in names) else 'vig.'


def arch_of(state):
    """The ``arch`` argument of a model, from the shapes of its weights under our names."""
    depths = count_blocks(state, 'backbone.stages.')
    widths = [len(state[f'backbone.stages.{i}.blocks.0.norm1.weight']) for i in range(len(depths))]
    return dict(embed_dims=widths, depths=depths)


def name_of(state):
    """Name of the arch of a model, None if it has no name."""
    arch = arch_of(state)
    return next((name for name, known in VisionGRU.arch_settings.items() if known == arch), None)


def backbone(state):
    """The backbone, as far as names and shapes depend on its arguments."""
    channels = state['backbone.stem.conv1.weight'].shape[1]
    return VisionGRU(arch_of(state), in_channels=channels, out_indices=(-1,))
