"""tools/train.py on both tasks, killed and resumed with the augmentation of the recipes; what it costs."""

import re
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import numpy as np
import pytest
from mmengine.config import Config
from mmengine.registry import RUNNERS
from mmengine.runner import Runner
from PIL import Image

from mmvisiongru.checkpoint import load_checkpoint_file
from tests.harness import ROOT
from tests.harness.children import environment, torchrun
from tests.harness.toy import differing, finish

pytestmark = pytest.mark.long

SEGMENTATION = """
_base_ = ['{root}/configs/_base_/runtime/segmentation.py', '{root}/configs/_base_/launchers/none.py']
pipeline = [
    dict(type='LoadImageFromFile'),
    dict(type='LoadAnnotations'),
    dict(type='RandomResize', scale=(64, 32), ratio_range=(0.5, 2.0), keep_ratio=True),
    dict(type='RandomCrop', crop_size=(32, 32), cat_max_ratio=0.75),
    dict(type='RandomFlip', prob=0.5),
    dict(type='PhotoMetricDistortion'),
    dict(type='PackSegInputs'),
]
model = dict(
    type='EncoderDecoder',
    data_preprocessor=dict(type='SegDataPreProcessor', size=(32, 32), mean=[127.0] * 3, std=[60.0] * 3),
    backbone=dict(
        type='mmvisiongru.VisionGRU',
        arch=dict(embed_dims=[8, 16, 32, 64], depths=[1, 1, 1, 1]),
        drop_path_rate=0.3,
    ),
    test_cfg=dict(mode='whole'),
    decode_head=dict(
        type='FCNHead', in_channels=64, in_index=3, channels=8, num_convs=1, num_classes=3,
        norm_cfg=dict(type='BN', requires_grad=True), dropout_ratio=0.3,
    ),
)
train_dataloader = dict(
    batch_size=2, num_workers={workers}, persistent_workers=True,
    sampler=dict(type='InfiniteSampler', shuffle=True),
    dataset=dict(
        type='BaseSegDataset', data_root='{data}', pipeline=pipeline, metainfo=dict(classes=tuple('abc')),
        data_prefix=dict(img_path='img', seg_map_path='map'),
    ),
)
optim_wrapper = dict(
    type='OptimWrapper', optimizer=dict(type='AdamW', lr=1e-3), clip_grad=dict(max_norm=1.0)
)
param_scheduler = [
    dict(type='LinearLR', start_factor=1e-6, by_epoch=False, begin=0, end=5),
    dict(type='PolyLR', eta_min=0.0, power=1.0, by_epoch=False, begin=5),
]
train_cfg = dict(type='IterBasedTrainLoop', max_iters={iters})
default_hooks = dict(logger=dict(interval=1000), checkpoint=dict(interval={interval}, save_best=None))
custom_hooks = {faults}
"""

