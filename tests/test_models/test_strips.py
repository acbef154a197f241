"""A model that was changed after it was built computes the same on large maps as on small ones.

Large maps are taken strip by strip where each layer is known to act on tokens alone. A list of surgeries,
as users and other libraries perform them, is compared with the plain way through the same model.
"""

import functools
import types

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.nn.modules.module import register_module_forward_hook, register_module_forward_pre_hook
from torch.nn.utils import parametrizations, prune

from mmvisiongru.models import VisionGRU
from mmvisiongru.models.layers import MLP, ChannelsLastConv2d, mingru, strips
from mmvisiongru.ops.scan_paths import PATHS

ARCH = dict(embed_dims=[8, 16], depths=[1, 1])
FOUR_PATHS = tuple(PATHS)


def small(dtype=torch.float64, **options):
    """A model whose every parameter matters: none is at the 0 or 1 where norms and biases start."""
    torch.manual_seed(0)
    model = VisionGRU(ARCH, out_indices=(0, 1), **options).to(dtype).eval()
    for param in model.parameters():
        nn.init.normal_(param, mean=float(param.ndim == 1), std=0.3)
    return model


def image(dtype=torch.float64):
    return torch.randn(2, 3, 64, 72, generator=torch.Generator().manual_seed(1)).to(dtype)


@pytest.fixture
def run(monkeypatch):
    """Run a model on a map that is large if ``strip_tokens`` is small; count its scans."""

    def run(model, x, strip_tokens):
        scans, scan = [], mingru.mingru_scan_2d
        with monkeypatch.context() as patch, torch.no_grad():
            patch.setattr(strips, 'STRIP_TOKENS', strip_tokens)
            patch.setattr(mingru, 'mingru_scan_2d', lambda *a, **k: scans.append(a[0].shape) or scan(*a, **k))
            return model(x), scans

    return run


@pytest.fixture
def assert_same(run):
    def assert_same(model, x=None, rtol=1e-10, strips_taken=None):
        x = image() if x is None else x
        (large, scans), (plain, plain_scans) = run(model, x, 32), run(model, x, 10**6)
        assert len(plain_scans) == 2
        assert strips_taken is None or (len(scans) > 2) is strips_taken
        for got, ref in zip(large, plain, strict=True):
            assert ref.isfinite().all()
            assert (got - ref).abs().max() <= rtol * ref.abs().max()

    return assert_same


@pytest.mark.parametrize('options', [{}, dict(scan_paths=FOUR_PATHS), dict(dwconv_kernel_size=None)], ids=str)
def test_an_unchanged_model_takes_strips(options, assert_same):
    assert_same(small(**options), strips_taken=True)


def test_strips_are_taken_in_every_part(monkeypatch):
    monkeypatch.setattr(strips, 'STRIP_TOKENS', 32)
    taken, ask = [], strips.takes_strips
    for module in (strips, mingru):
        monkeypatch.setattr(module, 'takes_strips', lambda *a: taken.append(ask(*a)) or taken[-1])
    with torch.no_grad():
        small()(image())
    # Stem; mixer and MLP of the first stage; those of the second, whose map is small.
    assert taken == [True, True, True, False, False]


@pytest.mark.parametrize('dtype', [torch.float32, torch.bfloat16], ids=str)
def test_strips_are_taken_in_any_precision(dtype, run):
    assert len(run(small(dtype), image(dtype), 32)[1]) > 2
    with torch.autocast('cpu', torch.bfloat16):
        assert len(run(small(torch.float32), image(torch.float32), 32)[1]) > 2


@pytest.mark.parametrize('size', [(61, 67), (257, 33), (63, 127), (65, 126), (399, 5)], ids=str)
def test_odd_sizes(size, assert_same):
    x = torch.randn(1, 3, *size, dtype=torch.float64)
    assert_same(small(), x, strips_taken=True)


# Surgeries: each changes a model in place.


class GRN(nn.Module):
    """Global response normalisation of ConvNeXt V2: over the whole map."""

    def forward(self, x):
        energy = x.norm(dim=(1, 2), keepdim=True)
        return x + x * energy / energy.mean(-1, keepdim=True)


class SqueezeExcite(nn.Module):
    def forward(self, x):
        return x * x.mean((1, 2), keepdim=True).sigmoid()


class ChannelsLast(nn.Module):
    """A layer of (B, C, H, W) on (B, H, W, C)."""

    def __init__(self, layer):
        super().__init__()
        self.layer = layer

    def forward(self, x):
        return self.layer(x.permute(0, 3, 1, 2)).permute(0, 2, 3, 1)


