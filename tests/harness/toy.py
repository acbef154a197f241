"""A run of milliseconds with everything that resuming must restore: augmentation, dropout, EMA, schedules.

As a script, it is a process that tests can kill: ``python tests/harness/toy.py WORK_DIR [JSON of settings]``.
"""

import json
import os
import random
import signal
import subprocess
import sys
import time
from contextlib import nullcontext
from inspect import isclass
from multiprocessing import active_children
from unittest.mock import patch
from uuid import uuid4

import numpy as np
import pytest
import torch
from mmengine.config import Config
from mmengine.dataset import BaseDataset
from mmengine.evaluator import BaseMetric
from mmengine.hooks import Hook
from mmengine.model import BaseModel
from mmengine.registry import RUNNERS
from mmengine.runner import Runner
from mmengine.structures import BaseDataElement
from torch import nn

from mmvisiongru.checkpoint import load_checkpoint_file
from mmvisiongru.config import settings
from tests.harness.children import PATIENCE, environment, torchrun

SIZE = 12
# The last checkpoint of a run of 18 iterations, by epoch or not.
LAST = {False: 'iter_18.pth', True: 'epoch_6.pth'}


class ToyDataset(BaseDataset):
    """Numbered samples, each blurred by the generators of Python, numpy and torch; some may be broken."""

    METAINFO = dict(classes=('a', 'b'))

    def __init__(self, broken=(), size=SIZE, **kwargs):
        self.broken, self.size = broken, size
        super().__init__(**kwargs)

    def load_data_list(self):
        return [dict(number=i, gt_label=i % 2) for i in range(self.size)]

    def prepare_data(self, idx):
        info = self.get_data_info(idx)
        if idx in self.broken:
            raise OSError('this one is broken')
        noise = random.random(), np.random.rand(), float(torch.rand(()))
        sample = BaseDataElement(metainfo=dict(img_path=f'{idx}.png'), label=info['gt_label'])
        return dict(inputs=torch.tensor([info['number'] / SIZE, *noise]), data_samples=sample)


