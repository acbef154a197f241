"""What makes the host wait for a GPU, counted where there is none."""

from collections import Counter
from contextlib import ExitStack

import torch
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

aten = torch.ops.aten
# The host needs the values, or the size of the result.
READ = {aten._local_scalar_dense, aten.is_nonzero, aten.equal, aten.nonzero, aten.masked_select}
READ |= {aten._unique2, aten.unique_dim, aten.unique_consecutive, aten.bincount}
# These read memory without an operator.
METHODS = {getattr(torch.Tensor, name) for name in ('tolist', 'numpy', 'cpu', '__array__')}


class _Operators(TorchDispatchMode):
    def __init__(self, found):
        super().__init__()
        self.found = found

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        indices = args[1] if func.overloadpacket in (aten.index, aten.index_put, aten.index_put_) else ()
        masked = any(i is not None and i.dtype in (torch.bool, torch.uint8) for i in indices)
        moved = func.overloadpacket == aten._to_copy and str(kwargs.get('device')) == 'cpu'
        if func.overloadpacket in READ or masked or (moved and not kwargs.get('non_blocking')):
            self.found[str(func)] += 1
        return func(*args, **kwargs)


class _Methods(TorchFunctionMode):
    def __init__(self, found):
        self.found = found

    def __torch_function__(self, func, types, args=(), kwargs=None):
        if func in METHODS:
            self.found[func.__name__] += 1
        return func(*args, **(kwargs or {}))


class Waits:
    """Counts ``.item()``, ``bool(tensor)``, copies to the host and selections by a mask: ``found``."""

    def __init__(self):
        self.found, self.modes = Counter(), ExitStack()

    def __enter__(self):
        self.modes.enter_context(_Operators(self.found))
        self.modes.enter_context(_Methods(self.found))
        return self

    def __exit__(self, *error):
        self.modes.close()


def count_in_iterations(runner) -> list[Counter]:
    """Train; the waits of each iteration, with its hooks and its step."""
    loop, waits = runner.train_loop, []
    run_iter = loop.run_iter

    def counted(*args):
        with Waits() as inside:
            run_iter(*args)
        waits.append(inside.found)

    loop.run_iter = counted
    runner.train()
    return waits
