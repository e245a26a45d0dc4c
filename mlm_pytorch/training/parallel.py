"""How a model is spread over processes, by torch's own engines, and how its state is put together again.

ddp      every process holds the whole model; gradients are averaged (Li et al. 2020, arXiv 2006.15704)
fsdp     every process holds a part of each parameter, gradient and optimizer state (Zhao et al. 2023, arXiv 2304.11277)
hybrid   the same among `shard_ranks` processes, such as those of one machine, with copies of such groups

The weights of a checkpoint are written whole by the first process. The optimizer's state of a model in parts is written
by each its own part, through `torch.distributed.checkpoint`, as safetensors; any number of processes reads it.
"""

import copy
import gc
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal

import torch
import torch.distributed as dist
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.hf_storage import HuggingFaceStorageReader, HuggingFaceStorageWriter
from torch.distributed.checkpoint.metadata import TensorStorageMetadata
from torch.distributed.checkpoint.state_dict_loader import load
from torch.distributed.checkpoint.state_dict_saver import save
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.fsdp import FSDPModule, fully_shard
from torch.distributed.tensor import DTensor, distribute_tensor
from torch.nn.parallel import DistributedDataParallel

from mlm_pytorch.encoder import Encoder
from mlm_pytorch.training.distributed import World, whole
from mlm_pytorch.training.muon import orthogonalize

Mode = Literal["auto", "ddp", "fsdp", "hybrid"]


