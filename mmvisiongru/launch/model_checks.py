"""Check a built model and its data before the first iteration: channels, classes, batch norm, one batch."""

import json
import os
import re
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from itertools import pairwise
from pathlib import Path

import numpy as np
import torch
from mmengine.config import Config
from mmengine.dataset import InfiniteSampler
from mmengine.dist import get_world_size
from mmengine.model import BaseTTAModel
from mmengine.runner import Runner
from torch import Tensor, nn
from torch.utils.data import DataLoader

from mmvisiongru.checkpoint.match import plain_model
from mmvisiongru.errors import InputError, in_one_line


def check_built(runner: Runner, dataloaders: Iterable[str]) -> None:
    """Check the model of a Runner against the loops over some dataloaders, by their keys in the config."""
    loops = {}
    for key in dataloaders:
        with naming_empty(runner.cfg, key):
            if (loop := getattr(runner, key.replace('dataloader', 'loop'))) is not None:
                loops[key] = loop
    found = {f'{key}.dataset': loop.dataloader.dataset for key, loop in loops.items()}
    for key, loop in loops.items():
        for i, metric in enumerate(loop.evaluator.metrics if hasattr(loop, 'evaluator') else ()):
            found[key.replace('dataloader', f'evaluator.{i}')] = metric
    pooled = check_model(runner.cfg, runner.model)
    check_labels(runner.cfg, dict(heads(runner.cfg, runner.model)), found)
    if 'train_dataloader' in loops:
        check_batch_size(pooled, loops['train_dataloader'].dataloader)
    for key, loop in {} if isinstance(runner.model, BaseTTAModel) else loops.items():
        check_batch(key, loop.dataloader, runner.model, training=key == 'train_dataloader')


@contextmanager
def naming_empty(cfg: Config, dataloader: str) -> Iterator[None]:
    """Build the data set of a dataloader; InputError with its place if it has no samples."""
    try:
        yield
    except ValueError as error:
        # mmengine's BaseDataset says this of an empty list of samples.
        if 'need at least one array to concatenate' not in str(error):
            raise
        where = f'{dataloader}.dataset in {cfg.filename}'
        raise InputError(f'{where} has no samples; check its data_prefix, suffixes and ann_file') from error


