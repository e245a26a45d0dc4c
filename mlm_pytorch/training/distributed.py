"""The processes of a run, as `torchrun` starts them: who they are, what they agree on, and how one is waited for.

Two channels lie between them. The rendezvous store that `torchrun` keeps is there from the first moment and can be
asked without a deadline: whoever waits for the first process, which may tokenize a corpus for hours, asks it. The
process group, whose operations fail after a while, is joined once all are ready to train.

Everything that decides how a run goes on (stop? save? how much time is left?) is decided alike by all, from the same
numbers: each step begins with one small sum over the processes, made by their hosts while their devices work.
"""

import datetime
import json
import os
import re
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any, TypeVar
from uuid import uuid4

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.rendezvous import rendezvous
from torch.distributed.tensor import DTensor

from mlm_pytorch.training.device import find_device

T = TypeVar("T")
P = TypeVar("P", bound=Path | float | None)

POLL_SECONDS = (0.005, 0.5)  # between two looks at the store: at first, and after a while
# How torch says that a process at the other end of a connection has ended, under gloo, NCCL and the rendezvous store.
_LOST = re.compile(
    r"connection (was )?(closed|reset|refused)|broken pipe|recvvalue failed|remote process exited|socket closed"
    r"|timed out|timeout|ncclremoteerror|ncclsystemerror|nccl communicator was aborted|processgroup.* abort"
    r"|wait timeout|unable to connect|no route to host",
    re.IGNORECASE,
)


class Agreement:
    """What all processes know of a step: sums over them, and the clock of the first.

    Reading any of it waits until the last process has begun the step.

    Attributes:
        num_targets, num_tokens: of all micro-batches of all processes.
        stop: whether any process was asked to stop.
        seconds: training time, by the first process's clock.
    """

    def __init__(self, read: Callable[[], tuple[int, int, bool, float]]):
        self._read = read

    @property
    def num_targets(self) -> int:
        """Selected positions of the whole step."""
        return self._read()[0]

    @property
    def num_tokens(self) -> int:
        """Tokens of pieces of the whole step."""
        return self._read()[1]

    @property
    def stop(self) -> bool:
        """Whether any process was asked to stop."""
        return self._read()[2]

    @property
    def seconds(self) -> float:
        """Training time by the first process's clock, when it began the step."""
        return self._read()[3]


