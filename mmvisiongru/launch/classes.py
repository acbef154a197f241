"""Classes and colours as a config states them."""

from collections.abc import Sequence

import numpy as np
from mmengine.config import Config
from mmengine.registry import DATASETS

from .names import resolve


def dataset_meta(cfg: Config) -> dict | None:
    """Classes and palette of the test data set, None if only an instance could tell."""
    settings = cfg.test_dataloader.dataset
    kind = resolve(settings.type, DATASETS, cfg.default_scope)
    meta = kind._load_metainfo(settings.get('metainfo')) if hasattr(kind, '_load_metainfo') else {}
    return with_colours(meta['classes'], meta.get('palette')) if meta.get('classes') else None


def with_colours(classes: Sequence[str], palette: Sequence | None = None) -> dict:
    """Classes with their palette, or with the colours that mmseg gives classes that have none."""
    if len(palette or ()) != len(classes):
        palette = np.random.RandomState(42).randint(0, 255, (len(classes), 3)).tolist()
    return dict(classes=classes, palette=palette)
