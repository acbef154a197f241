"""The length of a run and what goes with it: learning rate, intervals, workers."""

import math
import os
from collections.abc import Iterator

from mmengine.config import Config

from mmvisiongru.errors import InputError

# Lengths that a scheduler may state besides its begin and end.
LENGTHS = ('T_max', 'step_size')
# In a trial the log has about this many lines.
TRIAL_LINES = 10


def length_key(cfg: Config) -> str:
    """The setting in ``train_cfg`` that says how long a run is."""
    return 'max_epochs' if cfg.train_cfg.get('max_epochs') else 'max_iters'


def schedulers(cfg: Config) -> Iterator[tuple[str, dict]]:
    """The schedulers of a config with their places."""

    def walk(node, place):
        if isinstance(node, dict) and 'type' in node:
            yield place, node
        elif isinstance(node, (dict, list, tuple)):
            for key, child in node.items() if isinstance(node, dict) else enumerate(node):
                yield from walk(child, f'{place}.{key}')

    yield from walk(cfg.get('param_scheduler'), 'param_scheduler')


def check_schedule(cfg: Config, max_iters: int, max_epochs: int) -> list[str]:
    """Compare the schedulers with the length of the run. Returns what to log.

    Raises:
        InputError: One begins, or a warm-up ends, after the run has ended.
    """
    unit, notes, ends = length_key(cfg), [], {}
    trial = f'or give --trial {cfg.train_cfg[unit]} in place of train_cfg.{unit}, which fits all'
    for place, scheduler in schedulers(cfg):
        by_epoch = scheduler.get('by_epoch', True)
        total = max_epochs if by_epoch else max_iters
        begin, end = scheduler.get('begin', 0), scheduler.get('end', total)
        of_all = f'of {total} {"epochs" if by_epoch else "iterations"} (train_cfg.{unit})'
        if begin >= total:
            raise InputError(
                f'{place} in {cfg.filename} begins at {begin} {of_all}; set {place}.begin, and the end of '
                f'what comes before it, below {total}, {trial}'
            )
        rises = scheduler.get('start_factor', 1) < scheduler.get('end_factor', 1)
        if begin == 0 and end > total and rises:
            raise InputError(
                f'the warm-up {place} in {cfg.filename} ends at {end} {of_all}: the full lr is never '
                f'reached; set {place}.end below {total}, {trial}'
            )
        notes += [f'{place}.{found} {of_all}' for found in _beyond(scheduler, total)]
        note = '' if end == total else f'{place} ends at {end} {of_all}; to use all, set {place}.end={total}'
        ends[by_epoch] = max(ends.get(by_epoch, (0, '')), (end, note))
    notes += [note for _, note in ends.values() if note]
    interval = cfg.train_cfg.get('val_interval', 1)
    if cfg.get('val_cfg') is not None and interval > cfg.train_cfg[unit]:
        notes.append(
            f'no validation: train_cfg.val_interval={interval}, train_cfg.{unit}={cfg.train_cfg[unit]}'
        )
    return notes


def _beyond(scheduler: dict, total: int) -> Iterator[str]:
    """What a scheduler has of its own to say when the lr falls, where that is not within the run."""
    begin = scheduler.get('begin', 0)
    if (period := scheduler.get('T_max')) and period != min(scheduler.get('end', total), total) - begin:
        yield f'T_max={period} is not the length of the schedule: the lr does not end at its lowest; run'
    for key in ('milestones', 'step_size'):
        steps = scheduler.get(key) or []
        if late := [
            at for at in (steps if isinstance(steps, (list, tuple)) else [steps]) if begin + at >= total
        ]:
            yield f'{key}: {", ".join(map(str, late))} never comes; run'


def fit_to_trial(cfg: Config, length: int) -> None:
    """Make a short run of a long one: its schedule in proportion, and a validation and checkpoint at the end.

    Args:
        cfg (Config): Changed in place.
        length (int): Iterations or epochs, whichever the config counts.
    """
    unit = length_key(cfg)
    before, cfg.train_cfg[unit] = cfg.train_cfg[unit], length
    by_epoch = unit == 'max_epochs'
    for key in ('dynamic_intervals', 'val_begin'):
        cfg.train_cfg.pop(key, None)
    cfg.train_cfg.val_interval = min(cfg.train_cfg.get('val_interval', 1), length)
    _fit_schedulers(cfg, before, length, by_epoch)
    hooks = cfg.get('default_hooks') or {}
    if (saving := hooks.get('checkpoint')) and saving.get('by_epoch', True) == by_epoch:
        saving.interval = min(saving.get('interval', length), length)
        saving.pop('save_begin', None)
    if (logger := hooks.get('logger')) and not by_epoch:
        logger.interval = min(logger.get('interval', 10), max(1, length // TRIAL_LINES))
    _fit_workers(cfg)


def _fit_schedulers(cfg: Config, before: int, length: int, by_epoch: bool) -> None:
    """Scale where schedulers begin and end; those for which no room is left go."""
    found = [s for _, s in schedulers(cfg)]
    # Steps that a warm-up needs to rise: an epoch has many where it is converted.
    least = 1 if by_epoch and any(s.get('convert_to_iter_based') for s in found) else 2
    for unit in (True, False):
        own = [s for s in found if s.get('by_epoch', True) == unit]
        places = {s[k] for s in own for k in ('begin', 'end') if s.get(k)}
        # How long the run is in the unit that it does not count, only its data would tell.
        places = _fit_places(places, before, length, least, bounded=unit == by_epoch)
        for scheduler in own:
            for key in ('begin', 'end'):
                if scheduler.get(key):
                    scheduler[key] = places[scheduler[key]]
    for scheduler in found:
        for key in LENGTHS:
            if scheduler.get(key):
                scheduler[key] = max(1, round(scheduler[key] * length / before))
        if scheduler.get('milestones'):
            scheduler.milestones = sorted({max(1, m * length // before) for m in scheduler.milestones})
    if isinstance(cfg.get('param_scheduler'), (list, tuple)):
        cfg.param_scheduler = [s for s in cfg.param_scheduler if s.get('begin', 0) < s.get('end', math.inf)]


def _fit_places(places: set[int], before: int, length: int, least: int, bounded: bool) -> dict[int, int]:
    """Where the places of a schedule come to be; one that the run has no room for falls on the one before."""
    fitted = {}
    for place in sorted(places):
        if bounded and place >= before:
            fitted[place] = length
            continue
        previous = max(fitted.values(), default=0)
        scaled = max(round(place * length / before), previous + least)
        fitted[place] = scaled if not bounded or scaled + least <= length else previous
    return fitted


def _fit_workers(cfg: Config) -> None:
    """Start no more workers than there are cores for."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, 'sched_getaffinity') else os.cpu_count()
    cores //= int(os.environ.get('LOCAL_WORLD_SIZE', 1))
    for name in ('train_dataloader', 'val_dataloader'):
        loader = cfg.get(name)
        if loader and loader.get('num_workers', 0) > max(1, cores):
            loader.num_workers = max(1, cores)
