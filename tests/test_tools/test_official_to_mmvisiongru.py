"""The converter of released weights, against numbers computed with the released model."""

import argparse
import hashlib
import json
import os
import sys

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
from tests.harness.vrwkv import FIXTURE, released_names, released_state
from tools.model_converters import official_to_mmvisiongru as converter

DATA = ROOT / 'tests/data'
DIM8 = dict(embed_dims=[8, 16, 32, 64], depths=[1, 1, 2, 1])
BLOCK = 'snake_gru.layers.2.1'
# Of max|ref|.
TOLERANCE = {torch.float32: 1e-5, torch.float64: 1e-9}


def arrays(name):
    with np.load(DATA / f'official_{name}_dim8.npz') as file:
        return {key: torch.from_numpy(file[key]) for key in file.files}


def released(name):
    return {k.removeprefix('state/'): v for k, v in arrays(name).items() if k.startswith('state/')}


def classifier(arch, num_classes):
    cfg = dict(
        _scope_='mmpretrain',
        type='ImageClassifier',
        backbone=dict(type='mmvisiongru.VisionGRU', arch=arch, out_indices=(3,)),
        neck=dict(type='GlobalAveragePooling'),
        head=dict(
            type='LinearClsHead',
            num_classes=num_classes,
            in_channels=(arch if isinstance(arch, dict) else VisionGRU.arch_settings[arch])['embed_dims'][3],
        ),
    )
    return MODELS.build(cfg)


def segmentor(init_cfg=None):
    cfg = dict(
        _scope_='mmseg',
        type='EncoderDecoder',
        backbone=dict(type='mmvisiongru.VisionGRU', arch=DIM8, init_cfg=init_cfg),
        decode_head=dict(
            type='UPerHead',
            in_channels=DIM8['embed_dims'],
            in_index=[0, 1, 2, 3],
            pool_scales=(1, 2),
            channels=8,
            num_classes=3,
        ),
    )
    return MODELS.build(cfg)


def shapes(state):
    return {name: list(value.shape) for name, value in state.items()}


def assert_same(got, expected):
    assert set(got) == set(expected)
    assert all(got[k].dtype == v.dtype and torch.equal(got[k], v) for k, v in expected.items())


def assert_close(got, ref):
    """Within the tolerance of got's dtype, relative to the largest reference value."""
    assert (got.double() - ref).abs().max() <= TOLERANCE[got.dtype] * ref.abs().max()


def run(monkeypatch, *argv):
    monkeypatch.setattr(sys, 'argv', ['official_to_mmvisiongru.py', *map(str, argv)])
    converter.main()


@pytest.mark.parametrize(('arch', 'params'), [('tiny', 30_216_952), ('base', 86_907_352)])
def test_every_released_name_has_its_place(arch, params):
    keys = json.loads((DATA / f'official_cls_{arch}_keys.json').read_text())
    with torch.device('meta'):
        state = {name: torch.empty(shape) for name, shape in keys.items()}
        model = classifier(arch, 1000)
    ours = to_mmvisiongru(state)

    assert shapes(ours) == shapes(model.state_dict())
    assert sum(v.numel() for v in ours.values()) == params
    assert converter.arch_of(ours) == VisionGRU.arch_settings[arch]
    assert name_of(ours) == arch
    assert shapes(to_released(ours)) == keys


@pytest.mark.parametrize('dtype', TOLERANCE, ids=str)
def test_classifier_gives_the_released_logits(dtype):
    ref = arrays('cls')
    model = classifier(DIM8, 7).eval()
    model.load_state_dict(to_mmvisiongru(released('cls')))
    with torch.no_grad():
        logits = model.to(dtype)(ref['input'].to(dtype), mode='tensor')
    assert_close(logits, ref['logits'])


@pytest.mark.parametrize('dtype', TOLERANCE, ids=str)
@pytest.mark.parametrize('case', ['case0', 'case1', 'case2'])
def test_backbone_gives_the_released_features_and_gradients(case, dtype):
    ref = arrays('seg')
    model = VisionGRU(DIM8)
    state = to_mmvisiongru(released('seg'))
    model.load_state_dict({k.removeprefix('backbone.'): v for k, v in state.items()})
    image = ref[f'{case}/input'].to(dtype).requires_grad_()
    outs = model.to(dtype)(image)
    loss = sum(
        (t * torch.arange(t.numel(), dtype=torch.float64).view(t.shape).sin().to(dtype)).sum() for t in outs
    )
    loss.backward()

    assert len(outs) == 4
    for stage, out in enumerate(outs, 1):
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


@pytest.mark.parametrize('name', ['cls', 'seg'])
def test_round_trip_is_exact(name, tmp_path, monkeypatch):
    torch.save(released(name), tmp_path / 'released.pth')
    run(monkeypatch, tmp_path / 'released.pth', tmp_path / 'ours.pth')
    run(monkeypatch, '--reverse', tmp_path / 'ours.pth', tmp_path / 'back.pth')
    assert_same(torch.load(tmp_path / 'back.pth', weights_only=True), released(name))
    # A part saved as a slice would drag the whole fused matrix into the file.
    assert (tmp_path / 'back.pth').stat().st_size < 1.05 * (tmp_path / 'released.pth').stat().st_size


