"""Build the parts of a config as the runner does, without data, files or memory for weights."""

import copy
import functools
from importlib.util import find_spec

import numpy as np
import pytest
import torch
from mmengine.config import Config
from mmengine.optim import build_optim_wrapper
from mmengine.registry import DATASETS, MODELS, PARAM_SCHEDULERS, DefaultScope

from mmvisiongru.mmcv_ops import provide_ops
from tests.harness import ROOT, need_mmseg

CONFIGS = ROOT / 'configs'
CLASSIFIER = 'classification/visiongru-tiny_8xb128_in1k.py'
RELEASED = CLASSIFIER.replace('.py', '_released.py')
UPERNET = 'segmentation/visiongru-tiny_upernet_8xb2-160k_ade20k-512x512.py'
# As `load` takes it: a path from the folder of configs.
EXPERIMENTS = '../experiments/configs'
LEAVES = sorted(
    str(path.relative_to(CONFIGS))
    for path in CONFIGS.rglob('*.py')
    if not {'_base_', 'detection'} & {*path.parts}
)
# Those of detectors, for pytest.mark.parametrize.
NEEDS_MMDET = pytest.mark.skipif(find_spec('mmdet') is None, reason='mmdet is not installed')
DETECTORS = [
    pytest.param(f'detection/{path.name}', marks=NEEDS_MMDET)
    for path in sorted((CONFIGS / 'detection').glob('*.py'))
]


_read = functools.cache(Config.fromfile)


def load(name):
    """Load a config by its path below configs/."""
    return copy.deepcopy(_read(CONFIGS / name))


def scope(cfg):
    """Enter the default scope of a config for the length of a `with` block."""
    if cfg.default_scope == 'mmseg':
        need_mmseg()
    if cfg.default_scope == 'mmdet':
        provide_ops()
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


def leaves(node, prefix=''):
    """Dotted key and value of each leaf of a nest of dicts; lists are leaves."""
    for key, value in node.items():
        yield from leaves(value, f'{prefix}{key}.') if isinstance(value, dict) else [(prefix + key, value)]


def difference(child, parent):
    """Keys whose values differ or that only one of two configs has, with the value in the first."""
    ours, theirs = (dict(leaves(load(name))) for name in (child, parent))
    keys, absent = ours.keys() | theirs.keys(), object()
    return {key: ours.get(key) for key in keys if ours.get(key, absent) != theirs.get(key, absent)}


def lr_curve(cfg, epoch_length=10):
    """The lr of every iteration, from the schedulers of the config as the runner steps them."""
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=cfg.optim_wrapper.optimizer.lr)
    end, length = cfg.train_cfg.get('max_iters'), 1
    if end is None:
        end, length = cfg.train_cfg.max_epochs, epoch_length
    iterations, schedulers, lrs = end * length, [], []
    for each in cfg.param_scheduler or []:
        default = dict(optimizer=optimizer, epoch_length=epoch_length)
        default['end'] = end if each.get('by_epoch', True) else iterations
        with scope(cfg):
            schedulers.append(PARAM_SCHEDULERS.build(each, default_args=default))
    # Schedulers warn if there was no step before theirs; more would take time.
    optimizer.step()
    for i in range(iterations):
        lrs.append(optimizer.param_groups[0]['lr'])
        for scheduler in schedulers:
            if not scheduler.by_epoch or (i + 1) % epoch_length == 0:
                scheduler.step()
    return np.array(lrs)
