"""Runs that are told to stop, and runs whose values are not finite any more."""

import os
import re
import signal

import pytest
import torch
from mmengine.hooks import Hook
from mmengine.optim import OptimWrapper, OptimWrapperDict

from mmvisiongru.checkpoint import find_checkpoint
from mmvisiongru.engine.hooks import guard
from mmvisiongru.errors import InputError
from tests.harness.toy import LAST, ToyModel, assert_same, differing, finish, run, start, tensors, toy_runner


def saved(folder) -> list[str]:
    return sorted(p.name for p in folder.glob('[eis]*.pth'))


@pytest.mark.parametrize('by_epoch', [False, True])
@pytest.mark.parametrize(
    ('what', 'at'),
    # In the middle of an epoch, and at the end of one, where a checkpoint is due too.
    [('SIGTERM', 8), ('SIGTERM', 9), ('SIGINT', 8), ('SIGUSR1', 9)],
)
def test_signal_stops_with_a_checkpoint(tmp_path, whole, by_epoch, what, at):
    before = signal.getsignal(signal.SIGTERM)
    runner = toy_runner(tmp_path / 'stopped', by_epoch=by_epoch, fault=dict(at=at, what=what))
    with pytest.raises(SystemExit) as stopped:
        runner.train()
    assert stopped.value.code == 128 + signal.Signals[what]
    assert signal.getsignal(signal.SIGTERM) is before
    checkpoint, notes = find_checkpoint(str(tmp_path / 'stopped'))
    name = 'stopped' if by_epoch else f'iter_{at}'
    assert (checkpoint.path, notes) == (str(tmp_path / f'stopped/{name}.pth'), [])
    assert checkpoint.meta['iter'] == at

    run(tmp_path / 'stopped', by_epoch=by_epoch, resume=True)
    assert_same(whole(by_epoch), tmp_path / 'stopped', by_epoch)
    # The next checkpoint replaces the one in the middle of an epoch.
    assert saved(tmp_path / 'stopped') == saved(whole(by_epoch))


class SignalTwice(Hook):
    """Sends SIGINT twice before iteration 8."""

    def before_train_iter(self, runner, batch_idx, data_batch=None):
        for _ in range(2 if runner.iter == 7 else 0):
            os.kill(os.getpid(), signal.SIGINT)


@pytest.mark.parametrize(('after', 'last'), [(5.0, 'iter_8.pth'), (-1.0, 'iter_6.pth')])
def test_only_a_late_second_signal_ends_the_run_at_once(tmp_path, monkeypatch, after, last):
    monkeypatch.setattr(guard, 'FORCE_QUIT_AFTER_S', after)
    runner = toy_runner(tmp_path)
    runner.register_hook(SignalTwice())
    with pytest.raises(SystemExit, match='130'):
        runner.train()
    assert find_checkpoint(str(tmp_path))[0].path == str(tmp_path / last)


def test_stop_waits_for_an_accumulated_gradient(tmp_path):
    more = {'optim_wrapper.accumulative_counts': 4}
    with pytest.raises(SystemExit):
        toy_runner(tmp_path, fault=dict(at=9, what='SIGTERM'), **more).train()
    assert find_checkpoint(str(tmp_path))[0].path.endswith('iter_12.pth')


FUSED = {'optim_wrapper.optimizer.fused': True}
CLIP = {'optim_wrapper.clip_grad': dict(max_norm=1.0)}
WAYS = pytest.mark.parametrize('more', [{}, CLIP, FUSED, FUSED | CLIP], ids=['', 'clip', 'fused', 'both'])


@WAYS
@pytest.mark.parametrize('patience', [1, 3])
def test_loss_that_is_nan_ends_the_run(tmp_path, more, patience):
    more = {**more, 'default_hooks.guard.patience': patience}
    runner = toy_runner(tmp_path, interval=6, fault=dict(at=7, what='nan_input', times=99), **more)
    message = rf'patience={patience}.* iteration 7: loss nan, (\d+\.png(, )?){{4}};.*iter_6\.pth'
    with pytest.raises(InputError, match=message):
        runner.train()
    assert runner.iter + 1 == 6 + patience
    assert saved(tmp_path) == ['iter_6.pth']
    # No step was taken with what came from the loss.
    assert all(p.isfinite().all() for p in runner.model.parameters())


def test_lost_weights_do_not_replace_good_ones(tmp_path, monkeypatch):
    monkeypatch.setattr(ToyModel, 'get_extra_state', lambda model: 'no tensor')
    # One batch leaves NaN in the statistics of batch norm, which training does not read.
    runner = toy_runner(tmp_path, keep=1, fault=dict(at=8, what='nan_input'))
    with pytest.raises(InputError, match=r'iteration 9: 4 tensors .* net\.1\.running_mean'):
        runner.train()
    assert saved(tmp_path) == ['iter_6.pth']


