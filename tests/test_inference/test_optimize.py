"""A converted model computes what the plain one does; a layer that somebody changed stays as it is."""

import copy
import functools
import pickle
from collections import Counter

import pytest
import torch
import torch.nn.functional as F
from mmengine.registry import MODELS
from torch import nn
from torch.nn.utils import prune

from mmvisiongru import VRWKV, VisionGRU, VRWKVAdapter, _compat, optimize_for_inference
from mmvisiongru.inference import tiled
from mmvisiongru.inference.form import InferenceForm
from mmvisiongru.models.layers import ChannelsLastConv2d, MinGRU2D
from mmvisiongru.ops.scan_paths import PATHS
from tests.harness.operators import Operators

TILE = 32
ARCH = dict(embed_dims=[8, 16], depths=[1, 1])
# Of max|ref|; in float64 it is the tiles alone that differ.
LIMITS = {torch.float64: 1e-10, torch.float32: 2e-6, torch.bfloat16: 2e-2}
# Images whose first map is just below and above the size that is cut into tiles; odd ones, ones wider than a
# tile or of one column, and ones that leave one row to the last tile.
SIZES = [(32, 60), (32, 64), (33, 64), (61, 67), (257, 33), (63, 512), (520, 3), (65, 126)]


@pytest.fixture(autouse=True)
def _small_tiles(monkeypatch):
    monkeypatch.setattr(tiled, 'TILE_TOKENS', TILE)


def randomised(model, dtype=torch.float64):
    """A model whose every parameter matters: none is at the 0 or 1 where norms and biases start."""
    torch.manual_seed(0)
    for param in model.parameters():
        std = 0.3 if param.ndim == 1 else param[0].numel() ** -0.5
        nn.init.normal_(param, mean=float(param.ndim == 1), std=std)
    for name, buffer in model.named_buffers():
        if 'running' in name:
            nn.init.uniform_(buffer, 0.5, 1.5)
    return model.to(dtype).eval()


def small(dtype=torch.float64, **options):
    return randomised(VisionGRU(ARCH, out_indices=(0, 1), **options), dtype)


def image(*size, dtype=torch.float64):
    return torch.randn(2, 3, *(size or (64, 72)), generator=torch.Generator().manual_seed(1)).to(dtype)


def forms(model):
    return Counter(type(m).__name__ for m in model.modules() if isinstance(m, InferenceForm))


def maps(model, x):
    """What a backbone, or the part of a classifier or segmentor up to its scores, gives."""
    with torch.no_grad():
        out = model(x, mode='tensor') if hasattr(model, 'data_preprocessor') else model(x)
    return out if isinstance(out, tuple) else (out,)


def assert_same(got, ref, limit):
    for a, b in zip(got, ref, strict=True):
        assert b.isfinite().all()
        assert (a.double() - b.double()).abs().max() <= limit * b.double().abs().max()


# ---- the same values


@pytest.mark.parametrize('dtype', LIMITS, ids=str)
@pytest.mark.parametrize(
    'options',
    [
        {},
        dict(scan_paths=tuple(PATHS)),
        dict(scan_paths=('column_reverse',), dwconv_kernel_size=None),
        dict(candidate='linear'),
    ],
    ids=str,
)
def test_backbone(options, dtype):
    model = small(dtype, **options)
    converted = optimize_for_inference(copy.deepcopy(model))
    for size in SIZES:
        x = image(*size, dtype=dtype)
        # Beside exact values: two roundings to 16 bits differ by more than one.
        assert_same(maps(converted, x), maps(copy.deepcopy(model).double(), x.double()), LIMITS[dtype])


@pytest.mark.parametrize('kind', [VRWKV, VRWKVAdapter], ids=lambda kind: kind.__name__)
@pytest.mark.parametrize('dtype', LIMITS, ids=str)
def test_vision_rwkv(kind, dtype):
    arch = dict(embed_dims=24, depth=4, post_norm=True, key_norm=True, layer_scale=0.5)
    model = randomised(kind(arch), dtype)
    converted = optimize_for_inference(copy.deepcopy(model))
    assert forms(converted)['InPlaceChannelMix'] == 4
    x = image(64, 80, dtype=dtype)
    assert_same(maps(converted, x), maps(model, x), LIMITS[dtype])


def classifier(**backbone):
    head = dict(type='LinearClsHead', num_classes=5, in_channels=backbone.pop('width'))
    pool = dict(type='GlobalAveragePooling')
    return dict(type='ImageClassifier', backbone=backbone, neck=pool, head=head, _scope_='mmpretrain')


