"""Checkpoints written behind the training's back: copied at once, written by a thread while the steps go on."""

import time
from collections.abc import Callable, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from mlm_pytorch.training.checkpoint import partial_folder, save_checkpoint
from mlm_pytorch.training.parallel import OPTIMIZER_FOLDER, Parallel

# Writes weights, by their names in the model's `state_dict`, in Hugging Face format into a folder. Called from a thread
# of its own, with copies: the model has gone on meanwhile. Raises ValueError where it finds fault with what it wrote.
Export = Callable[[Mapping[str, Tensor], Path], None]


def snapshot(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Copies in the host's memory, which later steps do not change; what shared its memory still does.

    From CUDA the copies are under way when this returns: wait for the stream before reading them.

    Example:
        >>> weight = torch.zeros(2)
        >>> copy = snapshot({"a": weight, "b": weight})
        >>> _ = weight.add_(1)
        >>> copy["a"].tolist(), copy["a"] is copy["b"]
        ([0.0, 0.0], True)
    """
    copies: dict[Any, Tensor] = {}
    taken = {}
    for name, tensor in tensors.items():
        key = (
            (tensor.device, tensor.data_ptr(), tensor.shape, tensor.stride(), tensor.dtype) if tensor.numel() else name
        )
        if key not in copies:
            copies[key] = tensor.detach().to("cpu", non_blocking=True, copy=True)
        taken[name] = copies[key]
    return taken


class CheckpointWriter:
    """Writes a run's checkpoints in a thread, one after the other.

    `save` copies and returns; the files are written meanwhile. What goes wrong there is raised by the next call of
    `save`, `check` or `wait`.

    Args:
        run: the run's folder.
        export: see `Export`.
        keep, keep_every: as in `save_checkpoint`.

    Attributes:
        seconds: how long the last one took, from the call to the last file; 0 before.
    """

    def __init__(self, run: Path, *, export: Export, keep: int, keep_every: int = 0):
        self.run, self.export, self.keep, self.keep_every = run, export, keep, keep_every
        self.seconds = 0.0
        # A second set of threads would fight the training's for cores.
        self._thread = ThreadPoolExecutor(1, "checkpoint", lambda: torch.set_num_threads(1))
        self._writing: Future[None] | None = None

    def save(
        self,
        step: int,
        weights: Mapping[str, Tensor],
        optimizer: Mapping[str, Tensor],
        state: dict[str, Any],
        *,
        last: bool = False,
    ) -> None:
        """Begin to write the checkpoint of a step; waits for the one before, and raises what stopped it.

        After the `last` step nothing changes the tensors any more: those of the host are not copied, so that a run's
        end takes no more memory than the run, and all is written when this returns.
        """
        self.wait()
        started = time.monotonic()
        on_host = all(tensor.device.type == "cpu" for part in (weights, optimizer) for tensor in part.values())
        copies = (weights, optimizer) if last and on_host else (snapshot(weights), snapshot(optimizer))
        self._writing = self._thread.submit(self._write, step, *copies, state, _mark(weights), started)
        if last:
            self.wait()

    def save_in_parts(self, step: int, parallel: Parallel, optimizer: dict[str, Tensor], state: dict[str, Any]) -> None:
        """Write the checkpoint of a model of which each process holds a part: each process its own part of the
        optimizers' state, the first one all the rest. All processes call this, and all wait for it.
        """
        started = time.monotonic()
        whole_model = parallel.whole_model()

        def export(folder: Path) -> None:
            assert whole_model is not None
            self.export(whole_model.state_dict(), folder)

        def save() -> Path:
            return save_checkpoint(
                self.run,
                step,
                export=export,
                optimizer={},
                state=state,
                keep=self.keep,
                keep_every=self.keep_every,
                write_parts=lambda folder: parallel.save_optimizer(optimizer, folder),
            )

        if not parallel.world.is_main:  # meets the first process in the midst of `save`
            parallel.save_optimizer(optimizer, partial_folder(self.run, step) / OPTIMIZER_FOLDER)
        parallel.world.from_main(save)
        self.seconds = time.monotonic() - started

    def _write(
        self,
        step: int,
        weights: Mapping[str, Tensor],
        optimizer: Mapping[str, Tensor],
        state: dict[str, Any],
        copied: torch.cuda.Event | None,
        started: float,
    ) -> None:
        if copied is not None:
            copied.synchronize()
        save_checkpoint(
            self.run,
            step,
            export=lambda folder: self.export(weights, folder),
            optimizer=optimizer,
            state=state,
            keep=self.keep,
            keep_every=self.keep_every,
        )
        self.seconds = time.monotonic() - started

    def check(self) -> None:
        """Raise what has stopped a checkpoint, if something has; does not wait."""
        if self._writing is not None and self._writing.done():
            self.wait()

    def wait(self) -> None:
        """Wait until nothing is being written; raises what stopped it."""
        writing, self._writing = self._writing, None
        if writing is not None:
            writing.result()

    def close(self) -> None:
        """Let what is being written come to its end; says nothing of how."""
        self._thread.shutdown()


def _mark(tensors: Mapping[str, Tensor]) -> torch.cuda.Event | None:
    """When the copies enqueued so far will be complete; None where nothing is on a CUDA device."""
    device = next((tensor.device for tensor in tensors.values() if tensor.device.type == "cuda"), None)
    if device is None:
        return None
    event = torch.cuda.Event()
    event.record(torch.cuda.current_stream(device))
    return event
