"""Triton's interpreter, beside a NumPy that its version does not know."""


def mend() -> None:
    """Let a kernel count up to a number that it is given.

    The interpreter holds one as an array of one element. Up to version 3.6 it leaves the rest to int(), which
    NumPy refuses since 2.4.
    """
    from triton.runtime import interpreter

    patch = interpreter._patch_lang_tensor

    def patch_and_mend(tensor, *scope):
        patch(tensor, *scope)
        tensor.__index__ = lambda self: self.handle.data.item()

    interpreter._patch_lang_tensor = patch_and_mend
