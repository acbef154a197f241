"""Training runs of several configs with several seeds: planned, run as processes, and recorded.

A run is a config with a seed. A run with a row in the table of results is not repeated. An interrupted run
resumes from the checkpoints in its work dir.
"""

import hashlib
import json
import math
import os
import re
import signal
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from functools import partial
from multiprocessing import get_context
from pathlib import Path

import torch
from mmengine.config import Config
from mmengine.optim import build_optim_wrapper
from mmengine.registry import DefaultScope
from mmengine.runner import Runner
from torch import nn

from experiments.results import Results
from mmvisiongru import measure
from mmvisiongru.config import get_config
from mmvisiongru.errors import InputError, in_one_line
from mmvisiongru.files import write_text
from mmvisiongru.zoo import build_model
from tools.analysis_tools.analyze_logs import METRICS, read_run
from tools.analysis_tools.flops import count

ROOT = Path(__file__).resolve().parents[1]
TOOLS = ROOT / 'tools'
# The keys that decide about the result of a run. Others say how it is logged, saved and protected.
DECISIVE = ('model', 'data_preprocessor', 'optim_wrapper', 'param_scheduler', 'train_cfg', 'custom_hooks')
# These do too, but few configs have them.
OPTIONAL = (('test_cfg', 'fp16'), ('env_cfg', 'tf32'), ('randomness', 'diff_rank_seed'))
REQUIRED = ('model', 'train_dataloader', 'test_dataloader', 'optim_wrapper', 'train_cfg')
# Seconds between two looks at the processes.
POLL = 1.0


@dataclass
class Run:
    """A config with a seed.

    Args:
        name (str): Name of the config file.
        seed (int): Seed of the run.
        config (Path): The complete config with options and seed, as the processes read it. It is in the
            work dir, which also holds checkpoints, logs and the output of the processes.
        length (tuple[str, int]): The counter of its log, 'epoch' or 'iter', and its last value.
        validation_is_test (bool): Whether the last validation gives the result of a test.
        error (str): Why it failed; empty if it did not.
    """

    name: str
    seed: int
    config: Path
    length: tuple[str, int]
    validation_is_test: bool
    error: str = ''

    @property
    def work_dir(self) -> Path:
        """Folder of the config, the checkpoints, the logs and the output."""
        return self.config.parent

    @property
    def title(self) -> str:
        """Name and seed."""
        return f'{self.name}, seed {self.seed}'

    @property
    def key(self) -> tuple[str, int]:
        """Its key in :attr:`Results.runs`."""
        return self.name, self.seed


def fingerprint(cfg: Config, gpus: int = 1) -> str:
    """Hash of all settings that decide about the result of a run, except the seed."""
    parts = {key: cfg.get(key) for key in DECISIVE}
    # The constructor only groups the parameters; the settings of each group are in `paramwise_cfg`.
    parts['optim_wrapper'] = {k: v for k, v in cfg.optim_wrapper.items() if k != 'constructor'}
    # Left out when unset, so that older results keep their fingerprint.
    places = [(cfg, key) for key in ('load_from', 'load_coverage', 'sync_bn')]
    places += [(cfg.get(part) or {}, key) for part, key in OPTIONAL]
    parts |= {key: place[key] for place, key in places if place.get(key)}
    if (cfg.get('auto_scale_lr') or {}).get('enable'):
        parts['auto_scale_lr'] = cfg.auto_scale_lr
    for split in ('train', 'test'):
        loader = cfg[f'{split}_dataloader']
        parts[split] = [loader.get('batch_size'), loader.get('sampler'), loader.dataset]
        parts[split] += [loader[key] for key in ('drop_last', 'batch_sampler') if loader.get(key)]
    text = json.dumps([parts, gpus, cfg.get('test_evaluator')], sort_keys=True, default=str)
    return hashlib.sha256(text.encode()).hexdigest()[:12]


