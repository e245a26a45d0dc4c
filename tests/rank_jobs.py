"""What the processes of `tests/training/test_distributed.py` do: several jobs each, since starting them is what costs.

Run as `rank_jobs.py JOBS FOLDER` in an environment as torchrun sets it; leaves `FOLDER/JOBS-RANK.json` behind.
"""

import copy
import datetime
import json
import os
import signal
import sys
import time
import weakref
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from list_store import SPECIAL
from small_trainer import CountingStore, Score
from torch.distributed.fsdp import FSDPModule

from mlm_pytorch.data.batches import Reader
from mlm_pytorch.encoder import Encoder, EncoderConfig
from mlm_pytorch.masking import RateSchedule
from mlm_pytorch.objective.head import find_head
from mlm_pytorch.objective.packs import PackMasker, pack_loss
from mlm_pytorch.objective.padded import MaskedRows, inspect_rows, padded_loss
from mlm_pytorch.training.checkpoint import newest_checkpoint
from mlm_pytorch.training.config import TrainConfig
from mlm_pytorch.training.distributed import World, whole
from mlm_pytorch.training.feed import Feed
from mlm_pytorch.training.metrics import Display
from mlm_pytorch.training.optimizer import build_optimizers
from mlm_pytorch.training.parallel import Parallel
from mlm_pytorch.training.step import StandIn
from mlm_pytorch.training.trainer import Trainer

STEPS = 10  # of a whole run
PER_STEP = 3  # packs: with two or four processes some have fewer than others, or none


def trainer(folder: Path, world: World, **changes: Any) -> Trainer:
    """A small trainer, new or continued from the folder's newest checkpoint."""
    folder.mkdir(parents=True, exist_ok=True)
    fields: dict[str, Any] = {"pack_tokens": 96, "precision": "float32", "evaluations": 2, "packs_per_step": PER_STEP}
    config = TrainConfig(corpus=("x",), out=folder, **fields | {"budget": f"{STEPS}steps"} | changes)
    torch.manual_seed(config.seed)
    # a vocabulary of 66 and a width of 34 fall into no four equal parts
    model = Encoder(EncoderConfig(66, 34, 50, 2, 1, max_position_embeddings=64, global_attn_every_n_layers=1))
    checkpoint = newest_checkpoint(folder, print)
    if checkpoint is not None:
        model.load_state_dict(torch.load(checkpoint / "model/weights.pt", weights_only=True))

    def save(weights: Mapping[str, torch.Tensor], path: Path) -> None:
        path.mkdir()
        torch.save(dict(weights), path / "weights.pt")

    def load(path: Path) -> dict[str, torch.Tensor]:
        return torch.load(path / "weights.pt", weights_only=True)

    def evaluate(model: torch.nn.Module) -> Score:
        with torch.no_grad():
            model(torch.arange(5, 9), cu_seqlens=torch.tensor([0, 4]))
        return Score()

    head = find_head(model)
    reader = Reader(CountingStore(), 96, seed=0, longest=22, num_streams=6, rank=world.rank, world_size=world.size)
    built = Trainer(
        model,
        lambda model, pack: pack_loss(model, head, pack),
        Feed(reader, PackMasker(SPECIAL, 0), rate=RateSchedule(0.30, 0.15), per_step=config.batch_ramp),
        config,
        folder,
        lr=1e-2,
        tokens_per_epoch=2000,
        store_fingerprint="counting",
        evaluate=evaluate,
        export=save,
        load=load,
        display=Display(quiet=True),
        world=world,
    )
    if checkpoint is not None:
        built.restore(checkpoint)
    return built


def trained(folder: Path, world: World, until: int = 0, **changes: Any) -> dict[str, Any]:
    """Train, and report what this process took and what all found out; stop after step `until`, where it is given."""
    built = trainer(folder, world, **changes)
    taken, found = [], []
    take = built.take

    def recording(batch: Any) -> Any:
        taken.extend(
            [built.progress.step, one.cu_seqlens.tolist(), one.positions.tolist(), one.input_ids.tolist()]
            for one in batch.micro_batches
            if not isinstance(one, StandIn)
        )
        values, result = take(batch)
        found.append([result.num_targets, result.num_tokens, result.loss, float(result.grad_norm)])
        # One process says stop, and all do: after the next step, at whose beginning they agree on it.
        if world.rank == world.size - 1 and built.progress.step == until - (world.size > 1):
            os.kill(os.getpid(), signal.SIGTERM)
        return values, result

    built.take = recording  # type: ignore[method-assign]
    engine = weakref.ref(built.parallel.module)
    finished = built.run()
    # Torch's reducer must not outlive the process group: it would take it down with Python's lock in its hands.
    released = engine() is None or engine() is built.model
    about = {
        "released": released,
        "saving": built.writer.seconds,
        "finished": finished,
        "step": built.progress.step,
        "stopped": built.stop_requested,
    }
    return about | {"seconds": built.progress.seconds, "taken": taken, "found": found}


