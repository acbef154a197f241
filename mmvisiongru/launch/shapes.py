"""What a model's parts hand to each other, seen on one small image before the first iteration."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from mmengine.config import Config
from mmengine.model import is_model_wrapper
from torch import Tensor, nn
from torch.nn.modules.batchnorm import SyncBatchNorm, _BatchNorm

from mmvisiongru.errors import InputError

# Of a side of 64 pixels a map at stride 32 has four: one that has a single one was pooled.
SIDE = 64


def check_shapes(cfg: Config, model: nn.Module, processes: int | None = None) -> None:
    """Compare ``in_channels`` of the heads with the maps they get, and batch norm with the batch.

    Args:
        cfg (Config): The config.
        model (nn.Module): The model, as a Runner holds it.
        processes (int, optional): That train it; None: it is tested, where batch norm takes any batch.

    A model that does not take a small image, or is of another kind than those of mmseg and mmpretrain, is let
    pass: its first iteration will tell.

    Raises:
        InputError: A number does not fit; the message says what to set.
    """
    model = model.module if is_model_wrapper(model) else model
    image = _image(model)
    if image is None or not hasattr(model, 'extract_feat'):
        return
    with _looking(model):
        try:
            _check_neck(cfg, model, model.backbone(image))
            maps = model.extract_feat(image)
        except InputError:
            raise
        # Whatever it is, it is not about the heads.
        except Exception:
            return
        if isinstance(maps, (tuple, list)):
            _check_widths(cfg, model, maps)
        if processes and cfg.train_dataloader.get('batch_size') == 1:
            _check_batch_of_one(model, image, processes)


def _image(model: nn.Module) -> Tensor | None:
    parameter = next(model.parameters(), None)
    if parameter is None or parameter.device.type == 'meta':
        return None
    mean = getattr(getattr(model, 'data_preprocessor', None), 'mean', None)
    channels = len(mean) if mean is not None else 3
    return torch.zeros(1, channels, SIDE, SIDE, device=parameter.device, dtype=parameter.dtype)


@contextmanager
def _looking(model: nn.Module) -> Iterator[None]:
    """Run the model without leaving a trace in it."""
    training = model.training
    model.eval()
    try:
        with torch.no_grad():
            yield
    finally:
        model.train(training)


def _check_neck(cfg: Config, model: nn.Module, maps) -> None:
    stated = getattr(getattr(model, 'neck', None), 'in_channels', None)
    widths = [m.size(1) for m in maps] if isinstance(stated, (list, tuple)) else maps[-1].size(1)
    if isinstance(stated, (int, list, tuple)) and widths != (
        stated if isinstance(stated, int) else list(stated)
    ):
        raise InputError(_does_not_fit('model.neck', stated, widths, cfg))


def _does_not_fit(place: str, stated, widths, cfg: Config) -> str:
    return (
        f'{place}.in_channels={stated} in {cfg.filename}, but the backbone gives it maps of {widths} '
        f'channels; set {place}.in_channels={str(widths).replace(" ", "")}'
    )


def _check_widths(cfg: Config, model: nn.Module, maps) -> None:
    for place, head in _heads(model):
        widths, stated = _widths(head, maps, place), getattr(head, 'in_channels', None)
        if widths is None or not isinstance(stated, (int, list, tuple)):
            continue
        stated = stated if isinstance(stated, int) else list(stated)
        if getattr(head, 'input_transform', None) == 'resize_concat':
            # The head keeps only their sum.
            fits = stated == sum(widths)
        else:
            widths = widths if isinstance(stated, list) else widths[0]
            fits = stated == widths
        if not fits:
            raise InputError(_does_not_fit(place, stated, widths, cfg))


def _heads(model: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    for name in ('decode_head', 'auxiliary_head', 'head'):
        head = getattr(model, name, None)
        if isinstance(head, nn.ModuleList):
            yield from ((f'model.{name}.{i}', part) for i, part in enumerate(head))
        elif isinstance(head, nn.Module):
            yield f'model.{name}', head


def _widths(head: nn.Module, maps, place: str) -> list[int] | None:
    """Channels of the maps that a head takes; None if it does not say which, or takes something else."""
    # Heads of mmseg say which maps, those of mmpretrain take the last one, averaged.
    index = getattr(head, 'in_index', -1 if place == 'model.head' else None)
    if index is None or not all(torch.is_tensor(m) for m in maps):
        return None
    indices = list(index) if isinstance(index, (list, tuple)) else [index]
    if not all(-len(maps) <= i < len(maps) for i in indices):
        raise InputError(
            f'{place}.in_index={index}, but the backbone gives {len(maps)} maps; set {place}.in_index or '
            'model.backbone.out_indices'
        )
    chosen = [maps[i] for i in indices]
    if place == 'model.head' and chosen[0].ndim != 2:
        return None
    return [m.size(1) for m in chosen]


def _check_batch_of_one(model: nn.Module, image: Tensor, processes: int) -> None:
    """Find batch norm that would have one value a channel to normalise, from which torch cannot learn."""
    single = []

    def look(name, norm):
        def hook(_, inputs):
            if inputs[0].numel() == inputs[0].size(1) and not (
                isinstance(norm, SyncBatchNorm) and processes > 1
            ):
                single.append(name)

        return hook

    norms = [(n, m) for n, m in model.named_modules() if isinstance(m, _BatchNorm)]
    handles = [norm.register_forward_pre_hook(look(name, norm)) for name, norm in norms]
    try:
        model(image, mode='tensor')
    except Exception:
        return
    finally:
        for handle in handles:
            handle.remove()
    if single:
        head = single[0].split('.')[0]
        raise InputError(
            f'train_dataloader.batch_size=1 leaves one value a channel to the batch norm model.{single[0]}, '
            f'behind a pooling to 1 x 1; set train_dataloader.batch_size=2 or more, or model.{head}.norm_cfg='
            "dict(type='GN',num_groups=32)"
        )
