"""Table of an operator's backends, the choice among them, and checks of arguments.

A backend is a module that exports ``unsupported(device, dtype)``, the reasons why it cannot run there, and
the functions of its operator's ``interface.py``. It is imported on first use, so that Triton and compiled
code cost nothing until then.
"""

from collections.abc import Callable, Sequence
from importlib import import_module
from types import ModuleType

import torch
from torch import Tensor


class Backends:
    """Backends by name, in the order in which 'auto' prefers them.

    Args:
        operator (str): Name of the operator, for messages.
        package (str): Package of the modules.
        modules (dict[str, str]): Module of each backend by name. The last but one runs everywhere, so that
            'auto' never takes the last, the reference.
        example (Callable): ``example(backend, device)`` returns outputs and gradients of a small call, with
            which ``first_use.py`` checks a Triton backend.
    """

    def __init__(self, operator: str, package: str, modules: dict[str, str], example: Callable):
        self.operator, self.package, self.modules, self.example = operator, package, modules, example
        # Cached: importlib would dominate a call.
        self._imported: dict[str, ModuleType] = {}

    def __iter__(self):
        return iter(self.modules)

    def module(self, name: str) -> ModuleType:
        """Import the module of a backend."""
        if name not in self._imported:
            self._imported[name] = import_module(f'.{self.modules[name]}', self.package)
        return self._imported[name]

    def runnable(self, device='cpu', dtype: torch.dtype = torch.float32) -> list[str]:
        """Names of the backends that can run on ``device``, in the order in which 'auto' prefers them."""
        device = torch.device(device)
        names = [name for name in self if not self.module(name).unsupported(device, dtype)]
        return sorted(names, key=lambda name: bool(self.reasons(name, device, dtype)))

    def reasons(self, name: str, device: torch.device, dtype: torch.dtype) -> list[str]:
        """Why 'auto' does not take a backend: it cannot run, or its first use gave wrong results."""
        reasons = self.module(name).unsupported(device, dtype)
        if name != 'triton' or reasons:
            return reasons
        from .first_use import problem

        found = problem(self.operator, self.module(name), self.example, device)
        return [found] if found else []

    def resolve(self, name: str, x: Tensor) -> ModuleType:
        """Choose a backend for x: 'auto' takes the first that can run; RuntimeError if a named one cannot."""
        if name == 'auto':
            return self.module(next(name for name in self if not self.reasons(name, x.device, x.dtype)))
        if reasons := self.module(name).unsupported(x.device, x.dtype):
            what = f"{self.operator} backend '{name}' cannot run on {x.device}, {x.dtype}"
            raise RuntimeError(f'{what}: {"; ".join(reasons)}')
        return self.module(name)

    def describe(self, name: str, device: torch.device, dtype: torch.dtype) -> str:
        """One line for a log: the backend that is used, and why those that 'auto' prefers are not."""
        taken, skipped = name, []
        if name == 'auto':
            taken = self.runnable(device, dtype)[0]
            for other in list(self)[: list(self).index(taken)]:
                reasons = self.reasons(other, device, dtype)
                # A backend for another device needs no explanation.
                if not any(reason.startswith('tensors are on') for reason in reasons):
                    skipped.append(f"; not '{other}': {'; '.join(reasons)}")
        return f"{self.operator} on {device}, {str(dtype)[6:]}: backend '{taken}'{''.join(skipped)}"

    def check(self, name: str) -> None:
        """Raise ValueError unless ``name`` is 'auto' or a backend."""
        check_choice(f'{self.operator} backend', name, ('auto', *self.modules))


def check_choice(name: str, value: object, known: Sequence) -> None:
    """Raise ValueError unless the argument ``name`` has one of the known values."""
    if value not in known:
        raise ValueError(f'{name} must be one of {tuple(known)}, got {value!r}')


def check_sequences(a: Tensor, b: Tensor, names: str) -> None:
    """Raise ValueError unless two arguments are sequences (B, L, D) of one shape, dtype and device."""
    if a.dim() != 3 or a.shape != b.shape:
        raise ValueError(f'{names} must both be (B, L, D), got {tuple(a.shape)} and {tuple(b.shape)}')
    if (a.dtype, a.device) != (b.dtype, b.device) or not a.is_floating_point():
        found = f'{a.dtype} on {a.device} and {b.dtype} on {b.device}'
        raise ValueError(f'{names} must be of one floating-point dtype and on one device, got {found}')


def runs_everywhere(device: torch.device, dtype: torch.dtype) -> list[str]:
    """``unsupported`` of a backend in plain torch."""
    return []


def accumulation_dtype(dtype: torch.dtype) -> torch.dtype:
    """The dtype of sums over tokens: float32, or float64 for float64 input."""
    return torch.promote_types(dtype, torch.float32)


def unit_stride(x: Tensor) -> Tensor:
    """x with contiguous channels, as backends need it; all other strides may be any."""
    return x if x.stride(-1) == 1 or x.size(-1) == 1 else x.contiguous()
