"""Make what a run saves readable as data only."""

from inspect import isroutine

import numpy as np
import torch

BUILT_IN = (dict, list, tuple, set, bool, int, float, complex, str, bytes)
LEFT_OUT = object()


def to_plain(node, place: str, unreadable: list[str]):
    """Replace values of numpy, and of classes derived from built-in types, in a nest of collections.

    Objects that are neither these nor tensors, which a reader would have to trust, are left out with the
    entry of the dict that holds them, and its place is added to ``unreadable``; functions without that.

    Examples:
        >>> from mmvisiongru.checkpoint import to_plain
        >>> to_plain(dict(best=0.5, seen=range(3)), 'meta', unreadable := []), unreadable
        ({'best': 0.5}, ['meta.seen'])
    """
    if isinstance(node, (np.generic, np.ndarray)):
        node = node.tolist()
    kind = next((each for each in BUILT_IN if isinstance(node, each)), None)
    if kind is dict:
        # mmengine's OneCycleLR has a function of its own in its state.
        items = [(k, v, f'{place}.{k}') for k, v in node.items() if not isroutine(v)]
        items = [(to_plain(k, name, unreadable), to_plain(v, name, unreadable)) for k, v, name in items]
        return {k: v for k, v in items if k is not LEFT_OUT and v is not LEFT_OUT}
    if kind in (list, tuple, set):
        # A named tuple becomes a plain one: a reader would have to trust its class.
        children = [to_plain(child, place, unreadable) for child in node]
        return LEFT_OUT if any(child is LEFT_OUT for child in children) else kind(children)
    if not kind and node is not None and not torch.is_tensor(node):
        unreadable.append(place)
        return LEFT_OUT
    # str() of an enumeration would give its name.
    return str.__str__(node) if kind is str else kind(node) if kind else node
