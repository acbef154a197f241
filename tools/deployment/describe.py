"""Metadata of an exported file, so that no config is needed to run it."""

import json

from mmengine.config import Config
from torch import nn

from mmvisiongru.config import pipeline_of
from mmvisiongru.deployment.wrapper import Deployed
from mmvisiongru.errors import InputError
from mmvisiongru.version import __version__
from mmvisiongru.zoo import dataset_meta
from tools.deployment.painting import palette_of

# Steps of a test pipeline that change no size, and those that tools/deployment/demo_onnx.py follows.
NEUTRAL = ('LoadImageFromFile', 'LoadAnnotations', 'PackInputs', 'PackSegInputs')
RESIZING = ('Resize', 'ResizeEdge', 'CenterCrop')


def describe(
    cfg: Config, checkpoint_meta: dict, model: Deployed, size: tuple[int, int] | None
) -> tuple[dict[str, str], list[str]]:
    """Metadata of a file, and notes on what a test of the config does but the file does not.

    Names of classes in the meta of the checkpoint go before those of the config. InputError if their number
    is not that of the model. ``size`` is height and width, None if they are free.
    """
    # A checkpoint may name classes without their colours.
    named = (dataset_meta(cfg) or {}) | (checkpoint_meta.get('dataset_meta') or {})
    classes = named.get('classes') or [str(i) for i in range(model.classes)]
    if len(classes) != model.classes:
        raise InputError(f'{cfg.filename} names {len(classes)} classes for {model.classes} model outputs')
    palette = palette_of(classes, named.get('palette'))
    pipeline = [step for step in pipeline_of(cfg, 'test_dataloader') if step.type not in NEUTRAL]
    notes = [
        f'{step.type} of the test pipeline is not in the file; feed images as it leaves them'
        for step in pipeline
        if step.type not in RESIZING
    ]
    if model.segmentor:
        notes += _segmentor_notes(model.model)
    entries = dict(
        classes=json.dumps(list(classes)),
        palette=json.dumps([list(map(int, colour)) for colour in palette]),
        task='segmentation' if model.segmentor else 'classification',
        size=json.dumps(size and list(size)),
        resize=json.dumps([step for step in pipeline if step.type in RESIZING]),
        notes=json.dumps(notes),
        config=cfg.filename,
        version=__version__,
    )
    return entries, notes


def _segmentor_notes(model: nn.Module) -> list[str]:
    # A classifier needs no mmseg.
    from mmseg.models import SegformerHead, UPerHead

    notes, head = [], model.decode_head
    if model.test_cfg.get('mode') == 'slide':
        notes.append("the windows of test_cfg.mode='slide' are not in the file, which takes an image at once")
    if size := (model.data_preprocessor.test_cfg or {}).get('size'):
        notes.append(f'the padding to {tuple(size)} of data_preprocessor.test_cfg is not in the file')
    if type(head) in (UPerHead, SegformerHead):
        notes.append(
            f"decode_head.type='mmvisiongru.{type(head).__name__}' loads the same checkpoint and is faster"
        )
    return notes
