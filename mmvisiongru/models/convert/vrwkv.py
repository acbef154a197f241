"""Released checkpoints of Vision-RWKV: classifiers, and segmentors with the adapter.

Their names are ours except for the two linear layers of VRWKV-L's head, which mmpretrain names differently.
"""

from mmvisiongru.models import VRWKV, VRWKVAdapter

WRAPPERS = ''
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


def name_table(names):
    """Our names, each with the one released name of it; of a backbone alone, ours have ``backbone.``."""
    table = []
    for name in names:
        ours = theirs = name
        for released, own in HEAD.items():
            if name.startswith((released, own)):
                rest = name.removeprefix(released).removeprefix(own)
                ours, theirs = own + rest, released + rest
        table.append((f'backbone.{ours}' if 'pos_embed' in names else ours, (theirs,), 0))
    return table


def released_prefix(names):
    """Of the released names: none."""
    return ''


def backbone(state):
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
