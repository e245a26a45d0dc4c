"""Where curves are drawn: TensorBoard, which is on where its package is installed, and others by name."""

import time
from collections.abc import Callable, Mapping, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Literal, Protocol

TrackerName = Literal["tensorboard", "wandb", "none"]


class Tracker(Protocol):
    """Draws values over steps."""

    def log(self, step: int, values: Mapping[str, float]) -> None:
        """Add a point to each curve."""
        ...

    def flush(self) -> None:
        """Bring all points to where they stay, before a checkpoint relies on it."""
        ...

    def rewind(self, step: int) -> None:
        """Forget the points after a step: the run goes back there."""
        ...

    def close(self) -> None:
        """Flush, and end."""
        ...


def choose_trackers(names: Sequence[TrackerName]) -> tuple[str, ...]:
    """The trackers to open: those named, or TensorBoard where it is installed and none is named.

    Raises:
        ValueError: one that is not installed, or "none" beside others.
    """
    if "none" in names and len(set(names)) > 1:
        other = next(name for name in names if name != "none")
        raise ValueError(f"--track none and --track {other} contradict each other; leave out one of them")
    if not names:
        return ("tensorboard",) if find_spec("tensorboard") else ()
    chosen = tuple(dict.fromkeys(name for name in names if name != "none"))
    for name in chosen:
        if find_spec(name) is None:
            raise ValueError(f"--track {name} needs the package {name}, which is not installed; pip install {name}")
    return chosen


def open_trackers(names: Sequence[str], folder: Path, *, config: Mapping[str, Any]) -> list[Tracker]:
    """Open what `choose_trackers` chose, for the run in `folder`."""
    opened: dict[str, Callable[[], Tracker]] = {
        "tensorboard": lambda: TensorBoard(folder / "tensorboard"),
        "wandb": lambda: WeightsAndBiases(folder, config),
    }
    return [opened[name]() for name in names]


class TensorBoard:
    """Event files in a folder; a file more after each `rewind`, which takes the later points of older ones back."""

    def __init__(self, folder: Path):
        self.folder = folder
        self._writer: Any = None  # opened by the first point
        self._purge_step: int | None = None

    def log(self, step: int, values: Mapping[str, float]) -> None:
        """Add a point to each curve."""
        if self._writer is None:
            from torch.utils.tensorboard import SummaryWriter  # takes half a second

            self._wait_for_a_later_name()
            self._writer = SummaryWriter(str(self.folder), purge_step=self._purge_step)
        for name, value in values.items():
            self._writer.add_scalar(name, value, step)

    def _wait_for_a_later_name(self) -> None:
        """Let the second of the newest file pass.

        TensorBoard reads files in the order of their names, which begin with the second; what follows it (host,
        process, a running number) says nothing of the order: file 10 of a process would be read before file 9.
        """
        seconds = [int(path.name.split(".")[3]) for path in self.folder.glob("events.out.tfevents.[0-9]*.*")]
        while seconds and int(time.time()) == max(seconds):
            time.sleep(0.05)

    def flush(self) -> None:
        """Write all points to disk."""
        if self._writer is not None:
            self._writer.flush()

    def rewind(self, step: int) -> None:
        """TensorBoard forgets all points after `step` that it read before; where the run begins again, all."""
        self.close()
        self._purge_step = step + 1 if step else 0

    def close(self) -> None:
        """Flush and close."""
        if self._writer is not None:
            self._writer.close()
            self._writer = None


class WeightsAndBiases:
    """A run of the project mlm-pytorch, named after the folder; it keeps its id there, so that a sitting continues it.

    Points before the last one that the service has are not drawn again.
    """

    ID = "wandb-id"

    def __init__(self, folder: Path, config: Mapping[str, Any]):
        import wandb  # type: ignore[import-not-found]

        path = folder / self.ID
        known = path.read_text(encoding="utf-8").strip() if path.is_file() else None
        self._run = wandb.init(
            project="mlm-pytorch", name=folder.name, dir=str(folder), id=known, resume="allow", config=dict(config)
        )
        if known is None:
            path.write_text(f"{self._run.id}\n", encoding="utf-8")

    def log(self, step: int, values: Mapping[str, float]) -> None:
        """Add a point to each curve."""
        self._run.log(dict(values), step=step)

    def flush(self) -> None:
        """The client sends by itself."""

    def rewind(self, step: int) -> None:
        """The service keeps what it has, and takes no point twice."""

    def close(self) -> None:
        """Send what is left, and end."""
        self._run.finish()
