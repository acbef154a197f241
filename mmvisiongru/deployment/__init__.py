"""Models as ONNX files. The packages are an optional extra, so they are imported where they are used."""

from importlib import metadata

from packaging.requirements import Requirement

from mmvisiongru.errors import InputError

# Equal to requirements/deploy.txt, which is not installed.
NEEDED = ('torch>=2.7', 'onnx>=1.18', 'onnxscript>=0.5.4', 'onnxruntime>=1.22')


def check_stack() -> None:
    """Check that models can be exported here.

    Raises:
        InputError: A package is missing or too old. Before 2.7 torch cannot export images of any size.
    """
    wrong = [
        f'{need} (found {found or "none"})' for need in NEEDED if not _fits(need, found := _version(need))
    ]
    if wrong:
        raise InputError(f'ONNX export needs {", ".join(wrong)}; pip install -r requirements/deploy.txt')


def _version(need: str) -> str | None:
    try:
        return metadata.version(Requirement(need).name)
    except metadata.PackageNotFoundError:
        return None


def _fits(need: str, version: str | None) -> bool:
    return version is not None and Requirement(need).specifier.contains(version, prereleases=True)
