"""The loop: it learns, it counts rightly, and a run cut in two equals a run in one piece, bit for bit."""

import os
import resource
import shutil
import signal

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from small_trainer import Score, shown, trainer, weights

from mlm_pytorch.objective.packs import pack_logits, pack_loss
from mlm_pytorch.training import stopping
from mlm_pytorch.training.checkpoint import checkpoints, newest_checkpoint
from mlm_pytorch.training.metrics import read_metrics
from mlm_pytorch.training.reporting import Watch
from mlm_pytorch.training.step_plan import StepPlan
from mlm_pytorch.training.trainer import Trainer


@pytest.mark.parametrize("optimizer", ["muon", "adamw"])
def test_it_learns_to_count(tmp_path, optimizer):
    built = trainer(tmp_path, budget="300steps", optimizer=optimizer)
    assert built.run()
    losses = [line["loss"] for line in read_metrics(tmp_path / "metrics.jsonl")]
    assert np.mean(losses[:5]) > 3 and np.mean(losses[-10:]) < 1.3


EVERYTHING = {"packs_per_step_end": 4, "ramp": 0.7, "ema": 0.9, "z_loss": 0.01, "schedule": "cosine", "final_lr": 0.1}
EVERYTHING |= {"mask_schedule": "step", "embedding_lr": 2.0}


@pytest.mark.parametrize("changes", [{}, {"packs_per_step": 3}, EVERYTHING])
def test_interrupted_and_continued_equals_uninterrupted(tmp_path, changes, monkeypatch):
    whole = trainer(tmp_path / "whole", **changes)
    assert whole.run()
    first = trainer(tmp_path / "parts", **changes)
    step = Trainer.take

    def step_then_signal(self, batch):
        values = step(self, batch)
        if self.progress.step == 7:
            os.kill(os.getpid(), signal.SIGTERM)
        return values

    monkeypatch.setattr(Trainer, "take", step_then_signal)
    assert not first.run() and first.stop_requested == "SIGTERM"
    monkeypatch.undo()
    second = trainer(tmp_path / "parts", **changes, resume=True)
    assert second.progress.step == 7
    assert second.run()
    assert torch.equal(weights(second), weights(whole))
    with second.averaged(), whole.averaged():
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
    monkeypatch.setattr(stopping, "ECHO_SECONDS", -1.0)
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
    built.step.backward(packs, built.world.agree(sum(p.num_targets for p in packs), 0, stop=bool, seconds=float))
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
    assert all(line["seconds"] <= 2.0 for line in lines[:-1]), "no step begins after the end"


def test_steps_beyond_the_plan_of_a_time_budget_are_measured_once(tmp_path):
    """The clock leaves time for a few more than were planned; here for many."""
    built = trainer(tmp_path, budget="1s", evaluations=2, evaluate=lambda model: Score())
    built.plan = PlanOfFive(built.plan.budget, built.plan.ramp)
    built.run()
    measured = [line["step"] for line in read_metrics(tmp_path / "metrics.jsonl") if "valid_loss" in line]
    assert measured == [3, built.progress.step] and built.progress.step > 5


class PlanOfFive(StepPlan):
    def first(self, packs, seconds):
        return 5

    def corrected(self, progress, seconds_per_pack, steps_timed):
        return progress


def test_the_masking_rate_that_is_told_is_that_of_the_step(tmp_path):
    """It is planned some steps ahead, and in a budget of time the number of steps is another one by then."""
    built = trainer(tmp_path, budget="1s")
    mask, rates = built.feed.mask, []
    built.feed.mask = lambda pack, rate: (rates.append(rate / 1e6), mask(pack, rate))[1]  # type: ignore[method-assign]
    built.run()
    told = [line["mask_prob"] for line in read_metrics(tmp_path / "metrics.jsonl")]
    assert told == rates[: len(told)]


def test_a_longer_time_budget_continues_a_finished_run(tmp_path):
    first = trainer(tmp_path, budget="1s")
    first.run()
    longer = trainer(tmp_path, budget=f"{2 * first.progress.seconds:.2f}s", resume=True)
    assert longer.progress.total_steps > first.progress.step
    assert longer.run() and longer.progress.step > first.progress.step
    assert longer.progress.seconds > 1.9 * first.progress.seconds


