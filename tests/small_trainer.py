"""A trainer of a model that learns to count, in seconds."""

import io
from pathlib import Path

import numpy as np
import pytest
import torch
from list_store import SPECIAL, ListStore
from rich.console import Console
from safetensors.torch import load_file, save_file

from mlm_pytorch.data.batches import Reader
from mlm_pytorch.encoder import Encoder, EncoderConfig
from mlm_pytorch.objective.head import find_head
from mlm_pytorch.objective.packs import PackMasker, pack_loss
from mlm_pytorch.training.checkpoint import newest_checkpoint
from mlm_pytorch.training.config import TrainConfig
from mlm_pytorch.training.feed import Feed
from mlm_pytorch.training.metrics import Display
from mlm_pytorch.training.reporting import NOTHING_MORE
from mlm_pytorch.training.trainer import Trainer


class CountingStore(ListStore):
    """Pieces that count upwards by one: easy to learn."""

    def __init__(self, num_pieces: int = 200):
        self.special = SPECIAL
        generator = np.random.default_rng(0)
        starts, lengths = generator.integers(5, 20, num_pieces), generator.integers(4, 20, num_pieces)
        self.pieces = [np.arange(s, s + n, dtype=np.uint16) for s, n in zip(starts, lengths, strict=True)]


class Score:
    loss, accuracy = 1.5, 0.25


def shown() -> tuple[Display, io.StringIO]:
    """A display, and what it says."""
    out = io.StringIO()
    return Display(Console(file=out, width=400)), out


def trainer(
    folder: Path,
    *,
    resume=False,
    evaluate=None,
    export=None,
    display=None,
    watch=NOTHING_MORE,
    loss=pack_loss,
    **changes,
) -> Trainer:
    folder.mkdir(exist_ok=True)
    fields = {
        "budget": "12steps",
        "checkpoint_every": "5steps",
        "pack_tokens": 96,
        "precision": "float32",
        "evaluations": 3,
    }
    config = TrainConfig(corpus=("x",), out=folder, **fields | changes)
    torch.manual_seed(config.seed)
    model = Encoder(EncoderConfig(64, 32, 48, 2, 2, max_position_embeddings=64, global_attn_every_n_layers=1))

    def save(weights, path: Path) -> None:
        path.mkdir()
        save_file({name: value.clone() for name, value in weights.items()}, path / "model.safetensors")

    def load(path: Path) -> dict[str, torch.Tensor]:
        return load_file(path / "model.safetensors")

    head, z_loss = find_head(model), {"z_loss": config.z_loss} if config.z_loss else {}
    reader = Reader(CountingStore(), config.pack_tokens, seed=config.seed, longest=22, num_streams=4)
    built = Trainer(
        model,
        lambda model, pack: loss(model, head, pack, **z_loss),
        Feed(reader, PackMasker(SPECIAL, config.seed), rate=config.rate, per_step=config.batch_ramp),
        config,
        folder,
        lr=1e-2,
        tokens_per_epoch=2000,
        store_fingerprint="counting",
        evaluate=evaluate,
        export=export or save,
        load=load,
        display=display or Display(),
        watch=watch,
    )
    if resume:
        checkpoint = newest_checkpoint(folder, pytest.fail)
        assert checkpoint is not None
        model.load_state_dict(load(checkpoint / "model"))
        built.restore(checkpoint)
    return built


def weights(built: Trainer) -> torch.Tensor:
    return torch.cat([p.detach().flatten() for p in built.model.parameters()])
