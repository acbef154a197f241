"""The converter of released weights, against values computed with the released model."""

import argparse
import hashlib
import json
import os

import mmpretrain.models  # noqa: F401
import mmseg.models  # noqa: F401
import numpy as np
import pytest
import torch
from mmengine.registry import MODELS
from mmengine.runner import load_checkpoint

from mmvisiongru.errors import InputError
from mmvisiongru.models import VRWKV, VisionGRU, VRWKVAdapter
from mmvisiongru.models.convert import name_of, to_mmvisiongru, to_released
from tests.harness import ROOT
from tests.harness.small_runs import Call
from tests.harness.vrwkv import FIXTURE, LIMITS, released_state
from tools.model_converters import official_to_mmvisiongru as converter

DATA = ROOT / 'tests/data'
DIM8 = dict(embed_dims=[8, 16, 32, 64], depths=[1, 1, 2, 1])
BLOCK = 'snake_gru.layers.2.1'


def arrays(name):
    with np.load(DATA / f'official_{name}_dim8.npz') as file:
        return {key: torch.from_numpy(file[key]) for key in file.files}


def released(name):
    return {k.removeprefix('state/'): v for k, v in arrays(name).items() if k.startswith('state/')}


def build_classifier(backbone, head):
    parts = dict(backbone=backbone, neck=dict(type='GlobalAveragePooling'), head=head)
    return MODELS.build(dict(_scope_='mmpretrain', type='ImageClassifier', **parts))


def classifier(arch, num_classes):
    backbone = dict(type='mmvisiongru.VisionGRU', arch=arch, out_indices=(3,))
    head = dict(type='LinearClsHead', num_classes=num_classes, in_channels=arch['embed_dims'][3])
    return build_classifier(backbone, head)


def segmentor(init_cfg=None):
    backbone = dict(type='mmvisiongru.VisionGRU', arch=DIM8, init_cfg=init_cfg)
    head = dict(type='UPerHead', in_channels=DIM8['embed_dims'], in_index=[0, 1, 2, 3])
    head |= dict(pool_scales=(1, 2), channels=8, num_classes=3)
    parts = dict(backbone=backbone, decode_head=head)
    return MODELS.build(dict(_scope_='mmseg', type='EncoderDecoder', **parts))


def shapes(state):
    return {name: list(value.shape) for name, value in state.items()}


def part(state, prefix):
    return {k: v for k, v in state.items() if k.startswith(prefix)}


def assert_same(got, expected):
    torch.testing.assert_close(dict(got), dict(expected), rtol=0, atol=0)


def assert_close(got, ref):
    """Within the limit of got's dtype, relative to the largest reference value."""
    assert (got.double() - ref).abs().max() <= LIMITS[got.dtype] * ref.abs().max()


def convert(source, target, *options):
    """Save weights, and convert the file; the content of the new one."""
    torch.save(source, target.with_name('source.pth'))
    converter.main([str(target.with_name('source.pth')), str(target), *options])
    return torch.load(target, weights_only=True)


@pytest.mark.parametrize(('arch', 'params'), [('tiny', 30_216_952), ('base', 86_907_352)])
def test_every_released_name_has_its_place(arch, params):
    keys = json.loads((DATA / f'official_cls_{arch}_keys.json').read_text())
    with torch.device('meta'):
        state = {name: torch.empty(shape) for name, shape in keys.items()}
        model = classifier(VisionGRU.arch_settings[arch], 1000)
    ours = to_mmvisiongru(state)

    assert shapes(ours) == shapes(model.state_dict())
    assert sum(v.numel() for v in ours.values()) == params
    assert converter.arch_of(ours) == VisionGRU.arch_settings[arch]
    assert name_of(ours) == arch
    assert shapes(to_released(ours)) == keys


@pytest.mark.parametrize('dtype', LIMITS, ids=str)
def test_classifier_gives_the_released_logits(dtype):
    ref, model = arrays('cls'), classifier(DIM8, 7).to(dtype).eval()
    model.load_state_dict(to_mmvisiongru(released('cls')))
    assert_close(model(ref['input'].to(dtype), mode='tensor').detach(), ref['logits'])


