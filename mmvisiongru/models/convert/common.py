"""Helpers for both families of released checkpoints."""

import re

from mmvisiongru.checkpoint import unfit_keys
from mmvisiongru.errors import InputError

SEG_HEADS = ('decode_head.', 'auxiliary_head.')


def first(names):
    """The first three of a list, for a message of one line."""
    return ', '.join(map(str, list(names)[:3]))


def without_wrappers(state, prefix=''):
    """Remove from names the prefixes of wrappers and ``prefix``, a regular expression."""
    plain = {}
    for name, value in state.items():
        short = re.sub(rf'^(module\.)*{prefix}', '', name.replace('_orig_mod.', ''))
        if short in plain:
            raise InputError(f'{short} is there twice, under different prefixes')
        plain[short] = value
    # The step counter of torch.optim.swa_utils.AveragedModel is not a weight.
    plain.pop('n_averaged', None)
    return plain


def require_fit(model, state):
    """Raise InputError unless names and shapes are those of a model, decode heads aside."""
    unfit = unfit_keys(model, {k: v for k, v in state.items() if not k.startswith(SEG_HEADS)})
    if unfit:
        raise InputError(f'{len(unfit)} keys do not fit the model, first {first(unfit)}')
