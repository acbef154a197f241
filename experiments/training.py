"""Training runs of several configs with several seeds: planned, kept going, and their results kept.

A run is a config with a seed. What it reached is a small JSON file; where that is, nothing is run again. Its
work dir carries its checkpoints, from which an interrupted run goes on.
"""

import hashlib
import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from multiprocessing import get_context
from pathlib import Path

import torch
from mmengine.config import Config
from mmengine.optim import build_optim_wrapper
from mmengine.registry import DefaultScope
from mmengine.runner import Runner

from mmvisiongru.analysis import measure
from mmvisiongru.analysis.flops import count
from mmvisiongru.analysis.logs import METRICS, read_run
from mmvisiongru.config import get_config
from mmvisiongru.errors import InputError
from mmvisiongru.files import write_text
from mmvisiongru.zoo import build_model, image_size

ROOT = Path(__file__).resolve().parents[1]
TOOLS = ROOT / 'tools'
# What decides where a run ends up. Other keys say how it is logged, kept and protected.
DECISIVE = ('model', 'data_preprocessor', 'optim_wrapper', 'param_scheduler', 'train_cfg', 'custom_hooks')
# Seconds between two looks at the processes.
POLL = 1.0


@dataclass
class Run:
    """A config with a seed.

    Args:
        name (str): Name of the config file.
        seed (int): Seed of the run.
        config (Path): The whole config with options and seed, as the processes read it.
        result (Path): What it reached; written at the end.
        fingerprint (str): Of all that decides about the result, but for the seed.
        length (tuple[str, int]): What a log counts, 'epoch' or 'iter', and how far it will come.
        validation_is_test (bool): Whether the last validation is what a test would say.
        error (str): Why it failed, empty if it did not.
    """

    name: str
    seed: int
    config: Path
    result: Path
    fingerprint: str
    length: tuple[str, int]
    validation_is_test: bool
    error: str = ''

    @property
    def work_dir(self) -> Path:
        """Checkpoints, logs and what the processes print."""
        return self.config.parent

    @property
    def title(self) -> str:
        """Name and seed."""
        return f'{self.name}, seed {self.seed}'

    def record(self) -> dict:
        """What the run reached, as it was kept; empty if it has not been finished.

        Raises:
            InputError: It was reached with other settings.
        """
        return kept(self.result, self.fingerprint)


def kept(path: Path, fingerprint: str) -> dict:
    """A result of these settings, or nothing."""
    if not path.exists():
        return {}
    found = json.loads(path.read_text())
    if found['fingerprint'] != fingerprint:
        raise InputError(
            f'{path} is of other settings than asked for now; take another --out or move it away'
        )
    return found


def fingerprint(cfg: Config, gpus: int = 1) -> str:
    """Of all that decides about the result of a run, but for the seed."""
    parts = {key: cfg.get(key) for key in DECISIVE}
    # Who groups the parameters does not matter; what each group gets is in `paramwise_cfg`.
    parts['optim_wrapper'] = {k: v for k, v in cfg.optim_wrapper.items() if k != 'constructor'}
    # Named only where they do something, as results of earlier versions stay valid.
    parts |= {key: cfg[key] for key in ('load_from', 'load_coverage') if cfg.get(key)}
    if (cfg.get('auto_scale_lr') or {}).get('enable'):
        parts['auto_scale_lr'] = cfg.auto_scale_lr
    for split in ('train', 'test'):
        loader = cfg[f'{split}_dataloader']
        parts[split] = [loader.get('batch_size'), loader.get('sampler'), loader.dataset]
    text = json.dumps([parts, gpus, cfg.get('test_evaluator')], sort_keys=True, default=str)
    return hashlib.sha256(text.encode()).hexdigest()[:12]


def plan(
    configs: Sequence[str],
    seeds: Sequence[int],
    out: Path,
    work_dir: Path,
    options: dict | None = None,
    gpus: int = 1,
) -> list[Run]:
    """All runs, seed by seed, so that what there is at any time compares all configs.

    Raises:
        InputError: A config cannot be used, two have the same name, or a result is of other settings.
    """
    runs = []
    names = [Path(config).stem for config in configs]
    if len(set(names)) < len(names):
        raise InputError(f'configs need names of their own to be compared, got {", ".join(names)}')
    for seed in seeds:
        for config, name in zip(configs, names, strict=True):
            cfg = get_config(
                config,
                options,
                ('model', 'train_dataloader', 'test_dataloader', 'optim_wrapper', 'train_cfg'),
            )
            cfg.randomness = dict(cfg.get('randomness') or {}, seed=seed)
            key = fingerprint(cfg, gpus)
            folder = work_dir / f'{name}_{seed}_{key}'
            files = folder / f'{name}.py', out / 'runs' / f'{name}_{seed}.json'
            run = Run(name, seed, *files, key, length(cfg), validation_is_test(cfg))
            # Says at once if what is kept is of other settings.
            run.record()
            folder.mkdir(parents=True, exist_ok=True)
            cfg.dump(run.config)
            runs.append(run)
    return runs


