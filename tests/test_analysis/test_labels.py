"""Labels by strips are those of mmseg, which holds all logits at full size."""

import pytest
import torch
from mmengine.structures import PixelData
from mmseg.models import EncoderDecoder  # noqa: F401  (registers the models)
from mmseg.structures import SegDataSample
from torch.nn.functional import interpolate

from mmvisiongru.analysis import labels
from mmvisiongru.analysis.labels import label_by_strips, resized_argmax


@pytest.fixture(autouse=True)
def narrow_strips(monkeypatch):
    monkeypatch.setattr(labels, 'MOST_LOGITS', 7 * 40 * 3)


@pytest.mark.parametrize('align_corners', [False, True])
@pytest.mark.parametrize('size', [(50, 40), (5, 9), (9, 11), (1, 1), (23, 3), (4, 90)])
def test_argmax_of_resized_logits(size, align_corners):
    torch.manual_seed(0)
    logits = torch.randn(7, 9, 11)
    resized = interpolate(logits[None], size, mode='bilinear', align_corners=align_corners)[0]
    got = resized_argmax(logits, size, align_corners)
    # Where two classes are equal to the last digits, either is right.
    top = resized.topk(2, 0).values
    clear = top[0] - top[1] > 1e-5
    assert clear.float().mean() > 0.9
    assert torch.equal(got[0][clear], resized.argmax(0)[clear])


class Segmentor:
    """What label_by_strips needs of mmseg's."""

    align_corners = False

    def postprocess_result(self, seg_logits, data_samples=None):
        return 'original'


def test_padding_is_cut_and_logits_are_not_kept():
    torch.manual_seed(0)
    segmentor, logits = Segmentor(), torch.randn(2, 5, 8, 10)
    label_by_strips(segmentor)
    metas = [dict(ori_shape=(20, 30), padding_size=[0, 2, 0, 1]), dict(ori_shape=(8, 10))]
    samples = [SegDataSample(metainfo=meta) for meta in metas]
    samples[0].gt_sem_seg = PixelData(data=torch.zeros(1, 20, 30))
    first, second = segmentor.postprocess_result(logits, samples)
    cut = interpolate(logits[:1, :, :7, :8], (20, 30), mode='bilinear')[0].argmax(0)
    assert (first.pred_sem_seg.data[0] == cut).float().mean() > 0.99
    assert torch.equal(second.pred_sem_seg.data[0], logits[1].argmax(0))
    assert 'seg_logits' not in first


def test_what_is_not_an_argmax_stays_with_mmseg():
    segmentor = Segmentor()
    label_by_strips(segmentor)
    flipped = [SegDataSample(metainfo=dict(ori_shape=(2, 2), flip=True))]
    assert segmentor.postprocess_result(torch.randn(1, 3, 2, 2), flipped) == 'original'
    assert segmentor.postprocess_result(torch.randn(1, 1, 2, 2), [SegDataSample()]) == 'original'
    assert segmentor.postprocess_result(torch.randn(1, 3, 2, 2)) == 'original'
