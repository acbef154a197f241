"""Every config builds and is what its name says."""

import inspect
import re

import pytest
from mmengine.registry import HOOKS, PARAM_SCHEDULERS, VISUALIZERS

from mmvisiongru.models import VRWKV, VisionGRU, VRWKVAdapter
from tests.harness.config_builders import (
    DETECTORS,
    LEAVES,
    build_dataset,
    build_model,
    build_optimizer,
    load,
    scope,
)

SAVE_BEST = {'IoUMetric': 'mIoU', 'Accuracy': 'accuracy/top1', 'CocoMetric': 'coco/bbox_mAP'}


@pytest.mark.parametrize('name', [*LEAVES, *DETECTORS])
def test_model_optimizer_and_schedulers_build(name, monkeypatch):
    monkeypatch.setattr('mmengine.optim.optimizer.amp_optimizer_wrapper.is_cuda_available', lambda: True)
    cfg, peer = load(name), name.startswith('peers/') or '_swin-' in name
    # Backbones of mmpretrain cannot be built on the meta device.
    model = build_model(cfg, 'cpu' if peer else 'meta')
    if not peer:
        kind = (VRWKVAdapter if '-adapter_' in name else VRWKV) if 'vrwkv' in name else VisionGRU
        assert type(getattr(model, 'module', model).backbone) is kind
        backbone = cfg.model.get('module', cfg.model).backbone
        assert backbone.keys() - {'type'} <= inspect.signature(kind).parameters.keys()
    if not cfg.get('train_cfg'):
        return
    optimizer = build_optimizer(cfg, model)
    assert sum(len(group['params']) for group in optimizer.param_groups) == sum(1 for _ in model.parameters())
    # Each costs the host time in every step.
    decays = 'layer_decay_rate' in cfg.optim_wrapper.get('paramwise_cfg', {})
    assert len(optimizer.param_groups) <= (32 if decays else 4)
    with scope(cfg):
        for scheduler in cfg.param_scheduler:
            PARAM_SCHEDULERS.build(scheduler, default_args=dict(optimizer=optimizer, epoch_length=10))
    gpus, images = map(int, re.search(r'_(\d+)xb(\d+)[-_.]', name).groups())
    assert cfg.train_dataloader.batch_size == images
    assert cfg.auto_scale_lr == dict(base_batch_size=gpus * images, enable=False)
    if iterations := re.search(r'-(\d+)k_ade20k', name):
        assert cfg.train_cfg.max_iters == 1000 * int(iterations[1])


@pytest.mark.parametrize('name', [*LEAVES, *DETECTORS])
def test_data_hooks_and_visualizer_build(name, tmp_path):
    cfg = load(name)
    for split in ('train', 'val', 'test'):
        if cfg.get(f'{split}_dataloader'):
            dataset, config = build_dataset(cfg, split, lazy_init=True), cfg[f'{split}_dataloader'].dataset
            assert len(dataset.pipeline.transforms) == len(config.pipeline)
            assert config.data_root.startswith('data/')
    assert isinstance(cfg.randomness.seed, int)
    assert (cfg.load_from, cfg.resume) == (None, False)
    with scope(cfg):
        # The visualization hook draws on the visualizer that exists.
        VISUALIZERS.build(dict(cfg.visualizer, name=name, save_dir=str(tmp_path)))
        hooks = {key: HOOKS.build(hook) for key, hook in cfg.default_hooks.items()}
    assert hooks.keys() >= {'exact_resume', 'guard', 'bad_samples', 'stall'}
    assert hooks['checkpoint'].save_best == [SAVE_BEST[cfg.test_evaluator.type]]
