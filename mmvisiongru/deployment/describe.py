"""What a file says of itself, so that whoever runs it needs no config."""

import json
from collections.abc import Sequence

import numpy as np
from mmengine.config import Config

from mmvisiongru.errors import InputError
from mmvisiongru.version import __version__
from mmvisiongru.zoo import dataset_meta

# Steps of a test pipeline that change no size, and those that tools/deployment/demo_onnx.py follows.
NEUTRAL = ('LoadImageFromFile', 'LoadAnnotations', 'PackInputs', 'PackSegInputs')
RESIZING = ('Resize', 'ResizeEdge', 'CenterCrop')


def describe(
    cfg: Config, checkpoint_meta: dict, classes: int, size: tuple[int, int] | None
) -> tuple[dict[str, str], list[str]]:
    """The entries of a file, and the steps of the test pipeline that it cannot state.

    Args:
        cfg (Config): The model's.
        checkpoint_meta (dict): Of the checkpoint: its classes serve where the config states none.
        classes (int): Of the model.
        size (tuple, optional): Height and width, None if they are free.

    Raises:
        InputError: The number of names is not that of the classes.
    """
    named = dataset_meta(cfg) or checkpoint_meta.get('dataset_meta') or {}
    named = with_colours(named.get('classes') or [str(i) for i in range(classes)], named.get('palette'))
    if len(named['classes']) != classes:
        found = len(named['classes'])
        raise InputError(f'{cfg.filename} names {found} classes for {classes} outputs of the model')
    pipeline = [step for step in cfg.test_dataloader.dataset.pipeline if step.type not in NEUTRAL]
    entries = dict(
        classes=json.dumps(list(named['classes'])),
        palette=json.dumps([list(map(int, colour)) for colour in named['palette']]),
        task='classification' if cfg.default_scope == 'mmpretrain' else 'segmentation',
        size=json.dumps(size and list(size)),
        resize=json.dumps([step for step in pipeline if step.type in RESIZING]),
        config=cfg.filename,
        version=__version__,
    )
    return entries, [step.type for step in pipeline if step.type not in RESIZING]


def with_colours(classes: Sequence[str], palette: Sequence | None = None) -> dict:
    """Classes with their palette, or with the colours that mmseg gives classes that have none."""
    if len(palette or ()) != len(classes):
        palette = np.random.RandomState(42).randint(0, 255, (len(classes), 3)).tolist()
    return dict(classes=classes, palette=palette)