CLASSIFICATION = """
_base_ = ['{root}/configs/_base_/runtime/classification.py', '{root}/configs/_base_/launchers/none.py']
pipeline = [
    dict(type='LoadImageFromFile'),
    dict(type='RandomResizedCrop', scale=32, backend='pillow', interpolation='bicubic'),
    dict(type='RandomFlip', prob=0.5, direction='horizontal'),
    dict(type='RandAugment', policies='timm_increasing', num_policies=2, total_level=10, magnitude_level=9,
         magnitude_std=0.5),
    dict(type='RandomErasing', erase_prob=0.5, mode='rand', min_area_ratio=0.02, max_area_ratio=1 / 3),
    dict(type='PackInputs'),
]
data_preprocessor = dict(num_classes=2, mean=[127.0] * 3, std=[60.0] * 3)
model = dict(
    type='ImageClassifier',
    backbone=dict(
        type='mmvisiongru.VisionGRU', arch=dict(embed_dims=[8, 16], depths=[1, 1]), out_indices=(1,),
        drop_path_rate=0.3,
    ),
    neck=dict(type='GlobalAveragePooling'),
    head=dict(type='LinearClsHead', num_classes=2, in_channels=16, topk=(1,),
              loss=dict(type='LabelSmoothLoss', label_smooth_val=0.1, mode='original')),
    train_cfg=dict(augments=[dict(type='Mixup', alpha=0.8), dict(type='CutMix', alpha=1.0)]),
)
train_dataloader = dict(
    batch_size=2, num_workers={workers}, sampler=dict(type='DefaultSampler', shuffle=True),
    dataset=dict(type='CustomDataset', data_root='{data}', data_prefix='classes', pipeline=pipeline),
)
optim_wrapper = dict(optimizer=dict(type='AdamW', lr=1e-3))
param_scheduler = [
    dict(type='LinearLR', start_factor=1e-3, by_epoch=True, end=2, convert_to_iter_based=True),
    dict(type='CosineAnnealingLR', by_epoch=True, begin=2),
]
train_cfg = dict(by_epoch=True, max_epochs={epochs})
default_hooks = dict(logger=dict(interval=1000), checkpoint=dict(save_best=None))
custom_hooks = [
    dict(type='EMAHook', ema_type='MomentumAnnealingEMA', momentum=1e-4, gamma=9, priority='ABOVE_NORMAL')
] + {faults}
"""


@pytest.fixture(scope='module')
def data(tmp_path_factory):
    """Twelve noisy images of 40 x 48, with maps and in two classes."""
    root, rng = tmp_path_factory.mktemp('data'), np.random.default_rng(0)
    for folder in ('img', 'map', 'classes/a', 'classes/b'):
        (root / folder).mkdir(parents=True)
    for i in range(12):
        image = Image.fromarray(rng.integers(0, 256, (40, 48, 3)).astype('uint8'))
        image.save(root / f'img/{i}.jpg')
        image.save(root / f'classes/{"ab"[i % 2]}/{i}.jpg')
        Image.fromarray(rng.integers(0, 3, (40, 48)).astype('uint8')).save(root / f'map/{i}.png')
    return root


