"""The recipes as built: optimizer, schedule, augmentation, model, and pipelines on small trees."""

import math
import re

import mmcv
import numpy as np
import pytest
import torch
from mmcv.cnn.bricks import DropPath
from mmengine.registry import HOOKS, MODELS

from tests.harness.config_builders import (
    CLASSIFIER,
    LEAVES,
    NEEDS_MMDET,
    RELEASED,
    UPERNET,
    build_dataset,
    build_model,
    build_optimizer,
    load,
    lr_curve,
)

CLASSIFIERS = (CLASSIFIER, RELEASED)
POS_EMBED = [name for name in LEAVES if name.startswith('ablations/visiongru-tiny_pos-embed_')]
DETECTOR = 'detection/mask-rcnn_visiongru-tiny_fpn_8xb2-1x_coco.py'
# Vision-RWKV.
WIDTH = dict(tiny=192, small=384, base=768)
VRWKV_CLASSIFIERS = {arch: f'classification/vrwkv-{arch}_8xb128_in1k.py' for arch in WIDTH}
VRWKV_UPERNETS = {
    arch: f'segmentation/vrwkv-{arch}_upernet_8xb2-160k_ade20k-512x512.py'
    for arch in ('tiny', 'small', 'tiny-adapter', 'small-adapter')
}
VRWKV_DETECTOR = DETECTOR.replace('visiongru-tiny', 'vrwkv-tiny-adapter')


@pytest.mark.parametrize(
    ('name', 'steps', 'low'),
    # The paper's flavour steps each epoch, of 10 iterations here; the released one each iteration.
    [
        (CLASSIFIER, np.repeat(np.arange(280), 10) / 280, 1e-5),
        (RELEASED, np.arange(2800) / 2800, 0),
        (VRWKV_CLASSIFIERS['small'], np.arange(2800) / 2800, 1e-5),
    ],
)
def test_lr_of_in1k_warms_up_20_epochs_and_follows_a_cosine(name, steps, low):
    lrs = lr_curve(load(name))
    np.testing.assert_allclose(lrs[:200], np.linspace(1e-6, 1e-3, 200), rtol=1e-9)
    expected = low + (1e-3 - low) * (1 + np.cos(math.pi * steps)) / 2
    np.testing.assert_allclose(lrs[200:], expected, rtol=1e-6)


# The long recipe differs from the short one in max_iters alone, as test_variants.py shows.
@pytest.mark.parametrize(
    ('name', 'iterations', 'lr'),
    [(UPERNET.replace('160k', '80k'), 80_000, 6e-5), (VRWKV_UPERNETS['tiny'], 160_000, 12e-5)],
)
def test_lr_of_ade20k_warms_up_1500_iterations_and_falls_linearly_to_zero(name, iterations, lr):
    lrs = lr_curve(load(name))
    expected = lr * np.append(np.linspace(1e-6, 1, 1500), np.linspace(1, 0, iterations - 1500))
    np.testing.assert_allclose(lrs, expected, rtol=1e-6, atol=1e-14)


