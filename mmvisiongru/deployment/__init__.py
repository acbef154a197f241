"""Models as ONNX files. The packages are an optional extra, so they are imported where they are used."""

from contextlib import suppress
from importlib import metadata

from packaging.requirements import Requirement

from mmvisiongru.errors import InputError

# Equal to requirements/deploy.txt, which is not installed.
NEEDED = ('torch>=2.7', 'onnx>=1.18', 'onnxscript>=0.5.4', 'onnxruntime>=1.22')


def check_stack() -> None:
    """Raise InputError if a package is missing or too old to export models, as torch is before 2.7."""
    wrong = []
    for need in map(Requirement, NEEDED):
        found = None
        with suppress(metadata.PackageNotFoundError):
            found = metadata.version(need.name)
        if not found or not need.specifier.contains(found, prereleases=True):
            wrong.append(f'{need} (found {found or "none"})')
    if wrong:
        raise InputError(f'ONNX export needs {", ".join(wrong)}; pip install -r requirements/deploy.txt')
