"""tools/train.py on both tasks, killed and resumed with the augmentation of the recipes; what it costs."""

from pathlib import Path

import pytest

from tests.harness.children import torchrun
from tests.harness.small_runs import CLASSIFICATION, SEGMENTATION, TOOLS, write_config
from tests.harness.toy import differing, finish, python

pytestmark = pytest.mark.long

# Augmentation, drop path, schedules and averages, as in the recipes.
RECIPES = {
    SEGMENTATION: """
pipeline[2:2] = [
    dict(type='RandomResize', scale=(64, 32), ratio_range=(0.5, 2.0), keep_ratio=True),
    dict(type='RandomCrop', crop_size=(32, 32), cat_max_ratio=0.75),
    dict(type='RandomFlip', prob=0.5),
    dict(type='PhotoMetricDistortion'),
]
model['backbone']['drop_path_rate'] = model['decode_head']['dropout_ratio'] = 0.3
optim_wrapper['clip_grad'] = dict(max_norm=1.0)
param_scheduler = [
    dict(type='LinearLR', start_factor=1e-6, by_epoch=False, begin=0, end=5),
    dict(type='PolyLR', eta_min=0.0, power=1.0, by_epoch=False, begin=5),
]
train_cfg['max_iters'] = 30
default_hooks['checkpoint'].update(interval=4, save_best=None)
""",
    CLASSIFICATION: """
pipeline[1:1] = [
    dict(type='RandomResizedCrop', scale=32, backend='pillow', interpolation='bicubic'),
    dict(type='RandomFlip', prob=0.5, direction='horizontal'),
    dict(type='RandAugment', policies='timm_increasing', num_policies=2, total_level=10, magnitude_level=9,
         magnitude_std=0.5),
    dict(type='RandomErasing', erase_prob=0.5, mode='rand', min_area_ratio=0.02, max_area_ratio=1 / 3),
]
model['backbone']['drop_path_rate'] = 0.3
model['head']['loss'] = dict(type='LabelSmoothLoss', label_smooth_val=0.1, mode='original')
model['train_cfg'] = dict(augments=[dict(type='Mixup', alpha=0.8), dict(type='CutMix', alpha=1.0)])
param_scheduler = [
    dict(type='LinearLR', start_factor=1e-3, by_epoch=True, end=2, convert_to_iter_based=True),
    dict(type='CosineAnnealingLR', by_epoch=True, begin=2),
]
train_cfg['max_epochs'] = 6
default_hooks['checkpoint'] = dict(save_best=None)
custom_hooks.append(
    dict(type='EMAHook', ema_type='MomentumAnnealingEMA', momentum=1e-4, gamma=9, priority='ABOVE_NORMAL')
)
""",
}


def train(processes, folder: Path, text, data, *args, kill_at=0, rank=0, workers=0) -> tuple:
    """Run tools/train.py, killed before an iteration if asked to; its exit code and output."""
    hooks = [dict(type='tests.harness.toy.FaultHook', at=kill_at, what='SIGKILL', rank=rank)]
    folder.mkdir(exist_ok=True)
    config = write_config(folder / 'config.py', text, data, f'\ncustom_hooks = {hooks}\n{RECIPES[text]}')
    options = ['--cfg-options', f'train_dataloader.num_workers={workers}']
    options.append(f'train_dataloader.persistent_workers={workers > 0}')
    launcher = ['--launcher', 'pytorch' if processes > 1 else 'none']
    return finish(python(
        *(torchrun(processes) if processes > 1 else []), TOOLS / 'train.py', config, *launcher, *args,
        '--work-dir', folder / 'work', '--no-validate', '--no-pin-memory', *options,
    ))  # fmt: skip


@pytest.mark.parametrize('processes', [1, 2])
@pytest.mark.parametrize('text', RECIPES, ids=['seg', 'cls'])
def test_killed_and_resumed(tmp_path, workplace, text, processes):
    data = workplace / ('ade' if text == SEGMENTATION else 'inet')
    code, log = train(processes, tmp_path / 'whole', text, data)
    assert code == 0, log
    last = 'iter_30.pth' if text is SEGMENTATION else 'epoch_6.pth'
    for kill_at, workers in ((5, 0), (8, 1), (11, 2)):
        kill = dict(kill_at=kill_at, rank=processes - 1, workers=workers)
        code, log = train(processes, tmp_path / 'killed', text, data, '--resume', **kill)
        assert code in (-9, 137), log
    code, log = train(processes, tmp_path / 'killed', text, data, '--resume', workers=2 // processes)
    assert code == 0, log
    number, names = differing(tmp_path / 'whole/work' / last, tmp_path / 'killed/work' / last)
    assert (number > 100, names) == (True, [])
