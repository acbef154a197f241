"""Pictures of what a model predicts: classes over an image, captions above it, fonts that have the letters.

Needs numpy and pillow; tools/deployment/demo_onnx.py draws with it where torch is not.
"""

import string
import sys
from collections.abc import Iterable, Iterator
from functools import cache

import numpy as np
from PIL import Image, ImageDraw, ImageFont

# Pixels of the shorter side to which small images are enlarged, so that they and the text can be read, and
# of the longer side up to which they are.
SHORT_SIDE, LONG_SIDE = 256, 2048
# Captions and percentages are made of these.
ASCII = frozenset(string.ascii_letters + string.digits + string.punctuation)


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
    painted = Image.blend(Image.fromarray(image), Image.fromarray(colours[labels]), opacity)
    draw, size, taken = ImageDraw.Draw(painted), np.array(painted.size), []
    file = find_font(map(str, classes))
    usual = open_font(file, size.min() / 20)
    # The name of a class that a coarse grid does not meet would hide more than it says.
    step = max(1, max(labels.shape) // 128)
    grid = labels[::step, ::step]
    found, sizes = np.unique(grid[grid < len(palette)], return_counts=True)
    # Small ones first: large ones have more places left.
    for label in found[sizes.argsort(kind='stable')]:
        name = str(classes[label])
        width = usual.getlength(name)
        fits = width <= 0.95 * size[0]
        font = usual if fits else open_font(file, 0.95 * usual.size * size[0] / width)
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


def side_by_side(panels: dict[str, np.ndarray], classes: Iterable[str] = ()) -> np.ndarray:
    """Images of one height in a row, each below its text, which makes the panel wider if it is longer.

    The font is one for all ``classes``, those that the texts do not name too.
    """
    text_size = max(14, min(next(iter(panels.values())).shape[:2]) / 25)
    font = open_font(find_font([*panels, *map(str, classes)]), text_size)
    measure = ImageDraw.Draw(Image.new('RGB', (1, 1))).multiline_textbbox
    boxes = {text: measure((0, 0), text, font) for text in panels}
    gap = round(text_size / 3)
    top = 2 * gap + max(round(box[3]) for box in boxes.values())
    widths = [max(image.shape[1], round(boxes[text][2]) + 2 * gap) for text, image in panels.items()]
    height = top + next(iter(panels.values())).shape[0]
    picture = Image.new('RGB', (sum(widths) + gap * (len(panels) - 1), height), 'gainsboro')
    draw, left = ImageDraw.Draw(picture), 0
    for (text, image), width in zip(panels.items(), widths, strict=True):
        draw.multiline_text((left + gap, gap), text, 'black', font)
        picture.paste(Image.fromarray(image), (left, top))
        left += width + gap
    return np.asarray(picture)


def open_font(file: str | None, size: float) -> ImageFont.FreeTypeFont:
    """A font of :func:`find_font`."""
    size = max(1, round(size))
    return ImageFont.truetype(file, size) if file else ImageFont.load_default(size)


def find_font(texts: Iterable[str]) -> str | None:
    """The file of DejaVu Sans, or of an installed font if that lacks letters; None is pillow's own font.

    Letters that no font has are named on stderr, once.
    """
    letters = frozenset(''.join(texts))
    return _find_font(ASCII.union(letter for letter in letters if not letter.isspace()))


@cache
def _find_font(letters: frozenset[str]) -> str | None:
    lacking = {}
    for file in _font_files():
        try:
            lacking[file] = _lacking(open_font(file, 20), letters)
        # Not there, damaged, or of bitmaps alone.
        except OSError:
            continue
        if not lacking[file]:
            return file
    best = min(lacking, key=lambda file: len(lacking[file]))
    letters = ''.join(lacking[best][:10])
    message = f'note: no installed font has {letters}; install one, such as Noto Sans CJK, to see them'
    print(message, file=sys.stderr)
    return best


def _font_files() -> Iterator[str | None]:
    try:
        from matplotlib import font_manager

        yield font_manager.findfont('DejaVu Sans')
        yield from sorted(font_manager.findSystemFonts())
    except ImportError:
        # pillow looks for them where the system has its fonts.
        yield from ('DejaVuSans.ttf', 'NotoSansCJK-Regular.ttc', 'Arial Unicode.ttf', 'arial.ttf')
    yield None


def _lacking(font: ImageFont.FreeTypeFont, letters: frozenset[str]) -> list[str]:
    """Letters that look as one that no font has."""
    none, *glyphs = ((mask.size, bytes(mask)) for mask in map(font.getmask, ('\uffff', *sorted(letters))))
    return [letter for letter, glyph in zip(sorted(letters), glyphs, strict=True) if glyph == none]
