"""VisionGRU (arXiv:2412.18178) for OpenMMLab.

Importing this checks the versions of the stack and registers nothing: OpenMMLab's registries import
``mmvisiongru.registry`` when a config names the scope ``mmvisiongru``.
"""

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

# Import name: versions that work, distributions that provide it (maintained and original family).
_STACK = {
    'torch': ('>=2.5', ('torch',)),
    'mmengine': ('>=0.10,<1', ('onedl-mmengine', 'mmengine', 'mmengine-lite')),
    'mmcv': ('>=2.0,<3', ('onedl-mmcv', 'mmcv', 'mmcv-lite', 'mmcv-full')),
    'mmseg': ('>=1.0,<2', ('onedl-mmsegmentation', 'mmsegmentation')),
    'mmpretrain': ('>=1.0,<2', ('onedl-mmpretrain', 'mmpretrain')),
}
_OPTIONAL = ('mmseg', 'mmpretrain')


def _check_stack() -> None:
    """Raise unless the installed stack can work; the message names what was found and is needed."""
    wrong = []
    for module, (needed, distributions) in _STACK.items():
        found = []
        for distribution in distributions:
            with suppress(metadata.PackageNotFoundError):
                found.append(metadata.version(distribution))
        # A source folder on PYTHONPATH has no metadata.
        if not found and module not in _OPTIONAL and util.find_spec(module):
            found = [import_module(module).__version__]
        # base_version: vendors' builds of a release are often tagged as its pre-release.
        fits = all(Version(Version(v).base_version) in SpecifierSet(needed) for v in found)
        if not fits or (not found and module not in _OPTIONAL):
            wrong.append(f'{module} {needed} (found {" and ".join(found) or "none"})')
    if wrong:
        # No ImportError: the registry would swallow it and say 'not in the registry' instead.
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
