"""Runs that are told to stop, and runs whose numbers are lost."""

import os
import signal

import pytest
import torch
from mmengine.optim import OptimWrapper
from mmengine.registry import HOOKS

from mmvisiongru.checkpoint import find_checkpoint, load_checkpoint_file
from mmvisiongru.engine.hooks import GuardHook
from mmvisiongru.errors import InputError
from tests.harness.toy import LAST, differing, finish, run, start, toy_runner

LONG = pytest.mark.long


def saved(folder) -> list[str]:
    return sorted(p.name for p in folder.glob('[ei]*_*.pth'))


@pytest.mark.parametrize('by_epoch', [False, True])
@pytest.mark.parametrize(('what', 'code'), [('term', 143), ('interrupt', 130)])
# In the middle of an epoch, and at the end of one, where a checkpoint is due too.
@pytest.mark.parametrize('at', [8, 9])
def test_signal_stops_with_a_checkpoint(tmp_path, by_epoch, what, code, at):
    before = signal.getsignal(signal.SIGTERM)
    runner = toy_runner(tmp_path / 'stopped', by_epoch=by_epoch, fault=dict(at=at, what=what))
    with pytest.raises(SystemExit) as stopped:
        runner.train()
    assert stopped.value.code == code
    assert signal.getsignal(signal.SIGTERM) is before
    path, notes = find_checkpoint(str(tmp_path / 'stopped'))
    assert (path, notes) == (str(tmp_path / f'stopped/iter_{at}.pth'), [])
    assert load_checkpoint_file(path)['meta']['iter'] == at

    run(tmp_path / 'stopped', by_epoch=by_epoch, resume=True)
    run(tmp_path / 'whole', by_epoch=by_epoch)
    last = LAST[by_epoch]
    assert differing(tmp_path / 'whole' / last, tmp_path / 'stopped' / last) == (37, [])
    # The file in the middle of an epoch was for once.
    assert saved(tmp_path / 'stopped') == saved(tmp_path / 'whole')


def test_impatient_second_signal_ends_at_once():
    hook = GuardHook()
    hook._on_signal(signal.SIGINT, None)
    hook._on_signal(signal.SIGINT, None)
    hook.since -= 6
    with pytest.raises(SystemExit, match='130'):
        hook._on_signal(signal.SIGINT, None)


def test_stop_waits_for_an_accumulated_gradient(tmp_path):
    more = {'optim_wrapper.accumulative_counts': 4}
    runner = toy_runner(tmp_path, fault=dict(at=9, what='term'), **more)
    with pytest.raises(SystemExit):
        runner.train()
    assert find_checkpoint(str(tmp_path))[0].endswith('iter_12.pth')


FUSED = {'optim_wrapper.optimizer.fused': True}
CLIP = {'optim_wrapper.clip_grad': dict(max_norm=1.0)}
WAYS = pytest.mark.parametrize('more', [{}, CLIP, FUSED, FUSED | CLIP], ids=['', 'clip', 'fused', 'both'])


@WAYS
@pytest.mark.parametrize('patience', [1, 3])
def test_loss_that_is_nan_ends_the_run(tmp_path, more, patience):
    runner = toy_runner(
        tmp_path,
        interval=6,
        fault=dict(at=7, what='nan_input', times=99),
        **more,
        **{'default_hooks.guard.patience': patience},
    )
    message = rf'in {patience} iterations in a row, from iteration 7: loss nan, (\d+\.png(, )?){{4}};'
    with pytest.raises(InputError, match=message + r' last checkpoint: .*iter_6\.pth'):
        runner.train()
    # The first one is read at the end of the next; from then on, each at its own.
    assert runner.iter + 1 == 6 + max(patience, 2)
    assert saved(tmp_path) == ['iter_6.pth']
    # No step was taken with what came from the loss.
    assert all(p.isfinite().all() for p in runner.model.parameters())


