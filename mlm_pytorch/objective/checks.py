"""Look at values on a device without making it wait.

On a CPU a value can be looked at whenever it is computed. On CUDA, looking means waiting for the device: that is done
at the first call only; later values are copied to the host in the background and looked at during the next call.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor


class LateCheck:
    """Checks one tensor per call; raises at once on CPU and at the first call, one call late on CUDA after that.

    Args:
        explain: turns the tensor's values, as a flat list, into an error message; None where all is well.
    """

    def __init__(self, explain: Callable[[list[int]], str | None]):
        self.explain = explain
        self._seen_any = False
        self._pending: tuple[Tensor, Any] | None = None

    def __call__(self, values: Tensor) -> None:
        """Take the values of this call. Raises ValueError for them, or for those of the call before."""
        if torch.compiler.is_compiling():
            return
        self.flush()
        if values.device.type != "cuda" or not self._seen_any:
            self._seen_any = True
            self._raise(values)
        elif not torch.cuda.is_current_stream_capturing():
            on_host = torch.empty(values.shape, dtype=values.dtype, pin_memory=True)
            on_host.copy_(values, non_blocking=True)
            event = torch.cuda.Event()
            event.record()
            self._pending = (on_host, event)

    def flush(self) -> None:
        """Look at what is still pending. Raises ValueError for it."""
        if self._pending is not None:
            (values, event), self._pending = self._pending, None
            event.synchronize()  # a call ago: long done
            self._raise(values, " (seen one call late)")

    def _raise(self, values: Tensor, suffix: str = "") -> None:
        message = self.explain(values.flatten().tolist())
        if message is not None:
            raise ValueError(message + suffix)

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_pending": None}  # an event belongs to its process
