"""A resumed run is the one that was not interrupted, in its random values, data order and schedule.

Generators are seeded anew for every sample and every iteration, from the seed of the run and the position in
it. A resumed run then draws what the uninterrupted one drew, whatever was drawn before, in which process, and
with how many workers. No generator state has to be saved.
"""

import hashlib
import random
import warnings
from bisect import bisect
from collections.abc import Iterator, Sized
from contextlib import contextmanager
from functools import partial
from itertools import islice

import numpy as np
import torch
from mmengine.dist import get_rank
from mmengine.hooks import Hook
from mmengine.registry import DATA_SAMPLERS
from mmengine.runner import EpochBasedTrainLoop, IterBasedTrainLoop, Runner
from torch.utils.data import BatchSampler, Sampler

from mmvisiongru._compat import built_loops
from mmvisiongru.engine.optim import accept_state, all_schedulers, single_wrappers
from mmvisiongru.errors import InputError
from mmvisiongru.registry import HOOKS

# What changes in the state of a scheduler during a run.
PROGRESS = ('last_step', 'base_values', 'best', 'cooldown_counter', 'num_bad_epochs')


def seed_all(*position) -> None:
    """Seed the generators of Python, numpy and torch from a position in a run."""
    seed = int.from_bytes(hashlib.blake2b(repr(position).encode(), digest_size=4).digest(), 'little')
    random.seed(seed)
    np.random.seed(seed)
    # torch.manual_seed() formats a stack for each call until CUDA is in use.
    torch.default_generator.manual_seed(seed)
    if torch.cuda.is_initialized():
        torch.cuda.manual_seed(seed)


class Draw(int):
    """An index into a data set with the rank, the epoch, and the number of the draw within it."""

    position: tuple[int, int, int]


class NumberedSampler(Sampler):
    """Turns the indices of a sampler into :class:`Draw`, and can start in the middle of an epoch."""

    def __init__(self, sampler: dict, dataset: Sized, seed: int | None):
        self.sampler = DATA_SAMPLERS.build(sampler, default_args=dict(dataset=dataset, seed=seed))
        self.epoch = self.first = 0
        # On resuming, mmengine calls skip() of samplers without an end.
        if hasattr(self.sampler, 'skip'):
            self.skip = self.start_at

    def start_at(self, number: int) -> None:
        """Let the next epoch begin with this draw; those before it are not loaded."""
        self.first = number

    def set_epoch(self, epoch: int) -> None:
        self.epoch = epoch
        if hasattr(self.sampler, 'set_epoch'):
            self.sampler.set_epoch(epoch)

    def __iter__(self) -> Iterator[Draw]:
        first, self.first = self.first, 0
        for number, index in islice(enumerate(self.sampler), first, None):
            draw = Draw(index)
            draw.position = get_rank(), self.epoch, number
            yield draw

    def __len__(self) -> int:
        return len(self.sampler)

    def __getattr__(self, name):
        if name == 'sampler':
            raise AttributeError(name)
        return getattr(self.sampler, name)


