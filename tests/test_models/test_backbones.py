"""What all backbones have in common: sizes, frozen stages, recomputation, 16 bits, graphs, arguments."""

import copy
import math
import pickle
import subprocess
import sys

import pytest
import torch
from mmcv.cnn.bricks import DropPath
from torchvision.models.feature_extraction import create_feature_extractor

from mmvisiongru.models import VRWKV, VisionGRU, VRWKVAdapter
from mmvisiongru.models.visiongru import Block
from mmvisiongru.models.vrwkv import Layer, PatchEmbed
from tests.harness import ROOT, need_mmseg
from tests.harness.backbones import SMALL, image, small
from tests.harness.children import PATIENCE

every_kind = pytest.mark.parametrize('kind', SMALL, ids=lambda kind: kind.__name__)
STRIDES = {VisionGRU: (4, 8, 16, 32), VRWKV: (16, 16), VRWKVAdapter: (4, 8, 16, 32)}
TWO_BLOCKS = [
    (VisionGRU, dict(arch=dict(embed_dims=[8, 12], depths=[1, 1]), out_indices=(1,))),
    (VRWKV, dict(arch=dict(embed_dims=8, depth=2))),
]


def blocks(model):
    return [block for stage in getattr(model, 'stages', ()) for block in stage.blocks] or [*model.layers]


def backward(maps):
    """The gradients for random cotangents, of the maps that have any."""
    maps = [m for m in maps if m.requires_grad]
    generator = torch.Generator().manual_seed(1)
    if maps:
        torch.autograd.backward(maps, [torch.randn(m.shape, generator=generator).to(m.dtype) for m in maps])


def test_resolves_in_every_scope_without_custom_imports():
    need_mmseg()
    # A process for each, forked from one that has imported what all of them need.
    code = """
import importlib, os, sys
import mmengine.model, mmengine.registry
for library in ('mmengine', 'mmseg', 'mmpretrain'):
    if os.fork() == 0:
        models = importlib.import_module(library + '.registry').MODELS
        assert not any(name.startswith('mmvisiongru') for name in sys.modules)
        model = models.build(dict(type='mmvisiongru.VisionGRU', arch='pico', out_indices=(-1,)))
        print(library, type(model).__module__, type(model).__name__, model.embed_dims[0])
        sys.exit()
    os.wait()
"""
    command = [sys.executable, '-c', code]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=PATIENCE)
    found = [line.split(maxsplit=1) for line in done.stdout.splitlines()]
    built = 'mmvisiongru.models.visiongru VisionGRU 24'
    assert found == [['mmengine', built], ['mmseg', built], ['mmpretrain', built]], done.stderr


@pytest.mark.parametrize('size', [(64, 96), (33, 46), (95, 27), (1, 1), (1, 37), (41, 1)], ids=str)
@every_kind
def test_sizes(kind, size):
    model = small(kind, **(dict(out_indices=(0, -1)) if kind is VRWKV else {})).eval()
    maps = model(image(*size))
    wanted = [tuple(math.ceil(side / stride) for side in size) for stride in STRIDES[kind]]
    assert [tuple(m.shape[2:]) for m in maps] == wanted
    assert all(m.isfinite().all() for m in maps)
    # As timm describes them.
    assert model.num_features == maps[-1].size(1)
    for out, stride, info in zip(maps, STRIDES[kind], model.feature_info, strict=True):
        assert info.items() >= dict(num_chs=out.size(1), reduction=stride).items()
        assert model.get_submodule(info['module'])


@every_kind
def test_a_model_that_has_run_can_be_copied_and_pickled(kind):
    model, x = small(kind).eval(), image(32, 32)
    maps = model(x)
    for other in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        assert all(torch.equal(a, b) for a, b in zip(other(x), maps, strict=True))


@pytest.mark.parametrize(
    ('kind', 'options'),
    [
        *((kind, {}) for kind in SMALL),
        (VisionGRU, dict(pos_embed='absolute')),
        (VRWKV, dict(arch=dict(embed_dims=18, depth=3, key_norm=True), out_norm_cfg=dict(type='LN'))),
    ],
    ids=str,
)
def test_every_parameter_receives_a_gradient(kind, options):
    model = small(kind, **options).train()
    backward(model(image(96, 96)))
    assert [name for name, p in model.named_parameters() if p.grad is None or not p.grad.any()] == []