@pytest.mark.parametrize('dtype', LIMITS, ids=str)
@pytest.mark.parametrize('case', ['case0', 'case1', 'case2'])
def test_backbone_gives_the_released_features_and_gradients(case, dtype):
    ref, model, state = arrays('seg'), VisionGRU(DIM8), to_mmvisiongru(released('seg'))
    model.load_state_dict({k.removeprefix('backbone.'): v for k, v in state.items()})
    image = ref[f'{case}/input'].to(dtype).requires_grad_()
    outs = model.to(dtype)(image)
    cotangents = [torch.arange(t.numel()).double().sin().view(t.shape).to(dtype) for t in outs]
    torch.autograd.backward(outs, cotangents)
    for stage, out in zip(range(1, 5), outs, strict=True):
        assert_close(out.detach(), ref[f'{case}/stage{stage}'])
    assert_close(image.grad, ref[f'{case}/grad_input'])


@pytest.mark.parametrize(
    'prefix', ['', 'vig.', 'module.', '_orig_mod.', 'module._orig_mod.', '_orig_mod.vig.', 'vig._orig_mod.']
)
def test_prefixes_of_wrappers_are_stripped(prefix):
    state = released('cls')
    # The counter of an averaged model is skipped.
    averaged = {'n_averaged': torch.tensor(3)} if prefix == 'module.' else {}
    got = to_mmvisiongru({prefix + name: value for name, value in state.items()} | averaged)
    assert_same(got, to_mmvisiongru(state))


@pytest.mark.parametrize('name', ['cls', 'seg', 'segmentor'])
def test_round_trip_is_exact(name, tmp_path):
    state = released(name[:3])
    if name == 'segmentor':
        state = {f'backbone.{k}': v for k, v in state.items()}
        state |= part(segmentor().state_dict(), 'decode_head.')
    ours = convert(state, tmp_path / 'ours.pth')
    size = (tmp_path / 'source.pth').stat().st_size
    assert_same(convert(ours, tmp_path / 'back.pth', '--reverse'), state)
    # A part saved as a slice would drag the whole fused matrix into the file.
    assert (tmp_path / 'back.pth').stat().st_size < 1.05 * size
    if name == 'segmentor':
        segmentor().load_state_dict(ours['state_dict'])


def test_one_file_serves_mmpretrain_and_mmseg(tmp_path):
    path, weights = str(tmp_path / 'ours.pth'), to_mmvisiongru(released('cls'))
    checkpoint = convert(released('cls'), tmp_path / 'ours.pth')
    model = classifier(DIM8, 7)
    load_checkpoint(model, path, map_location='cpu', strict=True)
    assert_same(model.state_dict(), weights)
    model = segmentor(dict(type='Pretrained', checkpoint=path, prefix='backbone.'))
    model.init_weights()
    assert_same(part(model.state_dict(), 'backbone.'), part(weights, 'backbone.'))
    assert set(checkpoint) == {'state_dict', 'meta'}
    sha256 = hashlib.sha256((tmp_path / 'source.pth').read_bytes()).hexdigest()
    assert checkpoint['meta'] == dict(arch=DIM8, **DIM8, source='source.pth', sha256=sha256)


def test_weights_in_a_training_checkpoint(tmp_path, refused):
    """Other content does no harm; of two sets of weights, --key chooses one."""
    target, ema = tmp_path / 'ours.pth', {k: v + 1 for k, v in released('cls').items()}
    extra = dict(epoch=3, args=argparse.Namespace(lr=1e-3), optimizer={'state': {}})
    for container in ('model', 'state_dict', 'model_ema'):
        found = convert({container: ema, **extra}, target, '--force')
        assert_same(found['state_dict'], to_mmvisiongru(ema))
    found = convert(dict(model=released('cls'), model_ema=ema), target, '--force', '--key', 'model_ema')
    assert_same(found['state_dict'], to_mmvisiongru(ema))
    for key, named in (([], '--key'), (['--key', 'ema'], 'no weights under ema')):
        line = refused(converter, tmp_path / 'source.pth', target, '--force', *key)
        assert (named in line, 'model and model_ema' in line) == (True, True)


