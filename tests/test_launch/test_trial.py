"""Short runs of long configs, and schedules that do not fit."""

import json
import re
import shutil
from argparse import Namespace
from copy import deepcopy
from pathlib import Path

import pytest
from mmengine.config import Config

from mmvisiongru.config import get_config
from mmvisiongru.launch.prepare import shorten
from mmvisiongru.launch.schedule import check_schedule, fit_schedule
from tests.harness import ROOT
from tests.harness.config_builders import lr_curve
from tests.harness.small_runs import CLASSIFICATION, SEGMENTATION, write_config
from tools import train

# Those that differ from another one in what no schedule reads are left out.
FOLDERS = (ROOT / 'configs/classification', ROOT / 'configs/segmentation')
RECIPES = sorted(p for f in FOLDERS for p in f.glob('*.py') if not re.search('amp|slurm|tta', p.stem))


@pytest.mark.parametrize('recipe', RECIPES, ids=lambda path: path.stem)
def test_a_trial_reaches_the_full_rate_and_comes_down(recipe):
    long = get_config(str(recipe))
    for length in (1, 3, 4, 20):
        cfg = deepcopy(long)
        # As a training makes a trial of its config.
        ratio = shorten(cfg, Namespace(trial=length, work_dir='trial'))
        fit_schedule(cfg, ratio, *((7 * length, length) if 'max_epochs' in cfg.train_cfg else (length, 1)))
        assert length in (cfg.train_cfg.get('max_epochs'), cfg.train_cfg.get('max_iters'))
        assert cfg.train_cfg.val_interval <= length
        assert cfg.default_hooks.checkpoint.interval <= length
        found = lr_curve(cfg, epoch_length=7) / cfg.optim_wrapper.optimizer.lr
        assert found.max() == pytest.approx(1.0)
    # The longest is the recipe at another length: a warm-up from below, and a fall.
    assert found.argmax() < 0.3 * len(found)
    assert found[-1] < 0.3


@pytest.fixture
def work(workplace):
    """A folder with a long config and data of each task."""
    long = """
train_cfg.update(max_iters=160000, val_interval=16000)
param_scheduler = [dict(type='LinearLR', start_factor=1e-6, by_epoch=False, end=1500),
                   dict(type='PolyLR', by_epoch=False, begin=1500)]
"""
    write_config(workplace / 'seg.py', SEGMENTATION, 'ade', long)
    long = """
launcher = 'none'
train_cfg.update(max_epochs=30, val_interval=10)
param_scheduler = [dict(type='LinearLR', start_factor=1e-3, end=5, convert_to_iter_based=True),
                   dict(type='CosineAnnealingLR', begin=5)]
"""
    write_config(workplace / 'cls.py', CLASSIFICATION, 'inet', long)
    return workplace


def scalars(work_dir: str) -> list[dict]:
    (path,) = Path(work_dir).glob('*/vis_data/scalars.json')
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_trial_of_a_segmentor_through_the_script(work):
    for name in ('images', 'annotations'):
        (path,) = Path('ade', name, 'validation').glob('0.*')
        for i in range(3, 40):
            shutil.copy(path, path.with_stem(str(i)))
    train.main(['seg.py', '--trial', '8'])
    # A validation of 40 images leaves the terminal readable.
    (log,) = Path('work_dirs/seg_trial').glob('*/*.log')
    assert 8 <= log.read_text('utf-8').count('Iter(val) [') <= 12
    found = [line['lr'] for line in scalars('work_dirs/seg_trial') if 'lr' in line]
    assert len(found) == 8
    assert max(found) == pytest.approx(1e-3)
    assert [line for line in scalars('work_dirs/seg_trial') if 'mIoU' in line]
    assert Path('work_dirs/seg_trial/iter_8.pth').exists()
    # A later run does not take it for its own.
    assert not Path('work_dirs/seg').exists()


