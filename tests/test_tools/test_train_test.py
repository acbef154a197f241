"""tools/train.py and test.py: both tasks end to end in two CPU processes, and input that cannot be used."""

import json
import os
import pickle
import re
import runpy
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from mmengine.config import Config
from mmseg.models import EncoderDecoder
from PIL import Image

from mmvisiongru.apis import get_model
from mmvisiongru.checkpoint import load_checkpoint_file
from mmvisiongru.inference.form import InferenceForm
from mmvisiongru.launch.processes import has_gpu
from mmvisiongru.models.layers import mingru
from mmvisiongru.ops import mingru_scan_2d
from tests.harness import ROOT
from tests.harness.children import PATIENCE, environment, free_port
from tests.harness.forked import forked_python
from tests.harness.small_runs import (
    CLASSIFICATION,
    SEGMENTATION,
    TOOLS,
    make_folders,
    make_scenes,
    write_config,
)


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """The working directory of a test: with a space in its name, and not the repository."""
    path = tmp_path / 'a folder'
    path.mkdir()
    monkeypatch.chdir(path)
    return path


@pytest.fixture
def tool(capsys):
    """Calls the main function of a script in this process; gives the exit code and the lines on stderr."""

    def call(name, *args):
        code = 0
        try:
            runpy.run_path(str(TOOLS / f'{name}.py'))['main']([*map(str, args)])
        except SystemExit as exit_:
            code = exit_.code
        return code, capsys.readouterr().err.splitlines()

    return call


@pytest.fixture(scope='module')
def python(tmp_path_factory):
    with forked_python(tmp_path_factory.mktemp('python')) as path:
        yield path


