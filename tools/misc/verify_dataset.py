"""Load every sample of a config's data sets and report what is broken before a run meets it.

    python tools/misc/verify_dataset.py CONFIG
    python tools/misc/verify_dataset.py CONFIG --dataloaders train_dataloader --workers 8 --out report.json

Images and maps are read and compared with each other and with the classes; nothing is augmented. Notes name
what may be meant but often is not: classes that never occur, pictures that are not taken, turned images. The
exit code is 1 if a sample cannot be used or there is none. Classes that differ between the data sets, or from
those of the model, are an error, as in training.
"""

import argparse
import json
import os.path as osp
import sys
from collections.abc import Iterator
from pathlib import Path

import mmengine
import torch
from mmengine.config import Config
from mmengine.registry import DATASETS, init_default_scope
from PIL import Image
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

# A script has only its own folder on the path.
sys.path.insert(0, str(Path(__file__).resolve().parents[2]))
from mmvisiongru.config import DATALOADERS, type_name
from mmvisiongru.engine.guarded_dataset import GuardedDataset
from mmvisiongru.errors import InputError, some
from mmvisiongru.files import write_text
from mmvisiongru.launch.checks import arguments_of
from mmvisiongru.launch.model_checks import check_labels, heads, naming_empty
from mmvisiongru.launch.options import add_config_options, one_line_errors
from mmvisiongru.launch.prepare import building, prepare_config
from mmvisiongru.measure import progress_bar
from mmvisiongru.sample_checks import IMAGE_SUFFIXES
from mmvisiongru.zoo import build_model
from tools.outputs import check_output, data_folders


def parse_args(argv=None):
    """Read the command line."""
    parser = argparse.ArgumentParser(description='Load every sample and report what is broken.')
    add_config_options(parser)
    parser.add_argument('--dataloaders', nargs='+', choices=DATALOADERS, default=DATALOADERS)
    parser.add_argument('--workers', type=int, default=0, help='number of processes that read')
    parser.add_argument('--out', metavar='PATH', help='also write the report to this .json')
    return parser.parse_args(argv)


class Findings(Dataset):
    """For each sample: what is wrong with it, how often each class occurs, its path if it is turned."""

    def __init__(self, dataset: GuardedDataset):
        self.dataset = dataset

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, index: int) -> tuple[str, Tensor | None, str]:
        try:
            sample = self.dataset.load(index)['data_samples']
            check_boxes(self.dataset.get_data_info(index), sample)
            turned = sample.img_path if 'gt_sem_seg' in sample and is_turned(sample.img_path) else ''
        # A broken file fails in any way, in any transform.
        except Exception as error:
            return self.dataset.describe(index, error), None, ''
        if 'gt_instances' in sample:
            labels = sample.gt_instances.labels
        elif 'gt_sem_seg' in sample:
            labels = sample.gt_sem_seg.data
        else:
            labels = sample.get('gt_label', torch.empty(0))
        classes = len(self.dataset.metainfo.get('classes') or ())
        labels = labels[(labels >= 0) & (labels < classes)].long()
        return '', labels.bincount(minlength=classes), turned


def check_boxes(info: dict, sample) -> None:
    """ValueError if the json has another size of the image of a detector, or a box that lies outside."""
    instances = info.get('instances') if 'gt_instances' in sample else ()
    width, height = info.get('width'), info.get('height')
    if 'gt_instances' in sample and (read := tuple(sample.ori_shape)) != (height, width):
        raise ValueError(f'the annotation file says {width} x {height}, the image has {read[1]} x {read[0]}')
    for x1, y1, x2, y2 in (each['bbox'] for each in instances):
        # Tools disagree by a pixel.
        if min(x1, y1) < -1 or x2 > width + 1 or y2 > height + 1:
            box = ', '.join(f'{value:g}' for value in (x1, y1, x2, y2))
            raise ValueError(f'box ({box}) is outside of the image, of {width} x {height}')


def is_turned(path: str) -> bool:
    """Whether decoders mirror or turn an image as its EXIF orientation says without changing its size."""
    with Image.open(path) as picture:
        orientation = picture.getexif().get(0x0112, 1)
        return 1 < orientation < 5 or (orientation > 4 and picture.width == picture.height)


def only_loading(dataset: dict) -> dict:
    """The config of a data set, and of those inside it, with nothing between loading and packing."""
    dataset = dict(dataset)
    if 'pipeline' in dataset:
        dataset['pipeline'] = [t for t in dataset['pipeline'] if type_name(t).startswith(('Load', 'Pack'))]
    with DATASETS.switch_scope_and_registry(None) as registry:
        kind = registry.get(dataset['type']) if isinstance(dataset['type'], str) else dataset['type']
    if isinstance(kind, type) and 'serialize_data' in arguments_of(kind):
        # mmengine cannot serialise an empty list, which a wrong suffix leads to.
        dataset['serialize_data'] = False
    if 'dataset' in dataset:
        dataset['dataset'] = only_loading(dataset['dataset'])
    if 'datasets' in dataset:
        dataset['datasets'] = [only_loading(part) for part in dataset['datasets']]
    return dataset


