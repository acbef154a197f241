"""Compare the scan in log space with the one in linear space: gradients, losses and metrics of trainings.

    python experiments/log_space_gradient.py configs/segmentation/CONFIG.py --seeds 0 1 2 \
        --out experiments/evidence/log_space --cfg-options train_cfg.max_iters=600

minGRU-pytorch computes the prefix sums of the scan in log space (Heinsen, arXiv:2311.06281), this package in
linear space. Each seed is trained with both. Every `--interval` iterations, the gradients of both at the
current weights and batch are compared with the gradient in float64, stage by stage. Writes OUT/results.json,
OUT/README.md and OUT/results.png; a run in results.json is not repeated.
"""

import argparse
import copy
import json
import sys
import types
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path

import torch
import torch.nn.functional as F
from mmengine.hooks import Hook
from torch import Tensor, nn

# A script has only its own folder on the path.
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from experiments.training_report import UNBOUNDED, paired, with_interval
from mmvisiongru.config import get_config
from mmvisiongru.files import write_text
from mmvisiongru.launch.options import SettingsAction, one_line_errors
from mmvisiongru.launch.prepare import TRAINING, prepare_training
from mmvisiongru.models.layers import MinGRU2D
from tools.analysis_tools.analyze_logs import METRICS, read_run

SCANS = ('linear', 'log')
DROPOUT = (nn.Dropout, nn.Dropout1d, nn.Dropout2d, nn.Dropout3d)


def log_space_scan(gate: Tensor, hidden: Tensor) -> Tensor:
    r"""Scan tokens in log space: h_t = exp(a_t + logcumsumexp_s(log z_s + log g(hidden_s) - a_s)).

    a_t is the sum of log(1 - z) up to t, and g(x) = x + 0.5 from 0 on, sigmoid(x) below.

    Args:
        gate, hidden (Tensor): Pre-activations, (B, L, D).

    Returns:
        Tensor: h, (B, L, D).
    """
    log_g = torch.where(hidden >= 0, (F.relu(hidden) + 0.5).log(), F.logsigmoid(hidden))
    keep = F.logsigmoid(-gate).cumsum(1)
    return (keep + (F.logsigmoid(gate) + log_g - keep).logcumsumexp(1)).exp()


def log_space_mixer(self: MinGRU2D, x: Tensor) -> Tensor:
    """MinGRU2D.forward, (B, H, W, C) -> (B, H, W, C), with the scan in log space."""
    projected = self.in_proj(self.dwconv(x))
    states = []
    for path, part in zip(self.paths, projected.chunk(len(self.paths), -1), strict=True):
        part = part.transpose(1, 2) if path.startswith('column') else part
        tokens = part.flatten(1, 2)
        tokens = tokens.flip(1) if path.endswith('reverse') else tokens
        hidden, gate = tokens.chunk(2, -1)
        h = log_space_scan(gate, hidden)
        h = (h.flip(1) if path.endswith('reverse') else h).unflatten(1, part.shape[1:3])
        states.append(h.transpose(1, 2) if path.startswith('column') else h)
    return self.out_proj(torch.cat(states, -1))


def use_scan(model: nn.Module, scan: str) -> nn.Module:
    """Make all mixers of a model scan in 'linear' or in 'log' space."""
    for module in model.modules():
        if isinstance(module, MinGRU2D):
            module.__dict__.pop('forward', None)
            if scan == 'log':
                if module.candidate != 'g':
                    raise ValueError(f'log space needs a positive candidate, g; got {module.candidate!r}')
                module.forward = types.MethodType(log_space_mixer, module)
    return model


def stage_gradients(model: nn.Module, batch: dict, scan: str, dtype: torch.dtype) -> dict[str, Tensor]:
    """Gradient of the loss by the weights of each stage, flattened; the model does not change."""
    model = use_scan(copy.deepcopy(model), scan).to(dtype)
    for module in model.modules():
        # Another random mask would be another difference.
        if isinstance(module, DROPOUT):
            module.p = 0.0
    data = model.data_preprocessor(copy.deepcopy(batch), training=True)
    losses = model.loss(data['inputs'].to(dtype), data['data_samples'])
    sum(value for key, value in losses.items() if 'loss' in key).backward()
    found = {}
    for number, stage in enumerate(model.backbone.stages, 1):
        grads = [p.grad.flatten() for p in stage.parameters() if p.grad is not None]
        found[f'stage {number}'] = torch.cat(grads).double()
    return found


