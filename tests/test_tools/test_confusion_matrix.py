"""confusion_matrix.py counts what the metric counts, and writes nothing else."""

import csv
import itertools
import json
import os
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from tests.harness.small_runs import CLASSIFICATION, SEGMENTATION, save, save_weights, write_config
from tools import test as test_tool
from tools.analysis_tools import confusion_matrix

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
    test_tool.main(['tiny.py', 'model.pth', '--out', 'work_dirs/m.json', '--out-item', 'metrics'])
    before = os.listdir()
    capsys.readouterr()
    confusion_matrix.main(['tiny.py', 'model.pth', '--out', 'matrices/m.PNG'])
    out = capsys.readouterr().out
    assert 'tensor(' not in out
    assert 'on the diagonal' in out
    assert sorted(os.listdir('matrices')) == ['m.csv', 'm.pdf', 'm.png']
    assert set(os.listdir()) == {*before, 'matrices'}
    head, *rows = csv.reader(Path('matrices/m.csv').read_text().splitlines())
    assert head[1:] == [row[0] for row in rows]
    counts = np.array([row[1:] for row in rows]).astype(int)
    expected = json.loads(Path('work_dirs/m.json').read_text())[metric]
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