class Parallel:
    """A model on all processes of a run.

    Args:
        model: the whole model, on this process's device; with fsdp and hybrid its parameters are replaced by parts.
        mode: see above; auto is ddp. Without effect for a process alone.
        world: the processes, joined.
        shard_ranks: as in `copy_size`.

    Attributes:
        model: the module that holds the parameters, for optimizers and evaluation.
        module: the module to call in training.
        sharded: whether a process holds parts only. Then every forward pass needs all processes.
    """

    def __init__(self, model: nn.Module, mode: Mode, world: World, *, shard_ranks: int | None = None):
        self.model = self.module = model
        self.world = world
        self.sharded = False
        self._whole: nn.Module | None = model
        if world.size == 1:
            return
        if mode in ("auto", "ddp"):
            self.module = _replicated(model, world)
            return
        self.sharded = True
        # On the main process a whole copy in its host's memory waits for the weights when they are to be written.
        self._whole = copy.deepcopy(model).cpu() if world.is_main else None
        _shard(model, _mesh(world, copy_size(mode, world, shard_ranks)))

    def orthogonalize(self, matrices: Tensor) -> Tensor:
        """Muon's `orthogonalize` of matrices (N, rows, columns) that all processes have: each does its share of N.

        With parts, which were gathered matrix by matrix, each process does it all.
        """
        world = self.world
        if world.size == 1 or self.sharded or len(matrices) == 1:
            return orthogonalize(matrices)
        share = -(-len(matrices) // world.size)
        mine = matrices[share * world.rank : share * (world.rank + 1)]
        done = torch.zeros((share, *matrices.shape[1:]), dtype=torch.bfloat16, device=matrices.device)
        if len(mine):
            done[: len(mine)] = orthogonalize(mine)
        gathered = done.new_empty((world.size * share, *matrices.shape[1:]))
        dist.all_gather_into_tensor(gathered.view(torch.uint8), done.view(torch.uint8))
        return gathered[: len(matrices)]

    @contextmanager
    def backward_of(self, last: bool) -> Iterator[None]:
        """Around the forward and backward pass of a micro-batch: gradients travel with the step's last one only."""
        if isinstance(self.module, DistributedDataParallel) and not last:
            with self.module.no_sync():
                yield
            return
        if isinstance(self.module, FSDPModule):
            self.module.set_requires_gradient_sync(last)
        yield

    def reshard(self) -> None:
        """Keep parts only, after forward passes that no backward pass followed."""
        for module in self.model.modules():
            if isinstance(module, FSDPModule):
                module.reshard()

    def close(self) -> None:
        """Let go of the engine, at the end of a run; before `World.leave`.

        DDP's reducer holds the process group. Where it is the last to do so, it takes the group down without giving up
        Python's lock, and waits for gloo's thread, which may itself wait for that lock to let go of its last tensor:
        the process then never ends (pytorch #56297; without fail on one core).
        """
        if self.module is not self.model:
            self.module = self.model
            gc.collect()  # DDP's own closures point back at it

    def whole_model(self) -> nn.Module | None:
        """The model with whole weights, on the main process; None elsewhere. With parts, all must call."""
        if not self.sharded:
            return self._whole if self.world.is_main else None
        target = None if self._whole is None else self._whole.state_dict()
        for name, value in self.model.state_dict().items():  # one by one: no device ever holds all of them
            gathered = whole(value)
            if target is not None:
                target[name].copy_(gathered)
        return self._whole

    def save_optimizer(self, tensors: dict[str, Tensor], folder: Path) -> None:
        """Write the parts of the optimizer's state, each process its own; all must call, with the same folder.

        Raises:
            OSError: what could not be written, by any of them.
        """
        self.world.barrier()  # the folder is made by the main process
        try:
            save(tensors, storage_writer=HuggingFaceStorageWriter(str(folder), save_distributed=True))
        except CheckpointException as error:
            rank, (cause, _) = next(iter(error.failures.items()))
            raise OSError(f"the optimizer's state could not be written by process {rank}: {cause}") from None


def _replicated(model: nn.Module, world: World) -> DistributedDataParallel:
    return DistributedDataParallel(
        model,
        device_ids=[world.device] if world.device.type == "cuda" else None,
        gradient_as_bucket_view=True,
        # The built-in encoder uses all its parameters; of other models this must be found out at every step.
        find_unused_parameters=not isinstance(model, Encoder),
    )


def copy_size(mode: Mode, world: World, shard_ranks: int | None = None) -> int:
    """How many processes hold one copy of the model between them.

    Args:
        mode: how the model is spread.
        world: the processes.
        shard_ranks: with hybrid, the answer. By default the processes of a machine.

    Raises:
        ValueError: with hybrid, a number that does not divide the processes.

    Example:
        >>> eight = World(size=8, local_size=4)
        >>> [copy_size(mode, eight) for mode in ("ddp", "hybrid", "fsdp")]
        [1, 4, 8]
    """
    if mode == "fsdp":
        return world.size
    if mode != "hybrid":
        return 1
    parts = shard_ranks or world.local_size
    if world.size % parts:
        fitting = ", ".join(str(n) for n in range(1, world.size + 1) if world.size % n == 0)
        raise ValueError(f"--shard-ranks {parts} does not divide the {world.size} processes; give one of {fitting}")
    return parts


def _mesh(world: World, parts: int) -> DeviceMesh:
    """The processes as a row, or as a table of copies (rows) by parts (columns)."""
    if parts == world.size:
        return init_device_mesh(world.device.type, (parts,), mesh_dim_names=("shard",))
    copies = world.size // parts
    return init_device_mesh(world.device.type, (copies, parts), mesh_dim_names=("replicate", "shard"))


def _shard(model: nn.Module, mesh: DeviceMesh) -> None:
    """Shard every block of the model by itself, what is left with the model."""
    for tensor in (*model.parameters(), *model.buffers()):
        dist.broadcast(tensor.detach(), src=0)  # as DDP does: all start from the first one's weights
    for block in _blocks(model):
        if any(True for _ in block.parameters()) and not isinstance(block, FSDPModule):  # one may be listed twice
            fully_shard(block, mesh=mesh)
    fully_shard(model, mesh=mesh)


def _blocks(module: nn.Module) -> Iterator[nn.Module]:
    """What lists hold, lists within lists looked through: they compute nothing. What a block holds is part of it."""
    lists = nn.ModuleList | nn.ModuleDict
    for child in module.children():
        if isinstance(module, lists) and not isinstance(child, lists):
            yield child
        else:
            yield from _blocks(child)


OPTIMIZER_FILE, OPTIMIZER_FOLDER = "optimizer.safetensors", "optimizer"


def load_optimizer(checkpoint: Path, model: nn.Module) -> dict[str, Tensor]:
    """The optimizer's state of a checkpoint, whole or in parts as the model's parameters are; all must call.

    The checkpoint may come from any number of processes, in any mode.

    Args:
        checkpoint: its folder.
        model: as it is trained from here on.

    Returns:
        Tensors by `parameter//entry`, each laid out like its parameter; entries of another shape are plain.
    """
    parameters = dict(model.named_parameters())
    if (checkpoint / OPTIMIZER_FILE).is_file():
        saved = load_file(checkpoint / OPTIMIZER_FILE)
        return {key: _laid_out(value, parameters.get(key.partition("//")[0])) for key, value in saved.items()}
    reader = HuggingFaceStorageReader(str(checkpoint / OPTIMIZER_FOLDER))
    tensors: dict[str, Any] = {}
    for key, facts in reader.read_metadata().state_dict_metadata.items():
        assert isinstance(facts, TensorStorageMetadata)
        parameter = parameters.get(key.partition("//")[0])
        if parameter is not None and parameter.shape == facts.size:
            tensors[key] = torch.zeros_like(parameter.detach(), dtype=facts.properties.dtype)
        else:
            tensors[key] = torch.zeros(facts.size, dtype=facts.properties.dtype)
    with warnings.catch_warnings():  # that a process alone reads alone needs no warning
        warnings.filterwarnings("ignore", message="torch.distributed is disabled")
        load(tensors, storage_reader=reader, no_dist=not dist.is_initialized())
    return tensors


def _laid_out(value: Tensor, parameter: Tensor | None) -> Tensor:
    if not isinstance(parameter, DTensor) or parameter.shape != value.shape:
        return value
    # Each process has read the whole and keeps its part: nothing needs to be sent.
    return distribute_tensor(
        value.to(parameter.device), parameter.device_mesh, parameter.placements, src_data_rank=None
    )
