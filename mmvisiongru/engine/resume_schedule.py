"""What becomes of the learning rate when a run is resumed to another length."""

import warnings

from mmengine.optim import OptimWrapper
from mmengine.runner import EpochBasedTrainLoop, Runner

from mmvisiongru.engine.optim import all_schedulers, single_wrappers
from mmvisiongru.errors import InputError

CHOICES = ('checkpoint', 'config')


def ends_of(runner: Runner) -> list[int]:
    """Where the schedulers of a run end, in their own steps."""
    return [s.end for s in all_schedulers(runner.param_schedulers)]


def full_rates(runner: Runner) -> list[float]:
    """The lr of each group of the optimizer before any scheduler."""
    if not isinstance(runner.optim_wrapper, OptimWrapper):
        return []
    return [g.get('initial_lr', g['lr']) for g in _groups(runner)]


def _groups(runner: Runner) -> list[dict]:
    """The groups of all optimizers, and the one without parameters that mmengine logs as base_lr."""
    return [group for wrapper in single_wrappers(runner.optim_wrapper) for group in wrapper.param_groups]


def settle_schedule(runner: Runner, path: str, ends: list[int], rates: list[float]) -> None:
    """Decide which schedule a resumed run follows, if the config has another one than the checkpoint.

    Args:
        runner (Runner): It has loaded the checkpoint.
        path (str): Of the checkpoint.
        ends (list[int]): Of the schedulers of the config, before the checkpoint took their place.
        rates (list[float]): The full lr of each group as the config has it.

    Raises:
        InputError: They differ and ``resume_schedule`` of the config names none of the two.
    """
    choice, stored = runner.cfg.get('resume_schedule'), ends_of(runner)
    if choice not in (None, *CHOICES):
        raise InputError(f'resume_schedule must be one of {", ".join(CHOICES)}, got {choice!r}')
    if stored == ends:
        return
    if choice == 'config':
        _replay(runner, rates)
        return
    line = f'the schedule in {path} ends at {max(stored)}, that of the config at {max(ends)}'
    if choice is None:
        rate = _groups(runner)[0]['lr']
        raise InputError(
            f'{line}, and the lr is {rate:.3g} now; add --schedule config to go on as if the run had had the '
            'length of the config from the start, or --schedule checkpoint to keep that lr after the end'
        )
    runner.logger.warning(f'{line}; the run follows the former, as resume_schedule says')


def _replay(runner: Runner, rates: list[float]) -> None:
    """Take the steps of the schedulers of the config up to where the run is."""
    for group, rate in zip(_groups(runner), rates, strict=True):
        group['lr'] = group['initial_lr'] = rate
    loop = runner.train_loop
    epoch_length = len(loop.dataloader) if isinstance(loop, EpochBasedTrainLoop) else None
    with warnings.catch_warnings():
        # Torch expects a step of the optimizer before each; those were taken in the run before.
        warnings.simplefilter('ignore')
        runner.param_schedulers = runner.build_param_scheduler(runner.cfg.param_scheduler)
        for done in range(1, loop.iter + 1):
            for scheduler in all_schedulers(runner.param_schedulers):
                if not scheduler.by_epoch or (epoch_length and done % epoch_length == 0):
                    scheduler.step()
