"""Heads of mmvisiongru against mmseg's: the same values and gradients from fewer operations."""

import copy
import warnings

import pytest
import torch
from mmcv.cnn import fuse_conv_bn
from mmengine.structures import PixelData
from mmseg.models import FCNHead, SegformerHead, UPerHead
from mmseg.registry import MODELS
from mmseg.structures import SegDataSample
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from mmvisiongru import optimize_for_inference
from mmvisiongru.models.heads import pixel_accuracy
from mmvisiongru.models.layers import joined_conv

HEADS = (UPerHead, SegformerHead)
BN = dict(type='BN', requires_grad=True)
# Strides of maps as of a backbone, odd and not square ones, one with an axis of a single pixel, some of which
# a part is larger than the first map, and several tiles of a CPU.
SIZES = (
    ((40, 56), (20, 28), (10, 14), (5, 7)),
    ((33, 17), (17, 9), (9, 5), (5, 3)),
    ((1, 30), (1, 15), (1, 8), (1, 4)),
    ((12, 20), (6, 30), (24, 5)),
    ((9, 11), (9, 11)),
    ((70, 131), (35, 66), (19, 32)),
)


@pytest.fixture(autouse=True)
def _small_maps_take_part(monkeypatch):
    """Count operations alone."""
    monkeypatch.setattr(joined_conv, 'CALLS', 0)


def build(kind, widths, norm_cfg=BN, **options):
    """mmseg's head and ours, with the same weights out of their own initialisation."""
    heads = []
    for name in (f'mmseg.{kind.__name__}', f'mmvisiongru.{kind.__name__}'):
        torch.manual_seed(0)
        index = list(range(len(widths)))
        cfg = dict(
            type=name, in_channels=widths, in_index=index, channels=40, num_classes=5, norm_cfg=norm_cfg,
            dropout_ratio=0.0,
        ) | (dict(in_channels=widths[0], in_index=0) if kind is FCNHead else {})  # fmt: skip
        with warnings.catch_warnings():
            warnings.simplefilter('ignore')
            heads.append(MODELS.build(cfg | options))
    for ours, theirs in zip(*(list(head.state_dict().items()) for head in heads), strict=True):
        assert ours[0] == theirs[0]
        assert torch.equal(ours[1], theirs[1])
    return heads


def maps(widths, sizes, dtype=torch.float64, batch=2):
    generator, pairs = torch.Generator().manual_seed(1), zip(widths, sizes, strict=True)
    return [torch.randn(batch, n, *size, dtype=dtype, generator=generator) for n, size in pairs]


