"""tools/train.py on both tasks, killed and resumed with the augmentation of the recipes; what it costs."""

import cProfile
import pstats
import re
import time
from pathlib import Path
from uuid import uuid4

import numpy as np
import pytest
from mmengine.config import Config
from mmengine.registry import RUNNERS

from mmvisiongru.checkpoint import load_checkpoint_file
from tests.harness.children import torchrun
from tests.harness.small_runs import (
    CLASSIFICATION,
    SEGMENTATION,
    TOOLS,
    make_folders,
    make_scenes,
    write_config,
)
from tests.harness.toy import differing, finish, python

pytestmark = pytest.mark.long

# Augmentation, drop path, schedules and averages, as in the recipes.
RECIPES = {
    SEGMENTATION: """
pipeline[2:2] = [
    dict(type='RandomResize', scale=(2 * SIDE, SIDE), ratio_range=(0.5, 2.0), keep_ratio=True),
    dict(type='RandomCrop', crop_size=(SIDE, SIDE), cat_max_ratio=0.75),
    dict(type='RandomFlip', prob=0.5),
    dict(type='PhotoMetricDistortion'),
]
model['data_preprocessor']['size'] = (SIDE, SIDE)
model['backbone'].update(arch=dict(embed_dims=WIDTHS, depths=[1, 1, 1, 1]), drop_path_rate=0.3)
model['decode_head'].update(in_channels=WIDTHS[-1], dropout_ratio=0.3)
optim_wrapper['clip_grad'] = dict(max_norm=1.0)
param_scheduler = [
    dict(type='LinearLR', start_factor=1e-6, by_epoch=False, begin=0, end=5),
    dict(type='PolyLR', eta_min=0.0, power=1.0, by_epoch=False, begin=5),
]
train_cfg['max_iters'] = LENGTH
default_hooks['checkpoint'].update(interval=INTERVAL, save_best=None)
""",
    CLASSIFICATION: """
pipeline[1:1] = [
    dict(type='RandomResizedCrop', scale=SIDE, backend='pillow', interpolation='bicubic'),
    dict(type='RandomFlip', prob=0.5, direction='horizontal'),
    dict(type='RandAugment', policies='timm_increasing', num_policies=2, total_level=10, magnitude_level=9,
         magnitude_std=0.5),
    dict(type='RandomErasing', erase_prob=0.5, mode='rand', min_area_ratio=0.02, max_area_ratio=1 / 3),
]
model['backbone'].update(arch=dict(embed_dims=WIDTHS[-2:], depths=[1, 1]), drop_path_rate=0.3)
model['head'].update(
    in_channels=WIDTHS[-1], loss=dict(type='LabelSmoothLoss', label_smooth_val=0.1, mode='original')
)
model['train_cfg'] = dict(augments=[dict(type='Mixup', alpha=0.8), dict(type='CutMix', alpha=1.0)])
param_scheduler = [
    dict(type='LinearLR', start_factor=1e-3, by_epoch=True, end=2, convert_to_iter_based=True),
    dict(type='CosineAnnealingLR', by_epoch=True, begin=2),
]
train_cfg['max_epochs'] = LENGTH // 5
default_hooks['checkpoint'] = dict(save_best=None)
custom_hooks.append(
    dict(type='EMAHook', ema_type='MomentumAnnealingEMA', momentum=1e-4, gamma=9, priority='ABOVE_NORMAL')
)
""",
}
TASKS = pytest.mark.parametrize('text', RECIPES, ids=['seg', 'cls'])


@pytest.fixture(scope='module')
def data(tmp_path_factory):
    root = tmp_path_factory.mktemp('data')
    make_scenes(root)
    make_folders(root)
    return root


def write(folder: Path, text, data, kill_at=None, rank=0, **settings) -> Path:
    """A config of 30 iterations that prints its memory, and kills itself before one of them."""
    settings = dict(SIDE=32, WIDTHS=[8, 16, 32, 64], LENGTH=30, INTERVAL=4) | settings
    hooks = [dict(type='tests.harness.toy.MemoryHook')]
    if kill_at:
        hooks.append(dict(type='tests.harness.toy.FaultHook', at=int(kill_at), what='SIGKILL', rank=rank))
    recipe = re.sub(r'\b[A-Z]{4,}\b', lambda m: repr(settings.get(m[0], m[0])), RECIPES[text])
    more = f"train_dataloader['num_workers'] = {settings.get('workers', 0)}\n"
    more += f"train_dataloader['persistent_workers'] = {settings.get('workers', 0) > 0}\n"
    folder.mkdir(exist_ok=True)
    return write_config(folder / 'config.py', text, data, f'\ncustom_hooks = {hooks}\n{recipe}\n{more}')