class TakesRows(torch.nn.Module):
    """Of a user's own: ids (B, L) in, logits out; its mask has no default."""

    def __init__(self):
        super().__init__()
        self.embedding, self.to_logits = torch.nn.Embedding(66, 8), torch.nn.Linear(8, 66)

    def forward(self, input_ids: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        return self.to_logits(self.embedding(input_ids) * mask.unsqueeze(-1))


def rows_losses() -> list[float]:
    """Of a batch without padding, by a model that takes rows: bare, and as DDP wraps it."""
    torch.manual_seed(0)
    model = TakesRows()
    interface = inspect_rows(model, SPECIAL)
    assert interface.head == "to_logits"
    ids = torch.arange(10, 34).view(2, 12)
    rows = MaskedRows(ids, torch.ones_like(ids, dtype=torch.bool), torch.tensor([1, 15]), torch.tensor([11, 25]), 24)
    wrapped = torch.nn.parallel.DistributedDataParallel(model)
    return [padded_loss(one, interface, rows)[0].item() for one in (model, wrapped)]


class Experts(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.each = torch.nn.ModuleList(torch.nn.Linear(8, 8) for _ in range(2))

    def forward(self, hidden: torch.Tensor) -> torch.Tensor:
        return self.each[0](hidden) * self.each[1](hidden)


class Nested(torch.nn.Module):
    """Of a user's own: lists within lists, a block that holds one, a layer that is listed twice, a token of 1 x 1."""

    def __init__(self):
        super().__init__()
        layers = Experts(), torch.nn.Linear(8, 8)
        pairs = [torch.nn.ModuleList([torch.nn.LayerNorm(8), layer]) for layer in layers]
        self.embedding, self.layers = torch.nn.Embedding(66, 8), torch.nn.ModuleList([*pairs, pairs[1]])
        self.first = torch.nn.Parameter(torch.ones(1, 1, 8))

    def forward(self, input_ids: torch.Tensor) -> torch.Tensor:
        hidden = self.embedding(input_ids) + self.first
        for norm, layer in self.layers:  # type: ignore[misc]
            hidden = hidden + layer(norm(hidden))
        return hidden


def in_parts(world: World) -> dict[str, Any]:
    """Loss and gradients of a model with lists of all kinds, in parts and whole, and how many parts are gathered."""
    torch.manual_seed(0)
    model, ids = Nested(), torch.arange(10, 34).view(2, 12)
    whole_model = copy.deepcopy(model)
    Parallel(model, "fsdp", world)
    build_optimizers(model, "muon", 1e-2, 0.0)
    losses = [one(ids).square().mean() for one in (whole_model, model)]
    for loss in losses:
        loss.backward()
    wanted = {name: p.grad for name, p in whole_model.named_parameters() if p.grad is not None}
    got = {name: whole(p.grad) for name, p in model.named_parameters() if p.grad is not None}
    apart = max(float((got[name] - wanted[name]).abs().max()) for name in wanted)
    gathered = sum(isinstance(module, FSDPModule) for module in model.modules())
    return {"losses": [loss.item() for loss in losses], "gradients": apart, "gathered": gathered}


def four(world: World, folder: Path) -> dict[str, Any]:
    """Four processes: what they tell each other, and each engine for some steps."""
    report: dict[str, Any] = {}
    world.store.set_timeout(datetime.timedelta(seconds=1))  # the first one takes longer than that

    def slowly() -> Path:
        time.sleep(2)
        return folder / "prepared"

    report["prepared"] = str(world.from_main(slowly))
    report["nothing"] = world.from_main(lambda: None)
    world.store.set_timeout(datetime.timedelta(minutes=10))

    def fails() -> Path:
        raise ValueError("corpus.txt does not exist; name another")

    try:
        world.from_main(fails)
    except ValueError as error:
        report["failed"] = str(error)
    world.join()
    report["gathered"] = world.gather(world.rank)
    agreement = world.agree(world.rank, 10, stop=lambda: world.rank == 2, seconds=lambda: 7.5 + world.rank)
    report["agreement"] = [agreement.num_targets, agreement.num_tokens, agreement.stop, agreement.seconds]
    report["sum"] = world.sum(torch.tensor([1.0, world.rank])).tolist()
    report["rows"] = rows_losses()
    report["ddp"] = trained(folder / "ddp", world, 4)
    report["adamw"] = trained(folder / "adamw", world, 4, parallel="fsdp", optimizer="adamw")
    report["hybrid"] = trained(folder / "hybrid", world, 4, parallel="hybrid", shard_ranks=2)
    return report


def two(world: World, folder: Path) -> dict[str, Any]:
    """Two processes go on with what four began, by other engines."""
    world.join()
    return {
        "nested": in_parts(world),
        "ddp": trained(folder / "ddp", world, 7, parallel="fsdp"),
        "hybrid": trained(folder / "hybrid", world, 7, parallel="ddp"),
        "timed": trained(folder / "timed", world, budget="1s"),
    }


if __name__ == "__main__":
    jobs, folder = sys.argv[1], Path(sys.argv[2])
    torch.set_num_threads(1)
    this = World.from_environment()
    done = {"four": four, "two": two}[jobs](this, folder)
    (folder / f"{jobs}-{this.rank}.json").write_text(json.dumps(done))
    this.leave()
