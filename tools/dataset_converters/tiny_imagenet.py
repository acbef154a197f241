"""Make the subset of Tiny-ImageNet that the trainings in docs/results.md use, from the official folder.

    python tools/dataset_converters/tiny_imagenet.py tiny-imagenet-200 --out data/tiny-imagenet

OUT/{train,val}/WNID/*.JPEG: of each class the first 200 training images by number, without four copies of
other images, and the half of the validation images that tiny_imagenet_val.txt lists by number. Files are
linked, not copied.
"""

import argparse
from pathlib import Path

from mmvisiongru.errors import InputError
from mmvisiongru.launch.options import one_line_errors

TRAIN_IMAGES = 200
COPIES = {'n01945685_164', 'n01984695_120', 'n07749582_144', 'n07753592_63'}
VALIDATION = Path(__file__).with_name('tiny_imagenet_val.txt')


def chosen(source: Path) -> dict[Path, Path]:
    """Path in the data set to the official file, of every image that is taken."""
    links = {}
    for folder in sorted(source.glob('train/*')):
        names = (f'{folder.name}_{number}' for number in range(TRAIN_IMAGES))
        for name in (name for name in names if name not in COPIES):
            links[Path('train', folder.name, f'{name}.JPEG')] = folder / 'images' / f'{name}.JPEG'
    wanted = {f'val_{number}.JPEG' for number in VALIDATION.read_text(encoding='utf-8').split()}
    annotations = source / 'val/val_annotations.txt'
    lines = annotations.read_text(encoding='utf-8').splitlines() if annotations.exists() else []
    for name, wnid, *_ in (line.split('\t') for line in lines):
        if name in wanted:
            links[Path('val', wnid, name)] = source / 'val/images' / name
    return links


def convert(source: Path, out: Path) -> None:
    """Link the chosen images of ``source`` into the new folder ``out``."""
    if out.exists():
        raise InputError(f'{out} exists; choose another folder with --out, or remove it')
    links = chosen(source)
    missing = [path for path in links.values() if not path.exists()]
    if missing or {path.parts[0] for path in links} != {'train', 'val'}:
        lacks = missing[0] if missing else 'train/WNID/images or val/val_annotations.txt'
        raise InputError(f'{source} is not the official tiny-imagenet-200: {lacks} is missing')
    for path, image in links.items():
        (out / path).parent.mkdir(parents=True, exist_ok=True)
        (out / path).symlink_to(image.resolve())
    print(f'{len(links)} images in {out}')


def main(argv=None):
    """Run the script."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument('source', type=Path, help='folder tiny-imagenet-200 of the official archive')
    parser.add_argument('--out', type=Path, default=Path('data/tiny-imagenet'))
    args = parser.parse_args(argv)
    with one_line_errors():
        convert(args.source, args.out)


if __name__ == '__main__':
    main()