class ConvMLP(MLP):
    """As in PVT v2: a depthwise convolution between the layers."""

    def __init__(self, dim, ratio):
        super().__init__(dim, ratio)
        self.dwconv = ChannelsLastConv2d(dim * ratio, dim * ratio, 3, padding=1, groups=dim * ratio)

    def forward(self, x):
        return self.fc2(F.gelu(self.dwconv(self.fc1(x))))


class Float64(nn.Module):
    def __init__(self, layer):
        super().__init__()
        self.layer = layer.double()

    def forward(self, x):
        return self.layer(x.double()).to(x.dtype)


class Twice(nn.Linear):
    def forward(self, x):
        return 2 * super().forward(x)


def parts(model):
    block = model.stages[0].blocks[0]
    return dict(
        conv1=(model.stem, 'conv1'),
        conv2=(model.stem, 'conv2'),
        stem_norm=(model.stem, 'norm1'),
        norm2=(block, 'norm2'),
        mlp=(block, 'mlp'),
        fc1=(block.mlp, 'fc1'),
        fc2=(block.mlp, 'fc2'),
        in_proj=(block.mixer, 'in_proj'),
        out_proj=(block.mixer, 'out_proj'),
        drop_path=(block, 'drop_path'),
    )


def get(model, part):
    return getattr(*parts(model)[part])


def replace(part, make):
    def surgery(model):
        torch.manual_seed(2)
        setattr(*parts(model)[part], make(get(model, part)).to(image()).eval())

    return surgery


def add_bias(part):
    def surgery(model):
        layer = get(model, part)
        layer.bias = nn.Parameter(torch.linspace(-1, 1, layer.out_features, dtype=torch.float64))

    return surgery


def patch_forward(part, bound):
    """The layer also takes off what the map has in the mean, as a method or as a function of the instance."""

    def surgery(model):
        layer = get(model, part)
        whole = type(layer).forward

        def forward(self, x):
            y = whole(self, x)
            return y - y.mean((1, 2), keepdim=True)

        layer.forward = types.MethodType(forward, layer) if bound else functools.partial(forward, layer)

    return surgery


def hook(part, pre):
    def surgery(model):
        layer = get(model, part)
        if pre:
            layer.register_forward_pre_hook(lambda m, args: args[0] / args[0].norm(dim=(1, 2), keepdim=True))
        else:
            layer.register_forward_hook(lambda m, args, y: y / y.norm(dim=(1, 2), keepdim=True))

    return surgery


def twin(part, **changes):
    """The same kind of convolution with other arguments."""

    def make(conv):
        args = (
            dict(kernel_size=3, stride=2, padding=1, **changes) if 'kernel_size' not in changes else changes
        )
        return ChannelsLastConv2d(conv.in_channels, conv.out_channels, **args)

    return replace(part, make)


def swap_strides(model):
    model.stem.conv1.stride, model.stem.conv2.stride = (4, 4), (1, 1)


def wider_window_in_place(model):
    conv = model.stem.conv1
    conv.weight = nn.Parameter(torch.randn(4, 3, 5, 5, dtype=torch.float64))
    conv.padding = (2, 2)


def normalise_rows(model):
    # Over the columns of the map as well: 18 of them at the size of the test.
    get(model, 'norm2').__init__((18, 8), dtype=torch.float64)


