"""Pictures of a segmentor's predictions. Imported only where a config names what is in it."""

import cv2
import numpy as np
from mmseg.structures import SegDataSample
from mmseg.visualization import SegLocalVisualizer

from mmvisiongru.registry import VISUALIZERS

CAPTIONS = dict(gt_sem_seg='truth', pred_sem_seg='prediction')


@VISUALIZERS.register_module()
class CaptionVisualizer(SegLocalVisualizer):
    """mmseg's visualizer; where truth and prediction stand side by side, each says which it is.

    Args:
        args, kwargs: Those of :class:`mmseg.visualization.SegLocalVisualizer`.
    """

    def add_datasample(self, name, image, data_sample: SegDataSample | None = None, *args, **kwargs) -> None:
        """Draw a sample: see :meth:`mmseg.visualization.SegLocalVisualizer.add_datasample`."""
        found = {key: data_sample.get(key) for key in CAPTIONS} if data_sample is not None else {}
        self._captions = [(maps, CAPTIONS[key]) for key, maps in found.items() if maps is not None]
        super().add_datasample(name, image, data_sample, *args, **kwargs)

    def _draw_sem_seg(self, image, sem_seg, *args, **kwargs) -> np.ndarray:
        drawn = super()._draw_sem_seg(image, sem_seg, *args, **kwargs)
        if len(self._captions) == len(CAPTIONS):
            drawn = caption(drawn, next(text for maps, text in self._captions if maps is sem_seg))
        return drawn


def caption(image: np.ndarray, text: str) -> np.ndarray:
    """An image (H, W, 3) with a line of text on a dark strip at its lower edge."""
    image = np.ascontiguousarray(image)
    height, width = image.shape[:2]
    font, scale = cv2.FONT_HERSHEY_SIMPLEX, max(0.35, min(height, width) / 700)
    thickness = max(1, round(1.5 * scale))
    (text_width, text_height), below = cv2.getTextSize(text, font, scale, thickness)
    top = height - text_height - 2 * below
    image[max(0, top) :] //= 4
    place = ((width - text_width) // 2, height - below)
    return cv2.putText(image, text, place, font, scale, (255, 255, 255), thickness, cv2.LINE_AA)