def compare_gradients(model: nn.Module, batch: dict) -> dict[str, dict[str, float]]:
    """Cosine of both float32 gradients and their relative errors against float64, for each stage."""
    exact = stage_gradients(model, batch, 'linear', torch.float64)
    found = {scan: stage_gradients(model, batch, scan, torch.float32) for scan in SCANS}
    rows = {}
    for stage, reference in exact.items():
        rows[stage] = dict(cosine=float(F.cosine_similarity(found['linear'][stage], found['log'][stage], 0)))
        for scan in SCANS:
            error = (found[scan][stage] - reference).norm() / reference.norm()
            rows[stage][f'error_{scan}'] = float(error)
    return rows


class GradientHook(Hook):
    """Compare the gradients of both scans every ``interval`` iterations."""

    def __init__(self, interval: int):
        self.interval, self.rows = interval, {}

    def before_train_iter(self, runner, batch_idx, data_batch=None):
        """Compare at the weights before the step, with its batch."""
        if runner.iter % self.interval == 0:
            # The random state of the run must not change.
            with torch.random.fork_rng():
                self.rows[runner.iter] = compare_gradients(runner.model, data_batch)


def train(config: str, options: dict, seed: int, scan: str, work_dir: Path, every: int) -> dict:
    """Train once; returns the comparison of gradients, the losses and the metric at the end."""
    cfg = get_config(config, options, TRAINING)
    cfg.randomness = dict(cfg.get('randomness') or {}, seed=seed)
    cfg.work_dir, cfg.log_level = str(work_dir / f'{scan}_{seed}'), 'ERROR'
    runner = prepare_training(cfg)
    use_scan(runner.model, scan)
    hook = GradientHook(every)
    runner.register_hook(hook)
    runner.train()
    losses, validation = read_run(str(max(Path(runner.work_dir).glob('2*'))))
    metric = next(key for key in METRICS if key in validation)
    return dict(
        scan=scan,
        seed=seed,
        gradients=hook.rows,
        loss=sorted(losses['loss'].items()),
        metric=metric,
        value=max(validation[metric].items())[1],
    )


def markdown(runs: list[dict], settings: dict) -> str:
    """Tables of the gradients and of the results."""
    lines = [
        '# Scan in log space and in linear space',
        '',
        f'Written by `experiments/log_space_gradient.py` with {json.dumps(settings)}.',
        'Gradients of the loss in float32, at the same weights and batch; errors are relative to float64.',
        'The table has the worst of all seeds and both trainings.',
        '',
        '| iteration | stage | cosine, linear and log | error, linear | error, log |',
        '|---|---|---|---|---|',
    ]
    for key in sorted({int(i) for run in runs for i in run['gradients']}):
        rows = [{int(i): row for i, row in run['gradients'].items()}.get(key) for run in runs]
        rows = [row for row in rows if row]
        for stage in rows[0]:
            cosine = min(row[stage]['cosine'] for row in rows)
            errors = [max(row[stage][f'error_{scan}'] for row in rows) for scan in SCANS]
            lines.append(f'| {key} | {stage} | {cosine:.9f} | {errors[0]:.1e} | {errors[1]:.1e} |')
    lines += ['', f'| scan | seeds | {runs[0]["metric"]} | last loss |', '|---|---|---|---|']
    for scan in SCANS:
        found = [run for run in runs if run['scan'] == scan]
        values, losses = [run['value'] for run in found], [run['loss'][-1][1] for run in found]
        lines.append(f'| {scan} | {len(found)} | {shown(values)} | {shown(losses)} |')
    pairs = [difference(runs, key) for key in (lambda run: run['value'], lambda run: run['loss'][-1][1])]
    lines.append(f'| log - linear | {len(pairs[0])} | {" | ".join(map(shown, pairs))} |')
    return '\n'.join(lines) + '\n'


