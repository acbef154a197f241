"""Pictures of labelled images, with truth and prediction side by side and the text beside the images."""

from functools import cache
from logging import WARNING

import cv2
import numpy as np
from mmengine.logging import print_log
from mmengine.structures import BaseDataElement
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

# Pixels of the shorter side to which small images are enlarged, so that they and the text can be read, and
# of the longer side up to which they are.
SHORT_SIDE, LONG_SIDE = 256, 2048

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
    return side_by_side({'image' if painted else '\n'.join(lines): enlarge(image), **painted})


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
        found = sample.get(f'{key}_instances')
        if found is not None:
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


def enlarge(image: np.ndarray) -> np.ndarray:
    """Repeat the pixels of a small image or map (H, W, ...)."""
    short, long = sorted(image.shape[:2])
    factor = max(1, min(SHORT_SIDE // short, LONG_SIDE // long))
    return image.repeat(factor, 0).repeat(factor, 1)


def palette_of(classes, palette=None):
    """The palette of classes, or the colours that mmseg gives classes that have none."""
    if len(palette or ()) == len(classes):
        return palette
    return np.random.RandomState(42).randint(0, 255, (len(classes), 3)).tolist()


def paint(image: np.ndarray, labels: np.ndarray, classes, palette, opacity: float = 0.5) -> np.ndarray:
    """Classes (H, W) in their colours over an image (H, W, 3), enlarged, each with its name in it.

    What is no class, such as ignored pixels, is black.
    """
    image, labels = enlarge(image), enlarge(labels)
    classes = classes or [str(i) for i in range(int(labels.max()) + 1)]
    palette = palette_of(classes, palette)
    colours = np.zeros((len(palette) + 1, 3), np.uint8)
    colours[:-1] = palette
    labels = np.where((labels >= 0) & (labels < len(palette)), labels, len(palette))
    painted = Image.fromarray(cv2.addWeighted(image, 1 - opacity, colours[labels], opacity, 0))
    draw, size, taken = ImageDraw.Draw(painted), np.array(painted.size), []
    # The name of a class that a coarse grid does not meet would hide more than it says.
    step = max(1, max(labels.shape) // 128)
    grid = labels[::step, ::step]
    found, sizes = np.unique(grid[grid < len(palette)], return_counts=True)
    # Small ones first: large ones have more places left.
    for label in found[sizes.argsort(kind='stable')]:
        name = str(classes[label])
        font = font_for(name, size.min() / 20)
        if (width := font.getlength(name)) > 0.95 * size[0]:
            font = font_for(name, 0.95 * font.size * size[0] / width)
        half = np.array([font.getlength(name) / 2, 0.6 * font.size])
        points = np.argwhere(grid == label)[:, ::-1]
        # Near the middle of the class, inside the image, and over no other name.
        order = np.abs(points - np.median(points, 0)).sum(1).argsort(kind='stable')
        places = np.clip(step * points[order], half, np.maximum(size - half, half))
        clear = [((abs(places - place) >= half + other).any(1)) for place, other in taken]
        place = places[np.all(clear, 0).argmax() if clear else 0].round()
        taken.append((place, half))
        outline = dict(stroke_width=max(1, round(font.size / 9)), stroke_fill='black')
        draw.text(tuple(place), name, 'white', font, 'mm', **outline)
    return np.asarray(painted)


def side_by_side(panels: dict[str, np.ndarray]) -> np.ndarray:
    """Images of one height in a row, each below its text, which makes the panel wider if it is longer."""
    text_size = max(14, min(next(iter(panels.values())).shape[:2]) / 25)
    fonts = {text: font_for(text, text_size) for text in panels}
    measure = ImageDraw.Draw(Image.new('RGB', (1, 1))).multiline_textbbox
    boxes = {text: measure((0, 0), text, font) for text, font in fonts.items()}
    gap = round(text_size / 3)
    top = 2 * gap + max(round(box[3]) for box in boxes.values())
    widths = [max(image.shape[1], round(boxes[text][2]) + 2 * gap) for text, image in panels.items()]
    height = top + next(iter(panels.values())).shape[0]
    picture = Image.new('RGB', (sum(widths) + gap * (len(panels) - 1), height), 'gainsboro')
    draw, left = ImageDraw.Draw(picture), 0
    for (text, image), width in zip(panels.items(), widths, strict=True):
        draw.multiline_text((left + gap, gap), text, 'black', fonts[text])
        picture.paste(Image.fromarray(image), (left, top))
        left += width + gap
    return np.asarray(picture)


@cache
def font_for(text: str, size: float) -> ImageFont.FreeTypeFont:
    """matplotlib's DejaVu Sans, or an installed font if that lacks characters of the text."""
    return ImageFont.truetype(_font_file(frozenset(text) - set(' \n')), max(1, round(size)))


@cache
def _font_file(characters: frozenset[str]) -> str:
    from matplotlib import font_manager

    wanted, default = set(map(ord, characters)), font_manager.findfont('DejaVu Sans')
    lacking = wanted - font_manager.get_font(default).get_charmap().keys()
    for path in sorted(font_manager.findSystemFonts()) if lacking else ():
        try:
            if wanted <= font_manager.get_font(path).get_charmap().keys():
                return path
        # Fonts of bitmaps alone, or damaged.
        except (OSError, RuntimeError):
            continue
    if lacking:
        letters = ''.join(map(chr, sorted(lacking)[:10]))
        message = f'no installed font has {letters}; install one, such as Noto Sans CJK, to see them'
        print_log(message, logger='current', level=WARNING)
    return default
