"""What the libraries say on every start that says nothing about this run."""

import io
import warnings
from contextlib import redirect_stdout, suppress
from importlib import import_module

# Beginnings of warnings that hold in every run; what they are about is as intended.
KNOWN_WARNINGS = (
    # Only needed by models that use a compiled op, which then fail with its name.
    'Fail to import ``MultiScaleDeformableAttention``',
    # A default of a loss of mmseg, which all its recipes were trained with.
    'Default ``avg_non_ignore`` is False',
    # A hook that test.py --show-dir turns on.
    'The draw is False, it means that the hook for visualization',
    # On a CPU.
    "'pin_memory' argument is set as true but no accelerator is found",
)


def import_quietly(scope: str | None) -> None:
    """Import the library of a scope, which prints and warns about what it did not find."""
    for message in KNOWN_WARNINGS:
        warnings.filterwarnings('ignore', message=message)
    with redirect_stdout(io.StringIO()):
        for part in ('datasets', 'models') if scope else ():
            # Not every scope has both; what is wrong with one shows where it is used.
            with suppress(ImportError):
                import_module(f'{scope}.{part}')