class ToyModel(BaseModel):
    """Linear, batch norm, dropout, and a mixing of the batch that draws from numpy."""

    def __init__(self):
        super().__init__()
        self.net = nn.Sequential(
            nn.Linear(4, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Dropout(0.3), nn.Linear(8, 2)
        )

    def forward(self, inputs, data_samples=None, mode='tensor'):
        inputs, labels = torch.stack(inputs), torch.tensor([s.label for s in data_samples])
        if mode != 'loss':
            return [dict(right=int(p == t)) for p, t in zip(self.net(inputs).argmax(1), labels, strict=True)]
        return dict(loss=nn.functional.cross_entropy(self.net(inputs * np.random.uniform(0.9, 1.1)), labels))


class ToyMetric(BaseMetric):
    """Accuracy, and a draw from each generator: validation must not change what training draws."""

    def process(self, data_batch, data_samples):
        random.random(), np.random.rand(), torch.rand(3)
        self.results += [s['right'] for s in data_samples]

    def compute_metrics(self, results):
        return dict(acc=sum(results) / len(results))


class KilledError(Exception):
    """Takes the place of a kill in this process."""


class FaultHook(Hook):
    """Does something bad, such as 'SIGKILL' to this process, at an iteration, counted from 1.

    Before it ('train'), after it and before the next one ('between'), or in the validation after it ('val').
    """

    priority = 'LOWEST'

    def __init__(self, at, what, rank=0, times=1, during='train'):
        self.at, self.what, self.rank, self.times, self.during = at, what, rank, times, during

    def before_train_iter(self, runner, batch_idx, data_batch=None):
        self.act(runner, 'train', runner.iter + 1, data_batch)

    def after_train_iter(self, runner, batch_idx, data_batch=None, outputs=None):
        self.act(runner, 'between', runner.iter + 1, data_batch)

    def after_val_iter(self, runner, batch_idx, data_batch=None, outputs=None):
        if batch_idx == 0:
            self.act(runner, 'val', runner.iter, data_batch)

    def act(self, runner, during, iteration, data_batch):
        due = self.at <= iteration < self.at + self.times and runner.rank == self.rank
        if due and during == self.during:
            if self.what.startswith('SIG'):
                os.kill(os.getpid(), signal.Signals[self.what])
            else:
                getattr(self, self.what)(runner, data_batch)

    def nan_input(self, runner, data_batch):
        data_batch['inputs'][0][:] = torch.nan

    def inf_gradient(self, runner, data_batch):
        weight = next(runner.model.parameters())
        handle = weight.register_hook(lambda gradient: (handle.remove(), gradient * torch.inf)[1])

    def fail(self, runner, data_batch):
        raise RuntimeError('a fault of this rank')

    def raise_killed(self, runner, data_batch):
        raise KilledError

    def hang(self, runner, data_batch):
        time.sleep(1000)

    def kill_worker(self, runner, data_batch):
        os.kill(active_children()[0].pid, signal.SIGKILL)

    def hang_worker(self, runner, data_batch):
        os.kill(active_children()[0].pid, signal.SIGSTOP)

    def signal_all(self, runner, data_batch):
        """From another process, as workers obey their parent."""
        subprocess.run(['kill', '-s', 'TERM', '--', f'-{os.getpgrp()}'])

    def signal_and_kill_workers(self, runner, data_batch):
        os.kill(os.getpid(), signal.SIGTERM)
        for worker in active_children():
            os.kill(worker.pid, signal.SIGKILL)


def toy_config(work_dir, by_epoch=False, iters=18, keep=2, interval=3, workers=0, seed=3, **more) -> Config:
    """A run of ``iters`` iterations: 3 an epoch of 12 samples, or without epochs."""
    end, step, sampler = iters, interval, 'InfiniteSampler'
    train_cfg = dict(type='IterBasedTrainLoop', max_iters=iters, val_interval=6)
    if by_epoch:
        end, step, sampler = iters // 3, interval // 3, 'DefaultSampler'
        train_cfg = dict(by_epoch=True, max_epochs=end, val_interval=2)
    loader = dict(batch_size=4, num_workers=0, dataset=dict(type=ToyDataset, serialize_data=False))
    cfg = dict(
        runner_type='mmvisiongru.ReliableRunner',
        work_dir=str(work_dir),
        model=dict(type=ToyModel),
        train_dataloader=dict(
            loader, num_workers=workers, persistent_workers=workers > 0,
            sampler=dict(type=sampler, shuffle=True),
        ),
        val_dataloader=dict(loader, sampler=dict(type='DefaultSampler', shuffle=False)),
        train_cfg=train_cfg,
        val_cfg=dict(),
        val_evaluator=dict(type=ToyMetric),
        optim_wrapper=dict(optimizer=dict(type='AdamW', lr=0.05)),
        param_scheduler=[
            dict(type='LinearLR', start_factor=0.1, by_epoch=False, end=5),
            dict(type='CosineAnnealingLR', by_epoch=by_epoch, begin=0, T_max=end),
        ],
        custom_hooks=[dict(type='EMAHook', ema_type='MomentumAnnealingEMA', momentum=0.1, gamma=9)],
        default_hooks=dict(
            logger=dict(type='mmvisiongru.AtomicLoggerHook', interval=50, log_metric_by_epoch=by_epoch),
            checkpoint=dict(
                type='mmvisiongru.AtomicCheckpointHook', by_epoch=by_epoch, interval=step,
                max_keep_ckpts=keep, save_best='acc',
            ),
            resume=dict(type='mmvisiongru.ExactResumeHook'),
            guard=dict(type='mmvisiongru.GuardHook'),
        ),
        log_processor=dict(by_epoch=by_epoch),
        randomness=dict(seed=seed),
        log_level='WARNING',
        launcher='none',
        # Runs of one second must not share what mmengine keeps by name.
        experiment_name=uuid4().hex,
    )  # fmt: skip
    cfg = Config(cfg)
    cfg.merge_from_dict(more)
    return cfg


def name_types(cfg: Config) -> None:
    """Let a config name its classes, as one in a file does: mmengine 0.10.7 cannot print others."""
    for key in cfg:
        for _, node in settings(cfg[key], key):
            if isinstance(node, dict) and isclass(kind := node.get('type')):
                node['type'] = f'{kind.__module__}.{kind.__qualname__}'


def toy_runner(work_dir, resume=False, fault=None, prepare=None, **settings) -> Runner:
    """Build the Runner of such a run, with a fault in it."""
    cfg = toy_config(work_dir, resume=resume, **settings)
    if fault:
        cfg.custom_hooks.append(dict(type=FaultHook, **fault))
    if prepare:
        prepare(cfg)
    name_types(cfg)
    # Asking the compilers of a machine for their versions takes longer than the run.
    with patch.object(Runner, '_log_env'):
        return RUNNERS.build(cfg)


def run(work_dir, kill_at=None, **settings):
    """Run in this process until the end, or as if it were killed before an iteration."""
    if kill_at:
        settings['fault'] = dict(at=kill_at, what='raise_killed')
    with pytest.raises(KilledError) if kill_at else nullcontext():
        toy_runner(work_dir, **settings).train()


def tensors(node, place=''):
    """All tensors of a loaded checkpoint with their places."""
    if isinstance(node, (dict, list, tuple)):
        for key, child in node.items() if isinstance(node, dict) else enumerate(node):
            yield from tensors(child, f'{place}.{key}')
    elif torch.is_tensor(node):
        yield place, node


def differing(a, b) -> tuple[int, list[str]]:
    """How many tensors two checkpoints have, and the names of those that differ in any bit."""
    a, b = dict(tensors(load_checkpoint_file(str(a)))), dict(tensors(load_checkpoint_file(str(b))))
    assert a.keys() == b.keys()
    return len(a), [k for k in a if not torch.equal(a[k], b[k])]


def assert_same(whole, other, by_epoch=False):
    """The last checkpoints of two runs agree in every bit."""
    assert differing(whole / LAST[by_epoch], other / LAST[by_epoch]) == (37, [])


def python(*arguments, executable=sys.executable, **settings) -> subprocess.Popen:
    """Start another python, as a user would."""
    pipes = dict(stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    command = [executable, *map(str, arguments)]
    return subprocess.Popen(command, **dict(env=environment(), **pipes) | settings)


def start(processes: int, work_dir, executable=sys.executable, **settings) -> subprocess.Popen:
    """Start the toy run in processes of its own."""
    launcher, how = ('pytorch', torchrun(processes)) if processes > 1 else ('none', [])
    settings = json.dumps(settings | dict(launcher=launcher))
    # A signal to its process group must not reach the tests.
    return python(*how, __file__, work_dir, settings, executable=executable, start_new_session=True)


def finish(process: subprocess.Popen) -> tuple[int, str]:
    """Wait for it; the exit code and all it said."""
    out, err = process.communicate(timeout=PATIENCE)
    return process.returncode, out + (err or '')


def main(work_dir, settings='{}'):
    """Run it; in several processes under torchrun."""
    from mmvisiongru.launch.options import one_line_errors
    from mmvisiongru.launch.processes import prepare_launch

    with one_line_errors():
        toy_runner(work_dir, prepare=prepare_launch, **json.loads(settings)).train()


if __name__ == '__main__':
    main(*sys.argv[1:])
