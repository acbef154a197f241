"""Split the training images of a data set into two halves, so that a choice sees no validation image.

    python experiments/tried/halves.py data/caltech101 data/caltech101_halves

Each run of names with the same start (a class, or a sequence of CamVid) is cut in the middle: of a sequence,
the second half shows other streets than the first. The halves are links to the files.
"""

import argparse
from itertools import groupby
from pathlib import Path

from mmvisiongru.errors import InputError
from mmvisiongru.launch.options import one_line_errors

# Where the two halves go, in the layouts of an image folder for classification and of ADE20K.
FOLDERS = {
    'train': 'val',
    'images/training': 'images/validation',
    'annotations/training': 'annotations/validation',
}


def halve(source: Path, out: Path) -> None:
    """Link the first half of each sequence of training files to training, the rest to validation."""
    if out.exists():
        raise InputError(f'{out} exists; choose another folder, or remove it')
    if not any((source / folder).is_dir() for folder in FOLDERS):
        raise InputError(f'{source} has none of the folders {", ".join(FOLDERS)}')
    for training, validation in FOLDERS.items():
        files = sorted(path for path in (source / training).rglob('*') if path.is_file())
        for _, run in groupby(files, lambda path: (path.parent, path.stem.split('_')[0])):
            run = list(run)
            for i, path in enumerate(run):
                folder = training if 2 * i < len(run) else validation
                link = out / folder / path.relative_to(source / training)
                link.parent.mkdir(parents=True, exist_ok=True)
                link.symlink_to(path.resolve())


def main() -> None:
    """Halve the data set."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument('source', type=Path)
    parser.add_argument('out', type=Path)
    args = parser.parse_args()
    halve(args.source, args.out)


if __name__ == '__main__':
    with one_line_errors():
        main()
