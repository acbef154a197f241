"""The pipelines run on small trees of the layout of ImageNet and ADE20K, and give what the models expect."""

import mmcv
import numpy as np
import pytest
import torch

from tests.harness.config_builders import CLASSIFIER, UPERNET, build_dataset, build_model, load


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


@pytest.mark.parametrize('name', [CLASSIFIER, CLASSIFIER.replace('.py', '_released.py')])
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