def train_command(run: Run, launcher: str, gpus: int) -> list[str]:
    """Train, or go on from the latest checkpoint."""
    start = [sys.executable, str(TOOLS / 'train.py'), str(run.config)]
    if launcher == 'pytorch':
        start = ['bash', str(TOOLS / 'dist_train.sh'), str(run.config), str(gpus)]
    return [*start, '--work-dir', str(run.work_dir), '--resume']


def test_command(run: Run) -> list[str]:
    """Test the last checkpoint."""
    checkpoint = (run.work_dir / 'last_checkpoint').read_text().strip()
    folder = run.work_dir / 'test'
    return [sys.executable, str(TOOLS / 'test.py'), str(run.config), checkpoint, '--work-dir', str(folder)]


def length(cfg: Config) -> tuple[str, int]:
    """What the log of a run counts, and how far it will come."""
    epochs = cfg.train_cfg.get('max_epochs')
    return ('epoch', epochs) if epochs else ('iter', cfg.train_cfg.max_iters)


def validation_is_test(cfg: Config) -> bool:
    """Whether the validation after the last iteration is what a test would say."""
    return cfg.get('val_cfg') is not None and all(
        cfg.get(f'val_{part}') == cfg.get(f'test_{part}') for part in ('dataloader', 'evaluator')
    )


def run_all(
    runs: Iterable[Run],
    jobs: int = 1,
    launcher: str = 'none',
    gpus: int = 1,
    watch: Callable[[list['Process'], list[Run]], None] = lambda processes, done: None,
) -> None:
    """Run what has no result yet, ``jobs`` at a time; a run that fails is marked and the others go on.

    However this ends, no process of it is left.

    Args:
        runs (Iterable[Run]): What to run, in this order.
        jobs (int): Runs at a time.
        launcher (str): 'none', or 'pytorch' for several GPUs or processes a run.
        gpus (int): Processes a run.
        watch (Callable): Called every second with the processes and the runs that ended since.
    """
    waiting = [run for run in runs if not run.record()]
    slots: list[Process | None] = [None] * jobs
    try:
        while waiting or any(slots):
            for slot, process in enumerate(slots):
                if process is None and waiting:
                    slots[slot] = Process(waiting.pop(0), launcher, gpus, slot)
            time.sleep(POLL)
            ended = [process for process in slots if process and process.advance()]
            slots = [None if process in ended else process for process in slots]
            watch([process for process in slots if process], [process.run for process in ended])
    finally:
        for process in filter(None, slots):
            process.stop()


class Process:
    """Training and then testing of one run, as processes."""

    def __init__(self, run: Run, launcher: str, gpus: int, slot: int):
        self.run, self.testing = run, False
        # Configs may name modules of `experiments` in `custom_imports`.
        path = os.pathsep.join(filter(None, [str(ROOT), os.environ.get('PYTHONPATH')]))
        self.env = dict(os.environ, PYTHONUNBUFFERED='1', PYTHONPATH=path)
        devices = range(slot * gpus, (slot + 1) * gpus)
        if torch.cuda.device_count() >= devices.stop:
            self.env.setdefault('CUDA_VISIBLE_DEVICES', ','.join(map(str, devices)))
        self._start(train_command(run, launcher, gpus))

    def _start(self, command: list[str]) -> None:
        self.began = time.time()
        with open(self.run.work_dir / 'output.txt', 'a') as output:
            # What earlier starts said is no news.
            self.offset = output.tell()
            self.child = subprocess.Popen(command, stdout=output, stderr=subprocess.STDOUT, env=self.env)

    def advance(self) -> bool:
        """Do what is next, if something is; tells whether the run has ended."""
        if self.child.poll() is None:
            return False
        self._count_seconds()
        try:
            if self.child.returncode:
                raise InputError(self._last_words())
            if not self.testing and not self.run.validation_is_test:
                self.testing = True
                self._start(test_command(self.run))
                return False
            keep_result(self.run, self.testing)
        except (OSError, LookupError, ValueError) as error:
            self.run.error = str(error)
        return True

    def _last_words(self) -> str:
        """The line in which the process says why it ended."""
        text = (self.run.work_dir / 'output.txt').read_bytes()[self.offset :].decode(errors='replace')
        lines = [line.strip() for line in text.splitlines() if line.strip()]
        errors = [line for line in lines if line.startswith('error:')]
        return (errors or lines or [f'ended with {self.child.returncode}'])[-1]

    def stop(self) -> None:
        """End the process; the run goes on from its latest checkpoint another time."""
        self.child.terminate()
        try:
            self.child.wait(20)
        except subprocess.TimeoutExpired:
            self.child.kill()
            self.child.wait()
        self._count_seconds()

    def _count_seconds(self) -> None:
        path = self.run.work_dir / 'seconds'
        path.write_text(str(seconds_of(self.run) + time.time() - self.began))


