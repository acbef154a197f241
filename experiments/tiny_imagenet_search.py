"""Make the data for the choice of learning rates: training images of 50 classes, 10 % of each held out.

    python experiments/tiny_imagenet_search.py data/tiny-imagenet data/tiny-imagenet_search

No validation image of Tiny-ImageNet is looked at. Files are linked, not copied.
"""

import argparse
import random
from pathlib import Path

from mmvisiongru.errors import InputError
from mmvisiongru.launch.options import one_line_errors

CLASSES, HELD_OUT, SEED = 50, 0.1, 10


def split(source: Path, target: Path) -> None:
    """Link the images of the chosen classes into ``target``/train and ``target``/val."""
    if target.exists():
        raise InputError(f'{target} exists; choose another folder, or remove it')
    classes = sorted(path.name for path in source.glob('train/*'))
    if len(classes) < CLASSES:
        raise InputError(f'{source}/train has {len(classes)} folders of classes, fewer than {CLASSES}')
    generator = random.Random(SEED)
    for name in sorted(generator.sample(classes, CLASSES)):
        images = sorted((source / 'train' / name).iterdir())
        held_out = set(generator.sample(images, round(HELD_OUT * len(images))))
        for image in images:
            folder = target / ('val' if image in held_out else 'train') / name
            folder.mkdir(parents=True, exist_ok=True)
            (folder / image.name).symlink_to(image.resolve())


def main(argv=None):
    """Run the script."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument('source', type=Path)
    parser.add_argument('target', type=Path)
    args = parser.parse_args(argv)
    with one_line_errors():
        split(args.source, args.target)


if __name__ == '__main__':
    main()