@WAYS
def test_a_gradient_that_is_inf_is_skipped(tmp_path, more):
    runner = toy_runner(tmp_path, fault=dict(at=8, what='inf_gradient', times=2), **more)
    runner.train()
    assert {float(s['step']) for s in runner.optim_wrapper.optimizer.state.values()} == {16.0}
    assert all(p.isfinite().all() for p in runner.model.parameters())
    # In the last iteration, too.
    runner = toy_runner(tmp_path, fault=dict(at=16, what='inf_gradient', times=3), **more)
    with pytest.raises(InputError, match=r'patience=3.* iteration 16: gradient not finite, \d+\.png'):
        runner.train()


class SameHook(Hook):
    """Notes iterations that change neither the weights nor the optimizer's state."""

    def __init__(self):
        self.same = []

    def state(self, runner):
        state = [runner.optim_wrapper.optimizer.state_dict()['state'], dict(runner.model.named_parameters())]
        return [tensor.tolist() for _, tensor in tensors(state)]

    def before_train_iter(self, runner, batch_idx, data_batch=None):
        self.before = self.state(runner)

    def after_train_iter(self, runner, batch_idx, data_batch=None, outputs=None):
        if self.state(runner) == self.before:
            self.same.append(runner.iter + 1)


@pytest.mark.parametrize('optimizer', [dict(type='SGD', lr=0.05, momentum=0.9), dict(type='AdamW', lr=0.05)])
@pytest.mark.parametrize('at', [1, 8])
def test_a_skipped_step_changes_nothing(tmp_path, optimizer, at):
    """Not even the parameters whose own gradients are finite, nor a momentum that nothing wrote yet."""
    runner = toy_runner(tmp_path, fault=dict(at=at, what='inf_gradient', times=2))
    runner.optim_wrapper = dict(type='OptimWrapper', optimizer=optimizer)
    runner.register_hook(hook := SameHook())
    runner.train()
    assert hook.same == [at, at + 1]


class SilentModel(ToyModel):
    """Gives nothing to the log."""

    def train_step(self, data, optim_wrapper):
        return super().train_step(data, optim_wrapper) and {}


def test_accumulated_gradients(tmp_path):
    more = {'model.type': SilentModel, 'optim_wrapper.accumulative_counts': 2}
    runner = toy_runner(tmp_path, **more)
    runner.train()
    assert {float(s['step']) for s in runner.optim_wrapper.optimizer.state.values()} == {9.0}
    # Steps are due after every second iteration.
    runner = toy_runner(tmp_path, fault=dict(at=2, what='inf_gradient', times=99), **more)
    with pytest.raises(InputError, match=r'patience=3.* iteration 2: gradient not finite'):
        runner.train()
    assert runner.iter + 1 == 6


class TwoStepModel(ToyModel):
    """Two optimizers: one of the first layer, one of the rest."""

    def train_step(self, data, optim_wrapper):
        data = self.data_preprocessor(data, True)
        logs = {}
        for name, wrapper in optim_wrapper.items():
            with wrapper.optim_context(self):
                loss = self(**data, mode='loss')['loss']
            wrapper.update_params(loss)
            # Each has its own parameters only.
            self.zero_grad()
            logs[f'loss_{name}'] = loss
        return logs


def two_optimizers(work_dir, **settings):
    runner = toy_runner(work_dir, **{'model.type': TwoStepModel}, **settings)
    first, rest = runner.model.net[0], runner.model.net[1:]
    runner.optim_wrapper = OptimWrapperDict(
        first=OptimWrapper(torch.optim.SGD(first.parameters(), lr=0.05, momentum=0.9)),
        rest=OptimWrapper(torch.optim.AdamW(rest.parameters(), lr=0.05), clip_grad=dict(max_norm=1.0)),
    )
    return runner


@pytest.mark.parametrize('by_epoch', [False, True])
def test_several_optimizers(tmp_path, by_epoch):
    two_optimizers(tmp_path / 'whole', by_epoch=by_epoch).train()
    with pytest.raises(SystemExit):
        two_optimizers(tmp_path / 'cut', by_epoch=by_epoch, fault=dict(at=8, what='SIGTERM')).train()
    two_optimizers(tmp_path / 'cut', by_epoch=by_epoch, resume=True).train()
    number, names = differing(*(tmp_path / run / LAST[by_epoch] for run in ('whole', 'cut')))
    assert (number > 30, names) == (True, [])
    fault = dict(at=7, what='nan_input', times=9)
    runner = two_optimizers(tmp_path / 'nan', by_epoch=by_epoch, interval=6, fault=fault)
    with pytest.raises(InputError, match=r'patience=3.* iteration 7: loss_first nan'):
        runner.train()
    assert all(p.isfinite().all() for p in runner.model.parameters())