def test_lost_weights_do_not_replace_good_ones(tmp_path):
    # One batch leaves NaN in the statistics of batch norm, which training does not read.
    runner = toy_runner(tmp_path, keep=1, fault=dict(at=8, what='nan_input'))
    message = r'iteration 9: 4 tensors of the model are not finite, first net\.1\.running_mean; no checkpoint'
    with pytest.raises(InputError, match=message):
        runner.train()
    assert saved(tmp_path) == ['iter_6.pth']


@WAYS
def test_gradient_that_is_inf_is_left_out(tmp_path, more):
    runner = toy_runner(tmp_path, fault=dict(at=8, what='inf_gradient', times=2), **more)
    runner.train()
    state = runner.optim_wrapper.optimizer.state
    assert {float(s['step']) for s in state.values()} == {16.0}
    assert all(p.isfinite().all() for p in runner.model.parameters())
    runner = toy_runner(tmp_path, fault=dict(at=8, what='inf_gradient', times=3), **more)
    message = r'in 3 iterations in a row, from iteration 8: gradient not finite, \d+\.png'
    with pytest.raises(InputError, match=message):
        runner.train()


def test_accumulated_gradient_that_stays_inf_ends_the_run(tmp_path):
    fault = dict(at=2, what='inf_gradient', times=99)
    runner = toy_runner(tmp_path, fault=fault, **{'optim_wrapper.accumulative_counts': 2})
    # Steps are due after every second iteration.
    with pytest.raises(InputError, match='in 3 iterations in a row, from iteration 2: gradient not finite'):
        runner.train()
    assert runner.iter + 1 == 6


class ScalingWrapper(OptimWrapper):
    """AmpOptimWrapper's way with a loss scaler, on a CPU."""

    def __init__(self, loss_scaler, scale=None, **kwargs):
        self.loss_scaler, self._scale_update_param = loss_scaler, scale
        super().__init__(**kwargs)

    def backward(self, loss, **kwargs):
        self.loss_scaler.scale(loss).backward(**kwargs)
        self._inner_count += 1

    def step(self, **kwargs):
        self.loss_scaler.step(self.optimizer)
        self.loss_scaler.update(self._scale_update_param)


@pytest.mark.parametrize(
    ('scale', 'last'),
    # Halved at every step that is left out: 4, 2, 1, and below 1 it is not the scale.
    [(None, 3 + 2), (8.0, 3)],
)
@pytest.mark.parametrize('fused', [False, True])
def test_mixed_precision_that_finds_no_loss_scale_ends_the_run(tmp_path, scale, last, fused):
    runner = toy_runner(tmp_path, interval=99, fault=dict(at=1, what='inf_gradient', times=99))
    optimizer = torch.optim.AdamW(runner.model.parameters(), fused=fused)
    scaler = torch.amp.GradScaler('cpu', init_scale=8.0 if scale else 4.0)
    runner.optim_wrapper = ScalingWrapper(scaler, scale, optimizer=optimizer)
    runner.param_schedulers = None
    with pytest.raises(InputError, match=r'in 3 iterations in a row, from iteration \d: gradient not'):
        runner.train()
    assert runner.iter + 1 == last
    assert not any(float(s['step']) for s in optimizer.state.values())


def test_loss_scale_that_has_to_fall_does_not_end_the_run(tmp_path):
    runner = toy_runner(tmp_path, interval=99, fault=dict(at=1, what='inf_gradient', times=10))
    optimizer = torch.optim.AdamW(runner.model.parameters())
    runner.optim_wrapper = ScalingWrapper(torch.amp.GradScaler('cpu'), optimizer=optimizer)
    runner.param_schedulers = None
    runner.train()
    assert {float(s['step']) for s in optimizer.state.values()} == {8.0}


@WAYS
def test_the_last_iteration_is_judged_too(tmp_path, more):
    runner = toy_runner(tmp_path, fault=dict(at=18, what='inf_gradient'), **more)
    hook = next(h for h in runner.hooks if isinstance(h, GuardHook))
    hook.patience = 1
    with pytest.raises(InputError, match='in 1 iterations in a row, from iteration 18: gradient not finite'):
        runner.train()