@pytest.fixture
def start(python):
    """Starts a script of tools/ in the background, as from a shell."""

    def call(script: str, *args, **env) -> subprocess.Popen:
        # Without a GPU everywhere, as the tests expect gloo.
        settings = dict(PYTHON=python, PYTHON_EXEC=python, CUDA_VISIBLE_DEVICES='')
        return subprocess.Popen(
            [str(TOOLS / script), *map(str, args)],
            env={**os.environ, **settings, **env},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    return call


def finish(*processes: subprocess.Popen) -> str:
    """Wait for scripts that must succeed; the output of the first."""
    outputs = [process.communicate(timeout=PATIENCE) for process in processes]
    for process, (out, err) in zip(processes, outputs, strict=True):
        assert process.returncode == 0, out[-2000:] + err[-4000:]
    return outputs[0][0]


def read_metrics(work_dir: Path) -> dict:
    return json.loads(next(work_dir.glob('*/*.json')).read_text())


def read_scores(name: str) -> list[dict]:
    return pickle.loads(Path(f'{name}.pkl').read_bytes())


@pytest.fixture
def classifier(folder):
    """A config with data, and a checkpoint that fits."""
    make_folders(folder / 'inet')
    path = write_config(folder / 'tiny.py', CLASSIFICATION, folder / 'inet', "launcher = 'none'\n")
    torch.manual_seed(0)
    torch.save({'state_dict': get_model(str(path)).state_dict()}, 'fits.pth')
    return path


@pytest.fixture
def segmentor(folder):
    """The same of a segmentor."""
    make_scenes(folder / 'ade')
    path = write_config(folder / 'tiny.py', SEGMENTATION, folder / 'ade')
    torch.manual_seed(0)
    torch.save({'state_dict': get_model(str(path)).state_dict()}, 'fits.pth')
    return path.name


def test_segmentation_in_two_processes(folder, segmentor, tool, start):
    config = segmentor
    log = finish(start('dist_train.sh', config, 2))
    work = folder / 'work_dirs/tiny'
    assert 'device: 2 x cpu' in log
    assert 'with gloo' in log
    assert log.count("scan on cpu, float32: backend '") == 1
    assert 'SyncBN replaced by BN' in log
    assert 'Iter(train) [1/2]  lr: 1.0000e-03  eta: 0:00:0' in log
    assert load_checkpoint_file(work / 'iter_2.pth')['meta']['iter'] == 2

    log = finish(start('dist_train.sh', config, 2, '--resume', '--cfg-options', 'train_cfg.max_iters=4'))
    assert 'resumed epoch: 0, iter: 2' in log
    assert 'Iter(train) [3/4]' in log
    assert 'Iter(train) [1/4]' not in log
    resumed = load_checkpoint_file(work / 'iter_4.pth')
    assert {float(state['step']) for state in resumed['optimizer']['state'].values()} == {4.0}

    args = (config, work / 'iter_4.pth')
    finish(start('dist_test.sh', *args, 2, '--work-dir', 'two', '--out', 'maps', '--show-dir', 'pictures'))
    assert tool('test', *args, '--work-dir', 'one', '--out', 'alone') == (0, [])
    two, one = read_metrics(folder / 'two'), read_metrics(folder / 'one')
    assert two['aAcc'] > 0
    assert [two[k] for k in ('aAcc', 'mIoU')] == [one[k] for k in ('aAcc', 'mIoU')]
    maps = sorted((folder / 'maps').glob('*.png'))
    assert [m.name for m in maps] == ['0.png', '1.png', '2.png']
    for path in maps:
        np.testing.assert_array_equal(Image.open(path), Image.open(folder / 'alone' / path.name))
    assert list((folder / 'pictures').rglob('*.png'))


def test_two_nodes_test_as_one_process_does(classifier, tool, start):
    nodes = dict(NNODES='2', MASTER_ADDR='127.0.0.1', MASTER_PORT=str(free_port()))
    two = (classifier, 'fits.pth', 1, '--work-dir', 'two', '--out', 'two.pkl')
    finish(*[start('dist_test.sh', *two, NODE_RANK=str(rank), **nodes) for rank in (0, 1)])
    assert tool('test', classifier, 'fits.pth', '--work-dir', 'one', '--out', 'one.pkl') == (0, [])
    assert read_metrics(Path('two'))['accuracy/top1'] == read_metrics(Path('one'))['accuracy/top1']
    two, one = ({s['img_path']: s['pred_score'] for s in read_scores(name)} for name in ('two', 'one'))
    assert len(two) == 6
    torch.testing.assert_close(two, one)


def test_tta_of_a_classifier_averages_the_flipped_image(classifier, tool):
    assert tool('test', classifier, 'fits.pth', '--out', 'plain.pkl', '--work-dir', 'a') == (0, [])
    assert tool('test', classifier, 'fits.pth', '--out', 'tta.pkl', '--work-dir', 'b', '--tta') == (0, [])
    for image in (Path('inet/val')).rglob('*.png'):
        Image.open(image).transpose(Image.Transpose.FLIP_LEFT_RIGHT).save(image)
    assert tool('test', classifier, 'fits.pth', '--out', 'flip.pkl', '--work-dir', 'c') == (0, [])
    for a, b, c in zip(*map(read_scores, ('plain', 'tta', 'flip')), strict=True):
        assert not torch.equal(a['pred_score'], c['pred_score'])
        torch.testing.assert_close(b['pred_score'], (a['pred_score'] + c['pred_score']) / 2)


def test_tta_of_a_segmentor_averages_the_flipped_image(segmentor, tool):
    args = ('test', segmentor, 'fits.pth', '--tta')
    for path in Path('ade').rglob('images/validation/*'):
        # Mirroring must lose nothing; what a file holds goes before its name.
        Image.open(path).save(path, format='PNG')
    assert tool(*args, '--work-dir', 'one', '--out', 'plain') == (0, [])
    maps = [np.asarray(Image.open(path)) for path in sorted(Path('plain').glob('*.png'))]
    for path in Path('ade').rglob('*/validation/*'):
        Image.open(path).transpose(Image.Transpose.FLIP_LEFT_RIGHT).save(path, format='PNG')
    assert tool(*args, '--work-dir', 'two', '--out', 'mirrored') == (0, [])
    for path, found in zip(sorted(Path('mirrored').glob('*.png')), maps, strict=True):
        np.testing.assert_array_equal(np.asarray(Image.open(path))[:, ::-1], found)


def test_options_of_training(classifier, tool):
    options = ('--no-validate', '--auto-scale-lr', '--no-pin-memory', '--resume', '--work-dir', 'work')
    options += ('--schedule', 'config')
    extra = ('--cfg-options', 'auto_scale_lr.base_batch_size=1', 'runner_type=Runner')
    code, err = tool('train', classifier, *options, *extra)
    assert (code, err) == (0, [])
    log = next(Path('work').glob('*/*.log')).read_text()
    assert 'Epoch(val)' not in log
    # That of ReliableRunner alone.
    assert 'scan on cpu' not in log
    # 1e-3 by a batch of 2 over one of 1.
    assert 'lr: 2.0000e-03' in log
    dumped = Config.fromfile('work/tiny.py')
    assert dumped.train_dataloader.pin_memory is False
    assert dumped.resume_schedule == 'config'


def test_damaged_checkpoints_are_skipped(classifier, tool):
    args = ('train', classifier, '--no-validate', '--work-dir', 'work')
    options = ('--cfg-options', 'train_cfg.max_epochs=2')
    assert tool(*args, '--resume', *options) == (0, [])
    log = next(Path('work').glob('*/*.log')).read_text()
    assert 'work; training starts afresh' in log
    path = Path('work/epoch_2.pth')
    damaged = bytearray(path.read_bytes())
    middle = slice(len(damaged) // 2, len(damaged) // 2 + 200)
    damaged[middle] = bytes(byte ^ 1 for byte in damaged[middle])
    path.write_bytes(damaged)
    assert tool(*args, '--resume', *options) == (0, [])
    log = max(Path('work').glob('*/*.log')).read_text()
    assert 'work/epoch_2.pth is damaged' in log
    assert 'resumed epoch: 1, iter: 4' in log
    # The run wrote the second one anew.
    path.write_bytes(damaged)
    check_one_line(*tool(*args, '--resume', str(path), *options), str(path), 'damaged')
    Path('work/epoch_1.pth').unlink()
    check_one_line(*tool(*args, '--resume', *options), 'no complete checkpoint in', str(path))
    check_one_line(*tool('test', classifier, path), str(path), 'damaged')


def test_part_of_a_checkpoint_needs_a_stated_coverage(classifier, tool):
    fits = torch.load('fits.pth')['state_dict']
    torch.save({k.replace('head.fc.weight', 'head.cf.weight'): v for k, v in fits.items()}, 'part.pth')
    args = (classifier, '--no-validate', '--work-dir', 'work', '--cfg-options', 'load_from=part.pth')
    assert tool('train', *args, 'load_coverage=0.9') == (0, [])
    log = max(Path('work').glob('*/*.log')).read_text()
    assert 'of part.pth, not loaded: missing head.fc.weight' in log


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
def test_mixed_precision_on_a_cpu(classifier, tool, scanned, where):
    option = ('--amp',) if where == '--amp' else ('--cfg-options', where)
    assert tool('train', classifier, '--no-validate', '--work-dir', 'work', *option) == (0, [])
    assert {dtype for dtype, trained in scanned if trained} == {torch.bfloat16}
    checkpoint = load_checkpoint_file('work/epoch_1.pth')
    assert checkpoint['optimizer']['loss_scaler']['scale'] == 2.0**16
    assert {float(s['step']) for s in checkpoint['optimizer']['state'].values()} == {4.0}
    # The weights stay in float32.
    assert {v.dtype for v in checkpoint['state_dict'].values()} == {torch.float32}
    assert "scan on cpu, bfloat16: backend '" in next(Path('work').glob('*/*.log')).read_text()
    scanned.clear()
    for name, more in (('whole', []), ('amp', ['--amp'])):
        args = (classifier, 'work/epoch_1.pth', '--work-dir', name, '--out', f'{name}.pkl', *more)
        assert tool('test', *args) == (0, [])
    assert {dtype for dtype, _ in scanned} == {torch.bfloat16, torch.float32}
    for a, b in zip(*map(read_scores, ('whole', 'amp')), strict=True):
        torch.testing.assert_close(a['pred_score'], b['pred_score'].float(), rtol=0, atol=0.02)


@pytest.mark.skipif(has_gpu(), reason='forms for the CPU')
def test_models_are_converted_for_a_test_on_a_cpu(classifier, tool, monkeypatch):
    assert tool('train', classifier, '--no-validate', '--work-dir', 'work') == (0, [])
    converted, check = [], InferenceForm.check_inference
    monkeypatch.setattr(InferenceForm, 'check_inference', lambda self: converted.append(self) or check(self))
    found = []
    for more in ([], ['--no-optimize']):
        converted.clear()
        args = (classifier, 'work/epoch_1.pth', '--work-dir', 'test', '--out', 'out.pkl', *more)
        assert tool('test', *args) == (0, [])
        assert bool(converted) is not bool(more)
        found.append(read_scores('out'))
    for a, b in zip(*found, strict=True):
        torch.testing.assert_close(a['pred_score'], b['pred_score'], rtol=1e-4, atol=1e-5)


def test_scores_of_a_segmentor_in_mixed_precision_are_not_rounded(segmentor, tool, monkeypatch):
    scores, postprocess = [], EncoderDecoder.postprocess_result

    def keep(self, seg_logits, *args):
        scores.append(seg_logits)
        return postprocess(self, seg_logits, *args)

    monkeypatch.setattr(EncoderDecoder, 'postprocess_result', keep)
    assert tool('test', segmentor, 'fits.pth', '--amp') == (0, [])
    assert len(scores) == 3
    for score in scores:
        assert score.dtype == torch.float32
        assert not torch.equal(score, score.to(torch.float16 if has_gpu() else torch.bfloat16).float())


NO_GPU = pytest.mark.skipif(has_gpu(), reason='says what happens where there is no GPU; this machine has one')


@pytest.mark.parametrize(
    ('args', 'named'),
    [
        (['train', 'tiny.py', '--auto-scale-lr'], ['auto_scale_lr.base_batch_size', 'tiny.py']),
        (['train', 'tiny.py', '--launcher', 'pytorch'], ['RANK', 'tools/dist_train.sh', '--launcher none']),
        (['train', 'tiny.py', '--resume', 'none.pth'], ['none.pth does not exist']),
        (['train', 'tiny.py', '--work-dir', 'tiny.py/work'], ['tiny.py/work', 'Not a directory']),
        (['train', 'tiny.py', '--resume', 'fits.pth'], ['fits.pth', 'load_from=fits.pth']),
        pytest.param(
            ['train', 'tiny.py', '--amp', '--cfg-options', 'optim_wrapper.dtype=float16'],
            ['optim_wrapper.dtype=bfloat16'],
            marks=NO_GPU,
        ),
        (['test', 'tiny.py', 'fits.pth', '--out', 'folder'], ['--out', '.pkl', 'folder']),
        (['test', 'tiny.py', 'fits.pth', '--out-item', 'metrics'], ['--out-item metrics', '--out PATH']),
        (['test', 'nodata.py', 'fits.pth'], ['{folder}/nowhere', 'test_dataloader', 'make_scenes()']),
    ],
)
def test_options_that_cannot_be_used(classifier, tool, args, named):
    write_config(Path('nodata.py'), SEGMENTATION, classifier.parent / 'nowhere')
    check_one_line(*tool(*args), *named)


def check_one_line(code: int, err: list[str], *named: str) -> None:
    assert (code, len(err)) == (2, 1)
    assert err[0].startswith('error: ')
    assert [part for part in named if part.format(folder=Path.cwd()) not in err[0]] == []


def test_two_processes_say_the_error_once(folder, start):
    write_config(folder / 'nodata.py', SEGMENTATION, folder / 'nowhere')
    process = start('dist_train.sh', 'nodata.py', 2)
    _, err = process.communicate(timeout=PATIENCE)
    check_one_line(process.returncode, err.splitlines(), 'data folder {folder}/nowhere ')


def test_script_says_the_error_in_its_own_process(folder):
    command = [sys.executable, TOOLS / 'test.py', 'no.py', 'no.pth']
    done = subprocess.run(command, capture_output=True, text=True, env=environment())
    check_one_line(done.returncode, done.stderr.splitlines(), 'config file no.py does not exist')
    assert done.stdout == ''


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


@pytest.mark.parametrize('name', ['train', 'test'])
def test_slurm_asks_for_a_task_a_gpu(folder, start, python, name):
    args = ['a b.py', *(['c d.pth'] if name == 'test' else [])]
    srun = folder / 'srun'
    srun.write_text('#!/bin/sh\nprintf "%s\\n" "$PYTHONPATH" "$@"\n')
    srun.chmod(0o755)
    env = dict(PATH=f'{folder}:{os.environ["PATH"]}', GPUS='16', PYTHONPATH='', SRUN_ARGS='--exclusive -w n1')
    pythonpath, *got = finish(
        start(f'slurm_{name}.sh', 'my part', 'my job', *args, '--x', 'c d', **env)
    ).splitlines()
    assert Path(pythonpath).resolve() == ROOT
    assert got == [
        '--partition=my part', '--job-name=my job', '--gres=gpu:8', '--ntasks=16', '--ntasks-per-node=8',
        '--cpus-per-task=5', '--kill-on-bad-exit=1', '--exclusive', '-w', 'n1',
        python, '-u', str(TOOLS / f'{name}.py'), *args, '--launcher', 'slurm', '--x', 'c d',
    ]  # fmt: skip