LAYER = 'backbone.layers.1'
NO_FC = {'head.fc.weight': None, 'head.fc.bias': None}
# Values that replace those of a file, None for keys that it lacks.
DAMAGED = [
    ('cls', {f'{BLOCK}.norm.weight': None, 'fc.bias': None}, f'2 missing keys, first .*{BLOCK}.norm.weight'),
    ('cls', {f'{BLOCK}.min_gru_2.to_out.weight': None}, '1 missing keys, first .*min_gru_2.to_out'),
    ('cls', {'snake_gru.norm4.weight': torch.ones(1)}, '1 unmapped keys, first snake_gru.norm4.weight'),
    ('cls', {f'{BLOCK}.norm.weight': torch.ones(31)}, r'stages.2.blocks.1.norm1.weight.*31.*32'),
    ('cls', {f'{BLOCK}.min_gru_1.to_out.weight': torch.ones(32, 5)}, r'one shape: .*\(32, 5\)'),
    ('cls', {f'{BLOCK}.min_gru_{n}.to_out.weight': torch.ones(4) for n in (1, 2)}, r'no matrices.*\(4,\)'),
    ('cls', {'tokenizer.conv1.weight': torch.ones(4)}, 'no model has weights'),
    ('cls', {'snake_gru.layers.0.0.norm.weight': torch.ones(7)}, r'embed_dims\[0\] must be even'),
    ('cls', {'fc.weight': torch.ones(7, 63)}, r'head.fc.weight.*7, 63.*7, 64'),
    ('cls', {'vig.fc.weight': torch.ones(7, 64)}, 'fc.weight is there twice'),
    ('cls', dict.fromkeys(k for k in released('cls') if '.layers.1.' in k), 'missing snake_gru.layers.1'),
    ('cls', dict.fromkeys(released('cls')) | {'conv1.weight': torch.ones(1)}, 'none of .*first conv1.weight'),
    ('post', {f'{LAYER}.ln1.bias': None}, f'missing {LAYER}.ln1.bias'),
    ('post', {'backbone.pos_embed': None}, 'missing .*backbone.pos_embed'),
    ('post', {f'{LAYER}.att.time_maa': torch.ones(1)}, f'unexpected {LAYER}.att.time_maa'),
    ('post', {f'{LAYER}.ffn.key.weight': torch.ones(2, 2)}, r'ffn.key.weight: \(2, 2\) in the file'),
    ('post', {'module.head.fc.bias': torch.ones(7)}, 'head.fc.bias is there twice'),
    # The first of the two linear layers of VRWKV-L.
    ('post', NO_FC | {'head.0.weight': torch.ones(5, 16), 'head.0.bias': torch.ones(5)}, 'head.layers.pre_l'),
    ('post', {'backbone.out_norms.2.bias': torch.ones(16)}, 'unexpected backbone.out_norms'),
]


@pytest.mark.parametrize(('source', 'changes', 'message'), DAMAGED, ids=lambda each: str(each)[:40])
def test_damaged_weights_are_refused(source, changes, message):
    state = (released(source) if source == 'cls' else released_state(source)) | changes
    with pytest.raises(InputError, match=message) as error:
        to_mmvisiongru({k: v for k, v in state.items() if v is not None})
    assert '\n' not in str(error.value)


@pytest.mark.parametrize(
    ('option', 'message'),
    [
        (dict(pos_embed='absolute'), '1 unmapped keys, first backbone.pos_embed'),
        (dict(dwconv_kernel_size=None), '10 missing keys, first .*dwconv'),
        (dict(scan_paths=['row']), 'in_proj.weight'),
        (dict(out_norm_cfg=dict(type='LN')), '8 unmapped keys, first .*out_norms'),
    ],
)
def test_models_that_the_released_format_cannot_hold_are_refused(option, message):
    state = {f'backbone.{k}': v for k, v in VisionGRU(DIM8, **option).state_dict().items()}
    with pytest.raises(InputError, match=message):
        to_released(state)