def train(processes, folder: Path, text, data, *options, kill_at=None, rank=0, **settings) -> tuple[int, str]:
    """Run tools/train.py in the folder; the exit code and the output."""
    folder.mkdir(exist_ok=True)
    faults = [dict(type='tests.harness.toy.MemoryHook')]
    if kill_at:
        faults.append(dict(type='tests.harness.toy.FaultHook', at=kill_at, what='SIGKILL', rank=rank))
    settings = dict(dict(workers=0, iters=30, epochs=5, interval=4), **settings)
    config = folder / 'config.py'
    config.write_text(text.format(root=ROOT, data=data, faults=faults, **settings))
    launcher = torchrun(processes) if processes > 1 else []
    parallel = ['--launcher', 'pytorch'] if processes > 1 else []
    command = [sys.executable, *launcher, str(ROOT / 'tools/train.py'), str(config), *parallel, *options]
    return finish(
        subprocess.Popen(
            [*command, '--work-dir', str(folder / 'work'), '--no-pin-memory'],
            env=environment(),
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
    )


@pytest.mark.parametrize('processes', [1, 2])
@pytest.mark.parametrize(
    ('text', 'last'), [(SEGMENTATION, 'iter_30.pth'), (CLASSIFICATION, 'epoch_5.pth')], ids=['seg', 'cls']
)
def test_killed_and_resumed(tmp_path, data, text, last, processes):
    code, log = train(processes, tmp_path / 'whole', text, data)
    assert code == 0, log
    steps = load_checkpoint_file(str(tmp_path / 'whole/work' / last))['meta']['iter']
    rng = np.random.default_rng(processes)
    # Anywhere in the run, with other numbers of workers.
    for kill_at, workers in zip(sorted(rng.integers(2, steps, 3)), (0, 1, 2), strict=True):
        code, log = train(
            processes, tmp_path / 'killed', text, data, '--resume',
            kill_at=int(kill_at), rank=processes - 1, workers=workers,
        )  # fmt: skip
        assert code in (-9, 137), log
    code, log = train(processes, tmp_path / 'killed', text, data, '--resume', workers=2 // processes)
    assert code == 0, log
    number, names = differing(tmp_path / 'whole/work' / last, tmp_path / 'killed/work' / last)
    assert number > 100
    assert names == []


def test_load(tmp_path, data):
    """Two processes, 1,000 iterations, killed every 50, restarted by a loop that knows nothing else."""
    code, log = train(2, tmp_path / 'whole', SEGMENTATION, data, iters=1000, interval=25)
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
        train(
            2, tmp_path / 'killed', SEGMENTATION, data, '--resume',
            iters=1000, interval=25, kill_at=50 * starts, rank=starts % 2,
        )  # fmt: skip
    print(f'{starts} starts')
    assert differing(tmp_path / 'whole/work/iter_1000.pth', last)[1] == []


@pytest.mark.parametrize('text', [SEGMENTATION, CLASSIFICATION], ids=['seg', 'cls'])
def test_cost(tmp_path, data, text, monkeypatch):
    """The hooks of this project and the checks of samples take under 1 % of a step.

    Of its processor time, which nothing else that runs on the machine is counted in.
    """
    import faulthandler

    from mmvisiongru.engine import guarded_dataset, hooks

    spent = {'hooks': 0.0, 'samples': 0.0}

    def timed(function, name):
        def call(*args, **kwargs):
            begin = time.process_time()
            try:
                return function(*args, **kwargs)
            finally:
                spent[name] += time.process_time() - begin

        return call

    # Wide enough that a step is not all overhead; small beside any model that one would train.
    text = text.replace('[8, 16, 32, 64]', '[48, 96, 192, 384]').replace('[8, 16]', '[96, 192]')
    text = text.replace('in_channels=64', 'in_channels=384').replace('in_channels=16', 'in_channels=192')
    text = text.replace('(32, 32)', '(192, 192)').replace('(64, 32)', '(384, 192)')
    text = text.replace('scale=32', 'scale=192').replace('batch_size=2', 'batch_size=8')
    path = tmp_path / 'config.py'
    path.write_text(textwrap.dedent(text).format(
        root=ROOT, data=data, faults=[], workers=0, iters=30, epochs=5, interval=1000
    ))  # fmt: skip
    cfg = Config.fromfile(path)
    cfg.work_dir, cfg.launcher = str(tmp_path), 'none'
    cfg.train_dataloader.persistent_workers = False
    for kind in ('ExactResumeHook', 'GuardHook', 'BadSampleHook', 'StallHook'):
        for method in ('before_train_iter', 'after_train_iter', '_before_step'):
            if method in vars(getattr(hooks, kind)):
                kind_ = getattr(hooks, kind)
                monkeypatch.setattr(kind_, method, timed(getattr(kind_, method), 'hooks'))
    for name in ('check_files', 'check_labels', 'seed_all'):
        monkeypatch.setattr(guarded_dataset, name, timed(getattr(guarded_dataset, name), 'samples'))
    runner = RUNNERS.build(cfg)
    steps = []

    def step(self, *args, **kwargs):
        steps.append((time.process_time(), dict(spent)))
        return original(self, *args, **kwargs)

    original = Runner.call_hook
    monkeypatch.setattr(Runner, 'call_hook', step)
    runner.train()
    faulthandler.cancel_dump_traceback_later()
    (begin, first), (end, last) = steps[len(steps) // 4], steps[-5]
    shares = {k: (last[k] - first[k]) / (end - begin) for k in spent}
    print('share of the time:', {k: f'{100 * v:.2f} %' for k, v in shares.items()})
    assert sum(shares.values()) < 0.01
