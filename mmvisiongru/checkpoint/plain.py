"""Content of built-in types and tensors only, which ``torch.load(path, weights_only=True)`` reads."""

import numpy as np
import torch
from mmengine.logging import HistoryBuffer


def to_plain(node):
    """Replace numpy values and mmengine's log buffers in a nest of dicts, lists and tuples."""
    if isinstance(node, HistoryBuffer):
        values, counts = map(np.array, node.data)
        return dict(values=torch.from_numpy(values), counts=torch.from_numpy(counts), size=node.max_length)
    if isinstance(node, (np.generic, np.ndarray)):
        return node.tolist()
    if isinstance(node, dict):
        return {key: to_plain(value) for key, value in node.items()}
    if isinstance(node, (list, tuple)):
        # Not the class of the tuple, which the reader would have to trust.
        return (list if isinstance(node, list) else tuple)(map(to_plain, node))
    return node


def restore_log_buffers(content):
    """Undo :func:`to_plain` for the log buffers of a checkpoint, in place: mmengine resumes no others."""
    hub = content.get('message_hub') if isinstance(content, dict) else None
    scalars = hub.get('log_scalars') if isinstance(hub, dict) else None
    for name, value in (scalars or {}).items():
        if isinstance(value, dict) and set(value) == {'values', 'counts', 'size'}:
            values, counts = value['values'].numpy(), value['counts'].numpy()
            scalars[name] = HistoryBuffer(values, counts, value['size'])
    return content