class ResumableEpochLoop(EpochBasedTrainLoop):
    """mmengine's loop, which can also go on in the middle of an epoch.

    It counts iterations as if each epoch before had had the length of the present one.
    """

    # Iterations of the first epoch of this process that are done already.
    done = 0

    def run_epoch(self) -> None:
        """Iterate over what is left of an epoch."""
        self.runner.call_hook('before_train_epoch')
        self.runner.model.train()
        done, self.done = self.done, 0
        batches, batch_sampler = self.dataloader, self.dataloader.batch_sampler
        if done and type(batch_sampler) is BatchSampler and hasattr(batch_sampler.sampler, 'start_at'):
            batch_sampler.sampler.start_at(done * batch_sampler.batch_size)
        elif done:
            # The indices of a batch are known to its sampler alone: load those batches and drop them.
            batches = islice(batches, done, None)
        for batch_idx, data_batch in enumerate(batches, done):
            self.run_iter(batch_idx, data_batch)
        self.runner.call_hook('after_train_epoch')
        self._epoch += 1

    def position(self, epoch: int, iteration: int) -> dict | None:
        """Where in its epoch a checkpoint is, and what that epoch is made of; None between two epochs."""
        if epoch != self.epoch:
            return None
        length, samples = len(self.dataloader), len(self.dataloader.dataset)
        batch_size = self.runner.world_size * getattr(self.dataloader.batch_sampler, 'batch_size', 1)
        return dict(done=iteration - epoch * length, of=length, batch_size=batch_size, samples=samples)

    def resume_at(self, saved: dict | None) -> None:
        """Go on at the ``saved`` :meth:`position` of a checkpoint, whose batches may be others than these.

        With another batch size or number of processes, as many samples are skipped as were seen, rounded down
        to a batch. With other data, the epoch begins anew.
        """
        now, before, self.done = self.position(self.epoch, 0), self.iter, 0
        if saved and saved['done'] == saved['of']:
            self.done = now['of']
        elif saved and saved['samples'] == now['samples']:
            self.done = min(saved['done'] * saved['batch_size'] // now['batch_size'], now['of'])
        self._iter = self.epoch * now['of'] + self.done
        if self.iter != before or (saved and self.done != saved['done']):
            self.runner.logger.warning(
                f'the checkpoint counted other epochs: iteration {before} becomes {self.iter}, '
                f'{self.done} of {now["of"]} in epoch {self.epoch + 1}'
            )


@HOOKS.register_module()
class ExactResumeHook(Hook):
    """Seeds each iteration, and validates first if the checkpoint was saved before a validation that was due.

    Needs ``runner_type='mmvisiongru.ReliableRunner'``, whose samples are seeded too.
    """

    priority = 'LOWEST'

    def before_train(self, runner) -> None:
        """Make up for a validation that the checkpoint does not contain: it is saved before, as a rule."""
        loop, val_loop = runner.train_loop, runner.val_loop
        # In the middle of an epoch, nothing is due.
        if not runner.iter or val_loop is None or getattr(loop, 'done', 0) or vars(runner).get('validated'):
            return
        by_iter = isinstance(loop, IterBasedTrainLoop)
        done, last = (loop.iter, loop.max_iters) if by_iter else (loop.epoch, loop.max_epochs)
        interval = loop.dynamic_intervals[bisect(loop.dynamic_milestones, done + 1) - 1]
        if done >= loop.val_begin and (done % interval == 0 or done == last):
            runner.logger.info('validating the checkpoint first, as the run would have done')
            val_loop.run()

    def before_train_iter(self, runner, batch_idx, data_batch=None) -> None:
        seed_all(runner.seed, 'iteration', get_rank(), runner.iter)


@contextmanager
def resuming(runner: Runner, path: str) -> Iterator[None]:
    """Fit the run to its checkpoint, which is loaded inside: optimizers, seed, data, schedule.

    If they differ in lr, weight decay or schedule, the run follows what ``resume_schedule`` of the config
    says, by default the checkpoint, with a warning. InputError if the schedule ends elsewhere and the config
    does not say what to follow, or if the optimizers have other groups of parameters.
    """
    handles = [
        wrapper.optimizer.register_load_state_dict_pre_hook(partial(accept_state, path))
        for wrapper in single_wrappers(runner.optim_wrapper)
    ]
    groups, wanted, seed = [*map(dict, _groups(runner))], _settings(runner), runner.seed
    states = [dict(scheduler.state_dict()) for scheduler in all_schedulers(runner.param_schedulers)]
    yield
    _reseed(runner, seed)
    for handle in handles:
        handle.remove()
    if isinstance(runner.train_loop, ResumableEpochLoop):
        runner.train_loop.resume_at(runner.position)
    stored, choice = _settings(runner), runner.cfg.get('resume_schedule')
    wanted['schedulers'], stored['schedulers'] = len(states), runner.saved_schedulers
    differing = [name for name in wanted | stored if stored.get(name) != wanted.get(name)]
    values = ', '.join(f'{name}={stored.get(name)} (config: {wanted.get(name)})' for name in differing)
    if differing and choice == 'config':
        _follow_config(runner, groups, states)
    elif choice is None and any(name.endswith(('.end', 'schedulers')) for name in differing):
        raise InputError(
            f'{path} has {values}; add --schedule config to go on as if the config had been followed, or '
            f'--schedule checkpoint to keep the present lr of {_groups(runner)[0]["lr"]:.3g} after the end'
        )
    elif differing:
        runner.logger.warning(
            f'the run follows {path} in {values}; to follow the config, add --schedule config, or start anew '
            f'from these weights: --cfg-options load_from={path}'
        )


def _reseed(runner: Runner, seed: int) -> None:
    """Give the data that have ``seed``, of this process, the checkpoint's, which mmengine took over later."""
    for loader in (loop.dataloader for loop in built_loops(runner).values()):
        sampler = getattr(loader.batch_sampler, 'sampler', None)
        for part, name in ((loader.dataset, 'run_seed'), (getattr(sampler, 'sampler', sampler), 'seed')):
            if getattr(part, name, None) == seed:
                setattr(part, name, runner.seed)


def _groups(runner: Runner) -> list[dict]:
    """The groups of all optimizers, and the one without parameters whose lr mmengine logs as base_lr."""
    return [group for wrapper in single_wrappers(runner.optim_wrapper) for group in wrapper.param_groups]


def _settings(runner: Runner) -> dict[str, object]:
    """The lr and weight decay of all groups of parameters, and the settings of the schedulers, by name."""
    groups, schedulers, found = _groups(runner), all_schedulers(runner.param_schedulers), {}
    for key in ('lr', 'weight_decay'):
        # Where the config has no schedule any more, the value that the last one set stays.
        first = f'initial_{key}' if schedulers else key
        found[key] = sorted({group.get(first, group.get(key, 0)) for group in groups})
    for i, scheduler in enumerate(schedulers):
        state = scheduler.state_dict().items()
        found |= {f'param_scheduler.{i}.{k}': v for k, v in state if k[0] != '_' and k not in PROGRESS}
    return found


def _follow_config(runner: Runner, groups: list[dict], states: list[dict]) -> None:
    """Take the steps of the config's schedulers up to here: each value follows from the one before.

    ``groups`` and ``states`` are those of the optimizers and schedulers before the first step.
    """
    schedulers = all_schedulers(runner.param_schedulers)
    for group, settings in zip(_groups(runner), groups, strict=True):
        group.clear()
        group.update(settings)
    for scheduler, state in zip(schedulers, states, strict=True):
        scheduler.load_state_dict(state)
    loop = runner.train_loop
    length = len(loop.dataloader) if isinstance(loop, EpochBasedTrainLoop) else None
    with warnings.catch_warnings():
        # Torch expects a step of the optimizer before each; those were taken in the run before.
        warnings.simplefilter('ignore')
        for done in range(1, loop.iter + 1):
            for scheduler in schedulers:
                if not scheduler.by_epoch or (length and done % length == 0):
                    scheduler.step()
