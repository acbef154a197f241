"""Renaming of released checkpoints of VisionGRU and Vision-RWKV to this package's names, and back.

A family of models is a module. It knows which names belong to which and the model that weights describe.
"""

import re

import torch
from torch import nn

from mmvisiongru.checkpoint import unfit_keys
from mmvisiongru.errors import InputError

from . import visiongru, vrwkv
from .visiongru import SEG_HEADS, first

__all__ = ['arch_of', 'first', 'name_of', 'to_mmvisiongru', 'to_released']

# Linear layers of mmpretrain's heads, the last one at the end.
HEADS = (('head.fc',), ('head.layers.pre_logits', 'head.layers.head'))


def to_mmvisiongru(state):
    """Rename and join released weights, whatever wrappers they came through.

    A backbone alone gets ``backbone.``. InputError names keys that are missing, unmapped or of another shape.
    """
    family, released, ours = _family(state), {}, {}
    for name, value in state.items():
        short = re.sub(rf'^(module\.)*{family.WRAPPERS}', '', name.replace('_orig_mod.', ''))
        if short in released:
            raise InputError(f'{short} is there twice, under different prefixes')
        released[short] = value
    # The step counter of torch.optim.swa_utils.AveragedModel is not a weight.
    released.pop('n_averaged', None)
    table = family.name_table(released)
    _require_names([name for _, parts, _ in table for name in parts], released)
    for name, parts, dim in table:
        values = [released[part] for part in parts]
        shapes = [tuple(v.shape) for v in values]
        if len(values) > 1 and (len(shapes[0]) != 2 or len(set(shapes)) > 1):
            raise InputError(f'{" and ".join(parts)} are no matrices of one shape: {shapes}')
        ours[name] = torch.cat(values, dim) if len(values) > 1 else values[0]
    _require_model(family, ours)
    return ours


def to_released(state):
    """Undo :func:`to_mmvisiongru`; InputError names keys that the released format lacks.

    A classifier of VisionGRU gets plain names, a backbone ``vig.``, a segmentor both prefixes. The released
    model reads rows and their reverse with candidate 'g'. Weights do not tell whether theirs did; a model
    with other ``scan_paths`` of the same number, or another ``candidate``, has no released form. A backbone
    of Vision-RWKV keeps ``backbone.``, which the released code deletes.
    """
    family, released = _family(state), {}
    table, prefix = family.name_table(state), family.released_prefix(state)
    _require_names([name for name, _, _ in table], state)
    _require_model(family, state)
    for name, parts, dim in table:
        # A counter of batch norm has no dimension.
        values = state[name].chunk(len(parts), dim) if len(parts) > 1 else [state[name]]
        for part, value in zip(parts, values, strict=True):
            # A slice would be saved with all of the tensor that it is cut from.
            released[part if part.startswith(SEG_HEADS) else prefix + part] = value.clone()
    return released


def arch_of(state):
    """The ``arch`` argument of a model, as far as its weights under our names tell."""
    return _family(state).arch_of(state)


def name_of(state):
    """Name of the arch of a model, None if it has no name."""
    return _family(state).name_of(state)


def _family(names):
    """The family that knows the names; without one, the first family says what is missing."""
    return vrwkv if vrwkv.knows(names) else visiongru


def _require_names(expected, found):
    """Raise InputError with the number and the first of the names that only one of both holds."""
    known, lists = set(expected), dict(missing=[n for n in expected if n not in found])
    lists['unmapped'] = [n for n in found if n not in known]
    wrong = [f'{len(names)} {kind} keys, first {first(names)}' for kind, names in lists.items() if names]
    if wrong:
        raise InputError('; '.join(wrong))


def _require_model(family, state):
    """Raise InputError unless names and shapes, decode heads aside, are those of the model they describe."""
    try:
        with torch.device('meta'):
            model = nn.ModuleDict({'backbone': family.backbone(state)})
            own, width = model.state_dict(), model['backbone'].num_features
            for head in next((names for names in HEADS if f'{names[-1]}.weight' in state), ()):
                linear = nn.Linear(width, len(state[f'{head}.weight']))
                own |= {f'{head}.{name}': value for name, value in linear.state_dict().items()}
                width = linear.out_features
    except KeyError as error:
        raise InputError(f'1 missing keys, first {error.args[0]}') from None
    # Weights with too few dimensions, or sizes that the model refuses.
    except (IndexError, TypeError, ValueError) as error:
        raise InputError(f'no model has weights of these shapes: {error}') from None
    unfit = unfit_keys(own, {k: v for k, v in state.items() if not k.startswith(SEG_HEADS)})
    if unfit:
        raise InputError(f'{len(unfit)} keys do not fit the model, first {first(unfit)}')
