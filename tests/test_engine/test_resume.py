"""Runs that are killed and resumed: exactly, with other batches, another length, or another optimizer."""

import re
import signal
from pathlib import Path

import numpy as np
import pytest
import torch
from mmengine.hooks import Hook
from torch.utils.data import BatchSampler

from mmvisiongru.checkpoint import load_checkpoint_file
from mmvisiongru.errors import InputError
from tests.harness.toy import LAST, assert_same, differing, finish, run, start, toy_runner

LONG = pytest.mark.long


def scores(path) -> tuple:
    """What the run found best, without its folder."""
    info = load_checkpoint_file(str(path))['message_hub']['runtime_info']
    return info['best_score'], Path(info['best_ckpt']).name


# A loader that dies in a cycle of references, as here, takes torch five seconds to end each worker.
@pytest.mark.parametrize('by_epoch', [False, True])
@pytest.mark.parametrize('workers', [0, pytest.param(1, marks=LONG), pytest.param(2, marks=LONG)])
def test_killed_run_ends_like_the_uninterrupted_one(tmp_path, whole, by_epoch, workers):
    # 7 and 13 come right after a checkpoint and a validation, 6 and 12 between the two.
    # The seed of the first one counts, which a config without a seed draws.
    for seed, kill_at in enumerate((5, 7, 12, 13, 18, None), 3):
        run(tmp_path / 'killed', kill_at, by_epoch=by_epoch, workers=workers, resume=True, seed=seed)
    assert_same(whole(by_epoch), tmp_path / 'killed', by_epoch)
    found, expected = (scores(folder / LAST[by_epoch]) for folder in (tmp_path / 'killed', whole(by_epoch)))
    assert found == expected
    assert differing(whole(by_epoch) / found[1], tmp_path / 'killed' / found[1])[1] == []


def test_validation_cut_off_is_made_up_for(tmp_path):
    run(tmp_path / 'whole', iters=9)
    fault = dict(at=6, what='fail', during='val')
    with pytest.raises(RuntimeError, match='a fault of this rank'):
        toy_runner(tmp_path / 'killed', iters=9, fault=fault).train()
    assert not list((tmp_path / 'killed').glob('best_*.pth'))
    run(tmp_path / 'killed', iters=9, resume=True)
    assert scores(tmp_path / 'whole/iter_9.pth') == scores(tmp_path / 'killed/iter_9.pth')


def test_kill_9_and_resume(tmp_path, whole):
    code, _ = finish(start(1, tmp_path / 'killed', fault=dict(at=8, what='SIGKILL')))
    assert code == -signal.SIGKILL
    run(tmp_path / 'killed', resume=True)
    assert_same(whole(), tmp_path / 'killed')


# ---- with other settings

# 16 samples, four batches of four in an epoch; two groups of parameters, so that base_lr is logged.
RUN = {
    'by_epoch': True,
    'train_dataloader.dataset.size': 16,
    'optim_wrapper.paramwise_cfg': dict(norm_decay_mult=0.0),
    'optim_wrapper.constructor': 'mmvisiongru.GroupedOptimWrapperConstructor',
    'optim_wrapper.optimizer.weight_decay': 0.05,
    # As in the recipes of ImageNet: one value per epoch in the config, one per iteration in the run.
    'param_scheduler': [
        dict(type='LinearLR', start_factor=0.1, end=1, by_epoch=True, convert_to_iter_based=True),
        dict(type='CosineAnnealingLR', begin=1, by_epoch=True, convert_to_iter_based=True),
    ],
}


def settings(batch_size=4, epochs=6, **more) -> dict:
    return {**RUN, 'iters': 3 * epochs, 'train_dataloader.batch_size': batch_size, **more}


class SeenHook(Hook):
    """Notes the samples of each iteration, with the epoch, and what is logged of the learning rate."""

    def __init__(self):
        self.samples, self.rates = [], []

    def before_train_iter(self, runner, batch_idx, data_batch=None):
        numbers = [int(Path(sample.img_path).stem) for sample in data_batch['data_samples']]
        self.samples.append((runner.epoch + 1, numbers))
        rates = runner.optim_wrapper.get_lr()
        self.rates.append((rates['lr'][0], rates['base_lr'][0]))


def watched(work_dir, **more) -> tuple:
    runner = toy_runner(work_dir, **more)
    runner.register_hook(hook := SeenHook())
    runner.train()
    return runner, hook