@pytest.mark.parametrize(
    ('args', 'named'),
    [
        (('seg.py', '--cfg-options', 'train_cfg.max_iters=20'), ['param_scheduler.0.end', '--trial 20']),
        (
            ('seg.py', '--cfg-options', 'train_cfg.max_iters=20', 'param_scheduler.0.end=5'),
            ['param_scheduler.1.begin=1500', '--trial 20'],
        ),
        (('cls.py', '--cfg-options', 'train_cfg.max_epochs=3'), ['param_scheduler.0.end', '--trial 3']),
        (('seg.py', '--trial', '0'), ['--trial', '0']),
        (('seg.py', '--trial', '4', '--resume'), ['--resume', '--trial']),
    ],
)
def test_a_length_alone_says_what_to_set(work, capsys, args, named):
    with pytest.raises(SystemExit, match='2'):
        train.main([*args])
    line = capsys.readouterr().err.splitlines()[-1]
    assert [part for part in named if part not in line] == []


def test_a_trial_of_a_warm_up_in_iterations_beside_epochs(work):
    # 4 iterations an epoch.
    Path('leaf.py').write_text(
        "_base_ = 'cls.py'\nparam_scheduler = [\n"
        "    dict(type='LinearLR', start_factor=0.1, by_epoch=False, end=60),\n"
        " dict(type='CosineAnnealingLR', begin=15)]\ncustom_hooks = [dict(type='EMAHook', begin_epoch=9)]\n"
    )
    train.main(['leaf.py', '--trial', '2', '--cfg-options', 'visualizer.name=trial'])
    found = [line['lr'] for line in scalars('work_dirs/leaf_trial') if 'lr' in line]
    assert max(found) == pytest.approx(1e-3)
    # What was run is what the work dir says.
    dumped = get_config('work_dirs/leaf_trial/leaf.py')
    assert dumped.param_scheduler[0].end == 4
    assert dumped.train_cfg.max_epochs == 2


def test_a_schedule_of_another_length_is_noted(work):
    Path('leaf.py').write_text(
        "_base_ = 'seg.py'\ntrain_cfg = dict(max_iters=3)\n"
        "param_scheduler = [dict(type='PolyLR', by_epoch=False, end=2)]\n"
    )
    train.main(['leaf.py'])
    log = next(Path('work_dirs/leaf').glob('*/*.log')).read_text()
    assert 'param_scheduler.0 ends at 2 of 3 iterations (train_cfg.max_iters); to use all, set' in log
    assert 'no validation: train_cfg.val_interval=16000, train_cfg.max_iters=3' in log


@pytest.mark.parametrize(
    ('scheduler', 'fits'),
    [
        (dict(type='MultiStepLR', milestones=[12, 30, 60]), False),
        (dict(type='StepLR', step_size=20), False),
        (dict(type='CosineAnnealingLR', T_max=15, begin=5), True),
        (dict(type='MultiStepLR', milestones=[12, 16]), True),
    ],
)
def test_what_a_scheduler_says_without_an_end_is_compared_too(scheduler, fits):
    notes = check_schedule(Config(dict(train_cfg=dict(max_epochs=20), param_scheduler=[scheduler])), 2000, 20)
    assert [note.split(' ')[0] for note in notes] == ['param_scheduler.0'] * (not fits)


@pytest.mark.parametrize(
    ('scheduler', 'scaled'),
    [
        (dict(type='MultiStepLR', milestones=[8, 11]), dict(milestones=[4, 5])),
        (dict(type='StepLR', step_size=5), dict(step_size=2)),
        (dict(type='CosineAnnealingLR', T_max=12), dict(T_max=6)),
    ],
)
def test_what_a_scheduler_says_without_an_end_is_scaled_too(scheduler, scaled):
    cfg = Config(dict(param_scheduler=[scheduler]))
    fit_schedule(cfg, 0.5, 60, 6)
    assert cfg.param_scheduler == [scheduler | scaled]
