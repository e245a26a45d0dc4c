"""The loop: it learns, it counts rightly, and a run cut in two equals a run in one piece, bit for bit."""

import os
import signal
from pathlib import Path

import numpy as np
import pytest
import torch
from list_store import SPECIAL, ListStore

from mlm_pytorch.data.batches import Reader
from mlm_pytorch.encoder import Encoder, EncoderConfig
from mlm_pytorch.masking import RateSchedule
from mlm_pytorch.objective.head import find_head
from mlm_pytorch.objective.packs import PackMasker, pack_logits, pack_loss
from mlm_pytorch.training.checkpoint import newest_checkpoint
from mlm_pytorch.training.config import TrainConfig
from mlm_pytorch.training.feed import Feed
from mlm_pytorch.training.metrics import Display, read_metrics
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
        torch.save(weights, path / "weights.pt")

    def load(path: Path) -> dict[str, torch.Tensor]:
        return torch.load(path / "weights.pt", weights_only=True)

    head = find_head(model)
    reader = Reader(CountingStore(), config.pack_tokens, seed=config.seed, longest=22, num_streams=4)
    built = Trainer(
        model,
        lambda model, pack: (loss or pack_loss)(model, head, pack),
        Feed(reader, PackMasker(SPECIAL, config.seed), rate=RateSchedule(0.30, 0.15), per_step=config.packs_per_step),
        config,
        folder,
        lr=1e-2,
        tokens_per_epoch=2000,
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


@pytest.mark.parametrize("optimizer", ["muon", "adamw"])
def test_it_learns_to_count(tmp_path, optimizer):
    built = trainer(tmp_path, budget="300steps", optimizer=optimizer)
    assert built.run()
    losses = [line["loss"] for line in read_metrics(tmp_path / "metrics.jsonl")]
    assert np.mean(losses[:5]) > 3 and np.mean(losses[-10:]) < 1.3


@pytest.mark.parametrize("packs", [1, 3])
def test_interrupted_and_continued_equals_uninterrupted(tmp_path, packs, monkeypatch):
    whole = trainer(tmp_path / "whole", packs_per_step=packs)
    assert whole.run()
    first = trainer(tmp_path / "parts", packs_per_step=packs)
    step = Trainer.take

    def step_then_signal(self, batch):
        values = step(self, batch)
        if self.progress.step == 7:
            os.kill(os.getpid(), signal.SIGTERM)
        return values

    monkeypatch.setattr(Trainer, "take", step_then_signal)
    assert not first.run() and first.stop_requested == "SIGTERM"
    monkeypatch.undo()
    second = trainer(tmp_path / "parts", packs_per_step=packs, resume=True)
    assert second.progress.step == 7
    assert second.run()
    assert torch.equal(weights(second), weights(whole))
    lines = [read_metrics(tmp_path / name / "metrics.jsonl") for name in ("whole", "parts")]
    kept = [[(line["step"], line["loss"], line["lr"], line["tokens"]) for line in part] for part in lines]
    assert kept[0] == kept[1] and [line[0] for line in kept[0]] == list(range(1, 13))


def test_a_crash_loses_only_what_was_after_the_checkpoint(tmp_path, monkeypatch):
    whole = trainer(tmp_path / "whole")
    whole.run()
    step = Trainer.take

    def step_then_crash(self, batch):
        if self.progress.step == 8:
            raise RuntimeError("power cut")
        return step(self, batch)

    monkeypatch.setattr(Trainer, "take", step_then_crash)
    with pytest.raises(RuntimeError, match="power cut"):
        trainer(tmp_path / "parts").run()
    monkeypatch.undo()
    second = trainer(tmp_path / "parts", resume=True)
    assert second.progress.step == 5
    second.run()
    assert torch.equal(weights(second), weights(whole))
    assert [line["step"] for line in read_metrics(tmp_path / "parts/metrics.jsonl")] == list(range(1, 13))


def test_a_second_signal_ends_at_once(tmp_path, monkeypatch):
    built = trainer(tmp_path)

    def twice(self, batch):
        os.kill(os.getpid(), signal.SIGINT)
        os.kill(os.getpid(), signal.SIGINT)
        raise AssertionError("not reached")

    monkeypatch.setattr(Trainer, "take", twice)
    with pytest.raises(SystemExit) as stop:
        built.run()
    assert stop.value.code == 128 + signal.SIGINT


def test_micro_batches_do_not_change_the_gradient(tmp_path):
    """The loss of a step is the mean over all its targets, however they are dealt to packs."""
    built = trainer(tmp_path, packs_per_step=4)
    packs = [built.feed.mask(pack, 300_000) for pack in built.feed.reader.take(4)]
    built.step.backward(packs)
    logits = torch.cat([pack_logits(built.model, None, pack) for pack in packs])
    labels = torch.cat([pack.labels for pack in packs])
    loss = torch.nn.functional.cross_entropy(logits, labels)
    expected = torch.autograd.grad(loss, built.step.parameters)
    for parameter, gradient in zip(built.step.parameters, expected, strict=True):
        torch.testing.assert_close(parameter.grad, gradient, atol=1e-5, rtol=1e-4)


def test_evaluations_are_spread_over_the_run(tmp_path):
    seen = []
    built = trainer(tmp_path, evaluations=3, evaluate=lambda model: seen.append(built.progress.step) or Score())
    built.run()
    assert seen == [4, 8, 12]
    lines = [line for line in read_metrics(tmp_path / "metrics.jsonl") if "valid_loss" in line]
    assert [line["step"] for line in lines] == seen and lines[0]["valid_loss"] == 1.5


def test_a_time_budget_ends_on_time(tmp_path):
    built = trainer(tmp_path, budget="2s", checkpoint_every="1h")
    assert built.run()
    lines = read_metrics(tmp_path / "metrics.jsonl")
    assert lines[0]["total_steps"] > 0, "planned before the first step"
    assert built.progress.seconds > 1.8
    assert all(line["seconds"] < 2.0 for line in lines[:-1]), "no step begins after the end"


def test_a_longer_time_budget_continues_a_finished_run(tmp_path):
    first = trainer(tmp_path, budget="1s")
    first.run()
    longer = trainer(tmp_path, budget="2s", resume=True)
    assert longer.progress.total_steps > first.progress.step
    assert longer.run() and longer.progress.step > first.progress.step and longer.progress.seconds > 1.8


def test_a_longer_budget_continues_a_finished_run(tmp_path):
    trainer(tmp_path, budget="6steps").run()
    longer = trainer(tmp_path, budget="9steps", resume=True)
    assert longer.run() and longer.progress.step == 9
    assert [line["step"] for line in read_metrics(tmp_path / "metrics.jsonl")] == list(range(1, 10))


def test_a_finished_run_stays_finished(tmp_path):
    trainer(tmp_path, budget="6steps").run()
    again = trainer(tmp_path, budget="6steps", resume=True)
    before = weights(again)
    assert again.run() and again.progress.step == 6 and torch.equal(before, weights(again))


def test_a_full_disk_stops_the_run_with_the_last_checkpoint_kept(tmp_path):
    def export(weights, path):
        path.mkdir()
        if path.parent.name != ".step-5.partial":
            raise OSError(28, "No space left on device")
        torch.save(weights, path / "weights.pt")

    built = trainer(tmp_path, export=export)
    with pytest.raises(
        OSError, match=r"is full; free some space and .* same command again, which goes on after step-5"
    ):
        built.run()
    assert [p.name for p in (tmp_path / "checkpoints").iterdir()] == ["step-5"]
    assert trainer(tmp_path, resume=True).progress.step == 5


def test_an_error_in_the_data_thread_reaches_the_caller(tmp_path, monkeypatch):
    built = trainer(tmp_path)

    def broken(num_packs):
        raise ValueError("the store is damaged")

    monkeypatch.setattr(built.feed.reader, "choose", broken)
    with pytest.raises(ValueError, match="the store is damaged"):
        built.run()
