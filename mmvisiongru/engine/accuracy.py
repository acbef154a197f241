"""mmseg's accuracy of a training batch, without waiting for the device."""

import sys
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor


def accuracy(scores: Tensor, labels: Tensor, ignore_index: int) -> Tensor:
    """Share in percent of the pixels that are labelled whose highest score is their label, (1,).

    mmseg's selects these pixels, and a GPU must be asked how many there are; this one counts them.

    Args:
        scores (Tensor): (B, classes, H, W).
        labels (Tensor): (B, H, W).
        ignore_index (int): Label of the pixels without one.
    """
    labelled = labels != ignore_index
    right = (scores.topk(1, dim=1).indices.squeeze(1) == labels) & labelled
    # Neither is divided by nor is zero, and both as mmseg does it.
    eps = torch.finfo(torch.float32).eps
    right = right.sum(dtype=torch.float32) + eps
    return (right * (100.0 / (labelled.sum(dtype=torch.float64) + eps)).float())[None]


@contextmanager
def counting_accuracy() -> Iterator[None]:
    """Let the heads of mmseg, if it is in use, take :func:`accuracy` where that says the same."""
    heads = sys.modules.get('mmseg.models.decode_heads.decode_head')
    if heads is None:
        yield
        return
    original = heads.accuracy

    def choose(scores, labels, *args, **kwargs):
        if args or kwargs.keys() != {'ignore_index'} or kwargs['ignore_index'] is None or not len(scores):
            return original(scores, labels, *args, **kwargs)
        return accuracy(scores, labels, **kwargs)

    heads.accuracy = choose
    try:
        yield
    finally:
        heads.accuracy = original
