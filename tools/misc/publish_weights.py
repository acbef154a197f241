"""Publish the weights of a trained model with the package, in half precision: weights/NAME-HASH.pth.

    python tools/misc/publish_weights.py CONFIG CHECKPOINT visiongru-pico_tiny-imagenet \
        --terms 'Tiny-ImageNet: non-commercial research'

The metric in the file is that of the file: the weights are rounded first and tested then. README.md in the
folder lists all files. Afterwards run tools/misc/update_model_zoo.py.
"""

import argparse
import os
import subprocess
import tempfile
from pathlib import Path

import torch
from mmengine.device import get_device

from mmvisiongru import optimize_for_inference
from mmvisiongru.checkpoint import load_checkpoint_file, read_checkpoint, weights_hash
from mmvisiongru.config import get_config
from mmvisiongru.errors import InputError
from mmvisiongru.files import new_file
from mmvisiongru.launch.options import SettingsAction, one_line_errors
from mmvisiongru.launch.prepare import TESTING, prepare_test

FOLDER = Path(__file__).resolve().parents[2] / 'weights'
LABELS = {'accuracy/top1': 'top-1', 'mIoU': 'mIoU'}
HEADER = """# Published weights

Trained with this package, in half precision. `mmvisiongru.get_model(NAME, pretrained=True)` loads one. Where
a checkpoint file is expected, you can give NAME or `mmvisiongru://NAME` instead. With the data in place,
`python tools/test.py CONFIG NAME` reproduces the metric. Written by `tools/misc/publish_weights.py`.

| name | config | metric | MB | terms of the training data |
|---|---|---|---|---|
"""


def in_half(state_dict: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Weights in half precision. Statistics of batch norm stay as they are: variances leave its range."""
    found = {
        k: v if 'running_' in k or not v.is_floating_point() else v.half() for k, v in state_dict.items()
    }
    if wrong := [k for k, v in found.items() if v.is_floating_point() and not v.isfinite().all()]:
        raise InputError(f'{wrong[0]} does not fit in half precision')
    return found


def measure(config: str, options: dict | None, weights: dict[str, torch.Tensor]) -> tuple[dict, dict]:
    """Test the weights. Returns the metrics, and classes and palette."""
    with tempfile.TemporaryDirectory() as folder:
        torch.save(dict(state_dict=weights), path := os.path.join(folder, 'half.pth'))
        cfg = get_config(config, options, TESTING)
        cfg.work_dir = folder
        runner = prepare_test(cfg, path)
        if get_device() == 'cpu':
            optimize_for_inference(runner.model)
        metrics = runner.test()
        meta = runner.test_dataloader.dataset.metainfo
        return metrics, {key: meta[key] for key in ('classes', 'palette') if key in meta}


def write_list() -> None:
    """Write the table of all files."""
    lines = []
    for path in sorted(FOLDER.glob('*.pth')):
        meta = load_checkpoint_file(str(path))['meta']
        metric = ', '.join(f'{value:.2f} {LABELS[name]}' for name, value in meta['metric'].items())
        size = path.stat().st_size / 1e6
        lines.append(f'| `{meta["name"]}` | `{meta["config"]}` | {metric} | {size:.1f} | {meta["terms"]} |\n')
    (FOLDER / 'README.md').write_text(HEADER + ''.join(lines), encoding='utf-8')


def parse_args(argv=None):
    """Parse the command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument('config', help='config, as the checkpoint was trained with')
    parser.add_argument('checkpoint', help='checkpoint file')
    parser.add_argument('name', help='name to publish it under')
    parser.add_argument('--terms', default='none', help='terms of the training data')
    parser.add_argument('--commit', help='commit that trained it (default: the current one)')
    parser.add_argument('--cfg-options', nargs='+', action=SettingsAction, help='settings of the test')
    return parser.parse_args(argv)


def main(argv=None):
    """Test, then write the file in place of an older one, and the list."""
    args = parse_args(argv)
    with one_line_errors():
        weights = in_half(read_checkpoint(args.checkpoint).state_dict)
        metrics, dataset_meta = measure(args.config, args.cfg_options, weights)
        if not metrics.keys() & LABELS.keys():
            wanted = ' or '.join(LABELS)
            raise InputError(f'{args.config} is tested by {", ".join(metrics)}, none of which is {wanted}')
        head = ['git', '-C', str(FOLDER.parent), 'rev-parse', '--short', 'HEAD']
        meta = dict(
            name=args.name,
            config=Path(args.config).stem,
            dataset_meta=dataset_meta,
            metric={name: round(float(metrics[name]), 2) for name in LABELS if name in metrics},
            commit=args.commit or subprocess.check_output(head, text=True).strip(),
            terms=args.terms,
            sha256=weights_hash(weights),
        )
        FOLDER.mkdir(exist_ok=True)
        path = FOLDER / f'{args.name}-{meta["sha256"][:8]}.pth'
        with new_file(str(path)) as unfinished:
            torch.save(dict(state_dict=weights, meta=meta), unfinished)
        for older in set(FOLDER.glob(f'{args.name}-????????.pth')) - {path}:
            older.unlink()
        write_list()
        print(path, meta['metric'])


if __name__ == '__main__':
    main()
