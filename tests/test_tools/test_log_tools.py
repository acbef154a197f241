"""analyze_logs.py, on real runs of a few iterations and on logs written by hand."""

import json

import pytest
from PIL import Image
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from tests.harness.small_runs import CLASSIFICATION, SEGMENTATION, write_config
from tools import train
from tools.analysis_tools import analyze_logs

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


def test_validation_that_a_resumed_run_starts_with_keeps_its_place(tmp_path):
    # Steps of a validation are epochs; killed later than the checkpoint, which is of iteration 4.
    first = dict(loss=4.0, iter=4, step=4), dict(top1=10.0, step=1), dict(loss=3.0, iter=5, step=5)
    second = dict(top1=10.0, step=1), dict(loss=3.0, iter=8, step=8)
    # Killed before this validation.
    third = dict(top1=20.0, step=2), dict(loss=2.0, iter=12, step=12), dict(top1=30.0, step=3)
    for name, lines, resumed in (('20', first, None), ('21', second, 4), ('22', third, 8)):
        write_log(tmp_path / name, ''.join(line(**values) for values in lines), resumed)
    _, validation = analyze_logs.read_run(str(tmp_path))
    assert validation['top1'] == {4: 10.0, 8: 20.0, 12: 30.0}


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
    assert '10.00' in out
    assert '20240101_000000' in err
    assert '20250101_000000' not in err


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
    assert runs[1] in named
    assert 'mIoU' in named
