"""The error that a user can mend, and the wording of its one line."""

import traceback
from collections.abc import Callable, Iterable
from contextlib import suppress
from difflib import get_close_matches
from importlib import metadata


class InputError(ValueError):
    """Input that cannot be used. The message is one line: what is wrong, where, what to do."""


def did_you_mean(name: str, known: Iterable[str], cutoff: float = 0.6, show: Callable = repr) -> str:
    """End a message with the known name, as ``show`` writes it, that is nearest to ``name``; or with nothing.

    Examples:
        >>> from mmvisiongru.errors import did_you_mean
        >>> did_you_mean('patence', ['patience', 'timeout'])
        "; did you mean 'patience'?"
    """
    near = get_close_matches(name, list(known), n=1, cutoff=cutoff)
    return f'; did you mean {show(near[0])}?' if near else ''


def some(items: Iterable[str], most: int = 4) -> str:
    """List the first of many items, and say how many more there are."""
    items = list(items)
    more = f' and {len(items) - most} more' if len(items) > most else ''
    return ', '.join(items[:most]) + more


def in_one_line(error: BaseException, width: int = 300) -> str:
    """Give an exception in one line, with the name of its type unless the text says enough by itself.

    Examples:
        >>> from mmvisiongru.errors import in_one_line
        >>> in_one_line(OSError('no such file'))
        'OSError: no such file'
    """
    if isinstance(error, ImportError) and error.name == 'mmcv._ext':
        return no_compiled_operators()
    # str() of a KeyError would put its text in quotes.
    text = str(error.args[0] if isinstance(error, KeyError) and error.args else error)
    text = ' '.join(text.split())
    if not text and error.__traceback__:
        # As in an assertion without one: the line of the source says what was expected.
        text = traceback.extract_tb(error.__traceback__)[-1].line or ''
    text = text if len(text) <= width else f'{text[: width - 4]} ...'
    # An assertion of another package speaks of its input, such as an image that cannot be read.
    plain = text and type(error) in (InputError, ValueError, AssertionError)
    return text if plain else f'{type(error).__name__}: {text}'


def no_compiled_operators() -> str:
    """What to do where mmcv is installed without its compiled operators."""
    for name in ('onedl-mmcv', 'mmcv-lite', 'mmcv'):
        with suppress(metadata.PackageNotFoundError):
            version, full = metadata.version(name), name.removesuffix('-lite')
            # The wheels of onedl-mmcv have no compiled operators.
            source = '--no-binary onedl-mmcv ' if full == 'onedl-mmcv' else ''
            return (
                f'this needs the compiled operators of mmcv (mmcv._ext), and {name} {version} has none; '
                f'install them with: pip uninstall -y {name} && pip install "setuptools<81" wheel ninja && '
                f'MMCV_WITH_OPS=1 pip install --no-build-isolation --no-cache-dir {source}{full}=={version}'
            )
    return 'this needs the compiled operators of mmcv (mmcv._ext); install an mmcv that has them'
