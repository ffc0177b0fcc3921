"""A few numbers on their way from the device to the host, without a wait."""

import numpy as np
import torch
from torch import Tensor


class HostCopy:
    """Holds the newest numbers that were sent. On a GPU they land in pinned memory while the host goes on.

    `read` waits until they have landed. That costs nothing where the device has been given other work since:
    then the host waits for a device that is busy, and never the other way round.
    """

    def __init__(self) -> None:
        self._buffer: Tensor | None = None
        self._landed: torch.cuda.Event | None = None

    def send(self, values: Tensor) -> None:
        """Starts to copy `values`, a vector of float32."""
        if self._buffer is None or self._buffer.shape != values.shape:
            self._buffer = torch.zeros(values.shape, pin_memory=self._goes_on(values))
        self._buffer.copy_(values, non_blocking=True)
        if self._goes_on(values):
            self._landed = self._landed or torch.cuda.Event()
            self._landed.record()

    def read(self) -> np.ndarray:
        """The numbers that were sent last."""
        assert self._buffer is not None
        if self._landed is not None:
            self._landed.synchronize()
        return self._buffer.numpy()  # shares memory: no operation on a device

    @staticmethod
    def _goes_on(values: Tensor) -> bool:
        """Whether the host goes on while `values` are still being computed and copied."""
        return values.is_cuda
