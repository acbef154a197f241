"""A trained model as a function of raw images."""

from collections.abc import Sequence

import torch
from mmengine.model import revert_sync_batchnorm
from torch import Tensor, nn

from mmvisiongru.errors import InputError

OUTPUTS = ('labels', 'logits', 'scores')


class Deployed(nn.Module):
    """A classifier of mmpretrain or a segmentor of mmseg with its normalisation, in evaluation mode.

    Args:
        model (nn.Module): As the registry builds it, with its ``data_preprocessor``.
        segmentor (bool): Which of the two it is.
        outputs (Sequence[str]): Out of 'labels', 'logits' and 'scores' (softmax over the classes).

    Raises:
        InputError: An output is unknown, or the model has a single, binary output.
    """

    def __init__(self, model: nn.Module, segmentor: bool, outputs: Sequence[str]):
        super().__init__()
        if unknown := [name for name in outputs if name not in OUTPUTS]:
            raise InputError(f'unknown output {unknown[0]!r}; there are {", ".join(OUTPUTS)}')
        if segmentor and model.out_channels == 1:
            raise InputError('a segmentor with one output channel (a threshold, no classes) is not exported')
        # Without a process group SyncBN does not run, and in evaluation it is batch norm.
        self.model = revert_sync_batchnorm(model).eval()
        self.segmentor, self.outputs = segmentor, tuple(outputs)
        self.classes = model.num_classes if segmentor else model.head.num_classes
        preprocess = model.data_preprocessor
        # Images are read as BGR: one that does not convert them was trained on that order.
        name = '_channel_conversion' if segmentor else 'to_rgb'
        self.flip = not getattr(preprocess, name)
        normalise = preprocess._enable_normalize
        self.register_buffer('mean', preprocess.mean.clone() if normalise else torch.zeros(3, 1, 1))
        self.register_buffer('std', preprocess.std.clone() if normalise else torch.ones(3, 1, 1))

    def logits(self, images: Tensor) -> Tensor:
        """(B, 3, H, W), RGB in 0..255 -> (B, classes), of a segmentor (B, classes, H, W)."""
        x = images.flip(1) if self.flip else images
        x = (x - self.mean) / self.std
        if self.segmentor:
            return self.model.encode_decode(x, [dict(img_shape=x.shape[2:])])
        return self.model(x, mode='tensor')

    def forward(self, images: Tensor) -> tuple[Tensor, ...]:
        """The ``outputs``, in their order; labels are int64 and lack the dimension of classes."""
        logits = self.logits(images)
        compute = dict(
            labels=lambda: logits.argmax(1), logits=lambda: logits, scores=lambda: logits.softmax(1)
        )
        return tuple(compute[name]() for name in self.outputs)
