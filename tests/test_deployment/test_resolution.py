"""Convolutions of enlarged maps at the maps' own resolution: the same numbers from fewer operations."""

import pytest
import torch
import torch.nn.functional as F
from mmseg.models import UPerHead
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from mmvisiongru.deployment import resolution
from mmvisiongru.deployment.resolution import AtOwnResolution


def rand(*shape):
    return torch.randn(shape, dtype=torch.float64, generator=torch.Generator().manual_seed(sum(shape)))


def enlarge(x, size, **options):
    return F.interpolate(x, size, mode='bilinear', **options)


@pytest.fixture
def narrow(monkeypatch):
    """Maps of any number of channels take part."""
    monkeypatch.setattr(resolution, 'WIDE', 1)


def both(function):
    """Results as it is and within the context."""
    outs = []
    for context in (torch.no_grad, AtOwnResolution):
        with torch.no_grad(), context():
            outs.append(function())
    return outs


@pytest.mark.parametrize('kernel', [(3, 3), (1, 3), (5, 3)])
@pytest.mark.parametrize('size', [(13, 20), (1, 1), (40, 7)])
def test_numbers(kernel, size, narrow):
    """Four maps that are resized, by different factors or from a single row, and one that is not."""
    sides = ((3, 5), (1, 20), (13, 1), (14, 9), size)
    maps = [rand(2, 2 + i, *side) for i, side in enumerate(sides)]
    weight, bias = rand(4, 20, *kernel), rand(4)

    def run():
        joined = torch.cat([*(enlarge(x, size) for x in maps[:4]), maps[4]], 1)
        return F.conv2d(joined, weight, bias, padding=[side // 2 for side in kernel])

    expected, found = both(run)
    torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-12)
    assert not torch.equal(found, expected)


def test_all_maps_enlarged(narrow):
    x, weight, bias = rand(1, 3, 4, 5), rand(2, 6, 3, 3), rand(2)
    expected, found = both(
        lambda: F.conv2d(torch.cat([enlarge(x, (8, 9)), enlarge(-x, (8, 9))], dim=1), weight, bias, padding=1)
    )
    torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-12)
    assert not torch.equal(found, expected)


