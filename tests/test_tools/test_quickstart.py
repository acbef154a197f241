"""The quick start without its training: figures, pictures, reuse, resuming and errors."""

import dataclasses
import json
import subprocess
from pathlib import Path

import mmengine
import numpy as np
import pytest
import torch
from mmengine.config import Config
from mmseg.evaluation import IoUMetric
from PIL import Image

from tests.harness import ROOT
from tools.dataset_converters import digits
from tools.misc import quickstart


@pytest.fixture(scope='module')
def data(tmp_path_factory):
    root = tmp_path_factory.mktemp('data')
    digits.write_segmentation(root / 'segmentation', dict(training=1, validation=8), progress=False)
    digits.write_classification(root / 'classification', progress=False)
    return root


@pytest.fixture(autouse=True)
def _paths(data, monkeypatch):
    monkeypatch.chdir(ROOT)
    monkeypatch.setattr(quickstart, 'SCENES', data / 'segmentation')
    monkeypatch.setattr(quickstart, 'DIGITS', data / 'classification')


def test_configs_end_with_the_named_checkpoint():
    for task, key in (('segmentation', 'max_iters'), ('classification', 'max_epochs')):
        named = quickstart.TASKS[task]
        assert named.last_checkpoint.split('_')[1] == f'{Config.fromfile(named.config).train_cfg[key]}.pth'
        assert Path(named.next_config).is_file()


def test_majorities_are_what_a_metric_says():
    metric = IoUMetric()
    metric.dataset_meta = dict(classes=[str(i) for i in range(11)])
    for path in (quickstart.SCENES / 'annotations/validation').iterdir():
        label = torch.from_numpy(np.array(Image.open(path))).long()[None]
        metric.process(None, [dict(gt_sem_seg=dict(data=label), pred_sem_seg=dict(data=0 * label))])
    expected = metric.evaluate(8)
    got = quickstart.majority_of_scenes()
    assert got == pytest.approx({key: expected[key] for key in got}, abs=0.011)
    train, val = ([digit for *_, digit in samples] for samples in digits.split_digits().values())
    common = sorted(range(10), key=lambda digit: -train.count(digit))
    for name, top in (('top1', 1), ('top5', 5)):
        share = 100 * sum(digit in common[:top] for digit in val) / len(val)
        assert quickstart.majority_of_digits()[name] == pytest.approx(share)


def test_picture_of_scenes_shows_image_truth_and_prediction(tmp_path):
    cfg = Config.fromfile(quickstart.TASKS['segmentation'].config)
    for i in range(8):
        Image.fromarray(np.full((64, 64), i + 1, np.uint8)).save(tmp_path / f'{i:04}.png')
    figure = quickstart.draw_scenes(cfg, tmp_path)
    shown = [axis.get_images()[0].get_array() for axis in figure.axes]
    palette = np.array(cfg.test_dataloader.dataset.metainfo.palette)
    for column in range(6):
        image, label = (
            np.asarray(Image.open(quickstart.SCENES / kind / f'validation/{column:04}.png'))
            for kind in ('images', 'annotations')
        )
        np.testing.assert_array_equal(shown[column], image)
        np.testing.assert_array_equal(shown[6 + column], palette[label])
        assert (shown[12 + column] == palette[column + 1]).all()
    assert [text.get_text() for text in figure.legends[0].get_texts()] == ['background', *'0123456789']


def test_picture_of_digits_shows_mistakes_in_red(tmp_path):
    paths = sorted((quickstart.DIGITS / 'val').glob('*/*.png'))[:100]
    # Every seventh is taken for the next digit.
    results = [
        dict(
            img_path=str(path),
            gt_label=int(path.parent.name),
            pred_label=int(path.parent.name) + (i % 7 == 0),
        )
        for i, path in enumerate(paths)
    ]
    mmengine.dump(results, tmp_path / 'predictions.pkl')
    figure = quickstart.draw_digits(None, tmp_path / 'predictions.pkl')
    titles = [(axis.get_title(), axis.title.get_color()) for axis in figure.axes if axis.get_title()]
    assert [colour for _, colour in titles] == 15 * ['red'] + 9 * ['black']
    assert all(
        (len(set(title.split(', predicted '))) == 1) == (colour == 'black') for title, colour in titles
    )


def test_training_is_resumed_reused_and_begun_anew_with_another_config(tmp_path, monkeypatch):
    task = dataclasses.replace(quickstart.TASKS['segmentation'], work_dir=tmp_path / 'work')
    cfg, commands, left = Config.fromfile(task.config), [], []

    def run(*command, show, each):
        commands.append((command, sorted(path.name for path in task.work_dir.glob('*.pth'))))
        if len(commands) == 1:
            (task.work_dir / 'iter_250.pth').touch()
            each()
            # As kill -9 would leave it.
            left.append(json.loads((task.work_dir / 'training.json').read_text())['seconds'])
            raise KeyboardInterrupt
        (task.work_dir / task.last_checkpoint).touch()

    clock = iter([100, 100, 125, 130, 200, 200, 207, 300, 300, 301])
    monkeypatch.setattr(quickstart.time, 'time', lambda: next(clock))
    monkeypatch.setattr(quickstart, 'run', run)
    with pytest.raises(KeyboardInterrupt):
        quickstart.train(task, cfg)
    assert left == [25]
    assert [quickstart.train(task, cfg) for _ in range(2)] == [37, 37]
    assert quickstart.train(task, Config(dict(cfg, log_level='ERROR'))) == 1
    # The third call trained nothing; the last began without the checkpoints of the other config.
    assert [found for _, found in commands] == [[], ['iter_250.pth'], []]
    assert all('--resume' in command for command, _ in commands)


def test_failing_step_ends_with_its_message(tmp_path, capsys):
    script = tmp_path / 'step.py'
    script.write_text("import sys; print('all'); print('wanted'); sys.exit('what to do')")
    calls = []
    with pytest.raises(SystemExit, match=r'(?s)what to do\n.*step.py failed'):
        quickstart.run(script, show=('want',), each=lambda: calls.append(1))
    assert capsys.readouterr().out.splitlines()[1:] == ['  wanted']
    assert len(calls) == 3


def test_report_has_every_figure_beside_the_floor():
    summary = {
        'mIoU': 71.25, 'aAcc': 95.5, 'untrained': dict(mIoU=1.5, aAcc=13.25), 'device': 'a device',
        'majority class': dict(mIoU=7.75, aAcc=85.5), 'held_out': 200, 'train_seconds': 123.4,
        'picture': 'p.png', 'checkpoint': 'c.pth',
    }  # fmt: skip
    text = quickstart.report(quickstart.TASKS['segmentation'], 'segmentation', summary)
    for figure in ('71.25', '95.50', ' 1.50', '13.25', ' 7.75', '85.50', '123 s on a device', '200 held-out'):
        assert figure in text


@pytest.mark.parametrize('arguments', [['detection'], ['segmentation', 'more']])
def test_wrong_argument_is_refused_before_anything_is_installed(arguments):
    script = ['bash', 'tools/quickstart.sh', *arguments]
    done = subprocess.run(script, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout, done.stderr.count('\n')) == (2, '', 1)
    assert 'segmentation|classification' in done.stderr
