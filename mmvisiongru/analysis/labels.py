"""Labels of large images without the logits of all classes at full size."""

import torch
from mmengine.structures import PixelData
from torch import Tensor
from torch.nn.functional import interpolate

# Logits that are held at a time.
MOST_LOGITS = 1 << 24


def resized_argmax(logits: Tensor, size: tuple[int, int], align_corners: bool = False) -> Tensor:
    """The class of each pixel after bilinear resizing, as ``resize(logits, size).argmax(0)``.

    150 classes of a 4000 x 3000 image would be 7 GB; here only a strip of them exists at a time.

    Args:
        logits (Tensor): (C, h, w).
        size (tuple[int, int]): Height and width of the result.
        align_corners (bool): As in :func:`torch.nn.functional.interpolate`.

    Returns:
        Tensor: Classes, (1, H, W), int64.
    """
    height, width = size
    low, high, share = _rows_between(logits.size(1), height, align_corners, logits)
    labels = torch.empty(1, height, width, dtype=torch.int64, device=logits.device)
    rows = max(1, MOST_LOGITS // (logits.size(0) * width))
    for top in range(0, height, rows):
        here = slice(top, top + rows)
        strip = torch.lerp(logits[:, low[here]], logits[:, high[here]], share[here, None])
        strip = interpolate(strip[None], (strip.size(1), width), mode='bilinear', align_corners=align_corners)
        labels[:, here] = strip.argmax(1)
    return labels


def _rows_between(source: int, target: int, align_corners: bool, like: Tensor):
    """For each target row the two source rows around it, and the share of the second."""
    row = torch.arange(target, dtype=torch.float64)
    at = row * (source - 1) / max(1, target - 1) if align_corners else (row + 0.5) * source / target - 0.5
    at = at.clamp(0, source - 1)
    low = at.floor().long()
    share = (at - low).to(like.dtype).to(like.device)
    return low.to(like.device), (low + 1).clamp(max=source - 1).to(like.device), share


def label_by_strips(segmentor) -> None:
    """Let a segmentor of mmseg label its images by :func:`resized_argmax`; logits are not kept.

    What is not decided by the largest logit alone (one output for two classes, flipped views) stays as it is.
    """
    original = segmentor.postprocess_result

    def postprocess_result(seg_logits, data_samples=None):
        if data_samples is None or seg_logits.size(1) == 1 or any(s.get('flip') for s in data_samples):
            return original(seg_logits, data_samples)
        for logits, sample in zip(seg_logits, data_samples, strict=True):
            left, right, top, bottom = sample.get('img_padding_size', sample.get('padding_size', [0] * 4))
            logits = logits[:, top : logits.size(1) - bottom, left : logits.size(2) - right]
            labels = resized_argmax(logits, sample.ori_shape[:2], segmentor.align_corners)
            sample.pred_sem_seg = PixelData(data=labels)
        return data_samples

    segmentor.postprocess_result = postprocess_result
