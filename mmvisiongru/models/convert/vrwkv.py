"""Released checkpoints of Vision-RWKV: classifiers, and segmentors with the adapter.

Their names are ours except for the two linear layers of VRWKV-L's head, which mmpretrain names differently.
"""

import torch
from torch import nn

from mmvisiongru.errors import InputError
from mmvisiongru.models import VRWKV, VRWKVAdapter

from .common import require_fit, without_wrappers

# Released prefix: ours.
HEAD = {'head.0.': 'head.layers.pre_logits.', 'head.2.': 'head.layers.head.'}


def knows(names):
    """Whether names in either format belong to this family."""
    return any('layers.0.att.spatial_decay' in name for name in names)


def is_adapter(state):
    """Whether a model, under our names, is a backbone in an adapter."""
    return any(name.startswith('backbone.spm.') for name in state)


def arch_of(state):
    """The ``arch`` argument as far as weights tell: without the place of norms and initial values."""
    layers = [name.split('.')[2] for name in state if name.startswith('backbone.layers.')]
    arch = dict(embed_dims=state['backbone.pos_embed'].shape[2], depth=1 + max(map(int, layers)))
    arch['key_norm'] = 'backbone.layers.0.att.key_norm.weight' in state
    if 'backbone.layers.0.gamma1' in state:
        arch['layer_scale'] = 1.0
    return arch


def name_of(state):
    """Name of the arch of a model, None if it has no name."""
    arch = arch_of(state)
    kind = VRWKVAdapter if is_adapter(state) else VRWKV
    for name, known in kind.arch_settings.items():
        full = kind.arch_options | known
        same = all(full[key] == arch[key] for key in ('embed_dims', 'depth', 'key_norm'))
        if same and (full['layer_scale'] is None) == ('layer_scale' not in arch):
            return name
    return None


def to_mmvisiongru(state):
    """Check a released state dict and rename the head of VRWKV-L; of a backbone alone, add ``backbone.``."""
    plain = without_wrappers(state)
    if 'pos_embed' in plain:
        plain = {f'backbone.{name}': value for name, value in plain.items()}
    renamed = _renamed(plain, HEAD)
    require_model(renamed)
    return renamed


def to_released(state):
    """Undo :func:`to_mmvisiongru`; a backbone alone keeps ``backbone.``, which the released code deletes."""
    require_model(state)
    return _renamed(state, {ours: theirs for theirs, ours in HEAD.items()})


def _renamed(state, prefixes):
    renamed = {}
    for name, value in state.items():
        prefix = next((p for p in prefixes if name.startswith(p)), '')
        renamed[prefixes.get(prefix, '') + name.removeprefix(prefix)] = value
    return renamed


def require_model(state):
    """Raise InputError unless names and shapes are those of the model that they describe."""
    try:
        with torch.device('meta'):
            model = nn.ModuleDict({'backbone': _backbone(state)})
            if 'head.fc.weight' in state:
                model['head'] = nn.ModuleDict({'fc': _linear(state, 'head.fc')})
            elif 'head.layers.head.weight' in state:
                parts = {n: _linear(state, f'head.layers.{n}') for n in ('pre_logits', 'head')}
                model['head'] = nn.ModuleDict({'layers': nn.ModuleDict(parts)})
    except KeyError as error:
        raise InputError(f'1 missing keys, first {error.args[0]}') from None
    require_fit(model, state)


def _linear(state, name):
    return nn.Linear(*reversed(state[f'{name}.weight'].shape))


def _backbone(state):
    """The backbone, as far as names and shapes depend on its arguments."""
    patch = state['backbone.patch_embed.projection.weight'].shape
    tokens = state['backbone.pos_embed'].shape[1]
    arch, options = arch_of(state), dict(in_channels=patch[1], img_size=(tokens * patch[2], patch[3]))
    if not is_adapter(state):
        return VRWKV(arch, patch_size=tuple(patch[2:]), **options)
    attention = 'backbone.interactions.0.extractor.attn'
    # Heads and points are known by their product alone.
    heads = len(state[f'{attention}.attention_weights.bias'])
    ratio = len(state[f'{attention}.value_proj.bias']) / arch['embed_dims']
    arch.update(num_heads=1, value_ratio=ratio)
    return VRWKVAdapter(
        arch, prior_channels=len(state['backbone.spm.stem.0.weight']), points=heads, **options
    )
