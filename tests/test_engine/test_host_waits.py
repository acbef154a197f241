"""An iteration gives work to the device and waits for none of it."""

import copy
from collections import Counter
from uuid import uuid4

import numpy as np
import pytest
import torch
from mmengine.config import Config
from mmengine.logging import HistoryBuffer, MessageHub
from mmengine.registry import RUNNERS
from mmseg.models.losses import accuracy as mmseg_accuracy

from mmvisiongru.engine.accuracy import accuracy
from mmvisiongru.engine.scalars import MOST_WAITING, LateBuffer, update_late
from tests.harness.small_runs import CLASSIFICATION, SEGMENTATION, make_folders, make_scenes, write_config
from tests.harness.waits import Waits, count_in_iterations

GROUPED = dict(constructor='mmvisiongru.GroupedOptimWrapperConstructor')
CLIPPED = dict(GROUPED, clip_grad=dict(max_norm=1.0))
# Shorter than an epoch, whose end would be logged too.
ITERATIONS, INTERVAL = 7, 2


def build(folder, text, **wrapper):
    make = make_scenes if text is SEGMENTATION else make_folders
    make(folder / 'data')
    cfg = Config.fromfile(write_config(folder / 'config.py', text, folder / 'data'))
    cfg.merge_from_dict(dict(work_dir=str(folder), launcher='none', experiment_name=uuid4().hex))
    for loader in (cfg.train_dataloader, cfg.val_dataloader):
        loader.persistent_workers = False
    cfg.train_cfg = dict(type='IterBasedTrainLoop', max_iters=ITERATIONS, val_interval=99)
    cfg.default_hooks.logger.interval = INTERVAL
    cfg.default_hooks.checkpoint = dict(type='mmvisiongru.AtomicCheckpointHook', by_epoch=False, interval=99)
    cfg.optim_wrapper.update(wrapper)
    if text is SEGMENTATION:
        cfg.model.decode_head.norm_cfg.type = 'BN'
    else:
        # As the recipes: mmengine stacks images by their sizes, which it holds in tensors of the host.
        cfg.train_dataloader.collate_fn = dict(type='default_collate')
    runner = RUNNERS.build(cfg)
    runner._train_loop = runner.build_train_loop(runner._train_loop)
    return runner


def test_what_waits_is_counted():
    x = torch.arange(4.0)
    with Waits() as waits:
        x[0].item(), bool(x.sum() > 0), x.tolist(), x.numpy(), x.cpu(), x[x > 1], float(x[0]), x.nonzero()
        x.to(torch.float64), x + 1, x.sum()
    assert sum(waits.found.values()) >= 8
    assert waits.found['aten._local_scalar_dense.default'] >= 3


@pytest.mark.parametrize('text', [SEGMENTATION, CLASSIFICATION], ids=['segmentation', 'classification'])
@pytest.mark.parametrize('wrapper', [GROUPED, CLIPPED], ids=['plain', 'clipped'])
def test_no_iteration_waits_but_where_it_is_logged(tmp_path, text, wrapper):
    waits = count_in_iterations(build(tmp_path, text, **wrapper))
    # The last one of a run is judged at once.
    quiet = [n for n in range(ITERATIONS - 1) if (n + 1) % INTERVAL]
    assert [waits[n] for n in quiet] == [Counter()] * len(quiet)


def test_an_optimizer_that_is_not_fused_waits_once(tmp_path):
    waits = count_in_iterations(build(tmp_path, SEGMENTATION, optimizer=dict(type='SGD', lr=1e-3)))
    assert sum(waits[2].values()) == 1


@pytest.mark.parametrize('ignored', [0.0, 0.3, 1.0])
@pytest.mark.parametrize('dtype', [torch.float32, torch.bfloat16])
def test_accuracy_is_that_of_mmseg(ignored, dtype):
    generator = torch.Generator().manual_seed(0)
    scores = torch.randn(2, 5, 9, 7, generator=generator).to(dtype)
    labels = torch.randint(5, (2, 9, 7), generator=generator)
    labels[torch.rand(2, 9, 7, generator=generator) < ignored] = 255
    expected = mmseg_accuracy(scores, labels, ignore_index=255)
    assert torch.equal(accuracy(scores, labels, ignore_index=255), expected)


def test_late_values_are_those_that_mmengine_keeps():
    late, known = (MessageHub.get_instance(uuid4().hex) for _ in range(2))
    values = torch.randn(MOST_WAITING + 7, generator=torch.Generator().manual_seed(0))
    for value in values:
        update_late(late, 'train/loss', value[None])
        known.update_scalar('train/loss', value[None])
    update_late(late, 'train/lr', 0.5)
    a, b = (hub.get_scalar('train/loss') for hub in (late, known))
    assert isinstance(a, LateBuffer)
    for x, y in zip(a.data, b.data, strict=True):
        np.testing.assert_array_equal(x, y)
    for window in (1, 10, 2000):
        assert a.mean(window) == b.mean(window)
    assert (a.current(), a.min(3), a.max(3)) == (b.current(), b.min(3), b.max(3))
    # A checkpoint needs no class of this package.
    saved = copy.deepcopy(late.state_dict())['log_scalars']['train/loss']
    assert type(saved) is HistoryBuffer
    assert saved.mean(5) == b.mean(5)
    # A resumed run goes on from there.
    late.load_state_dict(dict(late.state_dict(), log_scalars={'train/loss': saved}))
    update_late(late, 'train/loss', torch.tensor(2.0))
    assert late.get_scalar('train/loss').current() == 2
    assert len(late.get_scalar('train/loss').data[0]) == len(values) + 1