MODELS_OF_OTHERS = {
    'classifier': (
        classifier(type='mmvisiongru.VisionGRU', arch=ARCH, out_indices=(1,), width=16),
        # Both projections of each block, both layers of each MLP, of which one is no Linear; and the head.
        dict(TiledStem=1, TiledBlock=2, TiledMinGRU2D=2, FusedMLP=2, FusedLinear=2 * 3 + 1),
    ),
    'segmentor': (
        dict(
            type='EncoderDecoder', test_cfg=dict(mode='whole'), _scope_='mmseg',
            data_preprocessor=dict(type='SegDataPreProcessor'),
            backbone=dict(type='mmvisiongru.VisionGRU', arch=ARCH, out_indices=(0, 1)),
            decode_head=dict(
                type='UPerHead', in_channels=[8, 16], in_index=[0, 1], channels=8, num_classes=3,
                norm_cfg=dict(type='SyncBN'), pool_scales=(1, 2),
            ),
        ),
        dict(TiledStem=1, TiledBlock=2, TiledMinGRU2D=2, FusedMLP=2, FusedLinear=2 * 3),
    ),
    'Swin': (
        classifier(
            type='SwinTransformer', arch=dict(embed_dims=16, depths=[1, 1], num_heads=[2, 2]), width=32,
            out_indices=(1,),
        ),
        # Attention has two, the MLP one more behind the GELU.
        dict(FusedLinearGELU=2, FusedLinear=2 * 3 + 1 + 1),
    ),
    'ConvNeXt': (
        classifier(type='ConvNeXt', arch=dict(depths=[1, 1], channels=[8, 16]), out_indices=(1,), width=16,
            gap_before_final_norm=False),
        dict(FusedLinearGELU=2, FusedLinear=2 + 1),
    ),
}  # fmt: skip