def verify(dataset: GuardedDataset, workers: int = 0) -> tuple[list[str], list[str]]:
    """One line for each sample that cannot be used, and the notes."""
    loader = DataLoader(Findings(dataset), batch_size=8, num_workers=workers, collate_fn=list)
    faults, turned, total = [], [], None
    with progress_bar() as bar:
        for batch in bar.track(loader, description='batches of 8'):
            for fault, count, path in batch:
                if path:
                    turned.append(path)
                if fault:
                    faults.append(fault)
                    continue
                # Kept one by one, counts take memory, and each keeps a file of its worker open.
                total = count if total is None else total + count
    notes = [*absent_classes(dataset, total), *untaken(dataset), *without_boxes(dataset)]
    # Labels that were drawn on the stored pixels would not fit, and nothing shows it.
    if turned:
        notes.append(
            f'{len(turned)} images are turned or mirrored by their EXIF orientation when they are read; '
            f'their labels must be too: {some(turned)}'
        )
    return faults, notes


def absent_classes(dataset: GuardedDataset, total: Tensor | None) -> Iterator[str]:
    """Masks of 0 and 255 for two classes leave the second without a pixel, and every metric at 100."""
    classes = dataset.metainfo.get('classes') or ()
    if absent := [f'{name} ({i})' for i, name in enumerate(classes) if total is not None and not total[i]]:
        yield f'{len(absent)} of {len(classes)} classes never occur: {some(absent)}'


def without_boxes(dataset: GuardedDataset) -> Iterator[str]:
    """Training leaves them out by default; mmdet also drops boxes without area and of unknown categories."""
    infos = [dataset.get_data_info(i) for i in range(len(dataset)) if hasattr(dataset, 'cat_ids')]
    if empty := [osp.basename(info['img_path']) for info in infos if not info['instances']]:
        yield f'{len(empty)} images have no box: {some(empty)}'


def untaken(dataset: GuardedDataset) -> Iterator[str]:
    """Suffixes are compared letter by letter by mmseg, so that .PNG is not taken for .png."""
    infos = (dataset.get_data_info(i) for i in range(len(dataset)))
    keys = ('img_path', 'seg_map_path')
    taken = {osp.realpath(info[key]) for info in infos for key in keys if info.get(key)}
    for part in parts(dataset.dataset):
        prefix = getattr(part, 'data_prefix', None) or {}
        folder = prefix.get('img_path') if isinstance(prefix, dict) else prefix
        if not folder or not osp.isdir(folder) or getattr(part, 'ann_file', ''):
            continue
        names = sorted(mmengine.scandir(folder, IMAGE_SUFFIXES, recursive=True, case_sensitive=False))
        if left := [name for name in names if osp.realpath(osp.join(folder, name)) not in taken]:
            wanted = getattr(part, 'img_suffix', None) or ', '.join(getattr(part, 'extensions', ()))
            yield f'{len(left)} pictures in {folder} are not taken ({wanted} is): {some(left)}'


def parts(dataset) -> Iterator:
    """The data sets inside RepeatDataset, ConcatDataset and the like."""
    inner = getattr(dataset, 'datasets', None) or [getattr(dataset, 'dataset', None)]
    yield from [dataset] if inner == [None] else (leaf for part in inner for leaf in parts(part))


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
        if args.out:
            check_output(osp.dirname(args.out) or '.', data_folders(cfg))
        report, datasets = {}, {}
        for name in distinct(cfg, args.dataloaders):
            with building(cfg), naming_empty(cfg, name):
                # In training, a map without a label is a fault too.
                allowed = 0 if name == 'train_dataloader' else None
                dataset = GuardedDataset(only_loading(cfg[name].dataset), seed=0, max_bad_samples=allowed)
            datasets[f'{name}.dataset'] = dataset
            faults, notes = verify(dataset, args.workers)
            report[name] = dict(samples=len(dataset), faults=faults, notes=notes)
            print(f'{name}: {len(faults)} of {len(dataset)} samples cannot be used', *faults, sep='\n')
            print(*(f'note: {note}\n' for note in notes), sep='', end='')
        if args.out:
            write_text(args.out, json.dumps(report, indent=1) + '\n')
        check_labels(cfg, dict(heads(cfg, build_model(cfg))) if cfg.get('model') else {}, datasets)
    return int(any(part['faults'] or not part['samples'] for part in report.values()))


if __name__ == '__main__':
    sys.exit(main())