SURGERIES = {
    'in_proj with bias': add_bias('in_proj'),
    'out_proj with bias': add_bias('out_proj'),
    'out_proj replaced, with bias': replace(
        'out_proj', lambda fc: nn.Linear(fc.in_features, fc.out_features)
    ),
    'subclass of Linear in in_proj': replace(
        'in_proj', lambda fc: Twice(fc.in_features, fc.out_features, bias=False)
    ),
    'adapter beside out_proj': replace('out_proj', lambda fc: nn.Sequential(fc, nn.Linear(8, 8))),
    'no layer like ours in in_proj': replace(
        'in_proj', lambda fc: ChannelsLastConv2d(8, fc.out_features, 3, padding=1)
    ),
    'MLP with depthwise convolution': replace('mlp', lambda mlp: ConvMLP(8, 4)),
    'MLP with GRN in fc1': replace('fc1', lambda fc: nn.Sequential(fc, GRN())),
    'MLP with squeeze and excite': replace('mlp', lambda mlp: nn.Sequential(mlp, SqueezeExcite())),
    'fc2 a convolution': replace('fc2', lambda fc: ChannelsLastConv2d(32, 8, 3, padding=1)),
    'instance norm': replace('norm2', lambda norm: ChannelsLast(nn.InstanceNorm2d(8))),
    'group norm': replace('norm2', lambda norm: ChannelsLast(nn.GroupNorm(2, 8))),
    'layer norm over rows': normalise_rows,
    'layer norm over rows, replaced': replace('norm2', lambda norm: nn.LayerNorm((18, 8))),
    'drop path replaced': replace('drop_path', lambda layer: SqueezeExcite()),
    'stem with 7 x 7': twin('conv1', kernel_size=7, stride=2, padding=3),
    'stem with 5 x 5 in conv2': twin('conv2', kernel_size=5, stride=2, padding=2),
    'stem with strides 4 and 1': swap_strides,
    'stem with dilation': twin('conv1', kernel_size=3, stride=2, padding=2, dilation=2),
    'stem with reflection': twin('conv1', padding_mode='reflect'),
    'stem with 5 x 5, weight only': wider_window_in_place,
    'stem with instance norm': replace('stem_norm', lambda norm: ChannelsLast(nn.InstanceNorm2d(4))),
    'spectral norm': lambda model: [
        parametrizations.spectral_norm(get(model, part)) for part in ('in_proj', 'fc1', 'conv1')
    ],
    'weight norm': lambda model: [
        parametrizations.weight_norm(get(model, part)) for part in ('out_proj', 'fc2', 'conv2')
    ],
    'pruned': lambda model: [
        prune.random_unstructured(get(model, part), 'weight', 0.5) for part in ('in_proj', 'fc1', 'conv1')
    ],
    **{f'{part}: patched forward': patch_forward(part, True) for part in parts(small())},
    **{f'{part}: patched forward, unbound': patch_forward(part, False) for part in parts(small())},
    **{f'{part}: hook': hook(part, False) for part in parts(small())},
    **{f'{part}: pre-hook': hook(part, True) for part in parts(small())},
}


@pytest.mark.parametrize('name', SURGERIES)
def test_surgery(name, assert_same):
    model = small()
    before = model(image())[0]
    SURGERIES[name](model)
    assert_same(model)
    # The surgery does something.
    kept = ('spectral', 'weight norm')
    assert name.startswith(kept) or not torch.allclose(model(image())[0], before, rtol=1e-3)


@pytest.mark.parametrize('cls', [nn.Linear, nn.LayerNorm, MLP, ChannelsLastConv2d], ids=lambda c: c.__name__)
def test_patched_class(cls, monkeypatch, assert_same):
    whole = cls.forward
    monkeypatch.setattr(cls, 'forward', lambda self, x: (y := whole(self, x)) - y.mean((1, 2), keepdim=True))
    assert_same(small())


@pytest.mark.parametrize('pre', [False, True])
def test_hook_on_all_modules(pre, run):
    model, seen = small(), []
    if pre:
        handle = register_module_forward_pre_hook(lambda m, args: seen.append(tuple(args[0].shape)))
    else:
        handle = register_module_forward_hook(lambda m, args, y: seen.append(tuple(args[0].shape)))
    try:
        run(model, image(), 32)
        large = seen.copy()
        seen.clear()
        run(model, image(), 10**6)
    finally:
        handle.remove()
    assert large == seen
    assert len(seen) > 20


@pytest.mark.parametrize('part', ['mlp', 'fc1', 'norm2', 'in_proj', 'stem_norm'])
def test_float64_island(part, assert_same):
    model = small(torch.float32)
    setattr(*parts(model)[part], Float64(get(model, part)))
    assert_same(model, image(torch.float32), rtol=1e-5)


@pytest.mark.parametrize('part', ['mlp', 'fc1', 'norm2', 'in_proj', 'stem_norm'])
def test_float64_island_by_hooks_and_by_casts_of_the_caller(part, assert_same):
    model = small(torch.float32)
    layer = get(model, part).double()
    layer.register_forward_pre_hook(lambda m, args: args[0].double())
    layer.register_forward_hook(lambda m, args, y: y.float())
    assert_same(model, image(torch.float32), rtol=1e-5)


class Scaled(torch.Tensor):
    """Integers and scales under the face of a float weight, as quantisers keep them.

    Like theirs it knows a linear layer or a convolution and little more.
    """

    @staticmethod
    def __new__(cls, weight):
        return torch.Tensor._make_wrapper_subclass(
            cls, weight.shape, dtype=weight.dtype, device=weight.device
        )

    def __init__(self, weight):
        self.scale = weight.detach().abs().amax() / 127
        self.integers = (weight.detach() / self.scale).round().to(torch.int8)

    def __repr__(self):
        return 'Scaled()'

    @classmethod
    def __torch_function__(cls, func, types, args=(), kwargs=None):
        if func in (F.linear, torch.conv2d):
            x, w, *rest = args
            return func(x, w.integers.to(x.dtype) * w.scale, *rest, **(kwargs or {}))
        with torch._C.DisableTorchFunctionSubclass():
            return func(*args, **(kwargs or {}))

    @classmethod
    def __torch_dispatch__(cls, func, types, args=(), kwargs=None):
        if func is torch.ops.aten.detach.default:
            return args[0]
        raise NotImplementedError(f'Scaled does not implement {func}')