def plan(
    configs: Sequence[str],
    seeds: Sequence[int],
    results: Results,
    work_dir: Path,
    options: dict | None = None,
    gpus: int = 1,
) -> list[Run]:
    """List all runs seed by seed, so that the results at any time compare all configs.

    ``{seed}`` in a setting stands for the seed of the run, so that fine-tuning can start from the weights of
    the same seed.

    Raises:
        InputError: A config cannot be used, two have the same name, or there are results of other settings.
    """
    names = [Path(config).stem for config in configs]
    if len(set(names)) < len(names):
        raise InputError(f'configs to compare must have different names, got {", ".join(names)}')
    text = ' '.join(f'{key}={value}'.replace(', ', ',') for key, value in (options or {}).items())
    runs = []
    for seed in dict.fromkeys(seeds):
        for config, name in zip(configs, names, strict=True):
            cfg = get_config(config, options, REQUIRED)
            cfg.randomness = dict(cfg.get('randomness') or {}, seed=seed)
            key = fingerprint(cfg, gpus)
            results.expect(name, key, text)
            file = work_dir / f'{name}_{seed}_{key}' / f'{name}.py'
            write_text(str(file), cfg.pretty_text.replace('{seed}', str(seed)))
            runs.append(Run(name, seed, file, length(cfg), validation_is_test(cfg)))
    # The first config of the command is the one that the others are compared with.
    results.configs = {name: results.configs[name] for name in (*names, *results.configs)}
    return runs


def train_command(run: Run, launcher: str, gpus: int) -> list[str]:
    """The command that trains, or resumes from the latest checkpoint."""
    start = [sys.executable, str(TOOLS / 'train.py'), str(run.config)]
    if launcher == 'pytorch':
        start = ['bash', str(TOOLS / 'dist_train.sh'), str(run.config), str(gpus)]
    return [*start, '--work-dir', str(run.work_dir), '--resume']


def test_command(run: Run) -> list[str]:
    """The command that tests the last checkpoint."""
    checkpoint = (run.work_dir / 'last_checkpoint').read_text(encoding='utf-8').strip()
    folder = run.work_dir / 'test'
    return [sys.executable, str(TOOLS / 'test.py'), str(run.config), checkpoint, '--work-dir', str(folder)]


def length(cfg: Config) -> tuple[str, int]:
    """The counter of the log of a run, and its last value."""
    epochs = cfg.train_cfg.get('max_epochs')
    return ('epoch', epochs) if epochs else ('iter', cfg.train_cfg.max_iters)


def validation_is_test(cfg: Config) -> bool:
    """Whether the validation after the last iteration gives the result of a test."""
    return cfg.get('val_cfg') is not None and all(
        cfg.get(f'val_{part}') == cfg.get(f'test_{part}') for part in ('dataloader', 'evaluator')
    )


def run_all(
    runs: Iterable[Run],
    results: Results,
    jobs: int = 1,
    launcher: str = 'none',
    gpus: int = 1,
    watch: Callable[[list['Process'], list[Run]], None] = lambda processes, ended: None,
) -> None:
    """Run what has no result yet, ``jobs`` at a time; a run that fails is marked and the others continue.

    No process survives, however this ends.

    Args:
        runs (Iterable[Run]): In the order in which they start.
        results (Results): Where each result is stored as soon as it is known.
        jobs (int): Number of runs at a time.
        launcher (str): 'none', or 'pytorch' for several processes per run.
        gpus (int): Processes per run.
        watch (Callable): Called after each look with the running processes and the runs that just ended.
    """
    waiting = [run for run in runs if run.key not in results.runs]
    slots: list[Process | None] = [None] * jobs
    try:
        while waiting or any(slots):
            for slot, process in enumerate(slots):
                if process is None and waiting:
                    slots[slot] = Process(waiting.pop(0), results, launcher, gpus, slot)
            time.sleep(POLL)
            ended = [process for process in slots if process and process.advance()]
            slots = [None if process in ended else process for process in slots]
            watch([process for process in slots if process], [process.run for process in ended])
    finally:
        left = [*filter(None, slots)]
        for process in left:
            process.child.terminate()
        for process in left:
            process.stop()