@dataclass(frozen=True)
class World:
    """This process among all that train one model. Alone by default: then nothing here costs anything.

    Args:
        rank, size: this process, counted from 0, and how many there are.
        local_rank, local_size: the same on this machine.
        device: what this process computes on.
        store: torch's key-value store that all reach; None alone.

    Example:
        >>> world = World()
        >>> world.is_main, world.from_main(lambda: Path("runs/mine")), world.gather("a")
        (True, PosixPath('runs/mine'), ['a'])
    """

    rank: int = 0
    size: int = 1
    local_rank: int = 0
    local_size: int = 1
    device: torch.device = field(default_factory=lambda: torch.device("cuda" if torch.cuda.is_available() else "cpu"))
    store: Any = None
    _asked: list[int] = field(default_factory=lambda: [0])  # how often `from_main` was called
    _host: list[Any] = field(default_factory=list)  # the group of the hosts, once joined

    @classmethod
    def from_environment(cls, device: str = "auto") -> "World":
        """As `torchrun` set the environment; alone without it. Meets the others at their store.

        Args:
            device: as `--device` has it. Among several, each process takes a GPU of its own where there are some,
                unless it is cpu.

        Raises:
            ValueError: a device that is not there, more processes on a machine than it has GPUs, one device for all, or
                an environment that is not complete.
            ConnectionError: the store cannot be reached.
        """
        size = int(os.environ.get("WORLD_SIZE", "1"))
        if size == 1:
            return cls(device=find_device(device))
        missing = [name for name in ("RANK", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT") if name not in os.environ]
        if missing:
            raise ValueError(f"WORLD_SIZE is {size}, but {missing[0]} is not set; start the processes with torchrun")
        rank, local_rank = int(os.environ["RANK"]), int(os.environ["LOCAL_RANK"])
        if device not in ("auto", "cpu", "cuda"):
            raise ValueError(
                f"--device {device} is one device, and each of {size} processes takes one of its own; leave it out, or "
                "give --device cpu"
            )
        gpus = 0 if device == "cpu" else torch.cuda.device_count()
        if gpus and local_rank >= gpus:
            raise ValueError(
                f"process {local_rank} of this machine has no GPU of its own, there are {gpus}; "
                f"start torchrun with --nproc-per-node {gpus}"
            )
        own = torch.device("cuda", local_rank) if gpus else torch.device("cpu")
        local_size = int(os.environ.get("LOCAL_WORLD_SIZE", size))
        with lost_rank(rank):
            store, _, _ = next(rendezvous("env://", rank, size))
            store = store_of_this_start(store, rank, size)
        return cls(rank, size, local_rank, local_size, own, store)

    @property
    def is_main(self) -> bool:
        """Whether this is the first process, which prepares, writes and speaks for all."""
        return self.rank == 0

    def watch(self) -> AbstractContextManager[None]:
        """Within this context, `lost_rank`'s line stands for torch's errors; alone, nothing is changed."""
        return lost_rank(self.rank) if self.size > 1 else nullcontext()

    # ----------------------------------------------------------------------------------- without a process group

    def from_main(self, make: Callable[[], P]) -> P:
        """A path or number that the first process finds, for all; the others wait for as long as that takes.

        Args:
            make: called by the first process only.

        Raises:
            ValueError: in the others, with the first one's message, where `make` raised a ValueError or an OSError.
            ConnectionError: the first process has vanished, and with it the store.
        """
        if self.size == 1:
            return make()
        self._asked[0] += 1
        key = f"mlm/main/{self._asked[0]}"
        if not self.is_main:
            return self._await(key)  # type: ignore[return-value]  # what `make` returned over there
        try:
            made = make()
        except (ValueError, OSError) as error:
            self.store.set(key, json.dumps({"error": " ".join(str(error).split())}))
            raise
        self.store.set(key, json.dumps({"path": str(made)} if isinstance(made, Path) else {"value": made}))
        return made

    def _await(self, key: str) -> Path | float | None:
        with lost_rank(self.rank):
            answer = json.loads(_polled(self.store, key))
        if "error" in answer:
            raise ValueError(f"process {self.rank} ends, since the first one stopped: {answer['error']}")
        return Path(answer["path"]) if "path" in answer else answer["value"]

    # -------------------------------------------------------------------------------------- with a process group

    def join(self) -> None:
        """Set up what `gather`, `agree`, `sum` and the engines need. Not before all are ready: here time-outs begin.

        GPUs talk over NCCL. The hosts talk over gloo in either case, so that what they agree on never waits for a
        device.
        """
        if self.size == 1 or dist.is_initialized():
            return
        on_gpu = self.device.type == "cuda"
        if on_gpu:
            torch.cuda.set_device(self.device)
        with lost_rank(self.rank):
            dist.init_process_group(
                "nccl" if on_gpu else "gloo",
                store=self.store,
                rank=self.rank,
                world_size=self.size,
                timeout=datetime.timedelta(minutes=30),
            )
            self._host.append(dist.new_group(backend="gloo") if on_gpu else dist.group.WORLD)

    def leave(self) -> None:
        """Take the process group down, at the end of a run that went well."""
        if self._host:
            self._host.clear()
            dist.destroy_process_group()

    def barrier(self) -> None:
        """Return once all processes have come here."""
        self.gather(None)

    def gather(self, value: T) -> list[T]:
        """The value of every process, in their order, known to all."""
        if self.size == 1:
            return [value]
        values: list[Any] = [None] * self.size
        with lost_rank(self.rank):
            dist.all_gather_object(values, value, group=self._host[0])
        return values

    def sum(self, value: Tensor) -> Tensor:
        """Add up a tensor on the device, in place, over all processes; the host does not wait for a GPU."""
        if self.size > 1:
            dist.all_reduce(value)
        return value

    def agree(
        self, num_targets: int, num_tokens: int, *, stop: Callable[[], bool], seconds: Callable[[], float]
    ) -> Agreement:
        """Begin a step together: counts, whether to stop, and the time.

        The sum travels while the forward pass runs. Alone, `stop` and `seconds` are asked when they are read.

        Args:
            num_targets, num_tokens: of this process's part of the step.
            stop: whether this process was asked to stop.
            seconds: training time by this process's clock.
        """
        if self.size == 1:
            return Agreement(lambda: (num_targets, num_tokens, stop(), seconds()))
        clock = seconds() if self.is_main else 0.0
        values = torch.tensor([num_targets, num_tokens, stop(), clock], dtype=torch.float64)
        work = dist.all_reduce(values, group=self._host[0], async_op=True)
        assert work is not None

        @cache
        def read() -> tuple[int, int, bool, float]:
            work.wait()
            targets, tokens, stops, time = values.tolist()
            return int(targets), int(tokens), bool(stops), time

        return Agreement(read)


def store_of_this_start(store: Any, rank: int, size: int) -> Any:
    """A part of torch's key-value store that holds nothing yet. All processes must call; returns once all have.

    With `torchrun --max-restarts` the store outlives the processes, and with it what they have written: one that starts
    again would take an old answer for a new one, torch's own set-up included. Each process therefore greets the first
    one by a name that is new, and is answered under that name.
    """
    mine = uuid4().hex  # of the first process: the name of this start
    start = mine if rank == 0 else ""
    if rank:
        store.set(f"mlm/hello/{rank}", mine)
        start = _polled(store, f"mlm/start/{mine}").decode()
        store.set(f"mlm/ready/{start}/{rank}", "")
    waiting = dict.fromkeys(range(1, size) if rank == 0 else (), "")  # and by which name each was answered last
    for pause in _pauses():
        for other in list(waiting):
            if store.check([f"mlm/ready/{start}/{other}"]):
                del waiting[other]
            elif store.check([hello := f"mlm/hello/{other}"]) and (name := store.get(hello).decode()) != waiting[other]:
                waiting[other] = name  # perhaps of a process that has ended; then another one follows
                store.set(f"mlm/start/{name}", start)
        if not waiting:
            break
        time.sleep(pause)
    return dist.PrefixStore(f"mlm/{start}", store)  # pyright: ignore[reportPrivateImportUsage]


def _pauses() -> Iterator[float]:
    """Seconds between two looks at the store, for ever."""
    pause, longest = POLL_SECONDS
    while True:
        yield pause
        pause = min(1.5 * pause, longest)


def _polled(store: Any, key: str) -> bytes:
    """What stands under a key, once something does; without a deadline, which torch's `wait` and `get` have."""
    for pause in _pauses():
        if store.check([key]):
            break
        time.sleep(pause)
    return store.get(key)


def whole(value: Tensor) -> Tensor:
    """A tensor as a plain one: parts that lie on several processes are put together (all must call)."""
    return value.full_tensor() if isinstance(value, DTensor) else value


@contextmanager
def lost_rank(rank: int) -> Iterator[None]:
    """Say in one line that another process has ended, where torch says so with a page.

    Raises:
        ConnectionError: in place of the several errors that torch has for it; others pass unchanged.
    """
    try:
        yield
    except RuntimeError as error:
        found = _LOST.search(str(error))
        if found is None:
            raise
        raise ConnectionError(
            f"process {rank} ends, since it lost another one ({found[0].lower()}); the message of the one that ended "
            "first says why; the same command continues from the last checkpoint"
        ) from error
