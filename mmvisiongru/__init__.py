"""VisionGRU (arXiv:2412.18178) for OpenMMLab.

Importing this checks the versions of the stack and registers nothing: OpenMMLab's registries import
``mmvisiongru.registry`` when a config names the scope ``mmvisiongru``.
"""

import sys
from contextlib import suppress
from importlib import import_module, metadata, util

from packaging.specifiers import SpecifierSet
from packaging.version import Version

from .version import __version__

# Imported when they are asked for: importing mmvisiongru stays light.
_LAZY = {
    'VisionGRU': 'mmvisiongru.models',
    'VRWKV': 'mmvisiongru.models',
    'VRWKVAdapter': 'mmvisiongru.models',
    'optimize_for_inference': 'mmvisiongru.inference',
    'get_model': 'mmvisiongru.apis',
}
__all__ = ['__version__', *_LAZY]

# Import name: versions that work, distributions that provide it (maintained and original family); of two that
# are there, the first is the easier to install again.
_STACK = {
    'torch': ('>=2.5', ('torch',)),
    'mmengine': ('>=0.10,<1', ('onedl-mmengine', 'mmengine', 'mmengine-lite')),
    'mmcv': ('>=2.0,<3', ('onedl-mmcv', 'mmcv-lite', 'mmcv', 'mmcv-full')),
    'mmseg': ('>=1.0,<2', ('onedl-mmsegmentation', 'mmsegmentation')),
    'mmpretrain': ('>=1.0,<2', ('onedl-mmpretrain', 'mmpretrain')),
}
_OPTIONAL = ('mmseg', 'mmpretrain')


def _check_stack() -> None:
    """Raise unless the installed stack can work; the message names what was found and is needed."""
    wrong, damaged, remove, install = [], [], [], []
    for module, (needed, distributions) in _STACK.items():
        found = {}
        for distribution in distributions:
            with suppress(metadata.PackageNotFoundError):
                found[distribution] = metadata.version(distribution)
        # Uninstalling one of two distributions removes the files of both; a folder may stay.
        has_files = module in sys.modules or getattr(util.find_spec(module), 'origin', None) is not None
        if len(found) > 1 or (found and not has_files):
            state = 'share its files' if has_files else 'installed, but without its files'
            damaged.append(f'{module} ({" and ".join(found)} {state})')
            remove += found
            kept, version = next(iter(found.items()))
            install.append(f'{kept}=={Version(version).public}')
        versions = list(found.values())
        # A source folder on PYTHONPATH has no metadata.
        if not found and has_files and module not in _OPTIONAL:
            versions = [import_module(module).__version__]
        # base_version: vendors' builds of a release are often tagged as its pre-release.
        fits = all(Version(Version(v).base_version) in SpecifierSet(needed) for v in versions)
        if not fits or (not versions and module not in _OPTIONAL):
            wrong.append(f'{module} {needed} (found {" and ".join(versions) or "none"})')
    # No ImportError: the registry would swallow it and say 'not in the registry' instead.
    if damaged:
        raise RuntimeError(
            f'mmvisiongru {__version__} found damaged packages: {", ".join(damaged)}; keep one distribution '
            f'of each: pip uninstall -y {" ".join(remove)} && pip install --no-deps {" ".join(install)}'
        )
    if wrong:
        raise RuntimeError(
            f'mmvisiongru {__version__} needs {", ".join(wrong)}; '
            'requirements/mminstall.txt in its repository lists a set that works'
        )


_check_stack()


def __getattr__(name: str):
    if name in _LAZY:
        return getattr(import_module(_LAZY[name]), name)
    raise AttributeError(f'module {__name__!r} has no attribute {name!r}')


def __dir__() -> list[str]:
    return sorted([*globals(), *_LAZY])
