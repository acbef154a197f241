"""Results of training runs, in two tables of a folder: a row per run, and a row per config."""

import csv
import io
import re
from collections.abc import Iterable
from pathlib import Path

from mmvisiongru.errors import InputError
from mmvisiongru.files import write_text

RUN = ('config', 'seed', 'metric', 'value', 'metrics', 'iterations', 'seconds', 'seconds_per_iteration',
       'machine', 'loss_curve', 'metric_curve')  # fmt: skip
CONFIG = ('config', 'fingerprint', 'options', 'parameters', 'macs', 'step_memory', 'step_seconds')
Points = list[tuple[int, float]]


class Results:
    """What was trained: ``results.csv`` and ``configs.csv`` of a folder.

    Args:
        folder (Path): Need not exist.

    Attributes:
        configs (dict): For each config by its name: the fingerprint of its settings, the options over those
            of its file, and, once measured, ``parameters``, ``macs``, ``step_memory`` in bytes and
            ``step_seconds``.
        runs (dict): For each config and seed its row: numbers as numbers, curves as (iteration, value).
    """

    def __init__(self, folder: Path):
        self.folder = folder
        self.configs = {row.pop('config'): row for row in _read(folder / 'configs.csv')}
        self.runs = {(row['config'], int(row['seed'])): _parsed(row) for row in _read(folder / 'results.csv')}

    def expect(self, config: str, fingerprint: str, options: str) -> None:
        """State the settings of a config before it is trained.

        Raises:
            InputError: The folder has results of other settings.
        """
        known = self.configs.setdefault(config, dict(fingerprint=fingerprint, options=options))
        if known['fingerprint'] != fingerprint:
            raise InputError(
                f'{self.folder} has results of {config} with other settings; '
                'choose another --out or move them away'
            )

    def seeds_of(self, config: str) -> dict[int, dict]:
        """The rows of a config by their seeds."""
        return {seed: row for (name, seed), row in self.runs.items() if name == config}

    def trained(self) -> list[str]:
        """Names of the configs that have a result, in the order of the table of configs."""
        return [name for name in self.configs if self.seeds_of(name)]

    def save(self) -> None:
        """Write both tables; configs without a result are not stored.

        Rows that another process has stored since are kept.

        Raises:
            InputError: They are of other settings.
        """
        stored = Results(self.folder)
        for name, config in stored.configs.items():
            self.expect(name, config['fingerprint'], config['options'])
            self.configs[name] = config | self.configs[name]
        self.runs = stored.runs | self.runs
        configs = [dict(self.configs[name], config=name) for name in self.trained()]
        write_text(str(self.folder / 'configs.csv'), _written(configs, CONFIG))
        write_text(str(self.folder / 'results.csv'), _written(map(_text, self.runs.values()), RUN))


def _read(path: Path) -> list[dict]:
    return list(csv.DictReader(io.StringIO(path.read_text(encoding='utf-8')))) if path.exists() else []


def _written(rows: Iterable[dict], columns: tuple[str, ...]) -> str:
    text = io.StringIO()
    table = csv.DictWriter(text, columns, lineterminator='\n')
    table.writeheader()
    table.writerows(rows)
    return text.getvalue()


def _parsed(row: dict) -> dict:
    """A row of ``results.csv`` with numbers in place of text."""
    numbers = dict(seed=int(row['seed']), iterations=int(row['iterations']))
    numbers |= {key: float(row[key]) for key in ('value', 'seconds', 'seconds_per_iteration')}
    numbers |= {key: _points(row[key]) for key in ('loss_curve', 'metric_curve')}
    # The name of a class may hold a space.
    metrics = re.findall(r'(\S.*?)=(\S+)(?: |$)', row['metrics'])
    return row | numbers | dict(metrics={name: float(value) for name, value in metrics})


def _points(text: str) -> Points:
    pairs = (pair.split(':') for pair in text.split())
    return [(int(iteration), float(value)) for iteration, value in pairs]


def _text(row: dict) -> dict:
    """The opposite of :func:`_parsed`."""
    curves = {
        key: ' '.join(f'{iteration}:{value:.5g}' for iteration, value in row[key])
        for key in ('loss_curve', 'metric_curve')
    }
    metrics = ' '.join(f'{name}={value:.6g}' for name, value in row['metrics'].items())
    return row | curves | dict(metrics=metrics, value=f'{row["value"]:.6g}')