def seconds_of(run: Run) -> float:
    """Seconds that the processes of a run took, all starts together."""
    path = run.work_dir / 'seconds'
    return float(path.read_text()) if path.exists() else 0.0


def fraction(run: Run) -> float:
    """How much of its training a run has logged, 0 to 1."""
    try:
        train, _ = read_run(str(run.work_dir))
    except InputError:
        return 0.0
    key, last = run.length
    return max(train[key].values(), default=0) / last


def keep_result(run: Run, tested: bool) -> None:
    """Write what a run reached, with its curves, for good."""
    train, validation = read_run(str(run.work_dir))
    metrics = {key: values[max(values)] for key, values in validation.items()}
    if tested:
        metrics = json.loads(max((run.work_dir / 'test').glob('*/*.json')).read_text())
    metrics = {key: value for key, value in metrics.items() if key not in ('step', 'time', 'data_time')}
    metric = next((key for key in METRICS if key in metrics), next(iter(metrics)))
    loss = sorted(train['loss'].items())
    record = dict(
        config=run.name,
        seed=run.seed,
        fingerprint=run.fingerprint,
        metric=metric,
        value=metrics[metric],
        metrics=metrics,
        iterations=max(train['iter']),
        seconds=round(seconds_of(run), 1),
        seconds_per_iteration=statistics.median(train['time'].values()),
        curves=dict(
            # Enough points for a figure.
            loss=loss[:: max(1, len(loss) // 200)],
            metric=sorted(validation.get(metric, {}).items()),
        ),
        machine=measure.describe_machine(torch.device('cuda' if torch.cuda.is_available() else 'cpu')),
    )
    run.result.parent.mkdir(parents=True, exist_ok=True)
    write_text(str(run.result), json.dumps(record, indent=1) + '\n')


def keep_costs(runs: Iterable[Run], out: Path) -> dict[str, dict]:
    """Parameters, FLOPs and memory of each config that has a result, measured once in a fresh process."""
    costs = {}
    for run in runs:
        if costs.setdefault(run.name, {}) or not run.record():
            continue
        path = out / 'runs' / f'{run.name}_cost.json'
        costs[run.name] = kept(path, run.fingerprint)
        if not costs[run.name]:
            with ProcessPoolExecutor(1, get_context('spawn')) as pool:
                found = pool.submit(step_cost, str(run.config)).result()
            costs[run.name] = dict(fingerprint=run.fingerprint, **found)
            write_text(str(path), json.dumps(costs[run.name], indent=1) + '\n')
    return costs


def step_cost(config: str) -> dict:
    """Parameters and MACs of the model, and the peak memory of a step of its training in bytes."""
    cfg, device = get_config(config), torch.device('cuda' if torch.cuda.is_available() else 'cpu')
    found = count(build_model(config), image_size(config))
    model = build_model(config)
    loader = dict(cfg.train_dataloader, num_workers=0, persistent_workers=False)
    with DefaultScope.overwrite_default_scope(cfg.default_scope):
        optimizer = build_optim_wrapper(model.to(device).train(), cfg.optim_wrapper)
        batch = next(iter(Runner.build_dataloader(loader, seed=0)))
    memory = measure.peak_memory(lambda: model.train_step(batch, optimizer), device)
    return dict(parameters=found['parameters'], macs=found['macs'], step_memory=memory)