def run(head, inputs, call=lambda head, inputs: head(inputs)):
    """Output, gradients of the inputs and of all parameters for a random cotangent."""
    head.zero_grad()
    inputs = [x.detach().clone().requires_grad_() for x in inputs]
    out = call(head, inputs)
    cotangent = torch.randn(out.shape, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    out.backward(cotangent.to(out.dtype))
    return [out.detach(), *(x.grad for x in inputs), *(p.grad for p in head.parameters())]


def distance(found, wanted):
    """The largest difference in any tensor, over its largest value."""
    pairs = list(zip(found, wanted, strict=True))
    assert all(a.shape == b.shape for a, b in pairs)
    # By torch, whose max is NaN if one is.
    return torch.stack([(a.double() - b.double()).abs().max() / b.abs().max() for a, b in pairs]).max()


@pytest.mark.parametrize('kind', HEADS)
@pytest.mark.parametrize('sizes', SIZES, ids=str)
@pytest.mark.parametrize(('align_corners', 'training'), [(False, True), (True, False)])
def test_values_and_gradients(kind, sizes, align_corners, training):
    widths = [3, 7, 4, 9][: len(sizes)]
    options = dict(align_corners=align_corners) | (dict(pool_scales=(1, 4)) if kind is UPerHead else {})
    theirs, ours = (head.double().train(training) for head in build(kind, widths, **options))
    inputs = maps(widths, sizes)
    wanted = run(theirs, inputs)
    assert distance(run(ours, inputs), wanted) <= 1e-12
    inputs = [x.contiguous(memory_format=torch.channels_last) for x in inputs]
    assert distance(run(ours, inputs), wanted) <= 1e-12
    assert ours.state_dict().keys() == theirs.state_dict().keys()
    if training:
        run(theirs, inputs)
        # Running statistics.
        assert distance(ours.buffers(), theirs.buffers()) <= 1e-12


WIDTHS, STAGES = [8, 16, 24, 32], SIZES[0]


@pytest.mark.parametrize('kind', HEADS)
def test_float32(kind):
    """Compared in float64 with weights rounded to float32, with widths that sum up as many values."""
    theirs, ours = build(kind, WIDTHS, channels=64)
    inputs = maps(WIDTHS, STAGES, torch.float32)
    assert distance(run(ours, inputs), run(theirs.double(), [x.double() for x in inputs])) <= 1e-5


@pytest.mark.parametrize('kind', HEADS)
@pytest.mark.parametrize('dtype', [torch.bfloat16, torch.float16], ids=str)
def test_autocast_loses_no_more_than_the_head_of_mmseg(kind, dtype):
    theirs, ours = build(kind, WIDTHS, channels=64)
    inputs = maps(WIDTHS, STAGES, torch.float32)

    def call(head, inputs):
        with torch.autocast('cpu', dtype):
            return head(inputs)

    exact = run(copy.deepcopy(theirs).double(), [x.double() for x in inputs])
    lost = [distance(run(head, inputs, call)[:5], exact[:5]) for head in (ours, theirs)]
    assert 0 < lost[0] <= 1.5 * lost[1]


@pytest.mark.parametrize('kind', HEADS)
def test_the_norm_folded(kind):
    """Folding gives the convolutions biases."""
    theirs, ours = (head.double().train() for head in build(kind, WIDTHS))
    inputs = maps(WIDTHS, STAGES)
    theirs(inputs), ours(inputs)
    wanted = theirs.eval()(inputs)
    for fold in (optimize_for_inference, fuse_conv_bn):
        norms, folded = [m for m in ours.modules() if isinstance(m, nn.BatchNorm2d)], fold(ours.eval())
        for norm in norms:
            # None may be called any more.
            norm.forward = None
        with torch.no_grad():
            assert distance([folded(inputs)], [wanted]) <= 1e-12


def test_sync_bn():
    """It runs on the CPU in evaluation only, or after mmengine has replaced it."""
    from mmengine.model import revert_sync_batchnorm

    theirs, ours = (h.double() for h in build(UPerHead, WIDTHS, dict(type='SyncBN', requires_grad=True)))
    inputs = maps(WIDTHS, STAGES)
    assert distance([ours.eval()(inputs)], [theirs.eval()(inputs)]) <= 1e-12
    theirs, ours = (revert_sync_batchnorm(head).train() for head in (theirs, ours))
    assert distance(run(ours, inputs), run(theirs, inputs)) <= 1e-12


CE = dict(type='CrossEntropyLoss')
LOSSES = (
    dict(loss_decode=[CE | dict(class_weight=[1, 2, 0.5, 1, 3]), CE | dict(loss_name='loss_more')]),
    dict(sampler=dict(type='OHEMPixelSampler', thresh=0.7, min_kept=50), ignore_index=2),
)


@pytest.mark.parametrize('kind', [FCNHead, *HEADS])
@pytest.mark.parametrize('options', LOSSES, ids=['two', 'sampled'])
def test_losses_and_accuracy(kind, options):
    heads = [head.double() for head in build(kind, [8] if kind is FCNHead else WIDTHS, **options)]
    logits, labels = torch.randn(2, 5, 9, 14, dtype=torch.float64), torch.randint(5, (2, 1, 35, 53))
    labels[0, :, 4:20] = heads[0].ignore_index
    samples = [SegDataSample(gt_sem_seg=PixelData(data=label)) for label in labels]
    found = []
    for head in heads:
        leaf = logits.clone(memory_format=torch.channels_last).requires_grad_()
        losses = head.loss_by_feat(leaf, samples)
        sum(value for name, value in losses.items() if 'loss' in name).backward()
        found.append({name: value.detach().reshape(1) for name, value in losses.items()} | dict(d=leaf.grad))
    accuracy = [values.pop('acc_seg') for values in found]
    # In float32.
    torch.testing.assert_close(*accuracy)
    assert found[0].keys() == found[1].keys()
    assert distance(found[1].values(), found[0].values()) <= 1e-12


def test_accuracy_of_one_channel_and_of_ties():
    logits = torch.tensor([[[[-1.0, 0.2, 3.0]]]])
    assert pixel_accuracy(logits, torch.tensor([[[0, 1, 255]]]), 255, threshold=0.6) == 50
    assert pixel_accuracy(torch.zeros(1, 4, 40, 3), torch.zeros(1, 40, 3, dtype=torch.long), 255, None) == 0


@pytest.mark.parametrize('conv_cfg', [dict(type='ConvWS'), dict(type='Conv2d', padding_mode='reflect')])
def test_other_convolutions_are_refused(conv_cfg):
    with pytest.raises(ValueError, match=r"conv_cfg.*(ConvWS2d|reflect).*mmseg's"):
        build(UPerHead, WIDTHS, conv_cfg=conv_cfg)


@pytest.mark.parametrize(
    ('kind', 'options'),
    [
        (SegformerHead, dict(interpolate_mode='nearest', align_corners=None)),
        (SegformerHead, dict(interpolate_mode='bicubic', align_corners=True)),
        *((kind, dict(norm_cfg=None)) for kind in HEADS),
    ],
)
def test_other_modes_and_no_norm(kind, options):
    theirs, ours = (head.double() for head in build(kind, WIDTHS, **options))
    inputs = maps(WIDTHS, STAGES)
    assert distance(run(ours, inputs), run(theirs, inputs)) <= 1e-12


@pytest.mark.parametrize('kind', HEADS)
def test_gradients_have_the_strides_of_their_parameters(kind):
    """DistributedDataParallel warns and copies otherwise."""
    _, ours = build(kind, WIDTHS)
    for memory_format in (torch.contiguous_format, torch.channels_last):
        ours.to(memory_format=memory_format)
        run(ours, [x.to(memory_format=memory_format) for x in maps(WIDTHS, STAGES, torch.float32)])
        for name, p in ours.named_parameters():
            assert p.grad.stride() == p.stride(), name


@pytest.mark.parametrize('kind', HEADS)
def test_compiled_without_a_break_in_its_graph(kind):
    theirs, ours = (head.double() for head in build(kind, WIDTHS[:2]))
    torch._dynamo.reset()
    compiled = torch.compile(ours, fullgraph=True, dynamic=True, backend='aot_eager')
    for sizes in (STAGES[:2], SIZES[1][:2]):
        inputs = maps(WIDTHS[:2], sizes)
        assert distance(run(compiled, inputs), run(theirs, inputs)) <= 1e-12


class Images(nn.Module):
    """A head over maps made of images."""

    def __init__(self, head):
        super().__init__()
        self.head = head

    def forward(self, images):
        return self.head([images[:, :, ::n, ::n] for n in (1, 2, 8)])


@pytest.mark.parametrize('kind', HEADS)
def test_exported_file_takes_any_size(kind):
    onnxruntime, _ = (
        pytest.importorskip(name, reason='ONNX export needs requirements/deploy.txt')
        for name in ('onnxruntime', 'onnxscript')
    )
    from mmvisiongru.deployment.export import export

    theirs, ours = build(kind, [3] * 3)
    for p, q in zip(theirs.parameters(), ours.parameters(), strict=True):
        q.data.copy_(nn.init.normal_(p, std=0.5))
    theirs, ours = Images(theirs.double().eval()), Images(ours.eval())
    session = onnxruntime.InferenceSession(export(ours, ['logits']).SerializeToString())
    for shape in ((1, 3, 39, 58), (2, 3, 17, 9), (1, 3, 24, 100), (1, 3, 1, 1), (2, 3, 16, 8)):
        x = torch.randn(shape, generator=torch.Generator().manual_seed(3))
        found = torch.from_numpy(session.run(None, {'images': x.numpy()})[0])
        assert distance([found], [theirs(x.double())]) <= 2e-6, shape


def operations(head, inputs):
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        head.eval()(inputs)
    return counter.get_total_flops()


@pytest.mark.parametrize(('kind', 'channels', 'share'), [(UPerHead, 512, 0.55), (SegformerHead, 256, 0.5)])
@pytest.mark.parametrize('size', [512, 4096])
def test_operations_on_the_maps_of_ade20k(kind, channels, share, size):
    widths = [72, 144, 288, 576]
    cfg = dict(in_channels=widths, in_index=[0, 1, 2, 3], channels=channels, num_classes=150, norm_cfg=BN)
    with torch.device('meta'):
        heads = [MODELS.build(dict(cfg, type=f'{s}.{kind.__name__}')) for s in ('mmseg', 'mmvisiongru')]
        inputs = [
            torch.empty(1, n, size // s, size // s) for n, s in zip(widths, (4, 8, 16, 32), strict=True)
        ]
    theirs, ours = (operations(head, inputs) for head in heads)
    assert ours < share * theirs


def test_maps_of_the_full_size_are_convolved_as_they_are():
    theirs, ours = build(UPerHead, [8, 8, 8])
    inputs = maps([8, 8, 8], [(24, 24)] * 3, torch.float32)
    # Only the pooled maps differ.
    assert operations(ours, inputs) <= operations(theirs, inputs)
