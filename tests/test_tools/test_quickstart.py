"""The quick start without its training: evaluation, pictures, reuse, resuming and errors."""

import json
import subprocess
from dataclasses import replace
from pathlib import Path

import pytest
from mmengine.config import Config

from tests.harness import ROOT
from tests.harness.small_runs import save_weights
from tools.dataset_converters import digits
from tools.misc import quickstart


@pytest.fixture(autouse=True)
def _folder(monkeypatch):
    monkeypatch.chdir(ROOT)


def test_configs_end_with_the_named_checkpoint():
    for task, key in (('segmentation', 'max_iters'), ('classification', 'max_epochs')):
        named = quickstart.TASKS[task]
        assert named.last_checkpoint.endswith(f'_{Config.fromfile(named.config).train_cfg[key]}.pth')
        assert Path(named.next_config).is_file()


def test_training_is_resumed_and_reused(tmp_path, monkeypatch):
    task = replace(quickstart.TASKS['segmentation'], work_dir=tmp_path)
    calls = []
    monkeypatch.setattr(quickstart, 'run', lambda *command, show: calls.append(command))
    quickstart.train(task)
    (tmp_path / task.last_checkpoint).touch()
    quickstart.train(task)
    assert calls == [('tools/train.py', task.config, '--work-dir', tmp_path, '--resume')]


def test_evaluation_and_report(tmp_path):
    """The metrics are those of the test; pictures are drawn."""
    digits.write_segmentation(tmp_path / 'data', dict(training=1, validation=3))
    task, config = quickstart.TASKS['segmentation'], tmp_path / 'config.py'
    data = f"test_dataloader = dict(dataset=dict(data_root='{tmp_path}/data'))"
    config.write_text(f"_base_ = '{ROOT / task.config}'\n{data}\n")
    save_weights(config, tmp_path / task.last_checkpoint)
    found = quickstart.evaluate(replace(task, config=str(config), work_dir=tmp_path))
    (metrics,) = (json.loads(path.read_text()) for path in tmp_path.glob('test/*/*.json'))
    assert found == {key: round(metrics[key], 2) for key in ('mIoU', 'aAcc')}
    assert [path.name for path in tmp_path.glob('pictures/*')] == ['0000.png']
    text = quickstart.report('segmentation', found | dict(pictures='p', checkpoint='c.pth'))
    assert f'mIoU {found["mIoU"]:.2f}, aAcc {found["aAcc"]:.2f}' in text


def test_failing_step_ends_with_its_message(tmp_path, capsys):
    script = tmp_path / 'step.py'
    script.write_text("import sys; print('all'); print('wanted'); sys.exit('what to do')")
    with pytest.raises(SystemExit, match=r'(?s)what to do\n.*step.py failed'):
        quickstart.run(script, show=('want',))
    assert capsys.readouterr().out.splitlines()[1:] == ['  wanted']


@pytest.mark.parametrize('arguments', [['detection'], ['segmentation', 'more']])
def test_wrong_argument_is_refused_before_anything_is_installed(arguments):
    script = ['bash', 'tools/quickstart.sh', *arguments]
    done = subprocess.run(script, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout, done.stderr.count('\n')) == (2, '', 1)
    assert 'segmentation|classification' in done.stderr