def draw(runs: list[dict], path: Path) -> None:
    """Draw the loss of all runs over iterations, and 1 - cosine of the gradients of each stage."""
    import matplotlib

    matplotlib.use('Agg')
    import matplotlib.pyplot as plt

    figure, (left, right) = plt.subplots(1, 2, figsize=(11, 4), layout='constrained')
    for run in runs:
        first = run['seed'] == runs[0]['seed']
        look = dict(color=f'C{SCANS.index(run["scan"])}', linewidth=0.8, label=run['scan'] if first else None)
        left.plot(*zip(*run['loss'], strict=True), **look)
    for number, stage in enumerate(next(iter(runs[0]['gradients'].values()))):
        for run in runs:
            points = [(int(i), max(1 - row[stage]['cosine'], 1e-16)) for i, row in run['gradients'].items()]
            label = stage if run is runs[0] else None
            right.plot(
                *zip(*points, strict=True), 'osv^'[number % 4], color=f'C{number}', alpha=0.6, label=label
            )
    left.set(xlabel='iteration', ylabel='training loss', title='scan in linear and in log space')
    right.set(xlabel='iteration', ylabel='1 - cosine', yscale='log', title='gradients of both, each run')
    for axis in (left, right):
        axis.grid(True, alpha=0.3)
        axis.legend(fontsize='small')
    figure.savefig(path, dpi=110)
    plt.close(figure)


def difference(runs: list[dict], key: Callable[[dict], float]) -> list[float]:
    """Log minus linear space for each seed."""
    linear, log = ({run['seed']: key(run) for run in runs if run['scan'] == scan} for scan in SCANS)
    return paired(log, linear)


def shown(values: list[float]) -> str:
    """Mean with the ends of its 95 % interval, or nothing."""
    return with_interval(values, UNBOUNDED, '.4g') if values else ''


def parse_args(argv=None):
    """Parse the command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument('config', help='config of a model with VisionGRU as backbone')
    parser.add_argument('--seeds', nargs='+', type=int, default=[0, 1, 2])
    parser.add_argument('--interval', type=int, default=100, help='iterations between two comparisons')
    parser.add_argument('--out', default='work_dirs/log_space', help='folder for results')
    parser.add_argument(
        '--cfg-options', nargs='+', action=SettingsAction, help='settings over those of the config'
    )
    return parser.parse_args(argv)


def main(argv=None):
    """Train what is missing, then write the table."""
    args = parse_args(argv)
    out = Path(args.out)
    settings = dict(config=Path(args.config).name, interval=args.interval, **(args.cfg_options or {}))
    # JSON has no tuples.
    settings = json.loads(json.dumps(settings))
    path = out / 'results.json'
    kept = json.loads(path.read_text(encoding='utf-8')) if path.exists() else dict(settings=settings, runs=[])
    if kept['settings'] != settings:
        raise SystemExit(f'error: {path} has results of other settings; choose another --out or move it away')
    with one_line_errors():
        for seed in args.seeds:
            for scan in SCANS:
                if any(run['scan'] == scan and run['seed'] == seed for run in kept['runs']):
                    continue
                work_dir = Path('work_dirs/log_space')
                # One process per run: loggers and visualizers of mmengine live as long as the process.
                with ProcessPoolExecutor(1, get_context('spawn')) as pool:
                    task = pool.submit(
                        train, args.config, args.cfg_options, seed, scan, work_dir, args.interval
                    )
                run = task.result()
                print(f'{scan}, seed {seed}: {run["metric"]} {run["value"]:.2f}', flush=True)
                kept['runs'].append(run)
                write_text(str(path), json.dumps(kept, indent=1) + '\n')
        write_text(str(out / 'README.md'), markdown(kept['runs'], settings))
    draw(kept['runs'], out / 'results.png')


if __name__ == '__main__':
    main()
