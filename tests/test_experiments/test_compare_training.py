"""experiments/compare_training.py: real runs of seconds, stopped, failing and done before."""

import csv
import json
import math
import multiprocessing
import os
import runpy
import subprocess
import sys
import types

import numpy as np
import pytest
from mmengine.config import Config
from PIL import Image

from experiments import compare_training, training, training_report
from mmvisiongru.errors import InputError
from tests.harness.small_runs import CLASSIFICATION, make_folders, write_config

# Imported once for all processes of a test, which saves most of their time.
PRELOAD = ['mmvisiongru', 'mmpretrain.models', 'mmengine.runner', 'cv2']
WIDE = """
model['backbone']['arch'] = dict(embed_dims=[12, 24], depths=[1, 1])
model['head']['in_channels'] = 24
"""
EPOCHS = """
train_cfg = dict(by_epoch=True, max_epochs={epochs}, val_interval=1)
default_hooks['checkpoint'] = dict(interval=1)
"""


def run_script(command, env, output):
    """Run a script as the interpreter would, in this process."""
    os.environ.update(env)
    file = os.open(output, os.O_WRONLY | os.O_APPEND)
    os.dup2(file, 1)
    os.dup2(file, 2)
    sys.argv = command[1:]
    runpy.run_path(command[1], run_name='__main__')


class Forked:
    """What subprocess.Popen is to compare_training, forked from a process that has imported all there is."""

    def __init__(self, command, stdout, stderr, env):
        self.process = context().Process(target=run_script, args=(command, env, stdout.name))
        self.process.start()

    def poll(self):
        return self.process.exitcode

    returncode = property(poll)

    def wait(self, timeout=None):
        self.process.join(timeout)

    def terminate(self):
        self.process.terminate()

    def kill(self):
        self.process.kill()