@NEEDS_MMDET
@pytest.mark.parametrize(
    ('name', 'lr', 'warm_up', 'steps'),
    [
        (DETECTOR, 1e-4, 1000, (8, 11)),
        (DETECTOR.replace('1x', 'ms-crop-3x'), 1e-4, 1000, (27, 33)),
        (VRWKV_DETECTOR, 2e-4, 500, (8, 11)),
    ],
)
def test_lr_of_coco_warms_up_and_falls_twice_to_a_tenth(name, lr, warm_up, steps):
    lrs = lr_curve(load(name), epoch_length=200)
    expected = lr * 0.1 ** sum(np.arange(len(lrs)) // 200 >= step for step in steps)
    expected[:warm_up] *= np.linspace(1e-3, 1, warm_up)
    np.testing.assert_allclose(lrs, expected, rtol=1e-6)
    assert len(lrs) == 200 * (36 if '3x' in name else 12)


@pytest.mark.parametrize('name', [*CLASSIFIERS, UPERNET, pytest.param(DETECTOR, marks=NEEDS_MMDET)])
def test_optimizer(name):
    cfg = load(name)
    lr, decay = (1e-3, 0.05) if name in CLASSIFIERS else (1e-4, 0.05) if name == DETECTOR else (6e-5, 0.01)
    optimizer = build_optimizer(cfg, build_model(cfg))
    assert type(optimizer) is torch.optim.AdamW
    found = {key: optimizer.defaults[key] for key in ('lr', 'betas', 'eps', 'weight_decay')}
    assert found == dict(lr=lr, betas=(0.9, 0.999), eps=1e-8, weight_decay=decay)
    assert {group['lr'] for group in optimizer.param_groups} == {lr}
    # The released code spares no parameter from weight decay and clips no gradient.
    released = name == RELEASED
    assert ({group['weight_decay'] for group in optimizer.param_groups} == {decay}) is released
    assert cfg.optim_wrapper.get('clip_grad') == (dict(max_norm=5.0) if name == CLASSIFIER else None)
    assert cfg.env_cfg.get('tf32', False) is released


def rates(name):
    """Weight decay and lr of each parameter, by its name and number of dimensions."""
    cfg = load(name)
    model = build_model(cfg)
    groups = {id(param): g for g in build_optimizer(cfg, model).param_groups for param in g['params']}
    found = {(key, param.ndim): groups[id(param)] for key, param in model.named_parameters()}
    return {key: (group['weight_decay'], group['lr']) for key, group in found.items()}


@pytest.mark.parametrize('name', [CLASSIFIER, UPERNET, *POS_EMBED, *VRWKV_CLASSIFIERS.values()])
def test_weight_decay_spares_norms_and_embeddings_and_in_classification_biases(name):
    """The embedding of Vision-RWKV decays."""
    spared = r'\.ln\d\.' if 'vrwkv' in name else r'norm|\.bn\.|pos_embed'
    value = 0.01
    if 'in1k' in name:
        spared, value = f'{spared}|bias$', 0.05
    for (key, _), (decay, lr) in rates(name).items():
        assert decay == (0 if re.search(spared, key) else value), key
        assert lr == (1e-3 if 'in1k' in name else 6e-5)


@pytest.mark.parametrize(
    ('name', 'lr', 'rate', 'weight'),
    [
        (VRWKV_UPERNETS['tiny'], 12e-5, 0.95, 0.01),
        (VRWKV_UPERNETS['tiny-adapter'], 12e-5, 0.95, 0.01),
        (VRWKV_UPERNETS['small'], 6e-5, 0.85, 0.01),
        (VRWKV_UPERNETS['small-adapter'], 6e-5, 0.85, 0.01),
        pytest.param(VRWKV_DETECTOR, 2e-4, 0.85, 0.01, marks=NEEDS_MMDET),
        pytest.param(VRWKV_DETECTOR.replace('tiny', 'small'), 1e-4, 0.85, 0.05, marks=NEEDS_MMDET),
    ],
)
def test_dense_vrwkv_decays_lr_by_layer(name, lr, rate, weight, monkeypatch):
    monkeypatch.setattr('mmengine.optim.optimizer.amp_optimizer_wrapper.is_cuda_available', lambda: True)
    for (key, ndim), (decay, found) in rates(name).items():
        # Stored as (1, 1, C) and (1, N, C), the mixes and the embedding are no vectors.
        assert decay == (0 if ndim == 1 else weight), key
        layer = 13
        if key.startswith(('backbone.patch_embed.', 'backbone.pos_embed')):
            layer = 0
        elif key.startswith('backbone.layers.'):
            layer = int(key.split('.')[2]) + 1
        assert found == pytest.approx(lr * rate ** (13 - layer), rel=1e-9), key


@pytest.mark.parametrize('name', CLASSIFIERS)
def test_in1k_averages_weights_with_decay_9999_that_warms_up(name):
    (config,) = load(name).custom_hooks
    # The runner keeps the priority: averaging comes before checkpoints and validation.
    assert config.pop('priority') == 'ABOVE_NORMAL'
    source, expected = torch.nn.Linear(1, 1, bias=False), 0.0
    source.weight.data.zero_()
    averaged = MODELS.build(HOOKS.build(config).ema_cfg, default_args=dict(model=source))
    # The first update copies the 0; the n-th after it has decay min(0.9999, n / (9 + n)).
    averaged.update_parameters(source)
    source.weight.data.fill_(1.0)
    for n in range(1, 6):
        averaged.update_parameters(source)
        expected += (1 - expected) * (1 - n / (9 + n))
    assert averaged.module.weight.item() == pytest.approx(expected, rel=1e-6)
    averaged.steps.fill_(10_000_000)
    averaged.module.weight.data.zero_()
    averaged.update_parameters(source)
    assert averaged.module.weight.item() == pytest.approx(1e-4, rel=1e-4)


@pytest.mark.parametrize('name', CLASSIFIERS)
def test_in1k_mixing_and_label_smoothing(name):
    model = build_model(load(name), device='cpu')
    mixing = model.data_preprocessor.batch_augments
    assert [(type(a).__name__, a.alpha) for a in mixing.augments] == [('Mixup', 0.8), ('CutMix', 1.0)]
    # Without probabilities, every batch gets one of the two with probability 0.5.
    assert mixing.probs is None
    assert model.head.loss_module.label_smooth_val == 0.1
    assert model.backbone.stages[-1].blocks[-1].drop_path.drop_prob == 0.0


@pytest.mark.parametrize('name', CLASSIFIERS)
def test_in1k_augmentation(name):
    released = name.endswith('_released.py')
    kind = 'bilinear' if released else 'bicubic'
    cfg = load(name)
    train = build_dataset(cfg, 'train', lazy_init=True).pipeline.transforms
    kinds = ['RandomResizedCrop', 'RandomFlip', 'RandAugment', 'RandomErasing']
    assert [type(transform).__name__ for transform in train[1:-1]] == kinds
    crop, flip, policy, erasing = train[1:-1]
    assert (crop.scale, crop.crop_ratio_range, crop.interpolation) == ((224, 224), (0.08, 1.0), kind)
    assert flip.prob == 0.5
    # rand-m9-mstd0.5-inc1
    assert (policy.magnitude_level, policy.total_level, policy.magnitude_std) == (9, 10, 0.5)
    assert policy.num_policies == 2
    assert cfg.train_dataloader.dataset.pipeline[3].policies == 'timm_increasing'
    geometric = [op for op in policy.transforms if hasattr(op, 'interpolation')]
    assert len(geometric) == 5  # shear and translation along two axes, rotation
    assert {op.interpolation for op in geometric} == {kind}
    assert (erasing.erase_prob, erasing.min_area_ratio, erasing.max_area_ratio) == (0.25, 0.02, 1 / 3)
    assert (erasing.mode, erasing.fill_std is None) == (('const', True) if released else ('rand', False))
    assert tuple(erasing.fill_color) == (103.53, 116.28, 123.675)  # BGR

    for split in ('val', 'test'):
        _, resize, centre, _ = build_dataset(cfg, split, lazy_init=True).pipeline.transforms
        assert (resize.scale, resize.edge, resize.interpolation) == (256, 'short', kind)
        assert centre.crop_size == (224, 224)


@pytest.mark.parametrize(('size', 'dims'), [('tiny', (72, 144, 288, 576)), ('base', (104, 208, 416, 832))])
def test_ade20k_heads(size, dims):
    model = build_model(load(UPERNET.replace('tiny', size)))
    head, auxiliary = model.decode_head, model.auxiliary_head
    assert tuple(head.in_channels) == dims == model.backbone.embed_dims
    assert (head.channels, head.num_classes, head.ignore_index, head.dropout_ratio) == (512, 150, 255, 0.1)
    assert (auxiliary.in_channels, auxiliary.in_index, auxiliary.channels) == (dims[2], 2, 256)
    assert (auxiliary.num_classes, auxiliary.ignore_index) == (150, 255)
    assert (head.loss_decode.loss_weight, auxiliary.loss_decode.loss_weight) == (1.0, 0.4)
    for norm in (head.bottleneck.bn, auxiliary.convs[0].bn):
        assert isinstance(norm, torch.nn.SyncBatchNorm)
    assert (model.test_cfg.mode, model.data_preprocessor.size) == ('whole', (512, 512))


def test_ade20k_augmentation():
    cfg = load(UPERNET)
    dataset = build_dataset(cfg, 'train', lazy_init=True)
    assert dataset.reduce_zero_label is True
    _, _, resize, crop, flip, photometric, _ = dataset.pipeline.transforms
    assert (resize.scale, resize.ratio_range) == ((2048, 512), (0.5, 2.0))
    assert resize.resize_cfg['keep_ratio'] is True
    assert (crop.crop_size, crop.cat_max_ratio) == ((512, 512), 0.75)
    assert flip.prob == 0.5
    assert type(photometric).__name__ == 'PhotoMetricDistortion'
    _, resize, _, _ = build_dataset(cfg, 'val', lazy_init=True).pipeline.transforms
    assert (resize.scale, resize.keep_ratio) == ((2048, 512), True)


@pytest.mark.parametrize(('arch', 'rate'), [('tiny', 0), ('small', 0.3), ('base', 0.5)])
def test_in1k_vrwkv(arch, rate):
    cfg = load(VRWKV_CLASSIFIERS[arch])
    model = build_model(cfg)
    assert model.backbone.layers[-1].drop_path.drop_prob == pytest.approx(rate)
    assert model.head.fc.in_features == WIDTH[arch] == model.backbone.embed_dims
    assert model.head.loss_module.label_smooth_val == 0.1
    mixing = getattr(model.data_preprocessor, 'batch_augments', None)
    found = [(type(a).__name__, a.alpha) for a in mixing.augments] if mixing else []
    assert found == ([] if arch == 'tiny' else [('Mixup', 0.8), ('CutMix', 1.0)])
    assert cfg.optim_wrapper.clip_grad == dict(max_norm=5.0)


@pytest.mark.parametrize('arch', ['tiny', 'small'])
def test_ade20k_plain_vrwkv(arch):
    model, width = build_model(load(VRWKV_UPERNETS[arch])), WIDTH[arch]
    assert model.backbone.out_indices == (2, 5, 8, 11)
    assert (model.neck.in_channels, model.neck.out_channels) == ([width] * 4, width)
    assert model.neck.scales == [4, 2, 1, 0.5]
    assert tuple(model.decode_head.in_channels) == (width,) * 4
    assert (model.auxiliary_head.in_channels, model.auxiliary_head.in_index) == (width, 2)
    assert model.test_cfg.mode == 'whole'


@pytest.mark.parametrize(('arch', 'rate'), [('tiny', 0.1), ('small', 0.2)])
def test_ade20k_vrwkv_adapter_is_tested_in_windows_of_whole_patches(arch, rate):
    cfg = load(VRWKV_UPERNETS[f'{arch}-adapter'])
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


# ---- pipelines, on small trees of the layout of ImageNet and ADE20K


@pytest.fixture(scope='module')
def imagenet(tmp_path_factory):
    """The folders of 1000 classes, of which two have an image."""
    root, rng = tmp_path_factory.mktemp('imagenet'), np.random.default_rng(0)
    for split in ('train', 'val'):
        for label in range(1000):
            (root / split / f'n{label:08d}').mkdir(parents=True)
        for label in (0, 7):
            image = rng.integers(0, 256, (300, 400, 3), dtype=np.uint8)
            mmcv.imwrite(image, str(root / split / f'n{label:08d}' / 'image_0.JPEG'))
    return root


@pytest.fixture(scope='module')
def ade20k(tmp_path_factory):
    """One image a split: left half label 1, right half label 150, top row label 0 ('other')."""
    root, rng = tmp_path_factory.mktemp('ade20k'), np.random.default_rng(0)
    labels = np.full((120, 160), 150, np.uint8)
    labels[:, :80] = 1
    labels[0] = 0
    for split in ('training', 'validation'):
        image = rng.integers(0, 256, (120, 160, 3), dtype=np.uint8)
        mmcv.imwrite(image, str(root / 'images' / split / 'ADE_00000001.jpg'))
        mmcv.imwrite(labels, str(root / 'annotations' / split / 'ADE_00000001.png'))
    return root


@pytest.mark.parametrize('name', CLASSIFIERS)
@pytest.mark.parametrize('split', ['train', 'val'])
def test_imagenet_pipelines(name, split, imagenet):
    dataset = build_dataset(load(name), split, data_root=str(imagenet))
    assert [int(dataset[i]['data_samples'].gt_label) for i in range(len(dataset))] == [0, 7]
    assert (dataset[0]['inputs'].shape, dataset[0]['inputs'].dtype) == ((3, 224, 224), torch.uint8)


def test_imagenet_batch_is_mixed_in_training_alone(imagenet):
    cfg = load(CLASSIFIER)
    cfg.merge_from_dict({'model.backbone.arch': 'pico', 'model.head.in_channels': 192})
    model = build_model(cfg, device='cpu')
    dataset = build_dataset(cfg, 'val', data_root=str(imagenet))
    samples = [dataset[i % 2] for i in range(8)]
    torch.manual_seed(0)
    np.random.seed(0)
    batch = dict(inputs=torch.stack([sample['inputs'] for sample in samples]))
    batch['data_samples'] = [sample['data_samples'] for sample in samples]
    plain = model.data_preprocessor(batch)['inputs']
    # RGB, each channel normalised by the mean and standard deviation of ImageNet.
    mean, std = torch.tensor([123.675, 116.28, 103.53]), torch.tensor([58.395, 57.12, 57.375])
    expected = (batch['inputs'].flip(1) - mean.view(3, 1, 1)) / std.view(3, 1, 1)
    torch.testing.assert_close(plain, expected, rtol=0, atol=1e-5)

    mixed = model.data_preprocessor(batch, training=True)
    score = torch.stack([sample.gt_score for sample in mixed['data_samples']])
    assert (mixed['inputs'] != plain).any()
    assert ((score > 0) & (score < 1)).any()


def test_ade20k_is_scored_at_its_own_size_without_the_zero_label(ade20k):
    sample = build_dataset(load(UPERNET), 'test', data_root=str(ade20k))[0]
    assert sample['inputs'].shape == (3, 512, 683)
    labels = sample['data_samples'].gt_sem_seg.data[0]
    assert labels.shape == (120, 160)
    assert labels[0].unique().tolist() == [255]
    assert labels[1:, :80].unique().tolist() == [0]
    assert labels[1:, 80:].unique().tolist() == [149]


def test_tta_sees_six_scales_plain_and_mirrored(ade20k):
    views = build_dataset(load(UPERNET.replace('.py', '_tta.py')), 'test', data_root=str(ade20k))[0]
    assert [view.shape[1] for view in views['inputs'][::2]] == [256, 384, 512, 640, 768, 896]
    for plain, mirrored in zip(views['inputs'][::2], views['inputs'][1::2], strict=True):
        assert torch.equal(mirrored, plain.flip(2))