@pytest.mark.parametrize("pack_tokens", [24, 96])
def test_a_budget_of_tokens_is_one_of_tokens_that_are_read(tmp_path, pack_tokens):
    """And not of room for tokens, a third of which stays empty where packs are hardly longer than pieces."""
    built = trainer(tmp_path, budget="6Ktokens", pack_tokens=pack_tokens)
    assert built.run() and built.progress.tokens == pytest.approx(6000, rel=0.03)


def test_a_longer_budget_continues_a_finished_run(tmp_path):
    trainer(tmp_path, budget="6steps").run()
    longer = trainer(tmp_path, budget="9steps", resume=True)
    assert longer.run() and longer.progress.step == 9
    assert [line["step"] for line in read_metrics(tmp_path / "metrics.jsonl")] == list(range(1, 10))


def test_a_longer_budget_is_measured_all_along(tmp_path):
    """Not only at its end: what was done of the shorter one counts for less of the longer one."""
    trainer(tmp_path, budget="6steps", evaluate=lambda model: Score()).run()
    trainer(tmp_path, budget="12steps", evaluate=lambda model: Score(), resume=True).run()
    measured = [line["step"] for line in read_metrics(tmp_path / "metrics.jsonl") if "valid_loss" in line]
    assert measured == [2, 4, 6, 8, 12]


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
        save_file({"all": torch.ones(1)}, path / "model.safetensors")

    built = trainer(tmp_path, export=export)
    with pytest.raises(
        OSError, match=r"is full; free some space and .* same command again, which goes on after step-5"
    ):
        built.run()
    assert [p.name for p in (tmp_path / "checkpoints").iterdir()] == ["step-5"]
    assert newest_checkpoint(tmp_path, pytest.fail) == tmp_path / "checkpoints/step-5"


def test_an_error_in_the_data_thread_reaches_the_caller(tmp_path, monkeypatch):
    built = trainer(tmp_path)

    def broken(num_packs):
        raise ValueError("the store is damaged")

    monkeypatch.setattr(built.feed.reader, "choose", broken)
    with pytest.raises(ValueError, match="the store is damaged"):
        built.run()


def test_the_limit_of_a_scheduler_saves_and_stops(tmp_path, monkeypatch):
    monkeypatch.setattr(stopping, "process_seconds", lambda: 3 * 3600 + 49 * 60)
    first = trainer(tmp_path, stop_before="3h50m", evaluate=lambda model: Score())
    assert not first.run() and first.stop_requested == "--stop-before" and first.progress.step == 1
    monkeypatch.undo()
    second = trainer(tmp_path, resume=True, stop_before="9h", evaluate=lambda model: Score())
    assert second.progress.step == 1 and second.run()
    steps = [line["step"] for line in read_metrics(tmp_path / "metrics.jsonl")]
    assert sorted(steps) == sorted([*range(1, 13), 4, 8, 12])


def test_a_run_that_is_stopped_lets_its_page_be_written(tmp_path, monkeypatch):
    """After its checkpoint; a run that comes to its end has been evaluated, and told so, just before."""
    told = []

    def look() -> None:
        told.append([path.name for path in checkpoints(tmp_path)])

    monkeypatch.setattr(stopping, "process_seconds", lambda: 3 * 3600)
    options = {"evaluate": lambda model: Score(), "watch": Watch(after_evaluation=look), "evaluations": 1}
    assert not trainer(tmp_path, stop_before="1h", **options).run()
    assert told == [["step-1"]]
    monkeypatch.undo()
    assert trainer(tmp_path, resume=True, **options).run()
    assert len(told) == 2 and (tmp_path / "checkpoints/step-12").is_dir()


def test_who_is_told_of_an_evaluation_sees_the_weights_that_are_exported(tmp_path):
    seen = []
    watch = Watch(after_evaluation=lambda: seen.append(next(iter(run.model.state_dict().values())).clone()))
    run = trainer(tmp_path, evaluate=lambda model: Score(), watch=watch, evaluations=2, ema=0.9)
    assert run.run()
    live = next(iter(run.model.state_dict().values()))
    exported = next(iter(run.average.averages.values()))
    assert torch.equal(seen[-1], exported) and not torch.equal(seen[-1], live)