def context():
    server = multiprocessing.get_context('forkserver')
    server.set_forkserver_preload(PRELOAD)
    return server


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """A working directory with two configs; data for the first."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(training, 'POLL', 0.05)
    monkeypatch.setattr(training, 'get_context', lambda _: context())
    fake = types.SimpleNamespace(**{**vars(subprocess), 'Popen': Forked})
    monkeypatch.setattr(training, 'subprocess', fake)
    text = CLASSIFICATION.replace('launchers/pytorch', 'launchers/none')
    make_folders(tmp_path / 'data')
    write_config(tmp_path / 'narrow.py', text, tmp_path / 'data', EPOCHS.format(epochs=2))
    write_config(tmp_path / 'wide.py', text, tmp_path / 'missing', WIDE + EPOCHS.format(epochs=2))
    return tmp_path


def last_validation(folder, name, seed):
    """What the log of a run says last of its metric."""
    (log,) = folder.glob(f'work_dirs/out/{name}_{seed}_*/2*/vis_data/scalars.json')
    lines = [json.loads(line) for line in log.read_text().splitlines()]
    return [line['accuracy/top1'] for line in lines if 'accuracy/top1' in line][-1]


def test_two_configs_with_two_seeds_of_which_one_fails_at_first(folder):
    call = ['narrow.py', 'wide.py', '--seeds', '0', '1', '--jobs', '2', '--out', 'out']
    assert compare_training.main(call) == 1
    page = (folder / 'out/README.md').read_text()
    assert page.count('failed: error:') == 2
    assert 'wide, seed 1: failed: error:' in page
    kept = {path: path.read_bytes() for path in folder.glob('out/runs/narrow_*.json')}
    assert len(kept) == 3
    logs = sorted(folder.glob('work_dirs/out/narrow_*/2*'))

    make_folders(folder / 'missing')
    assert compare_training.main(call) == 0
    assert {path: path.read_bytes() for path in kept} == kept
    assert sorted(folder.glob('work_dirs/out/narrow_*/2*')) == logs
    rows = list(csv.DictReader((folder / 'out/results.csv').open()))
    assert [(row['config'], row['seed']) for row in rows] == [
        ('narrow', '0'),
        ('wide', '0'),
        ('narrow', '1'),
        ('wide', '1'),
    ]
    for row in rows:
        assert float(row['value']) == last_validation(folder, row['config'], row['seed'])
    values = {name: [float(r['value']) for r in rows if r['config'] == name] for name in ('narrow', 'wide')}
    page = (folder / 'out/README.md').read_text()
    assert f'| 2 | {np.mean(values["narrow"]):.2f} [' in page
    assert f'| {np.mean(np.subtract(values["wide"], values["narrow"])):+.2f} [' in page
    assert 'failed' not in page
    # Of the model that the name says: the wider one has more of all.
    costs = [json.loads((folder / f'out/runs/{name}_cost.json').read_text()) for name in values]
    assert all(costs[0][key] < costs[1][key] for key in ('parameters', 'macs'))
    with Image.open(folder / 'out/results.png') as picture:
        assert len(picture.convert('RGB').getcolors(1 << 20)) > 10


def test_stopped_run_resumes_and_leaves_no_process(folder):
    write_config(folder / 'long.py', (folder / 'narrow.py').read_text(), folder, EPOCHS.format(epochs=12))
    arguments = (['long.py'], [3], folder / 'out', folder / 'work', {})
    (run,) = training.plan(*arguments)
    seen = []

    def stop(processes, _):
        seen[:] = processes
        if list(run.work_dir.glob('epoch_*.pth')):
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        training.run_all([run], watch=stop)
    assert not seen[0].child.process.is_alive()
    assert not run.record()
    stopped_at, seconds = training.fraction(run), training.seconds_of(run)
    assert 0 < stopped_at < 1

    (run,) = training.plan(*arguments)
    training.run_all([run])
    _, second = sorted(run.work_dir.glob('2*/vis_data/scalars.json'))
    assert 'resumed epoch' in (run.work_dir / 'output.txt').read_text()
    epochs = [json.loads(line).get('epoch') for line in second.read_text().splitlines()]
    assert min(filter(None, epochs)) > 1
    record = run.record()
    assert record['iterations'] == 12 * 4
    assert record['seconds'] > seconds
    assert len(record['curves']['metric']) == 12


def test_config_that_tests_elsewhere_is_tested(folder):
    cfg = Config.fromfile('narrow.py')
    assert training.validation_is_test(cfg)
    cfg.test_dataloader.dataset.split = 'train'
    assert not training.validation_is_test(cfg)
    cfg.dump('elsewhere.py')
    assert compare_training.main(['elsewhere.py', '--seeds', '0', '--out', 'out']) == 0
    record = json.loads((folder / 'out/runs/elsewhere_0.json').read_text())
    (metrics,) = folder.glob('work_dirs/out/elsewhere_0_*/test/*/*.json')
    assert record['value'] == json.loads(metrics.read_text())['accuracy/top1']


@pytest.mark.parametrize(
    ('option', 'decides'),
    [
        ('optim_wrapper.optimizer.lr', True),
        ('train_cfg.max_epochs', True),
        ('train_dataloader.batch_size', True),
        ('model.head.num_classes', True),
        ('train_dataloader.num_workers', False),
        ('load_from', True),
        ('default_hooks.logger.interval', False),
        ('randomness.seed', False),
    ],
)
def test_result_of_other_settings_is_refused(folder, option, decides):
    arguments = (['narrow.py'], [0], folder / 'out', folder / 'work')
    (run,) = training.plan(*arguments)
    run.result.parent.mkdir(parents=True)
    run.result.write_text(json.dumps(dict(fingerprint=run.fingerprint, value=1.0)))
    if decides:
        with pytest.raises(InputError, match=r'narrow_0\.json is of other settings'):
            training.plan(*arguments, {option: 7})
    else:
        assert training.plan(*arguments, {option: 7})[0].record()['value'] == 1.0


def test_configs_of_one_name_are_refused(folder, capsys):
    with pytest.raises(SystemExit):
        compare_training.main(['narrow.py', './narrow.py', '--out', 'out'])
    assert 'names of their own' in capsys.readouterr().err


def test_interval_is_that_of_a_table():
    # 97.5 % quantile of Student's t with 4 degrees of freedom: 2.776. Deviation of 1..5: sqrt(2.5).
    mean, low, high = training_report.interval([1, 2, 3, 4, 5])
    assert mean == 3
    assert high - mean == pytest.approx(2.776 * math.sqrt(2.5 / 5), abs=1e-3)
    assert mean - low == pytest.approx(high - mean)
    assert math.isnan(training_report.interval([1.0])[1])


def test_differences_are_of_the_same_seed():
    assert training_report.paired({0: 5.0, 2: 1.0, 3: 9.0}, {2: 4.0, 0: 3.0}) == [2.0, -3.0]
