"""Load every sample of a config's data sets and report broken files before a run meets them.

    python tools/misc/verify_dataset.py CONFIG
    python tools/misc/verify_dataset.py CONFIG --dataloaders train_dataloader --workers 8 --out report.json

Images and maps are read and compared with each other and with the classes; nothing is augmented. The exit
code is 1 if there is a fault.
"""

import argparse
import json
import sys

from mmengine.config import Config
from mmengine.registry import init_default_scope
from torch.utils.data import DataLoader, Dataset

from mmvisiongru.engine.guarded_dataset import GuardedDataset
from mmvisiongru.errors import InputError
from mmvisiongru.files import write_text
from mmvisiongru.launch.options import add_config_options, one_line_errors
from mmvisiongru.launch.prepare import building, prepare_config
from mmvisiongru.measure import progress_bar

DATALOADERS = ('train_dataloader', 'val_dataloader', 'test_dataloader')


def parse_args(argv=None):
    """Read the command line."""
    parser = argparse.ArgumentParser(description='Load every sample and report what is broken.')
    add_config_options(parser)
    parser.add_argument('--dataloaders', nargs='+', choices=DATALOADERS, default=DATALOADERS)
    parser.add_argument('--workers', type=int, default=0, help='number of processes that read')
    parser.add_argument('--out', metavar='PATH', help='also write the report to this .json')
    return parser.parse_args(argv)


class Faults(Dataset):
    """For each sample of a data set, what is wrong with it, or an empty text."""

    def __init__(self, dataset: GuardedDataset):
        self.dataset = dataset

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, index: int) -> str:
        try:
            self.dataset.load(index)
        # A broken file fails in any way, in any transform.
        except Exception as error:
            return self.dataset.describe(index, error)
        return ''


def only_loading(dataset: dict) -> dict:
    """The config of a data set, and of those inside it, with nothing between loading and packing."""
    dataset = dict(dataset)
    if 'pipeline' in dataset:
        kinds = ('Load', 'Pack')
        dataset['pipeline'] = [t for t in dataset['pipeline'] if t['type'].split('.')[-1].startswith(kinds)]
    if 'dataset' in dataset:
        dataset['dataset'] = only_loading(dataset['dataset'])
    if 'datasets' in dataset:
        dataset['datasets'] = [only_loading(part) for part in dataset['datasets']]
    return dataset


def build(dataset: dict) -> GuardedDataset:
    """The data set, to load and check but not to augment."""
    # In training, a map without a label is a fault too.
    return GuardedDataset(only_loading(dataset), seed=0, max_bad_samples=0)


def verify(dataset: GuardedDataset, workers: int = 0) -> list[str]:
    """One line for each sample that cannot be used."""
    faults = Faults(dataset)
    loader = DataLoader(faults, batch_size=8, num_workers=workers, collate_fn=list)
    with progress_bar() as bar:
        batches = bar.track(loader, description='batches of 8')
        return [fault for batch in batches for fault in batch if fault]


def distinct(cfg: Config, names) -> list[str]:
    """The dataloaders that the config has, each once: test is often the same as val."""
    names = [n for n in names if cfg.get(n)]
    names = [n for i, n in enumerate(names) if cfg[n].dataset not in [cfg[m].dataset for m in names[:i]]]
    if not names:
        raise InputError(f'{cfg.filename} has none of the dataloaders to verify')
    return names


def main(argv=None) -> int:
    """Verify; the exit code."""
    args = parse_args(argv)
    with one_line_errors(args.debug):
        cfg = prepare_config(args, dataloaders=args.dataloaders)
        init_default_scope(cfg.get('default_scope') or 'mmengine')
        report = {}
        for name in distinct(cfg, args.dataloaders):
            with building(cfg):
                dataset = build(cfg[name].dataset)
            faults = verify(dataset, args.workers)
            report[name] = dict(samples=len(dataset), faults=faults)
            print('\n'.join([f'{name}: {len(faults)} of {len(dataset)} samples cannot be used', *faults]))
        if args.out:
            write_text(args.out, json.dumps(report, indent=1) + '\n')
    return int(any(part['faults'] for part in report.values()))


if __name__ == '__main__':
    sys.exit(main())
