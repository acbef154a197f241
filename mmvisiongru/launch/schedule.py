"""The schedule of a run against its length, and of a trial in proportion to that of the long run."""

from mmengine.config import Config
from mmengine.runner import Runner

from mmvisiongru.config import parts
from mmvisiongru.errors import InputError


def schedulers(cfg: Config) -> list[tuple[str, dict]]:
    """The schedulers of a config with their places."""
    return [(place, node) for place, node in parts(cfg, 'param_scheduler') if 'type' in node]


def build_schedule(runner: Runner, trial: float | None) -> list[str]:
    """Build the schedulers after the loops: only data tell how long an epoch is. Returns what to log."""
    lengths, notes = (runner.max_iters, runner.max_epochs), []
    if trial:
        fit_schedule(runner.cfg, trial, *lengths)
        runner.param_schedulers = runner.cfg.get('param_scheduler')
        runner.dump_config()
    else:
        notes = check_schedule(runner.cfg, *lengths)
    if runner.param_schedulers is not None:
        runner.param_schedulers = runner.build_param_scheduler(runner.param_schedulers)
    return notes


def check_schedule(cfg: Config, max_iters: int, max_epochs: int) -> list[str]:
    """Refuse schedulers that begin, and warm-ups that end, after the run has ended. Returns what to log."""
    unit, notes, ends = 'max_epochs' if cfg.train_cfg.get('max_epochs') else 'max_iters', [], {}
    length = cfg.train_cfg[unit]
    trial = f'or give --trial {length} in place of train_cfg.{unit}, which fits all'
    for place, scheduler in schedulers(cfg):
        by_epoch = scheduler.get('by_epoch', True)
        total = max_epochs if by_epoch else max_iters
        begin, end = scheduler.get('begin', 0), scheduler.get('end', total)
        of_all = f'of {total} {"epochs" if by_epoch else "iterations"} (train_cfg.{unit})'
        if begin >= total:
            raise InputError(
                f'{place}.begin={begin} in {cfg.filename} is not before the end {of_all}; set it, and the '
                f'end of what comes before it, below {total}, {trial}'
            )
        rises = scheduler.get('start_factor', 1) < scheduler.get('end_factor', 1)
        if begin == 0 and end > total and rises:
            raise InputError(
                f'the warm-up {place} in {cfg.filename} ends at {end} {of_all}: the full lr is never '
                f'reached; set {place}.end below {total}, {trial}'
            )
        steps = [*scheduler.get('milestones', ()), scheduler.get('step_size', 0)]
        if begin + scheduler.get('T_max', 0) > total or any(begin + step >= total for step in steps):
            notes.append(f'{place} goes on after the end {of_all}: see T_max, milestones, step_size')
        note = '' if end == total else f'{place} ends at {end} {of_all}; to use all, set {place}.end={total}'
        ends[by_epoch] = max(ends.get(by_epoch, (0, '')), (end, note))
    notes += [note for _, note in ends.values() if note]
    interval = cfg.train_cfg.get('val_interval', 1)
    if cfg.get('val_cfg') is not None and interval > length:
        notes.append(f'no validation: train_cfg.val_interval={interval}, train_cfg.{unit}={length}')
    return notes


def fit_schedule(cfg: Config, ratio: float, max_iters: int, max_epochs: int) -> None:
    """Scale a schedule to a run that is shorter by ``ratio``; schedulers without room are dropped."""
    for by_epoch, total in ((True, max_epochs), (False, max_iters)):
        own = [s for _, s in schedulers(cfg) if s.get('by_epoch', True) == by_epoch]
        # Steps that a warm-up needs to rise; an epoch has many where it is converted.
        least = 1 if any(s.get('convert_to_iter_based') for s in own) else 2
        fitted = {0: 0}
        for place in sorted({s[key] for s in own for key in ('begin', 'end') if s.get(key)}):
            previous = max(fitted.values())
            scaled = max(round(place * ratio), previous + least)
            fitted[place] = scaled if scaled + least <= total else previous
            if place >= round(total / ratio):
                fitted[place] = total
        for scheduler in own:
            scheduler.update({key: fitted[scheduler[key]] for key in ('begin', 'end') if scheduler.get(key)})
            for key in ('T_max', 'step_size'):
                if scheduler.get(key):
                    scheduler[key] = max(1, round(scheduler[key] * ratio))
            if scheduler.get('milestones'):
                scheduler.milestones = sorted({max(1, int(m * ratio)) for m in scheduler.milestones})
    if isinstance(kept := cfg.get('param_scheduler'), (list, tuple)):
        cfg.param_scheduler = [s for s in kept if s.get('begin', 0) < s.get('end', float('inf'))]