def heads(cfg: Config, model: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    """The parts of a model that know a number of classes, as heads do, with their places in the config."""
    for name, part in plain_model(model).named_modules():
        # The proposals of a detector have classes of their own, so have edges; a backbone may have -1, none.
        number, other = getattr(part, 'num_classes', -1), 'rpn' in name or hasattr(part, 'boundary_threshold')
        if name and isinstance(number, int) and number != -1 and not other:
            # Configs of mmpretrain have the data_preprocessor beside the model.
            yield (name if name in cfg else f'model.{name}'), part


def check_model(cfg: Config, model: nn.Module) -> list[str]:
    """Compare the parts of a model with the maps that they get from each other, for a small image.

    Returns the batch norms that get one value per channel from one image.
    """
    for place, head in heads(cfg, model):
        if getattr(head, 'out_channels', None) == 1:
            which = f'{place} in {cfg.filename} has one output channel'
            if any(getattr(part, 'use_sigmoid', None) is False for part in head.modules()):
                remedy = 'num_classes=2 out_channels=1 threshold=0.5 loss_decode.use_sigmoid=True'
                raise InputError(f'{which}, whose softmax is always 1; set its {remedy}')
            if isinstance(model, BaseTTAModel):
                raise InputError(f'{which}, whose sigmoid mmseg applies twice with --tta; test without it')
    plain = plain_model(model)
    weight = next(plain.parameters(), None)
    if weight is None or weight.is_meta or not isinstance(getattr(plain, 'backbone', None), nn.Module):
        return []
    mean = getattr(getattr(plain, 'data_preprocessor', None), 'mean', None)
    # At stride 32 it gives a map of 2 x 2, so a map of 1 x 1 was pooled.
    image = weight.new_zeros(1, 3 if mean is None else len(mean), 64, 64)
    with _looking(plain) as pooled:
        try:
            maps = plain.backbone(image)
        # Whatever is wrong with the backbone, it is not about the heads.
        except Exception:
            return []
        if (neck := getattr(plain, 'neck', None)) is not None:
            maps = _call(cfg, 'model.neck', neck, maps)
        if not isinstance(maps, Sequence):
            return pooled
        for name, part in _children(plain):
            if hasattr(part, 'in_channels') and part not in (plain.backbone, neck):
                _call(cfg, f'model.{name}', part, maps)
        for name, part in _children(plain.roi_head) if hasattr(plain, 'roi_head') else ():
            # A head may widen its maps, but what cuts regions out of maps may not.
            key = 'out_channels' if hasattr(part, 'featmap_strides') else 'in_channels'
            place, width = f'model.roi_head.{name}.{key}', maps[0].size(1)
            if (stated := getattr(part, key, width)) != width:
                where = f'{place}={stated} in {cfg.filename}'
                raise InputError(f'{where}, but its maps have {width} channels; set {place}={width}')
    return pooled


def _children(module: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    """The parts of a model with their names; those in a list one by one."""
    for name, child in module.named_children():
        parts = enumerate(child) if isinstance(child, nn.ModuleList) else [('', child)]
        yield from ((f'{name}.{i}'.rstrip('.'), part) for i, part in parts)


@contextmanager
def _looking(model: nn.Module) -> Iterator[list[str]]:
    """Run the model without a trace in it; gives the batch norms that get one value per channel."""
    # Batch norms of any library; other norms keep no statistics of several images.
    names = {m: f'model.{n}' for n, m in model.named_modules() if getattr(m, 'track_running_stats', False)}
    training, pooled = model.training, []

    def look(norm, inputs):
        across = isinstance(norm, nn.SyncBatchNorm) and get_world_size() > 1
        if not across and inputs[0].numel() == inputs[0].size(1):
            pooled.append(names[norm])

    handles = [norm.register_forward_pre_hook(look) for norm in names]
    try:
        with torch.no_grad():
            model.eval()
            yield pooled
    finally:
        model.train(training)
        for handle in handles:
            handle.remove()


def _call(cfg: Config, place: str, part: nn.Module, maps: Sequence[Tensor]):
    """Call a neck or head on maps; InputError if it fails because of their channels, otherwise None."""
    try:
        return part(maps)
    # A part fails in any way on maps that it does not take.
    except Exception as error:
        stated, index = getattr(part, 'in_channels', None), getattr(part, 'in_index', None)
        widths, several = [m.size(1) for m in maps if torch.is_tensor(m)], isinstance(stated, (list, tuple))
        if index is None:
            index = range(len(widths)) if several else -1
        try:
            wanted = widths[index] if isinstance(index, int) else [widths[i] for i in index]
        except IndexError:
            raise InputError(
                f'{place}.in_index={index} in {cfg.filename}, but there are {len(widths)} maps; set '
                f'{place}.in_index or model.backbone.out_indices'
            ) from error
        # A head that joins its maps keeps the sum of their channels.
        if stated is None or (list(stated) == wanted if several else stated == np.sum(wanted)):
            return None
        raise InputError(
            f'{place}.in_channels={stated} in {cfg.filename}, but its maps have {widths} channels; set '
            f'{place}.in_channels={str(wanted).replace(" ", "")}'
        ) from error


def check_labels(cfg: Config, heads: dict[str, object], found: dict[str, object]) -> None:
    """Compare classes and ignored labels of heads with those of data sets and metrics, by their places."""
    parts = found | heads
    data = {place: (getattr(part, 'metainfo', None) or {}).get('classes') for place, part in found.items()}
    data = {place: list(classes) for place, classes in data.items() if classes}
    for (place, classes), (other, others) in pairwise(data.items()):
        # A label is an index into this list.
        if classes != others:
            differ = ', '.join(sorted(map(str, {*classes} ^ {*others}))[:3]) or 'the order'
            sizes = f'{place} ({len(classes)}) and {other} ({len(others)})'
            raise InputError(f'classes of {sizes} differ, in {differ}; both need the same in one order')
    for place in data:
        check_categories(place, found[place], data[place])
    for place, classes in [*data.items()][:1]:
        numbers = _settings(parts, 'num_classes')
        if wrong := {key: number for key, number in numbers.items() if number != len(classes)}:
            right = dict.fromkeys(wrong, len(classes))
            raise InputError(f'{_join(wrong)}, but {place} has {len(classes)} classes; set {_join(right)}')
        for key, best in _settings(parts, 'topk').items():
            if np.max(best) > len(classes) and getattr(parts[key.removesuffix('.topk')], 'cal_acc', True):
                raise InputError(f'{key}={best}, but {place} has {len(classes)} classes; set {key}=(1,)')
    ignored = _settings(parts, 'ignore_index')
    if len({*ignored.values()}) > 1:
        raise InputError(f'{_join(ignored)} in {cfg.filename} disagree; set all to the label to ignore')


def check_categories(place: str, dataset, classes: list[str]) -> None:
    """Compare classes with the categories of a json, in whose order mmdet numbers them."""
    if not hasattr(dataset, 'cat_ids') or not os.path.isfile(path := dataset.ann_file):
        return
    # The whole file would take gigabytes of memory.
    text = Path(path).read_text(encoding='utf-8')
    start = re.search(r'"categories"\s*:\s*', text).end()
    names = {each['id']: each['name'] for each in json.JSONDecoder().raw_decode(text, start)[0]}
    taken = [names[i] for i in dataset.cat_ids]
    if taken != classes:
        wrong = [name for name in classes if name not in taken] or ['the order']
        raise InputError(
            f'{path} ({place}.ann_file) has the categories {", ".join(names.values())}; metainfo differs in '
            f'{", ".join(wrong[:3])}; set {place}.metainfo.classes in the order of the file'
        )


def _settings(parts: dict[str, object], name: str) -> dict:
    """Values of a setting by place, of those parts that have it."""
    values = {f'{place}.{name}': getattr(part, name, None) for place, part in parts.items()}
    return {key: value for key, value in values.items() if isinstance(value, (int, tuple, list))}


def _join(values: dict[str, int]) -> str:
    return ' '.join(f'{key}={value}' for key, value in values.items())


def check_batch_size(pooled: list[str], loader: DataLoader) -> None:
    """Refuse epochs of no batch, and batches of one, all or the last, before a batch norm of pooled maps."""
    size, sampler = loader.batch_size, getattr(loader.sampler, 'sampler', loader.sampler)
    rest, endless = len(sampler) % (size or 1), isinstance(sampler, InfiniteSampler)
    if loader.drop_last and not endless and len(sampler) < size:
        raise InputError(f'drop_last drops all {rest} samples; lower train_dataloader.batch_size={size}')
    if not pooled or (size != 1 and (rest != 1 or loader.drop_last or endless)):
        return
    what, remedy = 'train_dataloader.batch_size=1', 'batch_size=2 or more'
    if size > 1:
        what, remedy = f'the last batch, of one of {len(sampler)} samples,', 'drop_last=True'
    head = '.'.join(pooled[0].split('.')[:2])
    raise InputError(
        f'{what} leaves batch norm {pooled[0]} one value per channel; set train_dataloader.{remedy}, or '
        f"{head}.norm_cfg=dict(type='GN',num_groups=32)"
    )


def check_batch(place: str, loader: DataLoader, model: nn.Module, training: bool) -> None:
    """Prepare a small batch as the loop of a dataloader will: in a worker, joined by the model."""
    samples, number = loader.dataset, min(len(loader.dataset), loader.batch_size or 1, 4)
    settings = dict(batch_size=number, sampler=[i * len(samples) // number for i in range(number)])
    settings |= dict(collate_fn=loader.collate_fn, num_workers=min(1, loader.num_workers))
    try:
        # The generator must not move: the weights are drawn later.
        with torch.random.fork_rng(devices=[]):
            batch = next(iter(DataLoader(samples, **settings)))
            batch = plain_model(model).data_preprocessor(batch, training)
    except InputError:
        raise
    # Transforms are code of anybody, and fail in any way.
    except Exception as error:
        text = in_one_line(error).split(f'{type(error).__name__}: ')[-1]
        raise InputError(f'{place}.dataset.pipeline: no batch of {number} can be made: {text}') from error
    for sample in () if training else batch.get('data_samples') or ():
        stored = tuple(getattr(sample, 'ori_shape', ()))[:2]
        if 'gt_sem_seg' in sample and stored != (shape := tuple(sample.gt_sem_seg.shape)):
            raise InputError(
                f'{place}.dataset.pipeline resizes labels to {shape}, where predictions are compared at '
                f'{stored}; put LoadAnnotations after Resize'
            )
