"""What mmcv's functions compute without its compiled operators, against loops in float64."""

import sys
from importlib import import_module
from importlib.util import find_spec

import numpy as np
import pytest
import torch

from mmvisiongru.errors import InputError
from mmvisiongru.mmcv_ops import Operators, provide_ops

# What float32 leaves of a sum over a few hundred values.
FLOAT32 = dict(rtol=1e-5, atol=1e-5)


@pytest.fixture(scope='module')
def ops():
    """mmcv.ops on the stand-in, for the tests of this file alone, where mmcv has its operators too."""
    with pytest.MonkeyPatch.context() as patch:
        if find_spec('mmcv._ext') is None:
            patch.setitem(sys.modules, 'mmcv._ext', Operators('mmcv._ext'))
        ops = import_module('mmcv.ops')
        for name in ('nms', 'roi_align', 'focal_loss'):
            patch.setattr(sys.modules[f'mmcv.ops.{name}'], 'ext_module', Operators('mmcv._ext'))
        yield ops


def random_boxes(rng, number, size):
    corners = rng.uniform(-4, size, (number, 2))
    return np.concatenate([corners, corners + rng.uniform(1, size, (number, 2))], 1)


def kept(boxes, scores, threshold, offset):
    """Boxes that overlap no better one that is kept by more than the threshold."""
    found = []
    for i in np.argsort(-scores):
        for j in found:
            sides = np.minimum(boxes[i, 2:], boxes[j, 2:]) - np.maximum(boxes[i, :2], boxes[j, :2]) + offset
            both = np.prod(np.maximum(sides, 0))
            area = sum(np.prod(boxes[k, 2:] - boxes[k, :2] + offset) for k in (i, j))
            if both / (area - both) > threshold:
                break
        else:
            found.append(i)
    return found


@pytest.mark.parametrize('offset', [0, 1])
@pytest.mark.parametrize('threshold', [0.2, 0.5])
def test_nms_keeps_what_a_loop_keeps(ops, threshold, offset):
    rng = np.random.default_rng(0)
    boxes, scores = random_boxes(rng, 101, 17), rng.permutation(101) / 101
    _, index = ops.nms(torch.tensor(boxes).float(), torch.tensor(scores).float(), threshold, offset)
    assert index.tolist() == kept(boxes, scores, threshold, offset)
    # Another threshold would have kept others.
    assert len(index) != len(kept(boxes, scores, threshold + 0.1, offset))


def sampling(roi, size, shape, scale, ratio, aligned):
    """Weights (height, width, H, W) of the pixels in each value of a region, from the definition."""
    x1, y1, x2, y2 = roi * scale - (0.5 if aligned else 0)
    sides = np.array([y2 - y1, x2 - x1]) if aligned else np.maximum([y2 - y1, x2 - x1], 1)
    bins, weights = sides / size, np.zeros((*size, *shape))
    points = [ratio or int(np.ceil(side / n)) for side, n in zip(sides, size, strict=True)]
    for cell in np.ndindex(*size):
        for point in np.ndindex(*points):
            place = np.array([y1, x1]) + bins * (np.array(cell) + (np.array(point) + 0.5) / points)
            if (place < -1).any() or (place > shape).any():
                continue
            place = np.clip(place, 0, np.array(shape) - 1)
            for pixel in np.ndindex(2, 2):
                at = np.minimum(np.floor(place).astype(int) + pixel, np.array(shape) - 1)
                share = 1 - abs(place - np.floor(place) - pixel)
                weights[cell][tuple(at)] += share.prod() / np.prod(points)
    return weights


@pytest.mark.parametrize('dtype', [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(('aligned', 'ratio'), [(True, 0), (True, 3), (False, 0)])
def test_roi_align_is_bilinear_sampling_forward_and_backward(ops, aligned, ratio, dtype):
    rng, size, scale = np.random.default_rng(2), (3, 2), 0.5
    maps = torch.tensor(rng.normal(size=(2, 3, 7, 9))).to(dtype).requires_grad_()
    rois = torch.tensor(np.concatenate([[[0], [1], [1], [0]], random_boxes(rng, 4, 15)], 1)).to(dtype)
    out = ops.roi_align(maps, rois, size, scale, ratio, 'avg', aligned)
    cotangent = torch.tensor(rng.normal(size=out.shape)).to(dtype)
    (gradient,) = torch.autograd.grad(out, maps, cotangent)
    expected, expected_gradient = torch.empty(out.shape).double(), torch.zeros(maps.shape).double()
    for i, (image, *roi) in enumerate(rois.double().tolist()):
        weights = torch.tensor(sampling(np.array(roi), size, (7, 9), scale, ratio, aligned))
        expected[i] = torch.einsum('yxhw,chw->cyx', weights, maps[int(image)].double())
        expected_gradient[int(image)] += torch.einsum('yxhw,cyx->chw', weights, cotangent[i].double())
    tolerance = FLOAT32 if dtype == torch.float32 else dict(rtol=2**-8, atol=1e-5)
    torch.testing.assert_close(out.double(), expected, **tolerance)
    torch.testing.assert_close(gradient.double(), expected_gradient, **tolerance)


def test_focal_loss_and_its_gradient_follow_the_formula(ops):
    rng = np.random.default_rng(3)
    x, target = torch.tensor(rng.normal(size=(11, 4)) * 3).float().requires_grad_(), rng.integers(0, 5, 11)
    # As mmdet calls it; 4 is background.
    loss = ops.sigmoid_focal_loss(x, torch.tensor(target), 2.0, 0.25, None, 'none')
    cotangent = torch.tensor(rng.normal(size=loss.shape)).float()
    (gradient,) = torch.autograd.grad(loss, x, cotangent)
    p = 1 / (1 + np.exp(-x.detach().double().numpy()))
    own = target[:, None] == np.arange(4)
    expected = np.where(own, -0.25 * (1 - p) ** 2 * np.log(p), -0.75 * p**2 * np.log(1 - p))
    # d/dx of both, with dp/dx = p (1 - p).
    slope_own = 0.25 * (1 - p) ** 2 * (2 * p * np.log(p) - (1 - p))
    slope = np.where(own, slope_own, 0.75 * p**2 * (p - 2 * (1 - p) * np.log(1 - p)))
    torch.testing.assert_close(loss.double(), torch.tensor(expected), **FLOAT32)
    torch.testing.assert_close(gradient.double(), torch.tensor(slope) * cotangent.double(), **FLOAT32)


def test_other_operators_are_refused_by_name(ops, monkeypatch):
    with pytest.raises(InputError, match=r'softnms.*MMCV_WITH_OPS=1'):
        ops.soft_nms(torch.rand(2, 4), torch.rand(2))
    maps, rois = torch.rand(1, 1, 4, 4), torch.tensor([[0.0, 0, 0, 2, 2]])
    with pytest.raises(InputError, match='pool_mode'):
        ops.roi_align(maps, rois, 2, 1.0, 0, 'max', True)
    # Real operators stay.
    monkeypatch.setitem(sys.modules, 'mmcv._ext', real := object())
    provide_ops()
    assert sys.modules['mmcv._ext'] is real