@pytest.mark.parametrize('frozen_stages', [-1, 0, 2, 'all'])
@every_kind
def test_frozen_stages(kind, frozen_stages):
    """0 freezes the stem or embedding, n that and the first n stages or layers, with norms of their maps."""
    options = dict(pos_embed='absolute', out_norm_cfg=dict(type='BN')) if kind is VisionGRU else {}
    number = (3 if kind is VRWKV else 4) if frozen_stages == 'all' else frozen_stages
    model = small(kind, frozen_stages=number, drop_path_rate=0.5, **options)
    assert model.train() is model

    def frozen(name):
        first, *rest = name.split('.')
        if first in ('stages', 'layers', 'out_norms'):
            return bool(rest) and int(rest[0]) < number
        return number >= (3 if first == 'ln1' else 0) and first in ('stem', 'patch_embed', 'pos_embed', 'ln1')

    for name, module in model.named_modules():
        assert module.training is not frozen(name), name
    backward(model(image(32, 64)))
    for name, param in model.named_parameters():
        assert param.requires_grad is not frozen(name), name
        assert (param.grad is None) is frozen(name), name
    assert not any(m.training for m in model.eval().modules())
    assert not any(m.training for name, m in model.train().named_modules() if frozen(name))


@every_kind
def test_drop_path_rises_through_the_blocks(kind):
    model = small(kind, drop_path_rate=0.3)
    rates = [{m.drop_prob for m in b.modules() if isinstance(m, DropPath)} for b in blocks(model)]
    number = len(rates)
    assert [rate for (rate,) in rates] == pytest.approx([0.3 * k / (number - 1) for k in range(number)])
    if kind is VRWKVAdapter:
        assert [m.drop_prob for m in model.interactions.modules() if isinstance(m, DropPath)] == [0.3] * 6


@pytest.mark.parametrize(('kind', 'options'), TWO_BLOCKS, ids=str)
def test_drop_path_drops_each_branch_of_each_sample(kind, options):
    # Rates 0 and 0.5: the second block keeps neither, either or both of its branches.
    model, x = small(kind, drop_path_rate=0.5, **options).train(), image(32, 32, batch=1)
    out = model(x.expand(64, -1, -1, -1))[-1].detach().flatten(1)
    same = (out[:, None] - out).abs().amax(2) < 1e-4 * out.abs().max()
    assert len(same.unique(dim=0)) == 4
    out = model.eval()(x.expand(4, -1, -1, -1))[-1]
    assert torch.allclose(out, out[:1], atol=1e-5)


@pytest.mark.parametrize('frozen_stages', [-1, 0])
@every_kind
def test_with_cp(kind, frozen_stages):
    grads, calls = [], []
    for with_cp in (False, True):
        model = small(kind, with_cp=with_cp, drop_path_rate=0.5, frozen_stages=frozen_stages).train()
        for block in blocks(model):
            mixer = block.mixer if kind is VisionGRU else block.att
            mixer.register_forward_hook(lambda *_, with_cp=with_cp: calls.append(with_cp))
        torch.manual_seed(0)
        x = image(33, 46, batch=4).requires_grad_(frozen_stages < 0)
        backward(model(x))
        grads.append([x.grad, *(p.grad for p in model.parameters() if p.requires_grad)])
    for a, b in zip(*grads, strict=True):
        torch.testing.assert_close(a, b, **({} if kind is VRWKVAdapter else dict(rtol=0, atol=0)))
    assert calls.count(True) == 2 * calls.count(False)


@every_kind
def test_16_bits(kind):
    model, x = small(kind).eval(), image(64, 64)
    ref = model(x)
    with torch.autocast('cpu', torch.bfloat16):
        cast = model(x)
    backward(cast)
    assert all(p.grad.dtype == torch.float32 and p.grad.isfinite().all() for p in model.parameters())
    with torch.no_grad():
        whole = model.bfloat16()(x.bfloat16())
        # Preprocessors give images in float32.
        assert all(torch.equal(a, b) for a, b in zip(model(x), whole, strict=True))
    for a, b, c in zip(ref, cast, whole, strict=True):
        scale = a.square().mean().sqrt()
        assert (b.float() - a).square().mean().sqrt() <= 0.05 * scale
        assert (c.float() - a).square().mean().sqrt() <= 0.1 * scale
        assert c.dtype == torch.bfloat16


