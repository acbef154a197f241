"""Make two small data sets from the 1,797 real handwritten digits of scikit-learn.

    python tools/dataset_converters/digits.py --out data/digits

classification/  {train,val}/<digit>/*.png, 32 x 32, the layout of an ImageNet folder.
segmentation/    {images,annotations}/{training,validation}/*.png, 64 x 64 scenes in the layout of
                 ADE20K: digits of different size, angle, place, colour and contrast over clutter.
                 A label is 0 for background, which is a class of its own, and 1 + digit on a stroke.

The digits were collected on sheets that all ask for the same sequence of digits: the labels repeat
it 14 times. The first 11 sheets are for training, the last 3 for validation, so no image and no
sheet is in both. Every run writes the same bytes.
"""

import argparse
import sys
import tempfile
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw
from rich.progress import track
from sklearn.datasets import load_digits

# The 12th of the 14 sheets starts here: 1,415 digits before it, 382 from it on.
FIRST_VALIDATION_DIGIT = 1415
TILE_SIZE = 32
SCENE_SIZE = 64
NUM_SCENES = dict(training=2000, validation=200)


def split_digits():
    """Split name to a list of (index, 8 x 8 uint8 image of 0..255, digit)."""
    digits = load_digits()
    images = (digits.images * (255 / 16)).astype(np.uint8)
    samples = list(zip(range(len(images)), images, digits.target.tolist(), strict=True))
    return dict(training=samples[:FIRST_VALIDATION_DIGIT], validation=samples[FIRST_VALIDATION_DIGIT:])


def enlarge(image, size):
    """An 8 x 8 digit as a PIL image of `size` x `size`."""
    return Image.fromarray(image).resize((size, size), Image.Resampling.BICUBIC)


def random_colour(rng):
    """Red, green and blue of background or clutter, each in the darker half, so that digits stand out."""
    return rng.randint(0, 140, 3)


def lighter_colour(rng, colours):
    """A tinted colour that is lighter than the mean of `colours` by a random contrast."""
    tint = rng.randint(-30, 31, 3)
    return np.clip(colours.mean() + rng.randint(70, 160) + tint - tint.mean(), 0, 255).astype(np.uint8)


def draw_clutter(rng, scene, count):
    """Draw lines, arcs, ellipses and boxes of random place, size and colour onto `scene`."""
    draw = ImageDraw.Draw(scene)
    for _ in range(count):
        x, y = rng.randint(0, SCENE_SIZE, 2)
        width, height = rng.randint(6, 32, 2)
        box = [int(x), int(y), int(x + width), int(y + height)]
        colour = tuple(random_colour(rng).tolist())
        stroke = int(rng.randint(1, 5))
        kind = rng.randint(4)
        if kind == 0:
            draw.line(box if rng.randint(2) else [box[0], box[3], box[2], box[1]], colour, stroke)
        elif kind == 1:
            start = int(rng.randint(360))
            draw.arc(box, start, start + int(rng.randint(60, 270)), colour, stroke)
        elif kind == 2:
            draw.ellipse(box, fill=colour)
        else:
            draw.rectangle(box, outline=colour, width=stroke)


def place_digits(rng, count):
    """Up to `count` boxes (x, y, size) that overlap by no more than a few pixels."""
    boxes = []
    for _ in range(8 * count):
        size = int(rng.randint(20, 37))
        x, y = rng.randint(0, SCENE_SIZE - size + 1, 2).tolist()
        reach = [(size + s) / 2 - 4 for _, _, s in boxes]
        clear = all(
            abs(x + size / 2 - u - s / 2) >= r or abs(y + size / 2 - v - s / 2) >= r
            for (u, v, s), r in zip(boxes, reach, strict=True)
        )
        if clear:
            boxes.append((x, y, size))
        if len(boxes) == count:
            break
    return boxes


def make_scene(rng, digits):
    """One scene: an RGB image and its label map, both (64, 64) PIL images."""
    corners = np.stack([random_colour(rng) for _ in range(4)]).reshape(2, 2, 3).astype(np.uint8)
    scene = Image.fromarray(corners).resize((SCENE_SIZE,) * 2, Image.Resampling.BILINEAR)
    draw_clutter(rng, scene, rng.randint(2, 7))
    label = Image.new('L', scene.size, 0)

    for x, y, size in place_digits(rng, rng.randint(3, 6)):
        _, image, digit = digits[rng.randint(len(digits))]
        glyph = enlarge(image, size).rotate(rng.randint(-12, 13), Image.Resampling.BILINEAR)
        # Enlarging 8 x 8 pixels blurs them; a steeper ramp about the middle gives a clean stroke.
        alpha = glyph.point([min(max(2 * v - 128, 0), 255) for v in range(256)])
        below = np.asarray(scene)[y : y + size, x : x + size].reshape(-1, 3)
        colour = lighter_colour(rng, below)
        scene.paste(tuple(colour.tolist()), (x, y), alpha)
        label.paste(1 + digit, (x, y), alpha.point([0] * 128 + [255] * 128))

    noise = rng.randint(-rng.randint(1, 16), rng.randint(2, 17), (SCENE_SIZE, SCENE_SIZE, 3))
    return Image.fromarray(np.clip(np.asarray(scene) + noise, 0, 255).astype(np.uint8)), label


def progress(items, text):
    """The items, with a bar where there is a terminal."""
    return track(items, text, disable=not sys.stdout.isatty())


def write_classification(root):
    """Write every digit as an image below {train,val}/<digit>/."""
    for split, folder in (('training', 'train'), ('validation', 'val')):
        for index, image, digit in progress(split_digits()[split], f'{folder} digits'):
            path = root / folder / str(digit) / f'{index:04}.png'
            path.parent.mkdir(parents=True, exist_ok=True)
            enlarge(image, TILE_SIZE).save(path)


def write_segmentation(root, num_scenes=NUM_SCENES):
    """Write the scenes of each split and their label maps."""
    for seed, (split, digits) in enumerate(split_digits().items()):
        # RandomState's stream is frozen; that of numpy's newer generators may change with its version.
        rng = np.random.RandomState(seed)
        folders = [root / kind / split for kind in ('images', 'annotations')]
        for folder in folders:
            folder.mkdir(parents=True)
        for i in progress(range(num_scenes[split]), f'{split} scenes'):
            for folder, picture in zip(folders, make_scene(rng, digits), strict=True):
                picture.save(folder / f'{i:04}.png', compress_level=1)


def make(write, target):
    """Let `write` make the set in `target`, unless there is one."""
    if target.exists():
        print(f'{target}: already there, kept; to make it again, delete it or change --out')
        return
    target.parent.mkdir(parents=True, exist_ok=True)
    # In a folder beside it that is renamed when complete, so that an interrupted run leaves no half a set.
    with tempfile.TemporaryDirectory(dir=target.parent, prefix='.incomplete-') as temporary:
        made = Path(temporary, 'set')
        write(made)
        made.rename(target)
    print(f'{target}: written')


WRITERS = dict(classification=write_classification, segmentation=write_segmentation)


def main(argv=None):
    """Make the sets that were asked for."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument('--out', type=Path, default=Path('data/digits'), help='(default: %(default)s)')
    parser.add_argument('--task', choices=[*WRITERS, 'both'], default='both', help='(default: %(default)s)')
    args = parser.parse_args(argv)
    for task in WRITERS if args.task == 'both' else [args.task]:
        try:
            make(WRITERS[task], args.out / task)
        except OSError as error:
            sys.exit(f'digits.py: {error}')


if __name__ == '__main__':
    main()
