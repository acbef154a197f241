"""Captions on truth and prediction."""

import numpy as np
import pytest
import torch
from mmengine.registry import init_default_scope
from mmengine.structures import PixelData

from mmvisiongru.registry import VISUALIZERS

mmseg = pytest.importorskip('mmseg', reason='mmseg, which draws the maps, is not installed')


def draw(kind, **maps):
    from mmseg.structures import SegDataSample

    visualizer = VISUALIZERS.build(dict(type=kind, name=kind))
    visualizer.dataset_meta = dict(classes=('a', 'b'), palette=[[250, 0, 0], [0, 250, 0]])
    drawn = []
    visualizer.add_image = lambda name, image, step: drawn.append(image)
    sample = SegDataSample(**{k: PixelData(data=v) for k, v in maps.items()})
    visualizer.add_datasample('x', np.full((61, 83, 3), 200, np.uint8), sample, with_labels=False)
    return drawn[0].astype(int)


@pytest.fixture(autouse=True)
def scope():
    init_default_scope('mmseg')


def test_truth_and_prediction_say_which_they_are():
    maps = torch.zeros(1, 61, 83, dtype=torch.long)
    both = dict(gt_sem_seg=maps, pred_sem_seg=maps.clone())
    plain, captioned = (
        draw(kind, **both) for kind in ('SegLocalVisualizer', 'mmvisiongru.CaptionVisualizer')
    )
    assert captioned.shape == plain.shape
    changed = (plain != captioned).any(2)
    # A strip at the lower edge, and another text in each half.
    assert not changed[:40].any()
    assert changed[-3:].mean() > 0.9
    assert (captioned[:, :83] != captioned[:, 83:]).any()


def test_one_map_alone_needs_no_caption():
    maps = torch.ones(1, 61, 83, dtype=torch.long)
    plain, captioned = (
        draw(kind, pred_sem_seg=maps) for kind in ('SegLocalVisualizer', 'mmvisiongru.CaptionVisualizer')
    )
    assert (plain == captioned).all()
