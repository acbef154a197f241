"""The quick start: figures that need no training, reuse, resuming and errors. The whole takes minutes."""

import dataclasses
import json
import subprocess
from pathlib import Path

import mmengine
import numpy as np
import pytest
import torch
from matplotlib import pyplot as plt
from mmengine.config import Config
from mmengine.evaluator import Evaluator
from mmengine.structures import PixelData
from mmseg.evaluation import IoUMetric
from mmseg.structures import SegDataSample
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
    yield
    plt.close('all')


@pytest.fixture
def task(tmp_path):
    return dataclasses.replace(quickstart.TASKS['segmentation'], work_dir=tmp_path / 'work')


def test_configs_end_with_the_named_checkpoint():
    segmentation, classification = (quickstart.TASKS[key] for key in ('segmentation', 'classification'))
    iters = Config.fromfile(segmentation.config).train_cfg.max_iters
    epochs = Config.fromfile(classification.config).train_cfg.max_epochs
    assert segmentation.last_checkpoint == f'iter_{iters}.pth'
    assert classification.last_checkpoint == f'epoch_{epochs}.pth'
    assert all(Path(task.next_config).is_file() for task in quickstart.TASKS.values())


def test_majority_of_scenes_is_what_the_metric_of_mmseg_says():
    metric = IoUMetric()
    metric.dataset_meta = dict(classes=[str(i) for i in range(11)])
    evaluator = Evaluator(metric)
    for path in (quickstart.SCENES / 'annotations/validation').iterdir():
        label = torch.from_numpy(np.array(Image.open(path))).long()[None]
        sample = SegDataSample(gt_sem_seg=PixelData(data=label))
        sample.pred_sem_seg = PixelData(data=torch.zeros_like(label))
        evaluator.process([sample])
    expected = evaluator.evaluate(8)
    got = quickstart.majority_of_scenes()
    assert {key: round(value, 2) for key, value in got.items()} == pytest.approx(
        {key: expected[key] for key in got}, abs=0.011
    )


def test_majority_of_digits_is_counted_by_hand():
    splits = digits.split_digits()
    train, val = ([digit for *_, digit in samples] for samples in splits.values())
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
        name = f'{column:04}.png'
        image = np.asarray(Image.open(quickstart.SCENES / 'images/validation' / name))
        label = np.asarray(Image.open(quickstart.SCENES / 'annotations/validation' / name))
        np.testing.assert_array_equal(shown[column], image)
        np.testing.assert_array_equal(shown[6 + column], palette[label])
        np.testing.assert_array_equal(shown[12 + column], np.broadcast_to(palette[column + 1], (64, 64, 3)))
    assert [text.get_text() for text in figure.legends[0].get_texts()] == ['background', *'0123456789']


def test_picture_of_digits_shows_mistakes_in_red(tmp_path):
    paths = sorted((quickstart.DIGITS / 'val').glob('*/*.png'))[:100]
    # Every seventh is taken for the next digit.
    results = [
        dict(
            img_path=str(path),
            gt_label=torch.tensor([int(path.parent.name)]),
            pred_label=torch.tensor([int(path.parent.name) + (i % 7 == 0)]),
        )
        for i, path in enumerate(paths)
    ]
    mmengine.dump(results, tmp_path / 'predictions.pkl')
    figure = quickstart.draw_digits(None, tmp_path / 'predictions.pkl')
    titles = [(axis.get_title(), axis.title.get_color()) for axis in figure.axes if axis.get_title()]
    assert len(titles) == 15 + 9
    for title, colour in titles:
        truth, guess = title.split(', predicted ')
        assert colour == ('black' if truth == guess else 'red')
    assert sum(colour == 'red' for _, colour in titles) == 15


def test_training_is_done_once_and_resumed_with_its_time(task, monkeypatch):
    commands = []
    cfg = Config.fromfile(task.config)

    def interrupted(*command, show, each):
        commands.append(command)
        (task.work_dir / 'iter_250.pth').touch()
        each()
        # As kill -9 would leave it.
        left.append(json.loads((task.work_dir / 'training.json').read_text())['seconds'])
        raise KeyboardInterrupt

    def finished(*command, show, each):
        commands.append(command)
        (task.work_dir / task.last_checkpoint).touch()

    left = []
    clock = iter([100, 100, 125, 130, 200, 200, 207])
    monkeypatch.setattr(quickstart.time, 'time', lambda: next(clock))
    monkeypatch.setattr(quickstart, 'run', interrupted)
    with pytest.raises(KeyboardInterrupt):
        quickstart.train(task, cfg)
    assert left == [25]
    monkeypatch.setattr(quickstart, 'run', finished)
    assert quickstart.train(task, cfg) == 37
    assert (task.work_dir / 'iter_250.pth').exists()
    assert quickstart.train(task, cfg) == 37
    assert len(commands) == 2
    assert all('--resume' in command for command in commands)


def test_checkpoints_of_another_config_are_not_taken_for_this_one(task, monkeypatch):
    cfg = Config.fromfile(task.config)
    seen = []
    monkeypatch.setattr(
        quickstart, 'run', lambda *_, show, each: seen.append(list(task.work_dir.glob('*.pth')))
    )
    task.work_dir.mkdir()
    (task.work_dir / task.last_checkpoint).touch()
    (task.work_dir / 'last_checkpoint').touch()
    (task.work_dir / 'training.json').write_text(json.dumps(dict(config='of before', seconds=9.0)))
    assert quickstart.train(task, cfg) < 9
    assert seen == [[]]
    assert not (task.work_dir / 'last_checkpoint').exists()


def test_failing_step_ends_with_its_message(tmp_path, capsys):
    script = tmp_path / 'step.py'
    script.write_text("import sys; print('all'); print('wanted'); sys.exit('what to do')")
    calls = []
    with pytest.raises(SystemExit, match=r'(?s)what to do\n.*step.py failed'):
        quickstart.run(script, show=('want',), each=lambda: calls.append(1))
    assert capsys.readouterr().out.splitlines()[1:] == ['  wanted']
    assert len(calls) == 3


def test_report_has_every_figure_beside_the_floor():
    task = quickstart.TASKS['segmentation']
    summary = {
        'mIoU': 71.25,
        'aAcc': 95.5,
        'untrained': dict(mIoU=1.5, aAcc=13.25),
        'majority class': dict(mIoU=7.75, aAcc=85.5),
        'held_out': 200,
        'train_seconds': 123.4,
        'device': 'a device',
        'picture': 'p.png',
        'checkpoint': 'c.pth',
    }
    text = quickstart.report(task, 'segmentation', summary)
    for figure in ('71.25', '95.50', ' 1.50', '13.25', ' 7.75', '85.50', '123 s on a device', '200 held-out'):
        assert figure in text
    assert 'tools/quickstart.sh classification' in text


@pytest.mark.parametrize('arguments', [['detection'], ['segmentation', 'more']])
def test_wrong_argument_is_refused_before_anything_is_installed(arguments):
    script = ['bash', 'tools/quickstart.sh', *arguments]
    done = subprocess.run(script, capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert done.stderr.count('\n') == 1
    assert 'usage: tools/quickstart.sh [segmentation|classification]' in done.stderr
    assert not done.stdout
