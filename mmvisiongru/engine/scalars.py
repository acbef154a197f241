"""Values for the log that stay on the device until somebody reads them."""

import numpy as np
import torch
from mmengine.logging import HistoryBuffer, MessageHub
from torch import Tensor

# Each takes 512 bytes of a GPU; far more than anybody logs at once.
MOST_WAITING = 1000


class LateBuffer(HistoryBuffer):
    """A history whose newest values may be tensors on a device, fetched together when it is read.

    To read a value from a GPU, the host waits for all work that was given to it. A copy, such as the one in a
    checkpoint, is a plain HistoryBuffer.
    """

    def __init__(self, log_history=(), count_history=(), max_length: int = 1000000):
        self.waiting: list[Tensor] = []
        super().__init__(log_history, count_history, max_length)

    def add(self, value: Tensor) -> None:
        """Append a value, of one element, that is read later."""
        self.waiting.append(value.detach().reshape(()))
        if len(self.waiting) >= MOST_WAITING:
            self._fetch()

    def _fetch(self) -> None:
        if self.waiting:
            values, self.waiting = torch.stack(self.waiting).tolist(), []
            self._values = np.append(self._values, values)[-self.max_length :]
            self._counts = np.append(self._counts, np.ones(len(values)))[-self.max_length :]

    @property
    def _log_history(self) -> np.ndarray:
        self._fetch()
        return self._values

    @_log_history.setter
    def _log_history(self, values: np.ndarray) -> None:
        self._values = values

    @property
    def _count_history(self) -> np.ndarray:
        self._fetch()
        return self._counts

    @_count_history.setter
    def _count_history(self, counts: np.ndarray) -> None:
        self._counts = counts

    def __reduce_ex__(self, protocol):
        return HistoryBuffer(*self.data, self.max_length).__reduce_ex__(protocol)


def update_late(hub: MessageHub, key: str, value) -> None:
    """``hub.update_scalar``, without waiting for the device if the value is a tensor."""
    if not torch.is_tensor(value) or value.numel() != 1:
        return hub.update_scalar(key, value)
    buffer = hub.log_scalars.get(key)
    if not isinstance(buffer, LateBuffer):
        known = (*buffer.data, buffer.max_length) if buffer else ()
        buffer = hub.log_scalars[key] = LateBuffer(*known)
        hub._set_resumed_keys(key, True)
    buffer.add(value)
