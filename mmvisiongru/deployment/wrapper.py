"""A trained model as a function of raw images."""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from mmengine.model import revert_sync_batchnorm
from mmengine.structures import BaseDataElement
from torch import Tensor, nn

from mmvisiongru.errors import InputError
from mmvisiongru.zoo import image_channels

OUTPUTS = ('labels', 'logits', 'scores')


class Deployed(nn.Module):
    """A classifier of mmpretrain or a segmentor of mmseg with its normalisation, in evaluation mode.

    Args:
        model (nn.Module): As the registry builds it, with its ``data_preprocessor``.
        segmentor (bool): Which of the two it is.
        outputs (Sequence[str]): Different ones of 'labels', 'logits' and 'scores' (softmax over the classes).

    Raises:
        InputError: The outputs are others, or the model has one output channel or takes no 3-channel images.
    """

    def __init__(self, model: nn.Module, segmentor: bool, outputs: Sequence[str]):
        super().__init__()
        if len({*outputs} & {*OUTPUTS}) < len(outputs):
            raise InputError(f'outputs must be different ones of {OUTPUTS}, got {", ".join(outputs)}')
        if segmentor and model.out_channels == 1:
            raise InputError('a segmentor of one output channel (a threshold) is not exported: train with 2')
        if not segmentor and 'ClsHead' not in {kind.__name__ for kind in type(model.head).__mro__}:
            raise InputError(f'{type(model.head).__name__} is not exported: heads of one class an image are')
        if (channels := image_channels(model)) != 3:
            raise InputError(f'only models of 3-channel images are exported, in_channels is {channels}')
        # SyncBN needs a process group; in evaluation it equals batch norm.
        self.model = revert_sync_batchnorm(model).eval()
        self.segmentor, self.outputs = segmentor, tuple(outputs)
        self.classes = model.num_classes if segmentor else model.head.num_classes
        preprocess = model.data_preprocessor
        # Data sets read images as BGR.
        self.flip = not _swaps_channels(preprocess)
        # The buffers exist only where a config normalises.
        self.register_buffer('mean', getattr(preprocess, 'mean', torch.zeros(3, 1, 1)).clone())
        self.register_buffer('std', getattr(preprocess, 'std', torch.ones(3, 1, 1)).clone())
        if segmentor:
            self.divisor = (preprocess.test_cfg or {}).get('size_divisor') or 1
            self.pad_value = preprocess.pad_val
        else:
            self.divisor, self.pad_value = preprocess.pad_size_divisor, preprocess.pad_value

    def logits(self, images: Tensor) -> Tensor:
        """(B, 3, H, W), RGB in 0..255 -> (B, classes), of a segmentor (B, classes, H, W)."""
        x = images.flip(1) if self.flip else images
        x = (x - self.mean) / self.std
        height, width = x.shape[2:]
        if self.divisor > 1:
            x = F.pad(x, (0, -width % self.divisor, 0, -height % self.divisor), value=self.pad_value)
        if not self.segmentor:
            return self.model(x, mode='tensor')
        logits = self.model.encode_decode(x, [dict(img_shape=x.shape[2:])])
        return logits[:, :, :height, :width] if self.divisor > 1 else logits

    def forward(self, images: Tensor) -> tuple[Tensor, ...]:
        """The ``outputs``, in their order; labels are int64 and lack the dimension of classes."""
        logits = self.logits(images)
        found = dict(labels=logits.argmax(1), logits=logits, scores=logits.softmax(1))
        return tuple(found[name] for name in self.outputs)


def _swaps_channels(preprocess: nn.Module) -> bool:
    """Whether the first channel of an image leaves a data preprocessor as the last one."""
    images = torch.zeros(2, 3, 1, 1)
    images[1, 0] = 255
    samples = (dict(inputs=[image], data_samples=[BaseDataElement()]) for image in images)
    dark, bright = (preprocess(sample)['inputs'][0, -1] for sample in samples)
    return bool((dark != bright).any())
