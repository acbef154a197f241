"""The error that a user can mend."""


class InputError(ValueError):
    """What the user gave cannot be used. The message is one line: what is wrong, where, what to do."""