@pytest.mark.parametrize('amp', [False, True])
@pytest.mark.parametrize('memory_format', [torch.contiguous_format, torch.channels_last], ids=str)
@pytest.mark.parametrize(
    'options',
    [{}, dict(dwconv_kernel_size=5), dict(dwconv_kernel_size=1), dict(in_channels=1), dict(with_cp=True)],
    ids=str,
)
def test_gradients_have_the_strides_of_their_parameters(options, memory_format, amp):
    """DistributedDataParallel warns and copies otherwise."""
    model = small(**options).to(memory_format=memory_format).train()
    with torch.autocast('cpu', torch.bfloat16, enabled=amp):
        maps = model(image(64, 64)[:, : options.get('in_channels', 3)])
    backward(maps)
    for name, param in model.named_parameters():
        assert param.grad.stride() == param.stride(), name


@pytest.mark.parametrize('prefix', ['', 'backbone.'])
@pytest.mark.parametrize(
    ('kind', 'total', 'known'),
    [
        (VisionGRU, 5, {
            0: ['stem.conv1.weight', 'pos_embed'],
            3: ['stages.2.downsample.conv.weight', 'stages.2.blocks.0.norm1.weight'],
            4: ['stages.2.blocks.1.mlp.fc2.bias'],
            5: ['stages.3.downsample.norm.bias', 'stages.3.blocks.0.mixer.in_proj.weight'],
            6: ['out_norms.0.weight', 'out_norms.3.bias'],
        }),
        (VRWKV, 3, {
            0: ['pos_embed', 'patch_embed.projection.weight'],
            1: ['layers.0.ln0.weight', 'layers.0.att.spatial_decay'],
            3: ['layers.2.gamma2'],
            4: ['ln1.weight', 'out_norms.2.weight'],
        }),
    ],
    ids=['VisionGRU', 'VRWKV'],
)  # fmt: skip
def test_layer_depth_rises_through_the_network(kind, total, known, prefix):
    options = dict(pos_embed='absolute') if kind is VisionGRU else {}
    model = small(kind, out_norm_cfg=dict(type='LN'), **options)
    depths = {n: model.get_layer_depth(prefix + n, prefix) for n, _ in model.named_parameters()}
    assert {number for _, number in depths.values()} == {total + 2}
    order = [depth for n, (depth, _) in depths.items() if n.startswith(('stem', 'stages', 'layers'))]
    assert order == sorted(order)
    assert {depth for depth, _ in depths.values()} == set(range(total + 2))
    for depth, names in known.items():
        assert [depths[n][0] for n in names] == [depth] * len(names)
    assert model.get_layer_depth('head.fc.weight', 'backbone.') == (total + 1, total + 2)


# ---- graphs as PyTorch's tools take them


@pytest.mark.parametrize(
    ('kind', 'options', 'nodes', 'leaves'),
    [
        (*TWO_BLOCKS[0], ('stages.0', 'stages.1'), [Block]),
        (*TWO_BLOCKS[1], ('layers.0', 'ln1'), [Layer, PatchEmbed]),
    ],
    ids=str,
)
def test_feature_extraction_with_blocks_as_leaves(kind, options, nodes, leaves):
    model = small(kind, **{**options, 'out_indices': (0, 1)}).eval()
    extractor = create_feature_extractor(model, list(nodes), tracer_kwargs=dict(leaf_modules=leaves))
    for size in ((64, 64), (65, 47)):
        x = image(*size)
        for got, ref in zip(extractor(x).values(), model(x), strict=True):
            assert torch.equal(got.permute(0, 3, 1, 2), ref)


@pytest.mark.parametrize(('kind', 'options'), [*TWO_BLOCKS, (VRWKVAdapter, SMALL[VRWKVAdapter])], ids=str)
def test_compiled_for_several_sizes(kind, options):
    torch._dynamo.reset()
    model = small(kind, **options).eval()
    # A graph for all sizes at once; that of the adapter is so large that lowering it takes a minute.
    backend = 'eager' if kind is VRWKVAdapter else 'aot_eager'
    compiled = torch.compile(model, fullgraph=True, dynamic=True, backend=backend)
    for size in ((33, 46), (65, 79)):
        found = []
        for module in (compiled, model):
            x = image(*size).requires_grad_()
            maps = module(x)
            sum(out.square().mean() for out in maps).backward()
            found.append([*maps, x.grad])
        for got, ref in zip(*found, strict=True):
            torch.testing.assert_close(got, ref, rtol=1e-4, atol=1e-5)