def convolve(*tensors, **options):
    joined = torch.cat(tensors, 1)
    return F.conv2d(joined, rand(4, joined.shape[1] // options.get('groups', 1), 3, 3), **options)


def change(what, how):
    """A convolution of an enlarged map and another one, after a change in place."""

    def run(x):
        x, z = x.clone(), rand(1, 4, 8, 10)
        y = enlarge(x, (8, 10))
        joined = torch.cat([y, z], 1)
        if what != 'joined':
            how(dict(source=x, enlarged=y, part=z)[what])
            joined = joined if what == 'part' else torch.cat([y, z], 1)
        else:
            how(joined)
        return F.conv2d(joined, rand(4, 8, 3, 3), padding=1)

    return run


def convolve_kernel(x, *sides, padding):
    joined = torch.cat([enlarge(x, (8, 10))], 1)
    return F.conv2d(joined, rand(4, 4, *sides), padding=padding)


def into_another(x):
    y = enlarge(x, (8, 10))
    return F.conv2d(torch.cat([y, y], 1, out=torch.empty(1, 8, 8, 10).double()), rand(4, 8, 3, 3), padding=1)


OTHERS = dict(
    align_corners=lambda x: convolve(enlarge(x, (8, 10), align_corners=True), padding=1),
    antialias=lambda x: convolve(enlarge(x, (2, 3), antialias=True), padding=1),
    # The factor, not the sizes, says where the pixels come from.
    factor=lambda x: convolve(F.interpolate(x, scale_factor=1.7, mode='bilinear'), padding=1),
    nearest=lambda x: convolve(F.interpolate(x, (8, 10)), padding=1),
    stride=lambda x: convolve(enlarge(x, (8, 10)), padding=1, stride=2),
    dilation=lambda x: convolve(enlarge(x, (8, 10)), padding=1, dilation=2),
    groups=lambda x: convolve(enlarge(x, (8, 10)), padding=1, groups=2),
    no_padding=lambda x: convolve(enlarge(x, (8, 10))),
    padding_in_words=lambda x: convolve(enlarge(x, (8, 10)), padding='same'),
    one_below_the_other=lambda x: F.conv2d(
        torch.cat([enlarge(x, (8, 10))] * 2, 2), rand(4, 4, 3, 3), padding=1
    ),
    activated=lambda x: convolve(enlarge(x, (8, 10)).relu(), padding=1),
    even_kernel=lambda x: convolve_kernel(x, 2, 2, padding=1),
    one_pixel=lambda x: convolve_kernel(x, 1, 1, padding=0),
    into_another=into_another,
    promoted=lambda x: F.conv2d(
        torch.cat([enlarge(x.float(), (8, 10)), rand(1, 4, 8, 10)], 1), rand(4, 8, 3, 3), padding=1
    ),
    an_empty_part=lambda x: convolve(torch.empty(0).double(), enlarge(x, (8, 10)), padding=1),
    source_relu=change('source', lambda x: F.relu(x, inplace=True)),
    enlarged_times_two=change('enlarged', lambda y: y.mul_(2)),
    enlarged_set=change('enlarged', lambda y: y.__setitem__((slice(None), 0), 0)),
    enlarged_view=change('enlarged', lambda y: y[:, :2].mul_(3)),
    part_zero=change('part', lambda z: z.zero_()),
    joined_plus_one=change('joined', lambda j: j.add_(1)),
    joined_view=change('joined', lambda j: j[:, :4].relu_()),
)


@pytest.mark.parametrize('case', OTHERS)
def test_others_stay(case, narrow):
    """What is no plain convolution of enlarged maps runs as it is written, to the bit."""
    expected, found = both(lambda: OTHERS[case](rand(1, 4, 4, 5)))
    assert torch.equal(found, expected)


def test_inference_mode_stays(narrow):
    """Tensors without a version do not tell whether they were written over."""
    x = rand(1, 4, 4, 5)
    with torch.inference_mode():
        expected = convolve(enlarge(x, (8, 10)), padding=1)
        with AtOwnResolution():
            assert torch.equal(convolve(enlarge(x, (8, 10)), padding=1), expected)


def test_narrow_maps_stay():
    maps = [rand(1, channels, 4, 5) for channels in (255, 256)]
    for x, changed in zip(maps, (False, True), strict=True):
        expected, found = both(lambda x=x: convolve(enlarge(x, (8, 10)), padding=1))
        assert torch.equal(found, expected) != changed


def uper_head(in_channels, channels):
    return UPerHead(
        in_channels=in_channels,
        in_index=[0, 1, 2, 3],
        channels=channels,
        num_classes=5,
        norm_cfg=dict(type='BN'),
        align_corners=False,
    ).eval()


def test_uper_head_has_half_the_operations():
    """That of the ADE20K configs, on the maps of VisionGRU-tiny for an image of 512 x 512."""
    channels = [72, 144, 288, 576]
    with torch.device('meta'):
        head = uper_head(channels, 512)
        maps = [torch.empty(1, n, side, side) for n, side in zip(channels, (128, 64, 32, 16), strict=True)]
    counts = []
    for context in (torch.no_grad, AtOwnResolution):
        with FlopCounterMode(display=False) as counter, torch.no_grad(), context():
            assert head(maps).shape == (1, 5, 128, 128)
        counts.append(counter.get_total_flops())
    assert counts[1] < 0.55 * counts[0]


class Uper(nn.Module):
    """mmseg's UPerHead over four maps made of images."""

    def __init__(self):
        super().__init__()
        self.head = uper_head([3] * 4, 4)

    def forward(self, images):
        return self.head([images[:, :, ::n, ::n] for n in (1, 2, 4, 8)])


def head():
    torch.manual_seed(0)
    model = Uper().eval()
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.uniform_(module.running_var, 0.5, 2)
            nn.init.normal_(module.running_mean)
            nn.init.normal_(module.bias)
    for param in model.parameters():
        if param.ndim == 4:
            nn.init.normal_(param, std=0.5)
    return model


def test_uper_head_in_a_file(narrow):
    onnxruntime, _ = (
        pytest.importorskip(name, reason='ONNX export needs requirements/deploy.txt')
        for name in ('onnxruntime', 'onnxscript')
    )
    from mmvisiongru.deployment.export import export

    model = head()
    graph = export(model, ['logits'])
    # Those from stage to stage, which are added and not joined, are left.
    assert [node.op_type for node in graph.graph.node].count('Resize') == 3
    session = onnxruntime.InferenceSession(graph.SerializeToString())
    for shape in ((1, 3, 39, 58), (2, 3, 16, 8), (1, 3, 1, 1), (1, 3, 8, 100)):
        x = rand(*shape)
        with torch.no_grad():
            expected = model.double()(x)
        found = torch.from_numpy(session.run(None, {'images': x.float().numpy()})[0])
        assert (found - expected).abs().max() <= 2e-6 * expected.abs().max(), shape
