"""The error that a user can mend, and the wording of its one line."""

from collections.abc import Callable, Iterable
from difflib import get_close_matches


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


def in_one_line(error: BaseException, width: int = 300) -> str:
    """Give an exception in one line, with the name of its type unless the text says enough by itself.

    Examples:
        >>> from mmvisiongru.errors import in_one_line
        >>> in_one_line(OSError('no such file'))
        'OSError: no such file'
    """
    # A KeyError quotes its text.
    text = error.args[0] if isinstance(error, KeyError) and error.args else error
    text = ' '.join(str(text).split())
    text = text if len(text) <= width else f'{text[: width - 4]} ...'
    return text if type(error) in (InputError, ValueError) else f'{type(error).__name__}: {text}'
