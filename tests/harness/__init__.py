"""What several tests share. A test imports nothing else from tests/, and nothing of it by a bare name."""

from functools import cache
from importlib import metadata, util
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]


@cache
def lacks_mmseg() -> bool:
    """Whether mmseg cannot be imported: the original one needs the compiled operators of mmcv."""
    original = 'mmsegmentation' in metadata.packages_distributions().get('mmseg', ())
    return original and util.find_spec('mmcv._ext') is None


def need_mmseg() -> None:
    """Skip a test of a segmentor where there can be none."""
    if lacks_mmseg():
        pytest.skip('mmsegmentation 1.2 needs mmcv with compiled operators')


def versions(found: dict[str, str]):
    """In the place of metadata.version(), as if only these distributions were installed."""

    def version(name):
        if name not in found:
            raise metadata.PackageNotFoundError(name)
        return found[name]

    return version
