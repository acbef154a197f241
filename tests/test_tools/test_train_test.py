"""tools/train.py and test.py: both tasks end to end in two CPU processes, and input that cannot be used."""

import json
import os
import pickle
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from mmengine.config import Config
from mmseg.models import EncoderDecoder
from PIL import Image, ImageOps

from mmvisiongru.checkpoint import load_checkpoint_file
from mmvisiongru.inference.form import InferenceForm
from mmvisiongru.launch.processes import has_gpu
from mmvisiongru.models.layers import mingru
from mmvisiongru.ops import mingru_scan_2d
from tests.harness import ROOT
from tests.harness.children import PATIENCE, environment, free_port
from tests.harness.small_runs import SEGMENTATION, TOOLS, write_config
from tools import test as test_tool
from tools import train


def run(script, *args):
    """Call the main function of a script in this process."""
    script.main([*map(str, args)])


@pytest.fixture
def start(python):
    """Starts a script of tools/ in the background, as from a shell."""

    def call(script: str, *args, **env) -> subprocess.Popen:
        # Without a GPU everywhere, as the tests expect gloo.
        settings = dict(PYTHON=python, PYTHON_EXEC=python, CUDA_VISIBLE_DEVICES='')
        pipes = dict(stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        return subprocess.Popen([TOOLS / script, *map(str, args)], env=os.environ | settings | env, **pipes)

    return call


def finish(*processes: subprocess.Popen) -> str:
    """Wait for scripts that must succeed; the output of the first."""
    outputs = [process.communicate(timeout=PATIENCE) for process in processes]
    for process, (out, err) in zip(processes, outputs, strict=True):
        assert process.returncode == 0, out[-2000:] + err[-4000:]
    return outputs[0][0]


def read_metrics(work_dir: str) -> dict:
    return json.loads(next(Path(work_dir).glob('*/*.json')).read_text())


def read_scores(name: str) -> list[dict]:
    return pickle.loads(Path(f'{name}.pkl').read_bytes())


def test_segmentation_in_two_processes(segmentor, start):
    log = finish(start('dist_train.sh', segmentor, 2))
    for part in ('device: 2 x cpu', 'with gloo', 'SyncBN replaced by BN'):
        assert part in log
    assert log.count("scan on cpu, float32: backend '") == 1
    assert 'Iter(train) [1/2]  lr: 1.0000e-03  eta: 0:00:0' in log
    assert load_checkpoint_file('work_dirs/tiny/iter_2.pth')['meta']['iter'] == 2

    log = finish(start('dist_train.sh', segmentor, 2, '--resume', '--cfg-options', 'train_cfg.max_iters=4'))
    assert 'resumed epoch: 0, iter: 2' in log
    assert 'Iter(train) [3/4]' in log
    assert 'Iter(train) [1/4]' not in log
    resumed = load_checkpoint_file('work_dirs/tiny/iter_4.pth')
    assert {float(state['step']) for state in resumed['optimizer']['state'].values()} == {4.0}

    args = (segmentor, 'work_dirs/tiny/iter_4.pth')
    finish(start('dist_test.sh', *args, 2, '--work-dir', 'two', '--out', 'maps', '--show-dir', 'pictures'))
    run(test_tool, *args, '--work-dir', 'one', '--out', 'alone')
    two, one = read_metrics('two'), read_metrics('one')
    assert two['aAcc'] > 0
    assert [two[k] for k in ('aAcc', 'mIoU')] == [one[k] for k in ('aAcc', 'mIoU')]
    for i in range(3):
        np.testing.assert_array_equal(Image.open(f'maps/{i}.png'), Image.open(f'alone/{i}.png'))
    # Each process draws what it tested.
    assert sorted(os.listdir('pictures')) == ['0.png', '1.png', '2.png']


# With a table of groups, a warm-up and pinned memory, as the recipes have it.
RECIPE = """
train_dataloader.update(pin_memory=True)
optim_wrapper = dict(
    constructor='mmvisiongru.GroupedOptimWrapperConstructor',
    optimizer=dict(type='AdamW', lr=1e-3, weight_decay=0.1),
    paramwise_cfg=dict(norm_decay_mult=0.0),
)
param_scheduler = [dict(type='LinearLR', start_factor=0.1, by_epoch=False, end=2),
                   dict(type='PolyLR', by_epoch=False, begin=2)]
"""


def test_a_run_starts_with_a_summary_of_at_most_20_lines(workplace):
    broken = workplace / 'ade/images/training/3.jpg'
    broken.write_bytes(b'no picture')
    extra = f'{RECIPE}train_cfg.update(max_iters=4)\n'
    write_config(workplace / 'tiny.py', SEGMENTATION, workplace / 'ade', extra)
    # In a new process, where nothing has warned yet.
    command, env = [sys.executable, TOOLS / 'train.py', 'tiny.py'], environment(CUDA_VISIBLE_DEVICES='')
    done = subprocess.run(command, env=env, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    assert done.returncode == 0, done.stdout
    lines = done.stdout.splitlines()
    first = next(i for i, line in enumerate(lines) if '(train)' in line)
    start = [line for line in lines[:first] if 'bad sample' not in line]
    assert len(start) <= 20
    for what in ('model: ', 'parameters', 'train data: ', 'schedule: ', 'device: ', 'backend ', 'work dir: '):
        assert any(what in line for line in start), what
    (bad,) = (line for line in lines if 'bad sample skipped' in line)
    assert str(broken) in bad
    (log,) = Path('work_dirs/tiny').glob('*/*.log')
    assert 'logger.py' not in done.stdout + log.read_text()


def test_two_nodes_test_as_one_process_does(classifier, start):
    nodes = dict(NNODES='2', MASTER_ADDR='127.0.0.1', MASTER_PORT=str(free_port()))
    two = (classifier, 'fits.pth', 1, '--work-dir', 'two', '--out', 'two.pkl')
    finish(*[start('dist_test.sh', *two, NODE_RANK=str(rank), **nodes) for rank in (0, 1)])
    run(test_tool, classifier, 'fits.pth', '--work-dir', 'one', '--out', 'one.pkl')
    assert read_metrics('two')['accuracy/top1'] == read_metrics('one')['accuracy/top1']
    two, one = ({s['img_path']: s['pred_score'] for s in read_scores(name)} for name in ('two', 'one'))
    assert len(two) == 6
    torch.testing.assert_close(two, one)


def test_tta_of_a_classifier_averages_the_flipped_image(classifier):
    run(test_tool, classifier, 'fits.pth', '--out', 'plain.pkl', '--work-dir', 'a')
    with open(classifier, 'a') as file:
        data = "dict(type='ConcatDataset', datasets=[test_dataloader['dataset']])"
        file.write(f"test_dataloader['dataset'] = {data}\n")
    run(test_tool, classifier, 'fits.pth', '--out', 'tta.pkl', '--work-dir', 'b', '--tta')
    for image in Path('inet/val').rglob('*.png'):
        ImageOps.mirror(Image.open(image)).save(image)
    run(test_tool, classifier, 'fits.pth', '--out', 'flip.pkl', '--work-dir', 'c')
    for a, b, c in zip(*map(read_scores, ('plain', 'tta', 'flip')), strict=True):
        assert not torch.equal(a['pred_score'], c['pred_score'])
        torch.testing.assert_close(b['pred_score'], (a['pred_score'] + c['pred_score']) / 2)


def test_tta_of_a_segmentor_averages_the_flipped_image(segmentor):
    args = (test_tool, segmentor, 'fits.pth', '--tta')
    for path in Path('ade').rglob('images/validation/*'):
        # Mirroring must lose nothing; a file is read by its content, whatever its name.
        Image.open(path).save(path, format='PNG')
    run(*args, '--work-dir', 'one', '--out', 'plain')
    for path in Path('ade').rglob('*/validation/*'):
        ImageOps.mirror(Image.open(path)).save(path, format='PNG')
    run(*args, '--work-dir', 'two', '--out', 'mirrored')
    for i in range(3):
        plain, mirrored = (Image.open(f'{folder}/{i}.png') for folder in ('plain', 'mirrored'))
        np.testing.assert_array_equal(ImageOps.mirror(mirrored), plain)


def test_options_of_training(classifier):
    options = ('--no-validate', '--auto-scale-lr', '--no-pin-memory', '--resume', '--work-dir', 'work')
    options += ('--schedule', 'config', '--cfg-options', 'auto_scale_lr.base_batch_size=1')
    workers = ('test_dataloader.num_workers=1', 'test_dataloader.persistent_workers=True')
    run(train, classifier, '--no-persistent-workers', *options, 'runner_type=Runner', *workers)
    log = next(Path('work').glob('*/*.log')).read_text()
    assert 'Epoch(val)' not in log
    # That of ReliableRunner alone.
    assert 'scan on cpu' not in log
    # 1e-3 by a batch of 2 over one of 1.
    assert 'lr: 2.0000e-03' in log
    dumped = Config.fromfile('work/tiny.py')
    assert dumped.train_dataloader.pin_memory is False
    assert dumped.test_dataloader.persistent_workers is False
    assert dumped.resume_schedule == 'config'


@pytest.fixture
def scanned(monkeypatch):
    """The types in which the scan was asked for, and whether to train."""
    dtypes = []

    def scan(x, **kwargs):
        dtypes.append((x.dtype, x.requires_grad))
        return mingru_scan_2d(x, **kwargs)

    monkeypatch.setattr(mingru, 'mingru_scan_2d', scan)
    return dtypes


@pytest.mark.skipif(has_gpu(), reason='the CPU in mixed precision')
@pytest.mark.parametrize('where', ['--amp', 'optim_wrapper.type=AmpOptimWrapper'])
def test_mixed_precision_on_a_cpu(classifier, scanned, where):
    option = ('--amp',) if where == '--amp' else ('--cfg-options', where)
    run(train, classifier, '--no-validate', '--work-dir', 'work', *option)
    assert {dtype for dtype, trained in scanned if trained} == {torch.bfloat16}
    checkpoint = load_checkpoint_file('work/epoch_1.pth')
    assert checkpoint['optimizer']['loss_scaler']['scale'] == 2.0**16
    assert {float(s['step']) for s in checkpoint['optimizer']['state'].values()} == {4.0}
    # The weights stay in float32.
    assert {v.dtype for v in checkpoint['state_dict'].values()} == {torch.float32}
    assert "scan on cpu, bfloat16: backend '" in next(Path('work').glob('*/*.log')).read_text()
    scanned.clear()
    for name, more in (('whole', []), ('amp', ['--amp'])):
        run(test_tool, classifier, 'work/epoch_1.pth', '--work-dir', name, '--out', f'{name}.pkl', *more)
    assert {dtype for dtype, _ in scanned} == {torch.bfloat16, torch.float32}
    for a, b in zip(*map(read_scores, ('whole', 'amp')), strict=True):
        torch.testing.assert_close(a['pred_score'], b['pred_score'].float(), rtol=0, atol=0.02)


@pytest.mark.skipif(has_gpu(), reason='forms for the CPU')
def test_models_are_converted_for_a_test_on_a_cpu(classifier, monkeypatch):
    converted, check = [], InferenceForm.check_inference
    monkeypatch.setattr(InferenceForm, 'check_inference', lambda self: converted.append(self) or check(self))
    found = []
    for more in ([], ['--no-optimize']):
        converted.clear()
        run(test_tool, classifier, 'fits.pth', '--work-dir', 'test', '--out', 'out.pkl', *more)
        assert bool(converted) is not bool(more)
        found.append(read_scores('out'))
    for a, b in zip(*found, strict=True):
        torch.testing.assert_close(a['pred_score'], b['pred_score'], rtol=1e-4, atol=1e-5)


def test_scores_of_a_segmentor_in_mixed_precision_are_not_rounded(segmentor, monkeypatch):
    scores, postprocess = [], EncoderDecoder.postprocess_result

    def keep(self, seg_logits, *args):
        scores.append(seg_logits)
        return postprocess(self, seg_logits, *args)

    monkeypatch.setattr(EncoderDecoder, 'postprocess_result', keep)
    run(test_tool, segmentor, 'fits.pth', '--amp')
    assert len(scores) == 3
    for score in scores:
        assert score.dtype == torch.float32
        assert not torch.equal(score, score.to(torch.float16 if has_gpu() else torch.bfloat16).float())


@pytest.mark.parametrize(
    ('args', 'named'),
    [
        ([train, 'tiny.py', '--auto-scale-lr'], ['auto_scale_lr.base_batch_size', 'tiny.py']),
        ([train, 'tiny.py', '--launcher', 'pytorch'], ['RANK', 'tools/dist_train.sh', '--launcher none']),
        ([train, 'tiny.py', '--resume', 'none.pth'], ['none.pth does not exist']),
        ([train, 'tiny.py', '--work-dir', 'tiny.py/work'], ['tiny.py/work', 'Not a directory']),
        ([train, 'tiny.py', '--resume', 'fits.pth'], ['fits.pth', 'load_from=fits.pth']),
        pytest.param(
            [train, 'tiny.py', '--amp', '--cfg-options', 'optim_wrapper.dtype=float16'],
            ['optim_wrapper.dtype=bfloat16'],
            marks=pytest.mark.skipif(has_gpu(), reason='says what happens where there is no GPU'),
        ),
        ([test_tool, 'tiny.py', 'fits.pth', '--out', 'folder'], ['--out', '.pkl', 'folder']),
        ([test_tool, 'tiny.py', 'fits.pth', '--out-item', 'metrics'], ['--out-item metrics', '--out PATH']),
        ([test_tool, 'tiny.py', 'fits.pth', '--out-item', 'metrics', '--out', 'tiny.py/m.json'], ['tiny.py']),
        ([test_tool, 'nodata.py', 'fits.pth'], ['nowhere', 'test_dataloader', 'make_scenes()']),
        ([train, 'part.py'], ['part.py', 'train_dataloader', 'optim_wrapper']),
        ([test_tool, 'part.py', 'fits.pth'], ['part.py', 'test_dataloader', 'test_evaluator']),
    ],
)
def test_options_that_cannot_be_used(classifier, refused, args, named):
    write_config(Path('nodata.py'), SEGMENTATION, 'nowhere')
    Path('part.py').write_text('a = 1')
    line = refused(*args)
    assert [part for part in named if part not in line] == []


def test_two_processes_say_the_error_once(workplace, start):
    write_config(workplace / 'nodata.py', SEGMENTATION, workplace / 'nowhere')
    process = start('dist_train.sh', 'nodata.py', 2)
    (line,) = process.communicate(timeout=PATIENCE)[1].splitlines()
    assert process.returncode == 2
    assert line.startswith(f'error: data folder {workplace}/nowhere ')


@pytest.mark.parametrize(
    ('script', 'args', 'message'),
    [
        ('dist_train.sh', ['tiny.py'], 'usage: .*dist_train.sh CONFIG GPUS'),
        ('dist_test.sh', ['tiny.py', 'a.pth'], 'usage: .*dist_test.sh CONFIG CHECKPOINT GPUS'),
        ('slurm_train.sh', ['part', 'name'], 'usage: .*slurm_train.sh PARTITION JOB_NAME CONFIG'),
        ('slurm_test.sh', ['part', 'name', 'tiny.py'], 'usage: .*slurm_test.sh .* CONFIG CHECKPOINT'),
        ('dist_train.sh', ['tiny.py', '--amp'], "error: the number of GPUs comes after the config .*'--amp'"),
    ],
)
def test_missing_arguments_of_a_launcher(start, script, args, message):
    process = start(script, *args)
    _, err = process.communicate(timeout=PATIENCE)
    assert process.returncode == 2
    assert re.fullmatch(message + '.*\n', err)


@pytest.mark.parametrize(('name', 'gpus', 'a_node'), [('train', '16', '8'), ('test', '4', '4')])
def test_slurm_asks_for_a_task_a_gpu(tmp_path, start, python, name, gpus, a_node):
    args = ['a b.py', *(['c d.pth'] if name == 'test' else [])]
    srun = tmp_path / 'srun'
    srun.write_text('#!/bin/sh\nprintf "%s\\n" "$PYTHONPATH" "$@"\n')
    srun.chmod(0o755)
    env = dict(GPUS=gpus, PYTHONPATH='', SRUN_ARGS='--exclusive -w n1')
    env['PATH'] = f'{tmp_path}:{os.environ["PATH"]}'
    log = finish(start(f'slurm_{name}.sh', 'my part', 'my job', *args, '--x', 'c d', **env))
    pythonpath, *got = log.splitlines()
    assert Path(pythonpath).resolve() == ROOT
    assert got == [
        '--partition=my part', '--job-name=my job', f'--gres=gpu:{a_node}', f'--ntasks={gpus}',
        f'--ntasks-per-node={a_node}', '--cpus-per-task=5', '--kill-on-bad-exit=1', '--exclusive', '-w', 'n1',
        python, '-u', str(TOOLS / f'{name}.py'), *args, '--launcher', 'slurm', '--x', 'c d',
    ]  # fmt: skip
