"""UperNet on images of any size, in training and in both ways of testing."""

import pytest
import torch
from mmengine.config import Config
from mmengine.registry import MODELS, init_default_scope
from mmengine.structures import PixelData
from mmseg.structures import SegDataSample

from tests.harness import ROOT

CONFIG = ROOT / 'configs/_base_/models/upernet_visiongru.py'
SIZES = [(1, 1), (8, 8), (16, 16), (31, 31), (33, 33), (65, 65), (255, 255), (1, 70), (70, 1), (33, 65)]


@pytest.fixture(scope='module')
def model():
    init_default_scope('mmseg')
    cfg = Config.fromfile(CONFIG).model
    cfg.backbone.arch = dict(embed_dims=[8, 16, 24, 32], depths=[1, 1, 1, 1])
    cfg.data_preprocessor.update(size=None, size_divisor=1)
    for name, channels in (('decode_head', [8, 16, 24, 32]), ('auxiliary_head', 24)):
        cfg[name].update(in_channels=channels, channels=8, num_classes=3, norm_cfg=dict(type='BN'))
    return MODELS.build(cfg)


@pytest.mark.parametrize('size', SIZES)
def test_all_values_are_finite(model, size):
    torch.manual_seed(0)
    shapes = dict(ori_shape=size, img_shape=size, pad_shape=size)
    labels = [PixelData(data=torch.randint(0, 3, (1, *size))) for _ in range(2)]
    samples = [SegDataSample(gt_sem_seg=label, metainfo=shapes) for label in labels]
    data = dict(inputs=list(torch.randint(0, 256, (2, 3, *size), dtype=torch.uint8)), data_samples=samples)
    losses = model.train()(**model.data_preprocessor(data, True), mode='loss')
    loss = sum(v for k, v in losses.items() if 'loss' in k)
    loss.backward()
    assert loss.isfinite()
    assert all(p.grad is None or p.grad.isfinite().all() for p in model.parameters())
    for mode in ('whole', 'slide'):
        model.eval().test_cfg = Config(dict(mode=mode, crop_size=(32, 32), stride=(21, 21)))
        with torch.no_grad():
            results = model.test_step(data)
        assert [result.pred_sem_seg.data.shape for result in results] == [(1, *size)] * 2
        assert all(result.seg_logits.data.isfinite().all() for result in results)
