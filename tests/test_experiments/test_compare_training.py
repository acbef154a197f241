"""experiments/compare_training.py: real runs of seconds, stopped, failing and finished before."""

import json
import multiprocessing
import sys
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from mmengine.config import Config

from experiments import compare_training, training, training_report
from experiments.results import Results
from mmvisiongru.errors import InputError
from mmvisiongru.zoo import build_model
from tests.harness.small_runs import CLASSIFICATION, make_folders, write_config
from tools.analysis_tools.flops import count

WIDE = "model['backbone']['arch']['embed_dims'][1] = model['head']['in_channels'] = 24\n"
EPOCHS = "train_cfg['max_epochs'] = {epochs}\n"


@pytest.fixture
def folder(tmp_path, monkeypatch, python):
    """A working directory with two configs; data for the first."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(training, 'POLL', 0.05)
    monkeypatch.setattr(training.sys, 'executable', python)
    server = multiprocessing.get_context('forkserver')
    server.set_forkserver_preload(['mmvisiongru', 'mmpretrain.models', 'mmengine.runner'])
    monkeypatch.setattr(training, 'get_context', lambda _: server)
    text = CLASSIFICATION.replace('launchers/pytorch', 'launchers/none')
    make_folders(tmp_path / 'data')
    write_config(tmp_path / 'narrow.py', text, tmp_path / 'data', EPOCHS.format(epochs=2))
    write_config(tmp_path / 'wide.py', text, tmp_path / 'missing', WIDE + EPOCHS.format(epochs=2))
    return tmp_path


def last_validation(folder, name, seed):
    """The last metric in the log of a run."""
    (log,) = folder.glob(f'work_dirs/out/{name}_{seed}_*/2*/vis_data/scalars.json')
    lines = [json.loads(line) for line in log.read_text().splitlines()]
    return [line['accuracy/top1'] for line in lines if 'accuracy/top1' in line][-1]


def test_two_configs_with_two_seeds_of_which_one_fails_at_first(folder, capsys):
    call = ['narrow.py', 'wide.py', '--seeds', '0', '1', '--jobs', '2', '--out', 'out']
    assert compare_training.main(call) == 1
    page = (folder / 'out/README.md').read_text()
    for text in (page, capsys.readouterr().err):
        assert 'wide, seed 1: failed: error:' in text
        assert 'output.txt' in text
    kept = Results(folder / 'out').runs
    assert {*kept} == {('narrow', 0), ('narrow', 1)}
    logs = sorted(folder.glob('work_dirs/out/narrow_*/2*'))

    make_folders(folder / 'missing')
    assert compare_training.main(call) == 0
    found = Results(folder / 'out')
    assert {key: found.runs[key] for key in kept} == kept
    assert sorted(folder.glob('work_dirs/out/narrow_*/2*')) == logs
    assert {*found.runs} == {(name, seed) for name in ('narrow', 'wide') for seed in (0, 1)}
    for (name, seed), row in found.runs.items():
        assert row['value'] == pytest.approx(last_validation(folder, name, seed), rel=1e-5)
    values = {name: [row['value'] for row in found.seeds_of(name).values()] for name in ('narrow', 'wide')}
    page = (folder / 'out/README.md').read_text()
    assert f'| 2 | {np.mean(values["narrow"]):.2f} [' in page
    assert f'| {np.mean(np.subtract(values["wide"], values["narrow"])):+.2f} [' in page
    assert 'failed' not in page
    for name, row in found.configs.items():
        expected = count(build_model(f'{name}.py'), (32, 32))
        assert [int(row[key]) for key in ('parameters', 'macs')] == [expected['parameters'], expected['macs']]
        assert float(row['step_seconds']) > 0

    # The page follows from the two tables alone.
    for name in ('README.md', 'results.png'):
        (folder / 'out' / name).unlink()
    assert compare_training.main(['--report', '--out', 'out']) == 0
    assert (folder / 'out/README.md').read_text() == page
    assert (folder / 'out/results.png').stat().st_size > 1000


def test_stopped_run_resumes_and_leaves_no_process(folder):
    write_config(folder / 'long.py', (folder / 'narrow.py').read_text(), folder, EPOCHS.format(epochs=12))
    results = Results(folder / 'out')
    arguments = (['long.py'], [3], results, folder / 'work', {})
    (run,) = training.plan(*arguments)
    seen = []

    def stop(processes, _):
        seen[:] = processes
        if list(run.work_dir.glob('epoch_*.pth')):
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        training.run_all([run], results, watch=stop)
    assert seen[0].child.poll() is not None
    assert not results.runs
    stopped_at, seconds = training.fraction(run), training.seconds_of(run)
    assert 0 < stopped_at < 1

    (run,) = training.plan(*arguments)
    training.run_all([run], results)
    _, second = sorted(run.work_dir.glob('2*/vis_data/scalars.json'))
    epochs = [json.loads(line).get('epoch') for line in second.read_text().splitlines()]
    assert min(filter(None, epochs)) > 1
    row = Results(folder / 'out').runs['long', 3]
    assert row['iterations'] == 12 * 4
    assert row['seconds'] > seconds
    assert len(row['metric_curve']) == 12


def test_config_that_tests_elsewhere_is_tested(folder):
    cfg = Config.fromfile('narrow.py')
    assert training.validation_is_test(cfg)
    cfg.test_dataloader.dataset.split = 'train'
    # Gives a value for each class.
    cfg.test_evaluator = [cfg.test_evaluator, dict(type='SingleLabelMetric', average=None)]
    assert not training.validation_is_test(cfg)
    cfg.dump('elsewhere.py')
    assert compare_training.main(['elsewhere.py', '--seeds', '0', '--out', 'out']) == 0
    (metrics,) = folder.glob('work_dirs/out/elsewhere_0_*/test/*/*.json')
    expected = json.loads(metrics.read_text())['accuracy/top1']
    assert Results(folder / 'out').runs['elsewhere', 0]['value'] == pytest.approx(expected, rel=1e-5)


def test_result_of_other_settings_is_refused(folder):
    arguments = (['narrow.py'], [0], Results(folder / 'out'), folder / 'work')
    training.plan(*arguments)
    for option in ('train_dataloader.num_workers', 'default_hooks.logger.interval', 'randomness.seed'):
        training.plan(*arguments, {option: 7})
    for option in ('optim_wrapper.optimizer.lr', 'train_dataloader.batch_size', 'model.head.num_classes',
                   'load_from', 'train_dataloader.drop_last', 'env_cfg.tf32'):  # fmt: skip
        with pytest.raises(InputError, match='other settings'):
            training.plan(*arguments, {option: 7})


@pytest.mark.parametrize(
    ('call', 'named'),
    [('wide.py ./wide.py', 'wide'), ('--report', 'result'), ('x.py', 'x.py'), ('x.py --gpus 2', 'launcher')],
)
def test_bad_input_is_one_line(folder, capsys, call, named):
    with pytest.raises(SystemExit):
        compare_training.main([*call.split(), '--out', 'out'])
    (line,) = capsys.readouterr().err.splitlines()
    assert named in line


def test_p_values_are_corrected_for_the_number_of_comparisons(tmp_path):
    results = Results(tmp_path)
    differences = dict(
        first=(0, 0, 0), same=(0, 0, 0), near=(0.2, -0.1, 0.3), far=(-4.1, -3.9, -4.2), apart=(1.0, 2.0, 4.0)
    )
    untested = dict(constant=(0.1, 0.1, 0.1), unknown=(0.0, np.nan, 1.0))
    for name, values in (differences | untested).items():
        results.expect(name, 'x', '')
        for seed, value in enumerate(values):
            results.runs[name, seed] = dict(value=[40, 43, 41][seed] + value)
    # By hand: t = mean / (s / sqrt(3)), and for two degrees of freedom p = 1 - t / sqrt(t^2 + 2).
    t = {name: abs(np.mean(v)) / (np.std(v, ddof=1) / 3**0.5) for name, v in differences.items() if any(v)}
    p = {name: 1 - value / (value**2 + 2) ** 0.5 for name, value in t.items()}
    expected = dict(far=4 * p['far'], apart=3 * p['apart'], near=2 * p['near'], same=1)
    assert training_report.p_values(results) == pytest.approx(expected)


def test_costs_that_cannot_be_measured(tmp_path, capsys, monkeypatch):
    """The time of an earlier process goes too: times compare within one process only."""
    results = Results(tmp_path)
    monkeypatch.setattr(results, 'save', lambda: None)
    monkeypatch.setattr(training, 'ProcessPoolExecutor', lambda *_: ThreadPoolExecutor(1))
    results.configs = dict(gone=dict(parameters='1'), earlier=dict(step_seconds='2'))
    results.runs['gone', 0] = {}
    training.measure_costs([training.Run('gone', 0, tmp_path / 'gone.py', ('iter', 1), True)], results)
    assert 'gone.py does not exist' in capsys.readouterr().err
    assert [config['step_seconds'] for config in results.configs.values()] == ['', '']


def test_each_job_has_gpus_of_its_own_and_this_interpreter(tmp_path, monkeypatch):
    monkeypatch.setenv('CUDA_VISIBLE_DEVICES', '4,7')
    monkeypatch.setattr(training.Process, '_start', lambda *_: None)
    run = training.Run('a', 0, tmp_path / 'a.py', ('iter', 1), True)
    for slot, device in enumerate(('4', '7', '4,7')):
        env = training.Process(run, None, 'none', 1, slot).env
        assert (env['CUDA_VISIBLE_DEVICES'], env['PYTHON']) == (device, sys.executable)


def test_seed_in_a_setting(folder):
    options = {'load_from': 'seed_{seed}.pth'}
    runs = training.plan(['narrow.py'], [3, 4, 3], Results(folder / 'out'), folder / 'work', options)
    assert [Config.fromfile(run.config).load_from for run in runs] == ['seed_3.pth', 'seed_4.pth']


def test_a_run_without_a_metric_is_named(folder):
    (run,) = training.plan(['narrow.py'], [0], Results(folder / 'out'), folder / 'work')
    (log := run.work_dir / '0/vis_data/scalars.json').parent.mkdir(parents=True)
    lines = dict(iter=1, loss=2.0), dict(step=1, mIoU=9.0), dict(iter=2, loss=2.0), dict(step=2)
    log.write_text(''.join(json.dumps(dict(values, time=0.1)) + '\n' for values in lines))
    with pytest.raises(InputError, match='metric'):
        training.record(run, tested=False)


ROW = dict(config='a', metric='mIoU', metrics={'car': 0.5, 'traffic light': 1.5}, iterations=1, seconds=1.0,
           seconds_per_iteration=1.0, machine='', loss_curve=[(1, 2.0)], metric_curve=[])  # fmt: skip


def test_two_processes_store_what_both_trained(tmp_path):
    first, second = both = [Results(tmp_path) for _ in range(2)]
    for seed, results in enumerate(both):
        results.expect('a', 'x', '')
        results.runs['a', seed] = dict(ROW, seed=seed, value=1.0)
        results.save()
    assert Results(tmp_path).runs == second.runs == first.runs | second.runs


def test_page_says_whose_settings_and_how_many_seeds(tmp_path):
    results = Results(tmp_path)
    for name, options, seeds in (('a', '', 2), ('b', 'x=1 y=2', 3)):
        results.expect(name, '', options)
        results.runs |= {(name, seed): dict(ROW, config=name, value=seed**seeds) for seed in range(seeds)}
    page = training_report.markdown(results, [])
    assert '| 3 | 3.00 [0.00, 13.83] | +0.00 [+0.00, +0.00] (2 seeds) | 1 |' in page
    assert '\nb with `x=1`, `y=2`.' in page


# Student's t for two values: 12.706 times half of their difference.
@pytest.mark.parametrize(
    ('metric', 'unit', 'shown'),
    [
        ('mIoU', 1, '68.50 [0.00, 100.00]'),
        ('loss', 1, '68.50 [-58.56, 195.56]'),
        ('coco/bbox_mAP', 0.01, '0.6850 [0.0000, 1.0000]'),
    ],
)
def test_interval_ends_where_values_are_possible(tmp_path, metric, unit, shown):
    results = Results(tmp_path)
    results.expect('a', 'x', '')
    for seed, value in enumerate((58.5, 78.5)):
        results.runs['a', seed] = dict(ROW, metric=metric, seed=seed, value=unit * value)
    assert shown in training_report.markdown(results, [])