@pytest.mark.parametrize('fused', [False, True])
def test_a_step_left_out_changes_nothing(fused):
    """Not even where the gradient of another parameter is finite."""
    parameters = [torch.nn.Parameter(torch.ones(2)) for _ in range(2)]
    optimizer = torch.optim.AdamW(parameters, lr=1.0, fused=fused)
    hook = GuardHook()
    optimizer.register_step_pre_hook(hook._before_step)
    optimizer.register_step_post_hook(hook._after_step)
    for bad in (True, False, True):
        parameters[0].grad = torch.full((2,), torch.inf if bad else 1.0)
        parameters[1].grad = torch.ones(2)
        before = [p.detach().clone() for p in parameters]
        optimizer.step()
        assert [torch.equal(p, b) for p, b in zip(parameters, before, strict=True)] == [bad, bad]
    assert {float(s['step']) for s in optimizer.state.values()} == {1.0}
    assert list(map(float, hook.bad_gradients)) == [1.0, 0.0, 1.0]
    # A loss scaler would take it for its own.
    assert not hasattr(optimizer, 'found_inf')


def test_steps_that_a_loss_scaler_skips_do_not_count():
    """A fused optimizer is called for those too, with ``found_inf``; others are not called at all."""
    weight = torch.nn.Parameter(torch.ones(2))
    optimizer = torch.optim.SGD([weight], lr=1.0)
    hook = GuardHook()
    weight.grad = torch.full((2,), torch.inf)
    optimizer.found_inf = torch.ones(1)
    hook._before_step(optimizer, (), {})
    assert not hook.bad_gradients
    assert hook.scaled == [optimizer.found_inf]
    del optimizer.found_inf
    hook._before_step(optimizer, (), {})
    assert list(map(float, hook.bad_gradients)) == [1.0]
    assert weight.grad is None


def test_patience_must_be_positive():
    with pytest.raises(ValueError, match='patience must be at least 1, got 0'):
        HOOKS.build(dict(type='mmvisiongru.GuardHook', patience=0))


@LONG
@pytest.mark.parametrize('by_epoch', [False, True])
@pytest.mark.parametrize('what', ['term', 'interrupt'])
def test_signal_to_one_of_two_processes_stops_both(tmp_path, by_epoch, what):
    fault = dict(at=5, what=what, rank=1)
    code, log = finish(start(2, tmp_path / 'stopped', by_epoch=by_epoch, fault=fault))
    assert code == (143 if what == 'term' else 130), log
    # The other process is told in the course of an iteration.
    assert 'after iteration 6: saved' in log
    path, _ = find_checkpoint(str(tmp_path / 'stopped'))
    assert path == str(tmp_path / 'stopped/iter_6.pth')
    assert finish(start(2, tmp_path / 'stopped', by_epoch=by_epoch, resume=True))[0] == 0
    assert finish(start(2, tmp_path / 'whole', by_epoch=by_epoch))[0] == 0
    (last,) = {p.name for p in (tmp_path / 'whole').glob('[ei]*_*.pth')} & set(LAST.values())
    assert differing(tmp_path / 'whole' / last, tmp_path / 'stopped' / last) == (37, [])


@LONG
@pytest.mark.parametrize(('number', 'exit_code'), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_signal_to_the_launcher_stops_both(tmp_path, number, exit_code):
    process = start(2, tmp_path, iters=100000, interval=50)
    while not saved(tmp_path):
        assert process.poll() is None
        signal.sigtimedwait([], 0.5)
    os.kill(process.pid, number)
    code, log = finish(process)
    assert code == exit_code, log
    path, _ = find_checkpoint(str(tmp_path))
    assert f'stopped by {number.name} after iteration ' in log
    assert f'saved {path}' in log


@LONG
def test_nan_in_one_of_two_processes_is_named(tmp_path):
    fault = dict(at=8, what='nan_input', rank=1, times=99)
    code, log = finish(start(2, tmp_path, fault=fault))
    assert code == 2, log
    line = next(line for line in log.splitlines() if line.startswith('error:'))
    assert 'in 3 iterations in a row, from iteration 8: loss nan' in line
    assert line.count('.png') == 4