def test_existing_file_is_kept(tmp_path, refused):
    target = tmp_path / 'x.pth'
    target.write_text('precious')
    line = refused(converter, tmp_path / 'source.pth', target)
    assert (f'{target} exists' in line, '--force' in line) == (True, True)
    assert target.read_text() == 'precious'
    assert 'meta' in convert(released('cls'), target, '--force')


@pytest.mark.parametrize(
    ('content', 'message'),
    [
        ([torch.ones(1)], 'holds a list, not a state dict'),
        ({'lr': 1.0}, '1 entries are not tensors, first lr'),
        (None, 'does not exist'),
        # It is not executed.
        ({'x': Call(os.mkdir, 'made')}, 'mkdir'),
    ],
)
def test_unsuitable_source_is_one_line(content, message, tmp_path, refused):
    if content is not None:
        torch.save(content, tmp_path / 'x.pth')
    assert message in refused(converter, tmp_path / 'x.pth', tmp_path / 'y.pth')
    assert not os.path.exists('made')


# ---- Vision-RWKV, whose names are ours already


@pytest.mark.parametrize(('names', 'kind'), [('tiny', VRWKV), ('adapter_tiny', VRWKVAdapter)])
def test_every_name_of_vrwkv_is_kept(names, kind):
    keys = json.loads((DATA / f'official_vrwkv_{names}_keys.json').read_text())
    ours = to_mmvisiongru({name: torch.empty(shape, device='meta') for name, shape in keys.items()})
    assert shapes(ours) == keys == shapes(to_released(ours))
    assert name_of(ours) == 'tiny'
    for key in ('embed_dims', 'depth'):
        assert converter.arch_of(ours)[key] == kind.arch_settings['tiny'][key]
    for arch in ('small', 'base', 'large'):
        with torch.device('meta'):
            model = torch.nn.ModuleDict(dict(backbone=kind(arch, img_size=192)))
        assert name_of(to_mmvisiongru(model.state_dict())) == arch


@pytest.mark.parametrize('name', ['pre', 'post', 'key', 'adapter'])
@pytest.mark.parametrize('prefix', ['', 'module.', '_orig_mod.'])
def test_round_trip_of_vrwkv_is_exact(name, prefix):
    state = released_state(name)
    heads = {} if 'head.fc.bias' in state else {'decode_head.conv_seg.bias': torch.ones(3)}
    ours = to_mmvisiongru({prefix + k: v for k, v in (state | heads).items()})
    assert_same(to_released(ours), state | heads)
    # A backbone alone gets the prefix of a model.
    backbone = part(state, 'backbone.')
    assert_same(to_mmvisiongru({k.removeprefix('backbone.'): v for k, v in backbone.items()}), backbone)


def test_head_of_large_is_the_one_of_mmpretrain(tmp_path):
    # Like VRWKV-L, small: key norms, and a head of two layers.
    head = {'head.0.weight': (5, 16), 'head.0.bias': (5,), 'head.2.weight': (7, 5), 'head.2.bias': (7,)}
    weights = part(released_state('key'), 'backbone.')
    weights |= {name: torch.randn(shape) for name, shape in head.items()}
    ours = convert(weights, tmp_path / 'ours.pth')
    arch = dict(embed_dims=16, depth=3, post_norm=True, key_norm=True, layer_scale=1.0)
    model = build_classifier(
        dict(type='mmvisiongru.VRWKV', arch=arch, img_size=32, patch_size=4),
        dict(type='VisionTransformerClsHead', num_classes=7, in_channels=16, hidden_dim=5),
    ).eval()
    model.load_state_dict(ours['state_dict'])
    x = torch.from_numpy(FIXTURE['key/case0/input'])
    with torch.no_grad():
        got, mean = model(x, mode='tensor'), model.backbone(x)[0].mean((2, 3))
    hidden = torch.tanh(mean @ weights['head.0.weight'].T + weights['head.0.bias'])
    torch.testing.assert_close(got, hidden @ weights['head.2.weight'].T + weights['head.2.bias'])
    assert_same(to_released(to_mmvisiongru(weights)), weights)