def train(processes, folder: Path, text, data, *options, **settings) -> tuple[int, str]:
    """Run tools/train.py in the folder; the exit code and the output."""
    launcher = ('pytorch', torchrun(processes)) if processes > 1 else ('none', [])
    config = write(folder, text, data, **settings)
    more = [
        '--work-dir',
        folder / 'work',
        '--no-validate',
        '--no-pin-memory',
        '--launcher',
        launcher[0],
        *options,
    ]
    return finish(python(*launcher[1], TOOLS / 'train.py', config, *more))


@pytest.mark.parametrize('processes', [1, 2])
@TASKS
def test_killed_and_resumed(tmp_path, data, text, processes):
    code, log = train(processes, tmp_path / 'whole', text, data)
    assert code == 0, log
    last = 'iter_30.pth' if text is SEGMENTATION else 'epoch_6.pth'
    steps = load_checkpoint_file(str(tmp_path / 'whole/work' / last))['meta']['iter']
    rng = np.random.default_rng(processes)
    # Anywhere in the run, with other numbers of workers.
    for kill_at, workers in zip(sorted(rng.integers(2, steps, 3)), (0, 1, 2), strict=True):
        kill = dict(kill_at=kill_at, rank=processes - 1, workers=workers)
        code, log = train(processes, tmp_path / 'killed', text, data, '--resume', **kill)
        assert code in (-9, 137), log
    code, log = train(processes, tmp_path / 'killed', text, data, '--resume', workers=2 // processes)
    assert code == 0, log
    number, names = differing(tmp_path / 'whole/work' / last, tmp_path / 'killed/work' / last)
    assert number > 100
    assert names == []


def test_load(tmp_path, data):
    """Two processes, 1,000 iterations, killed every 50, restarted by a loop that knows nothing else."""
    length = dict(LENGTH=1000, INTERVAL=25)
    code, log = train(2, tmp_path / 'whole', SEGMENTATION, data, **length)
    assert code == 0, log
    for rank in (0, 1):
        pages = [int(n) for n in re.findall(rf'rank {rank} iteration \d+00: (\d+) pages', log)]
        print(f'rank {rank}: memory grew by {100 * pages[-1] / pages[0] - 100:.2f} %')
        assert len(pages) == 10
        assert pages[-1] < 1.05 * pages[0]
    last, starts = tmp_path / 'killed/work/iter_1000.pth', 0
    while not last.exists():
        starts += 1
        assert starts <= 40
        kill = dict(kill_at=50 * starts, rank=starts % 2)
        train(2, tmp_path / 'killed', SEGMENTATION, data, '--resume', **length, **kill)
    print(f'{starts} starts')
    assert differing(tmp_path / 'whole/work/iter_1000.pth', last)[1] == []


@TASKS
def test_cost(tmp_path, data, text):
    """The hooks of this project and the checks of samples take under 1 % of the processor time of a step."""
    # Wide enough that a step is not all overhead; small beside any model that one would train.
    path = write(tmp_path, text, data, SIDE=192, WIDTHS=[48, 96, 192, 384], INTERVAL=1000)
    cfg = Config.fromfile(path)
    cfg.merge_from_dict(dict(work_dir=str(tmp_path), launcher='none', experiment_name=uuid4().hex))
    cfg.train_dataloader.batch_size = 8 if text is CLASSIFICATION else 6
    cfg.val_cfg = cfg.val_dataloader = cfg.val_evaluator = None
    runner, profile = RUNNERS.build(cfg), cProfile.Profile(time.process_time)
    profile.runcall(runner.train)
    times = {(Path(file).name, name): v[3] for (file, _, name), v in pstats.Stats(profile).stats.items()}
    total = times['loops.py', 'run']
    names = ('before_train_iter', 'after_train_iter', '_before_step', '_arm')
    hooks = [(f'{file}.py', name) for file in ('exact_resume', 'guard', 'stall') for name in names]
    checks = [('sample_checks.py', 'check_files'), ('sample_checks.py', 'check_labels')]
    shares = [sum(times.get(key, 0) for key in keys) / total for keys in (hooks, checks)]
    print('share of the time: hooks {:.2%}, checks of samples {:.2%}'.format(*shares))
    assert sum(shares) < 0.01
