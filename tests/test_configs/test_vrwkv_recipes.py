"""The recipes of Vision-RWKV as built: optimizer, data and model."""

import pytest
from mmcv.cnn.bricks import DropPath

from tests.harness.config_builders import NEEDS_MMDET, build_dataset, build_model, build_optimizer, load

CLASSIFIERS = {arch: f'classification/vrwkv-{arch}_8xb128_in1k.py' for arch in ('tiny', 'small', 'base')}
UPERNETS = {
    arch: f'segmentation/vrwkv-{arch}_upernet_8xb2-160k_ade20k-512x512.py'
    for arch in ('tiny', 'small', 'tiny-adapter', 'small-adapter')
}
DETECTOR = 'detection/mask-rcnn_vrwkv-tiny-adapter_fpn_8xb2-1x_coco.py'
WIDTH = dict(tiny=192, small=384, base=768)


def decays(name):
    """Weight decay and lr of each parameter, by its name and number of dimensions."""
    cfg = load(name)
    model = build_model(cfg)
    groups = {id(param): g for g in build_optimizer(cfg, model).param_groups for param in g['params']}
    found = {(key, param.ndim): groups[id(param)] for key, param in model.named_parameters()}
    return {name: (group['weight_decay'], group['lr']) for name, group in found.items()}


@pytest.mark.parametrize('arch', CLASSIFIERS)
def test_in1k_decay_spares_norms_and_biases_alone(arch):
    for (key, _), (decay, lr) in decays(CLASSIFIERS[arch]).items():
        spared = key.endswith('bias') or any(f'.{norm}.' in key for norm in ('ln0', 'ln1', 'ln2'))
        assert decay == (0 if spared else 0.05), key
        assert lr == 1e-3


@pytest.mark.parametrize(('arch', 'rate'), [('tiny', 0), ('small', 0.3), ('base', 0.5)])
def test_in1k_model(arch, rate):
    cfg = load(CLASSIFIERS[arch])
    model = build_model(cfg)
    assert model.backbone.layers[-1].drop_path.drop_prob == pytest.approx(rate)
    assert model.head.fc.in_features == WIDTH[arch] == model.backbone.embed_dims
    assert model.head.loss_module.label_smooth_val == 0.1
    mixing = getattr(model.data_preprocessor, 'batch_augments', None)
    found = [(type(a).__name__, a.alpha) for a in mixing.augments] if mixing else []
    assert found == ([] if arch == 'tiny' else [('Mixup', 0.8), ('CutMix', 1.0)])
    assert cfg.optim_wrapper.clip_grad == dict(max_norm=5.0)


@pytest.mark.parametrize(
    ('name', 'lr', 'rate', 'weight'),
    [
        (UPERNETS['tiny'], 12e-5, 0.95, 0.01),
        (UPERNETS['tiny-adapter'], 12e-5, 0.95, 0.01),
        (UPERNETS['small'], 6e-5, 0.85, 0.01),
        (UPERNETS['small-adapter'], 6e-5, 0.85, 0.01),
        pytest.param(DETECTOR, 2e-4, 0.85, 0.01, marks=NEEDS_MMDET),
        pytest.param(DETECTOR.replace('tiny', 'small'), 1e-4, 0.85, 0.05, marks=NEEDS_MMDET),
    ],
)
def test_dense_decay_and_lr_of_each_layer(name, lr, rate, weight, monkeypatch):
    monkeypatch.setattr('mmengine.optim.optimizer.amp_optimizer_wrapper.is_cuda_available', lambda: True)
    for (key, ndim), (decay, found) in decays(name).items():
        # Stored as (1, 1, C) and (1, N, C), the mixes and the embedding are no vectors.
        assert decay == (0 if ndim == 1 else weight), key
        layer = 13
        if key.startswith(('backbone.patch_embed.', 'backbone.pos_embed')):
            layer = 0
        elif key.startswith('backbone.layers.'):
            layer = int(key.split('.')[2]) + 1
        assert found == pytest.approx(lr * rate ** (13 - layer), rel=1e-9), key


@pytest.mark.parametrize('arch', ['tiny', 'small'])
def test_ade20k_plain_model(arch):
    model, width = build_model(load(UPERNETS[arch])), WIDTH[arch]
    assert model.backbone.out_indices == (2, 5, 8, 11)
    assert (model.neck.in_channels, model.neck.out_channels) == ([width] * 4, width)
    assert model.neck.scales == [4, 2, 1, 0.5]
    assert tuple(model.decode_head.in_channels) == (width,) * 4
    assert (model.auxiliary_head.in_channels, model.auxiliary_head.in_index) == (width, 2)
    assert model.test_cfg.mode == 'whole'


@pytest.mark.parametrize(('arch', 'rate'), [('tiny', 0.1), ('small', 0.2)])
def test_ade20k_adapter_is_tested_in_windows_of_whole_patches(arch, rate):
    cfg = load(UPERNETS[f'{arch}-adapter'])
    model = build_model(cfg)
    assert not model.with_neck
    assert model.backbone.norm1.weight.shape == (WIDTH[arch],)
    assert {m.drop_prob for m in model.backbone.interactions.modules() if isinstance(m, DropPath)} == {rate}
    assert model.backbone.layers[-1].drop_path.drop_prob == pytest.approx(rate)
    assert model.test_cfg == dict(mode='slide', crop_size=(512, 512), stride=(341, 341))
    for split in ('val', 'test'):
        _, resize, multiple, _, _ = build_dataset(cfg, split, lazy_init=True).pipeline.transforms
        assert (resize.scale, resize.keep_ratio, multiple.size_divisor) == ((2048, 512), True, 32)
    assert cfg.optim_wrapper.type == 'AmpOptimWrapper'
    assert (cfg.optim_wrapper.dtype, cfg.optim_wrapper.loss_scale) == ('float16', dict(init_scale=512))