@pytest.mark.parametrize('batch_size', [8, 16, 2, 4])
@pytest.mark.parametrize('schedule', ['config', 'checkpoint'])
def test_epochs_with_another_batch_size_are_all_trained(tmp_path, batch_size, schedule):
    run(tmp_path, **settings(epochs=2))
    runner, hook = watched(tmp_path, resume=True, **settings(batch_size, resume_schedule=schedule))
    length = 16 // batch_size
    assert [epoch for epoch, _ in hook.samples] == [e for e in (3, 4, 5, 6) for _ in range(length)]
    for epoch in (3, 4, 5, 6):
        assert sorted(n for e, numbers in hook.samples if e == epoch for n in numbers) == list(range(16))
    assert runner.iter == runner.max_iters == 6 * length
    assert load_checkpoint_file(str(tmp_path / 'epoch_6.pth'))['meta']['iter'] == 6 * length
    if schedule == 'config':
        _, straight = watched(tmp_path / 'straight', **settings(batch_size))
        np.testing.assert_allclose(hook.rates, straight.rates[2 * length :], rtol=1e-9)


@pytest.mark.parametrize(
    ('now', 'first_epoch'),
    [
        # 12 of 16 samples of epoch 2 were seen; of a batch that is only partly new, all is trained.
        (dict(batch_size=4), [[4]]),
        (dict(batch_size=2), [[2, 2]]),
        (dict(batch_size=8), [[8]]),
        (dict(batch_size=7), [[7, 2]]),
        # Other data: the epoch begins anew.
        ({'train_dataloader.dataset.size': 20}, [[4] * 5]),
    ],
)
def test_middle_of_an_epoch_with_another_loader(tmp_path, now, first_epoch):
    with pytest.raises(SystemExit):
        toy_runner(tmp_path, fault=dict(at=7, what='SIGTERM'), **settings()).train()
    _, seen = watched(tmp_path / 'whole', **settings())
    rest = seen.samples[7][1]
    runner, hook = watched(tmp_path, resume=True, resume_schedule='config', **settings(**now))
    assert [len(n) for epoch, n in hook.samples if epoch == 2] == first_epoch[0]
    numbers = [n for epoch, ns in hook.samples if epoch == 2 for n in ns]
    assert len(set(numbers)) == len(numbers)
    assert set(numbers) >= set(rest)
    assert {epoch for epoch, _ in hook.samples} == {2, 3, 4, 5, 6}
    assert runner.iter == runner.max_iters


@pytest.mark.long
@pytest.mark.parametrize('at', [7, 8])
def test_with_another_number_of_processes(tmp_path, at):
    more = {k: v for k, v in settings().items() if not k.startswith('param_scheduler')}
    with pytest.raises(SystemExit):
        toy_runner(tmp_path, fault=dict(at=at, what='SIGTERM'), **more).train()
    code, log = finish(start(2, tmp_path, resume=True, **more))
    assert code == 0, log
    assert load_checkpoint_file(str(tmp_path / 'epoch_6.pth'))['meta']['iter'] == 6 * 2


def test_a_schedule_of_another_length_must_be_chosen(tmp_path):
    run(tmp_path, **settings(epochs=2))
    with pytest.raises(InputError, match=r'end=8 \(config: 24\).*--schedule config .*--schedule checkpoint'):
        toy_runner(tmp_path, resume=True, **settings()).train()
    _, straight = watched(tmp_path / 'straight', **settings())
    _, config = watched(tmp_path / 'config', resume=True, resume_schedule='config',
                        load_from=str(tmp_path / 'epoch_2.pth'), **settings())  # fmt: skip
    np.testing.assert_allclose(config.rates, straight.rates[8:], rtol=1e-9)
    assert np.min(config.rates) > 0
    # At the end of the checkpoint's schedule, its lr stays.
    _, checkpoint = watched(tmp_path, resume=True, resume_schedule='checkpoint', **settings())
    assert {lr for lr, _ in checkpoint.rates} == {checkpoint.rates[0][0]}


def test_other_settings_of_the_same_length_are_named_or_followed(tmp_path):
    warmup, cosine = RUN['param_scheduler']
    decay = dict(type='LinearParamScheduler', param_name='weight_decay', start_factor=0.5, by_epoch=False)
    base, other = dict(param_scheduler=[warmup, cosine, decay]), {'optim_wrapper.optimizer.lr': 0.01}
    other['optim_wrapper.optimizer.weight_decay'] = 0.1
    other['param_scheduler'] = [warmup, dict(cosine, eta_min=0.001), decay]
    run(tmp_path, 6, **settings(epochs=2, **base))
    path = str(tmp_path / 'epoch_1.pth')
    content = load_checkpoint_file(path)
    # mmengine runs this on resuming.
    content['meta']['config'] = '1 / 0'
    torch.save(content, path)
    for choice, followed in ((None, base), ('config', other)):
        straight, expected = watched(tmp_path / f'straight {choice}', **settings(epochs=2, **followed))
        more = settings(epochs=2, load_from=path, resume_schedule=choice, **other)
        runner, hook = watched(tmp_path / f'resumed {choice}', resume=True, **more)
        np.testing.assert_allclose(hook.rates, expected.rates[4:], rtol=1e-9)
        groups = [each.optim_wrapper.param_groups for each in (runner, straight)]
        assert [g['weight_decay'] for g in groups[0]] == [g['weight_decay'] for g in groups[1]]
    (log,) = (tmp_path / 'resumed None').rglob('*.log')
    (line,) = [line for line in log.read_text().splitlines() if f'load_from={path}' in line]
    for what in ('lr=[0.05] (config: [0.01])', '0.05] (config: [0.0, 0.1])', 'eta_min=0.0 (config: 0.001)'):
        assert what in line
    # mmengine would leave out the third, or begin a fourth anew.
    for schedulers in (base['param_scheduler'][:2], [*base['param_scheduler'], decay]):
        more = settings(epochs=2, load_from=path, param_scheduler=schedulers)
        with pytest.raises(InputError, match=rf'schedulers=3 \(config: {len(schedulers)}\)'):
            toy_runner(tmp_path / 'number', resume=True, **more).train()
    more = settings(epochs=2, load_from=path, resume_schedule='config', param_scheduler=None)
    assert {lr for lr, _ in watched(tmp_path / 'no schedule', resume=True, **more)[1].rates} == {0.05}