def test_whole_segmentor_keeps_its_heads():
    heads = {k: v for k, v in segmentor().state_dict().items() if k.startswith('decode_head.')}
    state = {f'backbone.{k}': v for k, v in released('seg').items()} | heads
    ours = to_mmvisiongru(state)
    segmentor().load_state_dict(ours)
    assert_same(to_released(ours), state)


def test_one_file_serves_mmpretrain_and_mmseg(tmp_path, monkeypatch):
    torch.save(released('cls'), tmp_path / 'released.pth')
    path = str(tmp_path / 'ours.pth')
    run(monkeypatch, tmp_path / 'released.pth', path)
    backbone = {k: v for k, v in to_mmvisiongru(released('cls')).items() if k.startswith('backbone.')}

    model = classifier(DIM8, 7)
    load_checkpoint(model, path, map_location='cpu', strict=True)
    assert_same(model.state_dict(), to_mmvisiongru(released('cls')))

    model = segmentor(dict(type='Pretrained', checkpoint=path, prefix='backbone.'))
    model.init_weights()
    assert_same({k: v for k, v in model.state_dict().items() if k.startswith('backbone.')}, backbone)
    checkpoint = torch.load(path, weights_only=True)
    assert set(checkpoint) == {'state_dict', 'meta'}
    sha256 = hashlib.sha256((tmp_path / 'released.pth').read_bytes()).hexdigest()
    assert checkpoint['meta'] == dict(arch=DIM8, **DIM8, source='released.pth', sha256=sha256)


@pytest.mark.parametrize('container', ['model', 'state_dict', 'model_ema'])
def test_weights_are_found_in_a_training_checkpoint(container, tmp_path):
    extra = dict(epoch=3, args=argparse.Namespace(lr=1e-3), optimizer={'state': {}})
    torch.save({container: released('cls'), **extra}, tmp_path / 'x.pth')
    assert_same(converter.read_weights(tmp_path / 'x.pth'), released('cls'))


def test_two_sets_of_weights_need_a_choice(tmp_path):
    ema = {k: v + 1 for k, v in released('cls').items()}
    torch.save(dict(model=released('cls'), model_ema=ema), tmp_path / 'x.pth')
    with pytest.raises(InputError, match='model and model_ema; choose with --key'):
        converter.read_weights(tmp_path / 'x.pth')
    assert_same(converter.read_weights(tmp_path / 'x.pth', 'model_ema'), ema)
    with pytest.raises(InputError, match='no weights under ema, but model and model_ema'):
        converter.read_weights(tmp_path / 'x.pth', 'ema')


def without(*names):
    return lambda state: {k: v for k, v in state.items() if k not in names}


def with_value(name, value):
    return lambda state: state | {name: value}


@pytest.mark.parametrize(
    ('damage', 'message'),
    [
        (without(f'{BLOCK}.norm.weight', 'fc.bias'), f'2 missing keys, first .*{BLOCK}.norm.weight'),
        (without(f'{BLOCK}.min_gru_2.to_out.weight'), '1 missing keys, first .*min_gru_2.to_out'),
        (
            with_value('snake_gru.norm4.weight', torch.ones(1)),
            '1 unmapped keys, first snake_gru.norm4.weight',
        ),
        (with_value(f'{BLOCK}.norm.weight', torch.ones(31)), r'stages.2.blocks.1.norm1.weight.*31.*32'),
        (with_value(f'{BLOCK}.min_gru_1.to_out.weight', torch.ones(32, 5)), r'differ in shape: .*\(32, 5\)'),
        (with_value('fc.weight', torch.ones(7, 63)), r'head.fc.weight.*7, 63.*7, 64'),
        (with_value('vig.fc.weight', torch.ones(7, 64)), 'fc.weight is there twice'),
        (lambda s: {k: v for k, v in s.items() if '.layers.1.' not in k}, 'missing snake_gru.layers.1'),
        (lambda s: {'conv1.weight': torch.ones(1)}, r'none of snake_gru.layers.* first conv1.weight'),
    ],
)
def test_damaged_released_weights_are_refused(damage, message):
    with pytest.raises(InputError, match=message) as error:
        to_mmvisiongru(damage(released('cls')))
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


class Touch:
    """Unpickles by creating a file."""

    def __init__(self, path):
        self.path = str(path)

    def __reduce__(self):
        return os.mkdir, (self.path,)


def test_crafted_file_is_not_executed(tmp_path, monkeypatch, capsys):
    torch.save(released('cls') | {'x': Touch(tmp_path / 'pwned')}, tmp_path / 'x.pth')
    with pytest.raises(SystemExit) as stop:
        run(monkeypatch, tmp_path / 'x.pth', tmp_path / 'y.pth')
    assert stop.value.code == 2
    assert 'mkdir' in capsys.readouterr().err
    assert os.listdir(tmp_path) == ['x.pth']
    # The file does what it is meant to do when it is trusted, or this test shows nothing.
    torch.load(tmp_path / 'x.pth', weights_only=False)
    assert (tmp_path / 'pwned').exists()