@pytest.mark.parametrize('dtype', [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize('name', MODELS_OF_OTHERS)
def test_models_of_both_libraries(name, dtype):
    cfg, expected = MODELS_OF_OTHERS[name]
    model = randomised(MODELS.build(copy.deepcopy(cfg)), dtype)
    converted = optimize_for_inference(copy.deepcopy(model))
    assert forms(converted) == expected
    assert list(converted.state_dict()) == list(model.state_dict())
    x = image(64, 72, dtype=dtype)
    assert_same(maps(converted, x), maps(copy.deepcopy(model).double(), x.double()), LIMITS[dtype])


def test_batch_norm_is_folded():
    model = randomised(MODELS.build(copy.deepcopy(MODELS_OF_OTHERS['segmentor'][0])))
    ref = maps(model, image())
    with Operators() as operators:
        got = maps(optimize_for_inference(model), image())
    assert not any('batch_norm' in name for name in operators.count)
    assert_same(got, ref, 1e-10)


def test_large_maps_alone_are_cut(monkeypatch):
    model, found = optimize_for_inference(small()), []
    for size in (image(32, 60), image(32, 64)):
        with Operators() as operators:
            maps(model, size)
        found.append(operators.count['mingru_scan_2d'])
    # Two blocks; of the larger map 128 tokens in tiles of 32, for each of the two paths of the first block.
    assert found == [2, 2 * 4 + 1]


def test_mixed_precision():
    """Under autocast the sum of four paths stays in float32; in 16 bits the ratio below would be 1.33."""
    ratios = []
    for seed in range(10):
        torch.manual_seed(seed)
        mixer, x = MinGRU2D(8, tuple(PATHS), kernel_size=None).eval(), torch.randn(1, 32, 36, 8)
        converted = optimize_for_inference(copy.deepcopy(mixer))
        wide = copy.deepcopy(mixer).double()
        with torch.no_grad(), torch.autocast('cpu', torch.bfloat16):
            outs = [module(x) for module in (converted, mixer)]
            # It leaves float64 as it is.
            exact, same = wide(x.double()), optimize_for_inference(wide)(x.double())
        assert_same([same], [exact], 1e-12)
        assert [y.dtype for y in outs] == [torch.bfloat16] * 2
        errors = [float((y.double() - exact).norm()) for y in outs]
        ratios.append(errors[0] / errors[1])
    assert sum(ratios) / len(ratios) < 1.2


# ---- what a converted model is


def test_twice_is_once_and_copies_are_alike():
    model = optimize_for_inference(small())
    names, classes = dict(model.named_modules()), [type(m) for m in model.modules()]
    ref = maps(model, image())
    assert optimize_for_inference(model) is model
    assert dict(model.named_modules()) == names
    assert [type(m) for m in model.modules()] == classes
    for other in (model, copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        assert all(torch.equal(a, b) for a, b in zip(maps(other, image()), ref, strict=True))


@pytest.mark.parametrize('name', ['segmentor', 'Swin'])
def test_weights_can_be_loaded(name):
    cfg = MODELS_OF_OTHERS[name][0]
    model, other = (randomised(MODELS.build(copy.deepcopy(cfg))) for _ in range(2))
    for param in other.parameters():
        nn.init.normal_(param, std=0.2)
    converted = optimize_for_inference(model)
    maps(converted, image())
    converted.load_state_dict(other.state_dict())
    assert_same(maps(converted, image()), maps(other, image()), 1e-10)


@pytest.mark.parametrize(
    'call',
    [
        lambda model: model(image()),
        lambda model: maps(model.train(), image()),
        torch.no_grad()(lambda model: torch.export.export(model, (image(),))),
        torch.no_grad()(lambda model: torch.jit.trace(model, (image(),))),
    ],
    ids=['with gradients', 'in training mode', 'exported', 'traced'],
)
def test_is_for_inference_alone(call):
    with pytest.raises(Exception, match=r'optimize_for_inference.*torch\.no_grad'):
        call(optimize_for_inference(small()))


# ---- layers that were changed


def twice(layer, part):
    """A layer that gives twice what it gave, by a patched method."""
    plain = getattr(layer, part).forward
    getattr(layer, part).forward = lambda x: 2 * plain(x)


def hooked(layer, part):
    getattr(layer, part).register_forward_hook(lambda module, args, out: 2 * out)


class Twice(nn.Linear):
    def forward(self, x):
        return 2 * super().forward(x)


class Scaled(torch.Tensor):
    """A weight as quantisers wrap it: F.linear alone knows its values."""

    @classmethod
    def __torch_function__(cls, func, types, args=(), kwargs=None):
        if func is F.linear:
            args = args[0], 2 * args[1].as_subclass(torch.Tensor), *args[2:]
        return super().__torch_function__(func, types, args, kwargs)


def quantised(layer, part):
    fc = getattr(layer, part)
    fc.weight = nn.Parameter(fc.weight.detach().as_subclass(Scaled), requires_grad=False)


def offloaded(layer, part):
    """The weights are on the meta device but for the time of a call, as accelerate does it."""
    fc = getattr(layer, part)
    home, plain = copy.deepcopy(fc), fc.forward
    fc.to('meta')
    fc.forward = functools.update_wrapper(lambda x: home(x), plain)


def replaced(make):
    return lambda layer, part: setattr(layer, part, make(getattr(layer, part)))


WIDER = ChannelsLastConv2d(3, 4, 5, stride=2, padding=2)
FORMS = {'TiledBlock', 'TiledStem', 'FusedMLP', 'TiledMinGRU2D', 'FusedLinear'}
MIXER, MLP = {'TiledBlock', 'TiledMinGRU2D'}, {'TiledBlock', 'FusedMLP'}
# The change, the layer, the part of it that is changed, and the forms that a model of one block loses.
CHANGES = {
    'hook on in_proj': (hooked, 'mixer', 'in_proj', MIXER),
    'hook on the MLP': (hooked, 'block', 'mlp', MLP),
    'pre-hook': (lambda x, _: x.mlp.register_forward_pre_hook(lambda _, y: (2 * y[0],)), 'block', 'mlp', MLP),
    'hook in the stem': (hooked, 'stem', 'norm1', {'TiledStem'}),
    'patched mixer': (twice, 'block', 'mixer', MIXER),
    'subclass': (replaced(lambda fc: Twice(8, 64, bias=False)), 'mixer', 'in_proj', MIXER),
    'bias': (replaced(lambda fc: nn.Linear(8, 64)), 'mixer', 'in_proj', {'TiledMinGRU2D'}),
    'more layers': (replaced(lambda fc: nn.Sequential(fc, nn.Tanh())), 'mlp', 'fc1', MLP),
    'quantised': (quantised, 'mlp', 'fc1', MLP),
    'offloaded': (offloaded, 'mixer', 'out_proj', MIXER),
    'pruned': (lambda layer, part: prune.random_unstructured(layer.fc2, 'weight', 0.5), 'mlp', 'fc2', MLP),
    'norm over rows': (replaced(lambda norm: nn.LayerNorm((18, 8))), 'block', 'norm2', {'TiledBlock'}),
    'window of 5 x 5': (replaced(lambda conv: WIDER), 'stem', 'conv1', {'TiledStem'}),
}  # fmt: skip


def test_a_model_elsewhere_is_not_converted():
    model = optimize_for_inference(VisionGRU(ARCH, out_indices=(0,)).to('meta'))
    assert not any(isinstance(module, InferenceForm) for module in model.modules())


@pytest.mark.parametrize('name', CHANGES)
def test_a_changed_layer_stays_as_it_is(name):
    change, layer, part, lost = CHANGES[name]
    model = randomised(VisionGRU(dict(embed_dims=[8], depths=[1]), out_indices=(0,)))
    block = model.stages[0].blocks[0]
    layer = dict(block=block, mixer=block.mixer, mlp=block.mlp, stem=model.stem)[layer]
    before = maps(model, image())
    change(layer, part)
    model.double().eval()
    ref = maps(model, image())
    # The change does something.
    assert name == 'offloaded' or not torch.allclose(ref[0], before[0], rtol=1e-4)
    changed = getattr(layer, part)
    optimize_for_inference(model)
    assert getattr(layer, part) is changed
    # A plain linear layer in an unexpected place is one like any other.
    assert not isinstance(changed, InferenceForm) or name == 'bias'
    assert FORMS - set(forms(model)) == lost
    assert_same(maps(model, image()), ref, 1e-10)


def test_gelu_behind_one_of_two_uses_of_a_layer_and_of_another_kind():
    fc, x = nn.Linear(3, 3), torch.randn(5, 3, dtype=torch.float64)
    twice = nn.Sequential(nn.Sequential(fc, nn.GELU()), nn.Sequential(fc, nn.Tanh()))
    other = nn.Sequential(nn.Linear(3, 4), nn.GELU('tanh'), nn.Linear(4, 4), nn.GELU(), nn.GELU())
    for model, expected in ((twice, dict(FusedLinear=1)), (other, dict(FusedLinear=1, FusedLinearGELU=1))):
        ref = maps(randomised(model), x)
        assert forms(optimize_for_inference(model)) == expected
        assert_same(maps(model, x), ref, 1e-12)


# ---- linear layers


@pytest.fixture
def onednn(monkeypatch):
    """How often oneDNN's product runs."""
    operator, seen = torch.ops.mkldnn._linear_pointwise, []
    replacement = lambda *a: seen.append(a[0].shape) or operator(*a)  # noqa: E731
    monkeypatch.setattr(torch.ops.mkldnn, '_linear_pointwise', replacement, raising=False)
    return seen


def layer(gelu, bias=True, dtype=torch.float32):
    torch.manual_seed(0)
    linear = nn.Linear(24, 40, bias=bias, dtype=dtype)
    return nn.Sequential(linear, nn.GELU()) if gelu else nn.Sequential(linear)


@pytest.mark.parametrize('shape', [(1, 24), (7, 24), (24,), (2, 5, 3, 24), (1, 61, 67, 24), (0, 24)])
@pytest.mark.parametrize('bias', [True, False])
@pytest.mark.parametrize('gelu', [True, False])
@pytest.mark.parametrize(('dtype', 'limit'), [(torch.float32, 2e-6), (torch.bfloat16, 1e-2)], ids=str)
def test_linear_against_float64(shape, bias, gelu, dtype, limit):
    model, x = layer(gelu, bias, dtype), 3 * torch.randn(shape).to(dtype)
    ref = copy.deepcopy(model).double()(x.double()).detach()
    (got,) = maps(optimize_for_inference(model), x)
    assert (got.dtype, got.shape) == (dtype, ref.shape)
    if x.numel():
        assert_same([got], [ref], limit)


@pytest.mark.parametrize('part', ['weight', 'bias', 'input'])
def test_strided_tensors(part, onednn):
    """oneDNN reads a strided bias as if it were contiguous, and a strided weight 30 times as slowly."""
    model, x = layer(gelu=True), torch.randn(2, 9, 24)
    if part == 'weight':
        model[0].weight = nn.Parameter(torch.randn(40, 48)[:, ::2])
    elif part == 'bias':
        model[0].bias = nn.Parameter(torch.arange(80.0)[::2])
    else:
        x = torch.randn(2, 24, 9).mT
    ref = copy.deepcopy(model).double()(x.double()).detach()
    assert_same(maps(optimize_for_inference(model), x), [ref], 2e-6)
    assert len(onednn) == (part == 'input')


def test_where_onednn_is_not_taken(onednn, monkeypatch):
    model, x = optimize_for_inference(layer(gelu=False)), torch.randn(3, 24)
    ref = F.linear(x, model[0].weight, model[0].bias)
    maps(model, x)
    assert len(onednn) == 1
    with torch.autocast('cpu', torch.bfloat16):
        assert maps(model, x)[0].dtype == torch.bfloat16
    with torch.backends.mkldnn.flags(enabled=False):
        assert_same(maps(model, x), [ref], 2e-6)
    maps(model.double(), x.double())
    # A processor on which oneDNN would raise for bfloat16.
    monkeypatch.setattr(torch.ops.mkldnn, '_is_mkldnn_bf16_supported', lambda: False, raising=False)
    _compat._onednn_dtypes.cache_clear()
    maps(model.bfloat16(), x.bfloat16())
    _compat._onednn_dtypes.cache_clear()
    assert len(onednn) == 1
