"""Pictures of labelled images, with truth and prediction side by side and the text beside the images."""

import cv2
import numpy as np
from mmengine.structures import BaseDataElement
from torch import Tensor

from tools.deployment.painting import enlarge, paint, side_by_side

# Score from which a detection is drawn and named.
SCORE = 0.3


def draw_sample(
    image: np.ndarray, sample: BaseDataElement, classes=None, palette=None, opacity: float = 0.5
) -> np.ndarray:
    """Draw the labels of a sample, true and predicted, as far as it has them.

    Args:
        image (np.ndarray): (H, W, 3), RGB, uint8.
        sample (BaseDataElement): Of mmseg, mmpretrain or mmdet.
        classes (Sequence[str], optional): Names of the classes. Default: their numbers.
        palette (Sequence, optional): A colour (R, G, B) for each class of a segmentor.
        opacity (float): Opacity of the classes over the image.

    Returns:
        np.ndarray: RGB, uint8. A segmentor's image, truth and prediction are side by side, and so are truth
        and prediction of a detector; a classifier's classes are above the image.
    """
    if 'gt_instances' in sample or 'pred_instances' in sample:
        return draw_instances(image, sample, classes, palette)
    painted, lines = {}, []
    for name, key in (('truth', 'gt'), ('prediction', 'pred')):
        if (found := sample.get(f'{key}_sem_seg')) is not None:
            labels = found.data.squeeze(0).cpu().numpy().astype(int)
            image = image if image.shape[:2] == labels.shape else cv2.resize(image, labels.shape[::-1])
            painted[name] = paint(image, labels, classes, palette, opacity)
        if (found := sample.get(f'{key}_label')) is not None:
            scores = sample.get('pred_score') if key == 'pred' else None
            shares = {i: '' if scores is None else f' {float(scores[i]):.1%}' for i in found.tolist()}
            names = (f'{classes[i] if classes else i}{share}' for i, share in shares.items())
            lines.append(f'{name}: {", ".join(names)}')
    return side_by_side({'image' if painted else '\n'.join(lines): enlarge(image), **painted}, classes or ())


def draw_instances(image: np.ndarray, sample: BaseDataElement, classes, palette=None) -> np.ndarray:
    """Boxes and masks of a sample of mmdet, true and, from a score of :data:`SCORE` on, predicted."""
    from mmdet.visualization import DetLocalVisualizer

    # The size that they are for; only training transforms labels.
    masks = sample.gt_instances.get('masks') if 'gt_instances' in sample else None
    size = (masks.height, masks.width) if masks is not None else sample.get('ori_shape', image.shape)[:2]
    if 'pred_instances' in sample or masks is not None or 'flip' not in sample:
        image = image if image.shape[:2] == size else cv2.resize(image, size[::-1])
    visualizer = DetLocalVisualizer()
    visualizer.dataset_meta = dict(classes=classes, palette=palette or 'random')
    panels = {}
    for name, key in (('truth', 'gt'), ('prediction', 'pred')):
        found = sample.get(f'{key}_instances', ())
        # An image of a user has an empty truth without boxes.
        if 'bboxes' in found:
            panels[name] = image
            # The drawing takes no boxes of mmdet's class.
            found.bboxes = getattr(found.bboxes, 'tensor', found.bboxes)
            # Without anything to draw it is the image.
            if len(found if key == 'gt' else found[found.scores > SCORE]):
                options = dict(draw_gt=key == 'gt', draw_pred=key == 'pred', pred_score_thr=SCORE)
                visualizer.add_datasample(name, image, sample, **options)
                panels[name] = visualizer.get_image()
    return side_by_side(panels)


def as_rgb(image: Tensor) -> np.ndarray:
    """A loaded image, BGR or grey (C, H, W) with values of 0..255, as an array (H, W, 3) of RGB."""
    image = image[:3].flip(0) if len(image) > 2 else image[:1].expand(3, -1, -1)
    return np.ascontiguousarray(image.permute(1, 2, 0).cpu().numpy().clip(0, 255).astype(np.uint8))