def test_existing_file_is_kept(tmp_path, monkeypatch, capsys):
    torch.save(released('cls'), tmp_path / 'x.pth')
    (tmp_path / 'y.pth').write_text('precious')
    with pytest.raises(SystemExit):
        run(monkeypatch, tmp_path / 'x.pth', tmp_path / 'y.pth')
    assert capsys.readouterr().err == f'error: {tmp_path}/y.pth exists already; --force overwrites it\n'
    assert (tmp_path / 'y.pth').read_text() == 'precious'
    run(monkeypatch, tmp_path / 'x.pth', tmp_path / 'y.pth', '--force')
    assert 'meta' in torch.load(tmp_path / 'y.pth', weights_only=True)


@pytest.mark.parametrize(
    ('content', 'message'),
    [
        ([torch.ones(1)], 'holds a list, not a state dict'),
        ({'lr': 1.0}, '1 entries are not tensors, first lr'),
        (None, 'does not exist'),
    ],
)
def test_unsuitable_source_is_one_line(content, message, tmp_path, monkeypatch, capsys):
    if content is not None:
        torch.save(content, tmp_path / 'x.pth')
    with pytest.raises(SystemExit):
        run(monkeypatch, tmp_path / 'x.pth', tmp_path / 'y.pth')
    err = capsys.readouterr().err
    assert message in err
    assert err.count('\n') == 1


# ---- Vision-RWKV, whose names are ours already


@pytest.mark.parametrize(('names', 'kind'), [('tiny', VRWKV), ('adapter_tiny', VRWKVAdapter)])
def test_every_name_of_vrwkv_is_kept(names, kind):
    released = {name: torch.empty(shape, device='meta') for name, shape in released_names(names).items()}
    ours = to_mmvisiongru(released)
    assert shapes(ours) == released_names(names) == shapes(to_released(ours))
    assert name_of(ours) == 'tiny'
    assert (
        converter.arch_of(ours).items()
        >= {k: kind.arch_settings['tiny'][k] for k in ('embed_dims', 'depth')}.items()
    )
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
    backbone = {k: v for k, v in state.items() if k.startswith('backbone.')}
    assert_same(to_mmvisiongru({k.removeprefix('backbone.'): v for k, v in backbone.items()}), backbone)


def test_head_of_large_is_the_one_of_mmpretrain(tmp_path, monkeypatch):
    # Like VRWKV-L, small: key norms, and a head of two layers.
    head = {'head.0.weight': (5, 16), 'head.0.bias': (5,), 'head.2.weight': (7, 5), 'head.2.bias': (7,)}
    weights = {k: v for k, v in released_state('key').items() if k.startswith('backbone.')}
    weights |= {name: torch.randn(shape) for name, shape in head.items()}
    torch.save(weights, tmp_path / 'released.pth')
    run(monkeypatch, tmp_path / 'released.pth', tmp_path / 'ours.pth')
    cfg = dict(
        _scope_='mmpretrain',
        type='ImageClassifier',
        backbone=dict(
            type='mmvisiongru.VRWKV',
            arch=dict(embed_dims=16, depth=3, post_norm=True, key_norm=True, layer_scale=1.0),
            img_size=32,
            patch_size=4,
        ),
        neck=dict(type='GlobalAveragePooling'),
        head=dict(type='VisionTransformerClsHead', num_classes=7, in_channels=16, hidden_dim=5),
    )
    model = MODELS.build(cfg).eval()
    load_checkpoint(model, str(tmp_path / 'ours.pth'), map_location='cpu', strict=True)
    x = torch.from_numpy(FIXTURE['key/case0/input'])
    with torch.no_grad():
        got, mean = model(x, mode='tensor'), model.backbone(x)[0].mean((2, 3))
    hidden = torch.tanh(mean @ weights['head.0.weight'].T + weights['head.0.bias'])
    torch.testing.assert_close(got, hidden @ weights['head.2.weight'].T + weights['head.2.bias'])
    assert_same(to_released(to_mmvisiongru(weights)), weights)


LAYER = 'backbone.layers.1'


@pytest.mark.parametrize(
    ('damage', 'message'),
    [
        (without(f'{LAYER}.ln1.bias'), f'missing {LAYER}.ln1.bias'),
        (without('backbone.pos_embed'), 'missing .*backbone.pos_embed'),
        (with_value(f'{LAYER}.att.time_maa', torch.ones(1)), f'unexpected {LAYER}.att.time_maa'),
        (
            with_value(f'{LAYER}.ffn.key.weight', torch.ones(2, 2)),
            r'ffn.key.weight: \(2, 2\) in the file',
        ),
        (with_value('module.head.fc.bias', torch.ones(7)), 'head.fc.bias is there twice'),
        (with_value('backbone.out_norms.2.bias', torch.ones(16)), 'unexpected backbone.out_norms'),
    ],
)
def test_damaged_weights_of_vrwkv_are_refused(damage, message):
    with pytest.raises(InputError, match=message) as error:
        to_mmvisiongru(damage(released_state('post')))
    assert '\n' not in str(error.value)