@pytest.mark.parametrize('part', ['in_proj', 'out_proj', 'fc1', 'fc2', 'conv1'])
def test_weight_of_a_tensor_subclass(part, assert_same):
    model = small()
    layer = get(model, part)
    layer.weight = nn.Parameter(Scaled(layer.weight), requires_grad=False)
    assert type(layer.weight) is Scaled
    assert_same(model)


@pytest.mark.parametrize('config', ['Int8WeightOnlyConfig', 'Int8DynamicActivationInt8WeightConfig'])
def test_torchao(config, assert_same):
    quantization = pytest.importorskip('torchao.quantization')
    model = small(torch.float32)
    before = model(image(torch.float32))[0]
    quantization.quantize_(model, getattr(quantization, config)())
    assert type(get(model, 'in_proj')) is nn.Linear
    assert not torch.equal(model(image(torch.float32))[0], before)
    assert_same(model, image(torch.float32), rtol=1e-5)


def leaves(model):
    return [m for m in model.modules() if m._parameters]


def offload_by_hooks(model):
    """Weights are on the meta device but for the time of a layer's forward pass."""
    for layer in leaves(model):
        home = {k: p.detach().clone() for k, p in layer.named_parameters(recurse=False)}

        def load(m, args, home=home):
            for name, p in home.items():
                m._parameters[name] = nn.Parameter(p)

        def drop(m, args, y, home=home):
            for name, p in home.items():
                m._parameters[name] = nn.Parameter(p.to('meta'))

        drop(layer, None, None)
        layer.register_forward_pre_hook(load)
        layer.register_forward_hook(drop)


def offload_by_patches(model):
    """The same around a patched forward, without hooks, as accelerate does it."""
    for layer in leaves(model):
        home = {k: p.detach().clone() for k, p in layer.named_parameters(recurse=False)}
        whole = layer.forward

        def forward(m, *args, home=home, whole=whole):
            for name, p in home.items():
                m._parameters[name] = nn.Parameter(p)
            y = whole(*args)
            for name, p in home.items():
                m._parameters[name] = nn.Parameter(p.to('meta'))
            return y

        for name, p in home.items():
            layer._parameters[name] = nn.Parameter(p.to('meta'))
        layer.forward = functools.update_wrapper(functools.partial(forward, layer), whole)


@pytest.mark.parametrize('offload', [offload_by_hooks, offload_by_patches])
def test_offload(offload, run):
    model, x = small(), image()
    reference, _ = run(model, x, 10**6)
    offload(model)
    for got, ref in zip(run(model, x, 32)[0], reference, strict=True):
        torch.testing.assert_close(got, ref)


@pytest.mark.parametrize('disk', [False, True])
def test_accelerate(disk, run, tmp_path):
    accelerate = pytest.importorskip('accelerate')
    model, x = small(), image()
    reference, _ = run(model, x, 10**6)
    if disk:
        accelerate.disk_offload(model, tmp_path, execution_device='cpu')
    else:
        accelerate.cpu_offload(model, execution_device='cpu')
    for got, ref in zip(run(model, x, 32)[0], reference, strict=True):
        torch.testing.assert_close(got, ref)


def test_other_weights_for_a_call(run):
    model, x = small(), image()
    other = {k: torch.randn_like(p) for k, p in model.named_parameters()}

    def call(x):
        return torch.func.functional_call(model, other, (x,))

    (large, scans), (plain, _) = run(call, x, 32), run(call, x, 10**6)
    assert len(scans) > 2
    for got, ref in zip(large, plain, strict=True):
        torch.testing.assert_close(got, ref)


def test_a_dropped_branch_in_training_mode_is_one_draw(run):
    """Without gradients, but in training mode: one number a sample, not one a strip."""
    model = small(drop_path_rate=0.5)
    model.stages[0].blocks[0].drop_path.drop_prob = 0.5
    for part in (model.stages[0].blocks[0].drop_path, model):
        part.train()
        results = []
        for strip_tokens in (32, 10**6):
            torch.manual_seed(5)
            results.append(run(model, image(), strip_tokens)[0][0])
        torch.testing.assert_close(*results)
