"""Detection without a compiler: the operators of mmcv that Mask R-CNN and RetinaNet call, by torchvision."""

import sys
from importlib import import_module
from importlib.machinery import ModuleSpec
from importlib.util import find_spec
from types import ModuleType

import torch
import torch.nn.functional as F
from torch import Tensor

from mmvisiongru.errors import InputError, no_compiled_operators


def provide_ops() -> None:
    """Put :class:`Operators` where mmcv looks for its compiled operators; nothing if it has them."""
    if _lacks_ops():
        sys.modules['mmcv._ext'] = operators = Operators('mmcv._ext')
        # For others that ask whether there is such a module.
        operators.__spec__ = ModuleSpec('mmcv._ext', None)


def _lacks_ops() -> bool:
    return 'mmcv._ext' not in sys.modules and find_spec('mmcv._ext') is None


def import_mmdet() -> None:
    """Import mmdet, with operators; InputError says what it misses."""
    # mmpretrain.models imports mmdet where there is one, and mmdet keeps what it finds on import.
    if 'mmdet.models' in sys.modules and _lacks_ops():
        raise InputError('mmdet was imported before its operators; build the detector first in a new process')
    provide_ops()
    try:
        import_module('mmdet.datasets')
        import_module('mmdet.models')
    except ImportError as error:
        raise InputError(f'mmdet cannot be imported: {error}; see docs/detection.md') from error


class Operators(ModuleType):
    """Stands in for ``mmcv._ext``: it has every operator, but only these compute. Results go to ``out``."""

    def __getattr__(self, name: str):
        # Python asks modules for __path__ and the like.
        if name.startswith('__'):
            raise AttributeError(name)

        def missing(*_, **__):
            raise InputError(f'{name}: {no_compiled_operators()}')

        return missing

    def nms(self, boxes: Tensor, scores: Tensor, iou_threshold: float, offset: int) -> Tensor:
        """Indices of the boxes (N, 4) that are kept, the best first; a side is x2 - x1 + ``offset`` long."""
        from torchvision.ops import nms

        return nms(boxes + boxes.new_tensor([0, 0, offset, offset]), scores.to(boxes.dtype), iou_threshold)

    def roi_align_forward(self, maps: Tensor, rois: Tensor, out: Tensor, *_, **options) -> None:
        """Maps (B, C, H, W) and regions (N, 5) of image, x1, y1, x2, y2 -> (N, C, height, width)."""
        out.copy_(_roi_align(maps, rois, **options))

    def roi_align_backward(self, grad: Tensor, rois: Tensor, _y, _x, out: Tensor, **options) -> None:
        # It is linear in the maps, so that their values do not matter to their gradient.
        maps = torch.zeros_like(out, requires_grad=True)
        with torch.enable_grad():
            out.copy_(torch.autograd.grad(_roi_align(maps, rois, **options), maps, grad)[0])

    def sigmoid_focal_loss_forward(self, x: Tensor, target: Tensor, weight: Tensor, out: Tensor, **options):
        """Logits x (N, classes), labels (N), of which ``classes`` is none, -> (N, classes)."""
        out.copy_(_focal_loss(x, target, weight, **options))

    def sigmoid_focal_loss_backward(self, x: Tensor, target: Tensor, weight: Tensor, out: Tensor, **options):
        x = x.detach().requires_grad_()
        with torch.enable_grad():
            out.copy_(torch.autograd.grad(_focal_loss(x, target, weight, **options).sum(), x)[0])


def _roi_align(
    maps: Tensor, rois: Tensor, aligned_height: int, aligned_width: int, pool_mode: int, **options
) -> Tensor:
    from torchvision.ops import roi_align

    if pool_mode != 1:
        raise InputError("RoIAlign has pool_mode='avg' only where mmcv is installed without its operators")
    # Not every device computes it in 16 bits.
    rois = rois.to(torch.promote_types(maps.dtype, torch.float32))
    return roi_align(maps.to(rois.dtype), rois, (aligned_height, aligned_width), **options)


def _focal_loss(x: Tensor, target: Tensor, weight: Tensor, gamma: float, alpha: float) -> Tensor:
    from torchvision.ops import sigmoid_focal_loss

    if weight.numel():
        raise InputError('sigmoid_focal_loss has no weight where mmcv is installed without its operators')
    classes = x.size(1)
    return sigmoid_focal_loss(x, F.one_hot(target, classes + 1)[:, :classes].to(x.dtype), alpha, gamma)