@every_kind
def test_empty_batch(kind):
    model, shapes = small(kind).eval(), []
    for batch in (0, 1):
        maps = model(image(33, 46, batch=batch))
        backward(maps)
        shapes.append([m.shape[1:] for m in maps])
    assert shapes[0] == shapes[1]


# ---- arguments


def stages(embed_dims=(8, 16, 32, 64), depths=(1, 1, 1, 1)):
    return dict(arch=dict(embed_dims=list(embed_dims), depths=list(depths)))


def layers(kind, **changes):
    return dict(arch={**SMALL[kind]['arch'], **changes})


# The arguments, and what the error must name besides that argument.
BAD_ARGUMENTS = {
    VisionGRU: [
        (dict(arch='huge'), "'huge'"),
        (dict(arch=dict(embed_dims=[8, 16])), "'depths'.*got.*'embed_dims'"),
        (layers(VisionGRU, heads=[1, 1, 1, 1]), "'heads'"),
        (stages(embed_dims=[8, 16, 32]), '3 embed_dims.*4 depths'),
        (stages([], []), '0'),
        (stages([9, 16, 32, 64]), 'embed_dims.*even.*9'),
        (stages([8, -16, 32, 64]), 'embed_dims.*positive.*-16'),
        (stages(depths=[1, 0, 1, 1]), r'depths.*positive.*\(1, 0, 1, 1\)'),
        (dict(in_channels=0), '0'),
        (dict(mlp_ratio=1.5), r'1\.5'),
        (dict(scan_paths=('row', 'diagonal')), "'diagonal'"),
        (dict(scan_paths='row'), "list.*got 'row'"),
        (dict(dwconv_kernel_size=4), '4'),
        (dict(candidate='tanh'), "'tanh'"),
        (dict(pos_embed='sine'), "'sine'"),
        (dict(drop_path_rate=1.0), r'1\.0'),
        (dict(out_indices=(0, -5)), r'\(0, -5\)'),
        (dict(out_indices=()), r'\(\)'),
        (dict(out_indices=(1.0,)), r'\(1\.0,\)'),
        (dict(frozen_stages=5), 'got 5'),
        (dict(scan_backend='warp'), "'warp'"),
    ],
    VRWKV: [
        (dict(arch='huge'), "'huge'"),
        (dict(arch=dict(embed_dims=8)), r"'depth'.* got \['embed_dims'\]"),
        (layers(VRWKV, heads=3), "'heads'"),
        (layers(VRWKV, depth=0), 'depth.*positive'),
        (layers(VRWKV, embed_dims=[8]), r'embed_dims.* \[8\]'),
        (layers(VRWKV, layer_scale=False), 'layer_scale.* False'),
        (dict(patch_size=(16, 0)), '16, 0'),
        (dict(img_size=(32,)), r'\(32,\)'),
        (dict(out_indices=(3,)), r'\[-3, 3\), got \(3,\)'),
        (dict(distance='euclid'), "'paper', 'released'.* got 'euclid'"),
        (dict(wkv_backend='warp'), "got 'warp'"),
    ],
    VRWKVAdapter: [
        (layers(VRWKVAdapter, depth=6), 'depth.* 4, got 6'),
        (layers(VRWKVAdapter, num_heads=5), 'heads .* got 5 for 12'),
        (layers(VRWKVAdapter, num_heads=0), 'heads .* got 0'),
        (layers(VRWKVAdapter, head=1), "'head'"),
        (dict(points=0), 'got 0'),
    ],
}


@pytest.mark.parametrize(
    ('kind', 'options', 'message'),
    [(kind, *case) for kind, cases in BAD_ARGUMENTS.items() for case in cases],
    ids=str,
)
def test_bad_argument(kind, options, message):
    with pytest.raises(ValueError, match=message) as info:
        kind(**{**SMALL[kind], **options})
    (name,) = options
    assert name == 'arch' or name.removeprefix('wkv_') in str(info.value)
    assert '\n' not in str(info.value)