def test_an_evaluation_that_a_stop_forestalled_is_made_up_for(tmp_path, monkeypatch):
    """The held-out line of a step is there, and once, wherever a stop falls."""
    for stop in (3, 4, 5):
        folder = tmp_path / str(stop)
        first = trainer(folder, evaluate=lambda model: Score())
        monkeypatch.setattr(
            first.stopping,
            "check",
            lambda needed, first=first, stop=stop: "test" if first.progress.step == stop else None,
        )
        first.run()
        monkeypatch.undo()
        second = trainer(folder, evaluate=lambda model: Score(), resume=True)
        assert second.progress.step == stop and second.run()
        lines = [line["step"] for line in read_metrics(folder / "metrics.jsonl") if "valid_loss" in line]
        assert lines == [4, 8, 12]


def test_every_mth_checkpoint_stays(tmp_path):
    trainer(tmp_path, budget="23steps", checkpoint_every="3steps", keep_every="7steps", keep_checkpoints=1).run()
    kept = {path.name for path in (tmp_path / "checkpoints").iterdir()}
    assert kept == {"step-7", "step-14", "step-21", "step-23"}


def test_a_checkpoint_of_another_configuration_is_named(tmp_path):
    trainer(tmp_path, budget="6steps").run()
    with pytest.raises(ValueError, match=r"step-6 is of another configuration \(seed: 0 -> 3\)"):
        trainer(tmp_path, budget="6steps", seed=3, resume=True)


def test_an_export_that_fails_its_check_stops_the_run(tmp_path):
    def export(weights, path):
        path.mkdir()
        save_file({"all": torch.ones(1)}, path / "model.safetensors")
        if path.parent.name == ".step-10.partial":
            raise ValueError("the export computes other logits")

    with pytest.raises(ValueError, match="computes other logits"):
        trainer(tmp_path, export=export).run()
    assert [p.name for p in (tmp_path / "checkpoints").iterdir()] == ["step-5"]
    assert (tmp_path / "model").resolve().parent.name == "step-5"


def test_dropout_continues_where_it_was(tmp_path):
    def noisy(model, head, pack):
        loss_sum, num_targets = pack_loss(model, head, pack)
        return loss_sum * (1 + torch.rand(())), num_targets  # what dropout draws from

    torch.manual_seed(5)
    whole = trainer(tmp_path / "whole", loss=noisy)
    whole.run()
    trainer(tmp_path / "parts", loss=noisy, budget="12steps").run()
    shutil.rmtree(tmp_path / "parts/checkpoints/step-12")
    torch.rand(77)  # a new process is elsewhere
    second = trainer(tmp_path / "parts", loss=noisy, resume=True)
    assert second.progress.step == 10 and (tmp_path / "parts/model").resolve().parent.name == "step-10"
    second.run()
    assert torch.equal(weights(second), weights(whole))


def test_what_follows_an_evaluation_is_called_and_may_fail(tmp_path):
    def fails():
        calls.append(read_metrics(tmp_path / "metrics.jsonl")[-1]["valid_loss"])
        raise RuntimeError("no ink")

    calls, (display, out) = [], shown()
    watch = Watch(after_evaluation=fails)
    assert trainer(tmp_path, evaluate=lambda model: Score(), watch=watch, display=display).run()
    assert calls == [1.5] * 3 and out.getvalue().count("failed: RuntimeError: no ink") == 3


def test_a_real_full_disk_keeps_the_last_checkpoint(tmp_path, monkeypatch):
    """A limit on files' sizes stands in for the disk: every larger write fails, whatever library writes."""
    built = trainer(tmp_path, budget="40steps")
    take, limits = Trainer.take, resource.getrlimit(resource.RLIMIT_FSIZE)

    def then_fill(self, batch):
        if self.progress.step == 6:
            self.writer.wait()  # for that of step 5
            resource.setrlimit(resource.RLIMIT_FSIZE, (8192, limits[1]))
        return take(self, batch)

    monkeypatch.setattr(Trainer, "take", then_fill)
    try:
        with pytest.raises(OSError, match="is full; free some space and give the same command again, which goes on"):
            built.run()
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert [p.name for p in (tmp_path / "checkpoints").iterdir()] == ["step-5"]
    monkeypatch.undo()
    assert trainer(tmp_path, budget="40steps", resume=True).run()


def test_another_store_is_refused(tmp_path):
    first = trainer(tmp_path)
    first.run()
    second = trainer(tmp_path)
    second.store_fingerprint = "another"
    checkpoint = newest_checkpoint(tmp_path, print)
    with pytest.raises(
        ValueError, match=r"was trained on another store: .*; continue with the store that the run began with"
    ):
        second.restore(checkpoint)
