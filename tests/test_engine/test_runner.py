"""What ReliableRunner makes of the keys of a config that mmengine's does not know, and what it logs."""

import json
from types import SimpleNamespace
from uuid import uuid4

import pytest
import torch
from mmengine.config import Config
from mmengine.registry import RUNNERS
from mmengine.runner import Runner
from torch import nn

from mmvisiongru.engine.hooks import AtomicLoggerHook
from mmvisiongru.engine.runner import ReliableRunner
from mmvisiongru.errors import InputError
from mmvisiongru.models.layers.pooling import AveragePool
from tests.harness.small_runs import CLASSIFICATION, SEGMENTATION, write_config
from tests.harness.toy import ToyModel, run, toy_config, toy_runner


def built(folder, text, **settings):
    cfg = Config.fromfile(write_config(folder / 'config.py', text, folder))
    cfg.merge_from_dict(dict(settings, work_dir=str(folder), launcher='none', experiment_name=uuid4().hex))
    return RUNNERS.build(cfg).model


@pytest.mark.parametrize('channels_last', [False, True])
def test_weights_lie_as_the_config_says(tmp_path, channels_last):
    model = built(tmp_path, SEGMENTATION, channels_last=channels_last)
    weights = [model.backbone.stem.conv1.weight, model.decode_head.convs[0].conv.weight]
    assert [w.is_contiguous(memory_format=torch.channels_last) for w in weights] == [channels_last] * 2


@pytest.mark.parametrize('deterministic', [False, True])
def test_pools_are_what_deterministic_algorithms_take(tmp_path, monkeypatch, deterministic):
    # Of the whole process.
    monkeypatch.setattr('mmengine.runner.runner.set_random_seed', lambda seed, **kwargs: seed)
    model = built(tmp_path, CLASSIFICATION, randomness=dict(deterministic=deterministic))
    assert type(model.neck.gap) is (AveragePool if deterministic else nn.AdaptiveAvgPool2d)


@pytest.mark.parametrize(
    ('env_cfg', 'gpu', 'products', 'convolutions'),
    [
        ({}, True, [], None),
        (dict(tf32=True), True, ['high'], True),
        (dict(tf32=False), True, ['highest'], False),
        (dict(tf32=True), False, [], None),
    ],
)
def test_tf32_is_for_the_config_to_say(monkeypatch, env_cfg, gpu, products, convolutions):
    monkeypatch.setattr(Runner, 'setup_env', lambda self, env_cfg: None)
    monkeypatch.setattr(torch.cuda, 'is_available', lambda: gpu)
    said, cudnn = [], SimpleNamespace(allow_tf32=None)
    monkeypatch.setattr(torch, 'set_float32_matmul_precision', said.append)
    monkeypatch.setattr(torch.backends, 'cudnn', cudnn)
    ReliableRunner.__new__(ReliableRunner).setup_env(env_cfg)
    assert (said, cudnn.allow_tf32) == (products, convolutions)


def test_processes_that_find_other_checkpoints(tmp_path, monkeypatch):
    run(tmp_path, 8)
    monkeypatch.setattr('mmvisiongru.engine.runner.all_gather_object', lambda own: [own, None])
    with pytest.raises(InputError, match=rf'iter_6\.pth.*{tmp_path}'):
        toy_runner(tmp_path, resume=True).train()


class CountingModel(ToyModel):
    """Logs a tensor that it goes on writing to."""

    def train_step(self, data, optim_wrapper):
        self.count = getattr(self, 'count', torch.zeros(())).add_(1)
        return {**super().train_step(data, optim_wrapper), 'count': self.count}


def test_a_logged_value_is_that_of_its_iteration(tmp_path):
    runner = toy_runner(tmp_path, model=dict(type=CountingModel))
    runner.train()
    assert runner.message_hub.get_scalar('train/count').data[0].tolist() == list(range(1, 19))


def test_one_process_writes_the_metrics(tmp_path, monkeypatch):
    """Of a test, when several processes share a disk."""
    cfg = toy_config(tmp_path)
    loop = dict(test_cfg={}, test_dataloader=cfg.val_dataloader, test_evaluator=cfg.val_evaluator)
    runner = toy_runner(tmp_path, **loop)
    runner.test()
    file = tmp_path / runner.timestamp / f'{runner.timestamp}.json'
    assert 0 <= json.loads(file.read_text())['acc'] <= 1
    (hook,) = [h for h in runner.hooks if isinstance(h, AtomicLoggerHook)]
    file.write_text('of the first process')
    monkeypatch.setattr('mmengine.dist.utils.is_main_process', lambda: False)
    hook.after_test_epoch(runner, dict(acc=0.5))
    assert file.read_text() == 'of the first process'
