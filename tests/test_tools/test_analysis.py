"""What a run left behind: confusion_matrix.py counts what the metric counts, analyze_logs.py draws logs."""

import csv
import itertools
import json
import os
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from PIL import Image
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from tests.harness.small_runs import CLASSIFICATION, SEGMENTATION, save, save_weights, write_config
from tools import test as test_tool
from tools import train
from tools.analysis_tools import analyze_logs, confusion_matrix

# Class 1 is what data set and metric ignore, and nothing else is.
IGNORE_1 = """
test_dataloader['dataset'].update(ignore_index=1, reduce_zero_label=False)
test_evaluator = dict(type='IoUMetric', ignore_index=1)
model['decode_head']['ignore_index'] = 1
"""


@pytest.mark.parametrize(
    ('text', 'data', 'extra', 'metric'),
    [
        (SEGMENTATION, 'ade', '', 'aAcc'),
        (SEGMENTATION, 'ade', IGNORE_1, 'aAcc'),
        (CLASSIFICATION, 'inet', '', 'accuracy/top1'),
    ],
    ids=['segmentor', 'ignoring 1', 'classifier'],
)
def test_diagonal_is_the_metric(workplace, capsys, text, data, extra, metric):
    config = write_config(workplace / 'tiny.py', text, data, f"launcher = 'none'\n{extra}")
    save_weights(config, 'model.pth')
    for path in Path('ade/annotations/validation').iterdir() if extra else ():
        save(path, np.asarray(Image.open(path)) % 3)
    test_tool.main(['tiny.py', 'model.pth', '--out', 'work_dirs/m.yaml', '--out-item', 'metrics'])
    before = os.listdir()
    capsys.readouterr()
    confusion_matrix.main(['tiny.py', 'model.pth', '--out', 'matrices/m.PNG'])
    out = capsys.readouterr().out
    assert ('tensor(' in out, 'on the diagonal' in out) == (False, True)
    assert sorted(os.listdir('matrices')) == ['m.csv', 'm.pdf', 'm.png']
    assert set(os.listdir()) == {*before, 'matrices'}
    head, *rows = csv.reader(Path('matrices/m.csv').read_text().splitlines())
    assert head[1:] == [row[0] for row in rows]
    counts = np.array([row[1:] for row in rows]).astype(int)
    expected = yaml.safe_load(Path('work_dirs/m.yaml').read_text())[metric]
    assert 100 * counts.trace() / counts.sum() == pytest.approx(expected, abs=0.01)
    assert (counts[1].sum() == 0) == bool(extra)
    with Image.open('matrices/m.png') as picture:
        assert picture.info['dpi'] == pytest.approx((200, 200), abs=0.1)


def test_worst_confusions_by_hand():
    matrix = torch.tensor([[6, 2, 0], [5, 90, 5], [0, 0, 0]])
    first, *more = confusion_matrix.worst_confusions(matrix, ['a', 'b', 'c'])
    assert first == ' 25.0% of a is taken for b (2 of 8)'
    assert [line.split(' of b is taken for ')[1] for line in more] == ['a (5 of 100)', 'c (5 of 100)']


@pytest.mark.parametrize('classes', [3, 26, 150])
def test_names_of_the_classes_do_not_overlap(classes):
    names = [f'class {i}' for i in range(classes)]
    figure = confusion_matrix.draw(torch.eye(classes), names)
    figure.draw_without_rendering()
    columns, rows = figure.axes[0].get_xticklabels(), figure.axes[0].get_yticklabels()[::-1]
    for labels, low, high in ((columns, 'x0', 'x1'), (rows, 'y0', 'y1')):
        assert sorted(label.get_text() for label in labels) == sorted(names)
        boxes = [label.get_window_extent() for label in labels]
        assert all(getattr(a, high) <= getattr(b, low) for a, b in itertools.pairwise(boxes))


# ---- analyze_logs.py, on real runs of a few iterations and on logs written by hand

TRACKER = """
visualizer = dict(vis_backends=[dict(type='LocalVisBackend'), dict(type='TensorboardVisBackend')])
"""
TASKS = [(SEGMENTATION, 'ade', 'mIoU'), (CLASSIFICATION, 'inet', 'accuracy/top1')]