def scaled(work_dir, times, **wrapper):
    """A run in mixed precision whose first gradients are infinite."""
    wrapper = dict(type='mmvisiongru.CPUAmpOptimWrapper') | wrapper
    fault = dict(at=1, what='inf_gradient', times=times)
    return toy_runner(work_dir, interval=99, fault=fault, optim_wrapper=wrapper)


DYNAMIC = dict(loss_scale=dict(init_scale=4.0))


@pytest.mark.parametrize(
    ('wrapper', 'last'),
    # Halved at every step that is skipped: 4, 2, 1, and below 1 it does not enlarge.
    [(DYNAMIC, 3 + 2), (dict(loss_scale=8.0), 3), (DYNAMIC | dict(clip_grad=dict(max_norm=1.0)), 3 + 2)],
)
@pytest.mark.parametrize('fused', [False, True])
def test_mixed_precision_that_finds_no_loss_scale_ends_the_run(tmp_path, wrapper, last, fused):
    runner = scaled(tmp_path, 99, optimizer=dict(fused=fused), **wrapper)
    with pytest.raises(InputError, match=r'patience=3.* iteration \d: gradient not'):
        runner.train()
    assert runner.iter + 1 == last
    assert not any(float(s['step']) for s in runner.optim_wrapper.optimizer.state.values())
    if wrapper is DYNAMIC:
        # One that has to fall does not.
        runner = scaled(tmp_path / 'falls', 10, optimizer=dict(fused=fused))
        runner.train()
        assert {float(s['step']) for s in runner.optim_wrapper.optimizer.state.values()} == {8.0}


class FailAfterValidation(Hook):
    """Gets a signal and fails when the weights have just replaced their averages again."""

    priority = 'LOW'

    def after_val_epoch(self, runner, metrics=None):
        os.kill(os.getpid(), signal.SIGTERM)
        raise RuntimeError


def test_weights_are_saved_when_a_run_fails_after_a_validation(tmp_path, whole):
    runner = toy_runner(tmp_path / 'stopped', interval=99)
    runner.register_hook(FailAfterValidation())
    with pytest.raises(SystemExit):
        runner.train()
    run(tmp_path / 'stopped', interval=99, resume=True)
    assert_same(whole(interval=99), tmp_path / 'stopped')


@pytest.mark.long
@pytest.mark.parametrize('by_epoch', [False, True])
@pytest.mark.parametrize('what', ['SIGTERM', 'SIGINT'])
def test_signal_to_one_of_two_processes_stops_both(tmp_path, by_epoch, what):
    fault = dict(at=5, what=what, rank=1)
    code, log = finish(start(2, tmp_path / 'stopped', by_epoch=by_epoch, fault=fault))
    assert code == 128 + signal.Signals[what], log
    assert f'stopped by {what} after iteration 5: saved' in log
    checkpoint, _ = find_checkpoint(str(tmp_path / 'stopped'))
    assert checkpoint.meta['iter'] == 5
    assert finish(start(2, tmp_path / 'stopped', by_epoch=by_epoch, resume=True))[0] == 0
    assert finish(start(2, tmp_path / 'whole', by_epoch=by_epoch))[0] == 0
    assert_same(tmp_path / 'whole', tmp_path / 'stopped', by_epoch)


@pytest.mark.long
@pytest.mark.parametrize('number', [signal.SIGTERM, signal.SIGINT])
def test_signal_to_the_launcher_stops_both(tmp_path, number):
    process = start(2, tmp_path, iters=100000, interval=50)
    while not saved(tmp_path):
        assert process.poll() is None
        signal.sigtimedwait([], 0.5)
    os.kill(process.pid, number)
    code, log = finish(process)
    assert code == 128 + number, log
    assert f'stopped by {number.name} after iteration ' in log
    assert f'saved {find_checkpoint(str(tmp_path))[0].path}' in log


@pytest.mark.long
def test_nan_in_one_of_two_processes_is_named(tmp_path):
    fault = dict(at=8, what='nan_input', rank=1, times=99)
    code, log = finish(start(2, tmp_path, fault=fault))
    assert code == 2, log
    line = next(line for line in log.splitlines() if line.startswith('error:'))
    assert re.search(r'patience=3.* iteration 8: loss nan', line)
    assert line.count('.png') == 4