class Process:
    """The training of one run and then its test, each a process."""

    def __init__(self, run: Run, results: Results, launcher: str, gpus: int, slot: int):
        self.run, self.results, self.testing = run, results, False
        # Configs may name modules of `experiments` in `custom_imports`.
        path = os.pathsep.join(filter(None, [str(ROOT), os.environ.get('PYTHONPATH')]))
        # dist_train.sh starts the interpreter that PYTHON names.
        self.env = dict(os.environ, PYTHON=sys.executable, PYTHONUNBUFFERED='1', PYTHONPATH=path)
        visible = os.environ.get('CUDA_VISIBLE_DEVICES')
        devices = range(torch.cuda.device_count()) if visible is None else visible.split(',')
        own = devices[slot * gpus : (slot + 1) * gpus]
        if len(own) == gpus:
            self.env['CUDA_VISIBLE_DEVICES'] = ','.join(map(str, own))
        self._start(train_command(run, launcher, gpus))

    def _start(self, command: list[str]) -> None:
        self.began = time.time()
        with open(self.run.work_dir / 'output.txt', 'a', encoding='utf-8') as output:
            # The output of earlier starts is in the same file.
            self.offset = output.tell()
            self.child = subprocess.Popen(command, stdout=output, stderr=subprocess.STDOUT, env=self.env)

    def advance(self) -> bool:
        """Start the test after the training and record the result after the test; True at the end."""
        if self.child.poll() is None:
            return False
        output = self.run.work_dir / 'output.txt'
        try:
            self._count_seconds()
            if self.child.returncode:
                text = output.read_bytes()[self.offset :].decode(errors='replace')
                raise InputError(failure(text, self.child.returncode))
            if not self.testing and not self.run.validation_is_test:
                self.testing = True
                self._start(test_command(self.run))
                return False
            self.results.runs[self.run.key] = record(self.run, self.testing)
            self.results.save()
        except (OSError, LookupError, ValueError) as error:
            self.run.error = f'{in_one_line(error)} (see {output})'
        return True

    def stop(self) -> None:
        """Wait for the end of the process; the run resumes from its latest checkpoint another time."""
        try:
            # torchrun gives its workers 30 s.
            self.child.wait(40)
        except subprocess.TimeoutExpired:
            self.child.kill()
            self.child.wait()
        self._count_seconds()

    def _count_seconds(self) -> None:
        seconds = seconds_of(self.run) + time.time() - self.began
        write_text(str(self.run.work_dir / 'seconds'), str(seconds))


def failure(output: str, code: int) -> str:
    """The line of a failed process's output that says why it failed; launchers print more after it."""
    lines = [line.strip() for line in output.splitlines() if line.strip()]
    for pattern in (r'(\[rank\d+\]: *)?error: ', r'(\[rank\d+\]: *)?[\w.]*(Error|Exception)\b'):
        if reasons := [line for line in lines if re.match(pattern, line)]:
            return reasons[-1]
    if code < 0:
        return f'killed by {signal.Signals(-code).name}'
    return lines[-1] if lines else f'ended with exit code {code}'


def device() -> torch.device:
    """Where runs train, and where their steps are measured."""
    return torch.device('cuda' if torch.cuda.is_available() else 'cpu')


def seconds_of(run: Run) -> float:
    """Seconds that the processes of a run took in all its starts."""
    path = run.work_dir / 'seconds'
    return float(path.read_text(encoding='utf-8')) if path.exists() else 0.0


def fraction(run: Run) -> float:
    """Share of its training that a run has logged, 0 to 1."""
    try:
        train, _ = read_run(str(run.work_dir))
    except InputError:
        return 0.0
    key, last = run.length
    return max(train[key].values(), default=0) / last