@pytest.mark.parametrize(('text', 'data', 'metric'), TASKS, ids=['segmentor', 'classifier'])
def test_logs_of_a_run(workplace, capsys, text, data, metric):
    """Tensorboard gets what the log gets; the log is summarized and drawn."""
    write_config(workplace / 'run.py', text, data, TRACKER)
    train.main(['run.py', '--work-dir', 'work', '--launcher', 'none'])
    (folder,) = workplace.glob('work/*/vis_data')
    log = [json.loads(line) for line in (folder / 'scalars.json').read_text().splitlines()]
    events = EventAccumulator(str(folder)).Reload()
    for key in ('loss', 'lr', metric):
        logged = [values[key] for values in log if key in values]
        assert [event.value for event in events.Scalars(key)] == pytest.approx(logged)
        assert logged
    capsys.readouterr()
    analyze_logs.main(['work', '--keys', 'loss', metric, '--out', 'näw/日.png'])
    out = capsys.readouterr().out
    assert f'{[v["loss"] for v in log if "loss" in v][-1]:.4f}' in out
    assert f'{log[-1][metric]:.2f}' in out
    with Image.open('näw/日.png') as picture:
        assert picture.width > picture.height


def line(**values):
    return json.dumps(values) + '\n'


def write_log(folder, text, resumed=None):
    (folder / 'vis_data').mkdir(parents=True)
    if resumed is not None:
        (folder / 'run.log').write_text(f'INFO - resumed epoch: 0, iter: {resumed}\n')
    (folder / 'vis_data/scalars.json').write_text(text)


def test_validation_that_a_resumed_run_starts_with_keeps_its_place(tmp_path, monkeypatch):
    # Steps of a validation are epochs; killed later than the checkpoint, which is of iteration 4.
    first = dict(loss=4.0, iter=4, step=4), dict(top1=10.0, step=1), dict(loss=3.0, iter=5, step=5)
    second = dict(top1=10.0, step=1), dict(loss=3.0, iter=8, step=8)
    # Killed before this validation.
    third = dict(top1=20.0, step=2), dict(loss=2.0, iter=12, step=12), dict(top1=30.0, step=3)
    for name, lines, resumed in (('20', first, None), ('21', second, 4), ('22', third, 8)):
        write_log(tmp_path / name, ''.join(line(**values) for values in lines), resumed)
    _, validation = analyze_logs.read_run(str(tmp_path))
    assert validation['top1'] == {4: 10.0, 8: 20.0, 12: 30.0}
    monkeypatch.chdir(tmp_path / '21/vis_data')
    assert analyze_logs.log_files('scalars.json')[0] == {Path('scalars.json'): 4}


def test_resumed_run_is_one_curve_without_what_was_done_twice(tmp_path, capsys):
    # Another training in the same work dir, whose first lines nothing replaces.
    write_log(tmp_path / '20240101_000000', ''.join(line(loss=9.0, iter=i, step=i) for i in range(7)))
    # The run was killed in the middle of a line, and resumed from iteration 2.
    text = line(loss=4.0, iter=1, step=1) + line(mIoU=10.0, step=1) + line(loss=3.0, iter=4, step=4) + '{"los'
    write_log(tmp_path / '20250101_000000', text)
    write_log(tmp_path / '20250102_000000', line(loss=2.0, iter=3, step=3) + line(mIoU=9.0, step=3), 2)
    train, validation = analyze_logs.read_run(str(tmp_path))
    assert train['loss'] == {1: 4.0, 3: 2.0}
    assert validation['mIoU'] == {1: 10.0, 3: 9.0}
    analyze_logs.main([str(tmp_path)])
    out, err = capsys.readouterr()
    assert ('10.00' in out, '20240101_000000' in err, '20250101_000000' in err) == (True, True, False)


@pytest.mark.parametrize(
    ('text', 'arguments', 'message'),
    [
        (None, [], 'no log in'),
        ('[pickle]\n\n', [], 'is not JSON'),
        (line(loss=1.0, iter=1, step=1), ['--keys', 'mIoU', '--out', 'x.png'], 'it has loss'),
    ],
)
def test_logs_that_cannot_be_read_are_named(text, arguments, message, tmp_path, refused):
    if text is not None:
        write_log(tmp_path, text)
    assert message in refused(analyze_logs, tmp_path, *arguments)


def test_a_run_without_a_metric_is_named_and_the_others_are_drawn(tmp_path, capsys):
    runs, out = [str(tmp_path / name) for name in ('both', 'one')], tmp_path / 'curves.png'
    write_log(tmp_path / 'both', line(loss=1.0, mIoU=5.0, iter=1, step=1))
    write_log(tmp_path / 'one', line(loss=2.0, iter=1, step=1))
    analyze_logs.main([*runs, '--keys', 'loss', 'mIoU', '--out', str(out)])
    assert out.stat().st_size > 1000
    (named,) = capsys.readouterr().err.splitlines()
    assert (tmp_path / 'curves.csv').read_text().count(runs[0]) == 2
    assert (runs[1] in named, 'mIoU' in named) == (True, True)
    same = dict.fromkeys(('a/x', 'b/x', 'c/y'), analyze_logs.read_run(runs[0]))
    legend = analyze_logs.draw(same, ['loss'])[0].axes[0].get_legend()
    assert [text.get_text() for text in legend.get_texts()] == ['a/x', 'b/x', 'y']
