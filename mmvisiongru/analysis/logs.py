"""The JSON logs that mmengine writes of a run, of both tasks."""

import json
from collections import defaultdict
from pathlib import Path

from mmvisiongru.errors import InputError

# One of them is what a run is about.
METRICS = ('mIoU', 'accuracy/top1')


def log_files(run: str) -> list[Path]:
    """The logs of a run, the oldest first."""
    path = Path(run)
    if path.is_file():
        return [path]
    # The folders are named after the time at which they were made.
    files = sorted(path.glob('*/vis_data/scalars.json')) or sorted(path.glob('vis_data/scalars.json'))
    if not files:
        raise InputError(
            f'no log in {run}: expected a scalars.json, or a work dir with TIME/vis_data/scalars.json'
        )
    return files


def read_run(run: str) -> tuple[dict, dict]:
    """Values of a run.

    Returns:
        tuple[dict, dict]: Of training and of validation: {key: {iteration: value}}. What a resumed run did
        again replaces what was there.
    """
    train, validation, steps = defaultdict(dict), defaultdict(dict), {}
    for file in log_files(run):
        iteration, lines = None, file.read_text('utf-8').splitlines()
        for number, line in enumerate(lines, 1):
            try:
                values = json.loads(line)
            except json.JSONDecodeError:
                # The last line of a run that was killed.
                if number < len(lines):
                    raise InputError(f'{file}:{number} is not JSON; is it a log of mmengine?') from None
                continue
            # Only lines of training carry `iter`; a validation's `step` may count epochs.
            iteration = values.get('iter', iteration)
            if 'iter' not in values:
                # A resumed run may start with the validation that was due, before any line of training.
                known = steps.get(values.get('step'), max(train['iter'], default=0))
                iteration = known if iteration is None else iteration
                steps[values.get('step')] = iteration
            for key, value in values.items():
                if isinstance(value, (int, float)):
                    (train if 'iter' in values else validation)[key][iteration] = value
    return train, validation


def curves(runs: dict[str, tuple[dict, dict]], key: str) -> tuple[dict[str, dict[int, float]], list[str]]:
    """Values of a key over iterations for each run that has it, of training if that does.

    Returns:
        tuple[dict, list[str]]: Values by run, and one line for each run without.

    Raises:
        InputError: No run has it.
    """
    found, missing = {}, []
    for run, (train, validation) in runs.items():
        if values := train.get(key) or validation.get(key):
            found[run] = dict(sorted(values.items()))
        else:
            known = ', '.join(sorted({*train, *validation} - {'iter', 'step', 'epoch'}))
            missing.append(f'{run} has no {key!r} in its log; it has {known}')
    if not found:
        raise InputError('; '.join(missing))
    return found, missing
