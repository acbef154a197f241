"""Build the parts of a config as the runner does, without data, files or memory for weights."""

import copy
import functools
import re

import numpy as np
import torch
from mmengine.config import Config
from mmengine.hooks import ParamSchedulerHook
from mmengine.model import BaseModel
from mmengine.optim import build_optim_wrapper
from mmengine.registry import DATASETS, MODELS, DefaultScope
from mmengine.runner import Runner
from torch.utils.data import DataLoader

from tests.harness import ROOT

CONFIGS = ROOT / 'configs'
CLASSIFIER = 'classification/visiongru-tiny_8xb128_in1k.py'
UPERNET = 'segmentation/visiongru-tiny_upernet_8xb2-160k_ade20k-512x512.py'
# As `load` takes it: a path from the folder of configs.
EXPERIMENTS = '../experiments/configs'
LEAVES = sorted(
    str(path.relative_to(CONFIGS)) for path in CONFIGS.rglob('*.py') if '_base_' not in path.parts
)


@functools.cache
def _read(name):
    return Config.fromfile(CONFIGS / name)


def load(name):
    """Load a config by its path below configs/."""
    return copy.deepcopy(_read(name))


def scope(cfg):
    """Enter the default scope of a config for the length of a `with` block."""
    return DefaultScope.overwrite_default_scope(cfg.default_scope)


def build_model(cfg, device='meta'):
    """Build the model with the data preprocessor that the runner would hand it."""
    model = copy.deepcopy(cfg.model)
    if cfg.get('data_preprocessor'):
        model.setdefault('data_preprocessor', copy.deepcopy(cfg.data_preprocessor))
    with scope(cfg), torch.device(device):
        return MODELS.build(model)


def build_dataset(cfg, split, **overrides):
    """Build the data set of 'train', 'val' or 'test'; `lazy_init=True` in overrides reads no file."""
    dataset = copy.deepcopy(cfg[f'{split}_dataloader'].dataset)
    while 'dataset' in dataset and 'pipeline' not in dataset:
        dataset = dataset.dataset
    dataset.update(overrides)
    with scope(cfg):
        return DATASETS.build(dataset)


def build_optimizer(cfg, model):
    """Build the optimizer with its parameter groups."""
    with scope(cfg):
        return build_optim_wrapper(model, copy.deepcopy(cfg.optim_wrapper)).optimizer


def flatten(node, prefix=''):
    """One dotted key for each leaf of a nest of dicts; lists are leaves."""
    if not isinstance(node, dict):
        return {prefix: node}
    return {
        key: value
        for name, child in node.items()
        for key, value in flatten(child, f'{prefix}.{name}' if prefix else name).items()
    }


def difference(child, parent):
    """Keys whose values differ or that only one of two configs has, with the value in the first."""
    ours, theirs = flatten(load(child).to_dict()), flatten(load(parent).to_dict())
    missing = object()
    return {
        key: ours.get(key)
        for key in ours.keys() | theirs.keys()
        if ours.get(key, missing) != theirs.get(key, missing)
    }


def batch_in_name(name):
    """GPUs and images a GPU that a file name states, e.g. (8, 128)."""
    gpus, images = re.search(r'_(\d+)xb(\d+)[-_.]', name).groups()
    return int(gpus), int(images)


class OneWeight(BaseModel):
    """The least that a runner trains."""

    def __init__(self):
        super().__init__()
        self.weight = torch.nn.Parameter(torch.zeros(1))

    def forward(self, inputs, data_samples=None, mode='loss'):
        raise NotImplementedError


def lr_curve(name, work_dir, epoch_length=10):
    """The lr of every iteration, from the schedulers and the loop that a runner builds of the config."""
    cfg = load(name)
    runner = Runner(
        OneWeight(),
        str(work_dir),
        train_dataloader=DataLoader(range(epoch_length)),
        train_cfg=cfg.train_cfg,
        optim_wrapper=dict(optimizer=cfg.optim_wrapper.optimizer),
        default_scope=cfg.default_scope,
        experiment_name=f'lr_{name}',
        log_level='WARNING',
    )
    runner.optim_wrapper = runner.build_optim_wrapper(runner.optim_wrapper)
    runner._train_loop = runner.build_train_loop(cfg.train_cfg)
    runner.param_schedulers = runner.build_param_scheduler(cfg.param_scheduler)
    hook, by_epoch = ParamSchedulerHook(), cfg.default_scope == 'mmpretrain'
    lrs = []
    for i in range(runner.max_iters):
        lrs.append(runner.optim_wrapper.param_groups[0]['lr'])
        hook.after_train_iter(runner, i)
        if by_epoch and (i + 1) % epoch_length == 0:
            hook.after_train_epoch(runner)
    return np.array(lrs)