def record(run: Run, tested: bool) -> dict:
    """The row of a finished run for :attr:`Results.runs`, read from its logs."""
    train, validation = read_run(str(run.work_dir))
    last = max((iteration for values in validation.values() for iteration in values), default=None)
    metrics = {key: values[last] for key, values in validation.items() if last in values}
    if tested:
        metrics = json.loads(max((run.work_dir / 'test').glob('*/*.json')).read_text(encoding='utf-8'))
    # Some are lists, of a value for each class.
    numbers = {key: value for key, value in metrics.items() if isinstance(value, (int, float))}
    metrics = {key: value for key, value in numbers.items() if key not in ('step', 'time', 'data_time')}
    # mmdet gives none where nothing was detected.
    if not metrics:
        raise InputError('its last evaluation has no metric')
    metric = next((key for key in METRICS if key in metrics), next(iter(metrics)))
    loss = sorted(train['loss'].items())
    machine = measure.describe_machine(device())
    return dict(
        config=run.name,
        seed=run.seed,
        metric=metric,
        value=metrics[metric],
        metrics=metrics,
        iterations=max(train['iter']),
        seconds=round(seconds_of(run), 1),
        seconds_per_iteration=round(statistics.median(train['time'].values()), 4),
        machine=measure.in_words(machine),
        # Enough points for a figure.
        loss_curve=loss[:: max(1, len(loss) // 200)],
        metric_curve=sorted(validation.get(metric, {}).items()),
    )


def measure_costs(runs: Iterable[Run], results: Results) -> None:
    """Add parameters, MACs, memory and time of a step of each trained config, measured in fresh processes.

    Times are measured again for all configs where one is new: only those of one process compare.
    """
    trained = {run.name: str(run.config) for run in runs if run.key in results.runs}
    if all(results.configs[name].get('step_seconds') for name in trained):
        return
    for name in [name for name in trained if not results.configs[name].get('parameters')]:
        costs = _in_a_process(step_cost, trained[name])
        results.configs[name].update(costs)
        if not costs:
            del trained[name]
    times = _in_a_process(step_times, trained)
    # Those of an earlier process go.
    for name, config in results.configs.items():
        config['step_seconds'] = f'{times[name]:.4g}' if name in times else ''
    results.save()


def _in_a_process(function: Callable, argument) -> dict:
    """What a function finds in a fresh process; nothing where it fails: results matter more than costs."""
    try:
        with ProcessPoolExecutor(1, get_context('spawn')) as pool:
            return pool.submit(function, argument).result()
    except Exception as error:
        print(f'costs of {argument} are unknown: {in_one_line(error)}', file=sys.stderr)
        return {}


def step_cost(config: str) -> dict:
    """Parameters and MACs of the model, and the peak memory of a training step in bytes."""
    model, step = training_step(config)
    # The first step also makes the state of the optimizer, which stays.
    step()
    memory = measure.peak_memory(step, device())
    size = model.data_preprocessor(step.args[0], training=True)['inputs'].shape[2:]
    found = count(build_model(get_config(config)), size)
    return dict(
        parameters=found['parameters'],
        macs=found['macs'],
        step_memory='' if math.isnan(memory) else round(memory),
    )


def step_times(configs: dict[str, str]) -> dict[str, float]:
    """Median seconds of a training step of each config, by its name, with the steps of all interleaved."""
    steps = {name: training_step(config)[1] for name, config in configs.items()}
    return {name: statistics.median(t) for name, t in measure.interleaved_times(steps, device(), 20).items()}


def training_step(config: str) -> tuple[nn.Module, partial]:
    """Model of a config, and its training step on a batch of its data."""
    cfg = get_config(config)
    model = build_model(cfg).to(device())
    loader = dict(cfg.train_dataloader, num_workers=0, persistent_workers=False)
    with DefaultScope.overwrite_default_scope(cfg.default_scope):
        optimizer = build_optim_wrapper(model.train(), cfg.optim_wrapper)
        batch = next(iter(Runner.build_dataloader(loader, seed=0)))
    return model, partial(model.train_step, batch, optimizer)