# One has a function in its state, the other takes a step after each validation.
CYCLE = dict(type='OneCycleLR', eta_max=0.1, total_steps=18, by_epoch=False)
PLATEAU = dict(type='ReduceOnPlateauLR', monitor='acc', rule='greater', patience=0, by_epoch=True)


@pytest.mark.parametrize('scheduler', [CYCLE, PLATEAU])
def test_schedules_with_a_state_of_their_own(tmp_path, scheduler):
    more = dict(by_epoch=scheduler['by_epoch'], param_scheduler=[scheduler])
    run(tmp_path / 'whole', **more)
    run(tmp_path / 'killed', 14, **more)
    run(tmp_path / 'killed', resume=True, **more)
    assert_same(tmp_path / 'whole', tmp_path / 'killed', more['by_epoch'])


@pytest.mark.parametrize('by_epoch', [False, True])
@pytest.mark.parametrize('counts', [2, 4])
def test_checkpoints_wait_for_an_accumulated_gradient(tmp_path, by_epoch, counts):
    """Epochs of three iterations and checkpoints after each third one, steps after each second or fourth."""
    more = {'by_epoch': by_epoch, 'optim_wrapper.accumulative_counts': counts, 'keep': -1}
    run(tmp_path / 'whole', **more)
    files = [load_checkpoint_file(str(path)) for path in (tmp_path / 'whole').glob('[ei]*.pth')]
    saved = sorted({file['meta']['iter'] for file in files})
    assert saved == {2: [4, 6, 10, 12, 16, 18], 4: [4, 8, 12, 16, 18]}[counts]
    last = LAST[by_epoch]
    for kill_at in (6, 12, 18):
        run(tmp_path / 'cut', kill_at, resume=True, **more)
    run(tmp_path / 'cut', resume=True, **more)
    assert differing(tmp_path / 'whole' / last, tmp_path / 'cut' / last)[1] == []


@pytest.mark.parametrize(('counts', 'batch_size', 'expected'), [(1, 4, 0.25), (4, 4, 1.0), (3, 2, 0.375)])
def test_the_scaled_lr_knows_of_accumulation(tmp_path, counts, batch_size, expected):
    more = settings(batch_size, auto_scale_lr=dict(enable=True, base_batch_size=16), log_level='INFO')
    del more['param_scheduler']
    # As mmdet has one, which keeps the batch size from the loader.
    more['train_dataloader.batch_sampler'] = dict(type=BatchSampler, drop_last=False)
    runner = toy_runner(tmp_path, **more, **{'optim_wrapper.accumulative_counts': counts})
    runner.train()
    groups = runner.optim_wrapper.param_groups
    assert [group['initial_lr'] for group in groups] == pytest.approx([0.05 * expected] * 3)
    # The table of groups in the log, too.
    text = next(tmp_path.rglob('*.log')).read_text()
    assert f'16 samples, {batch_size} per process' in text
    rows = re.findall(r'^ +([\d.e-]+) +([\d.]+) +(\d+) +(\d+)$', text, re.MULTILINE)
    rows = sorted([*map(float, row)] for row in rows)
    assert rows == [pytest.approx([0.05 * expected, *row]) for row in ([0, 2, 16], [0.05, 4, 58])]


def test_a_folder_of_damaged_checkpoints_is_not_trained_afresh(tmp_path):
    run(tmp_path, iters=3)
    (tmp_path / 'iter_3.pth').write_bytes(b'')
    with pytest.raises(InputError, match=rf'{tmp_path}; .*iter_3\.pth'):
        toy_runner(tmp_path, iters=6, resume=True).train()


def test_a_validation_cut_off_at_the_end_is_left_out(tmp_path):
    with pytest.raises(RuntimeError, match='a fault of this rank'):
        toy_runner(tmp_path, iters=8, interval=2, fault=dict(at=8, what='fail', during='val')).train()
    runner = toy_runner(tmp_path, iters=8, interval=2, resume=True)
    runner.train()
    assert len(runner.message_hub.get_scalar('val/acc').data[0]) == 1
