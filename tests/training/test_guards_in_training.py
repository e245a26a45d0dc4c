"""Steps without a finite loss are skipped and counted, repeated ones go back, and a plateau is named."""

import pytest
import torch
from small_trainer import shown, trainer, weights

from mlm_pytorch.objective.packs import pack_loss
from mlm_pytorch.training.metrics import read_metrics
from mlm_pytorch.training.reporting import Watch
from mlm_pytorch.training.trainer import Trainer


def plant(*, nan_at, nan_gradient_at=()):
    """A loss that is NaN, or has NaN gradients, at given calls; a call is a step where a step takes one pack."""
    calls = iter(range(1, 10_000))

    def loss(model, head, pack):
        call = next(calls)
        loss_sum, num_targets = pack_loss(model, head, pack)
        if call in nan_at:
            return loss_sum * float("nan"), num_targets
        if call in nan_gradient_at:  # the square root of nothing
            return loss_sum + (loss_sum - loss_sum.detach()).sqrt(), num_targets
        return loss_sum, num_targets

    return loss


@pytest.mark.parametrize("optimizer", ["muon", "adamw"])
@pytest.mark.parametrize("planted", [{"nan_at": {4}}, {"nan_at": (), "nan_gradient_at": {4}}])
def test_a_step_that_is_not_finite_is_skipped_and_counted(tmp_path, optimizer, planted):
    display, out = shown()
    built = trainer(tmp_path, loss=plant(**planted), optimizer=optimizer, display=display)
    seen = {}
    take = built.take

    def watched(batch):
        taken = take(batch)
        states = [v.clone() for o in built.optimizers for held in o.state.values() for v in held.values()]
        seen[built.progress.step] = [weights(built), *states]
        return taken

    built.take = watched
    assert built.run()
    assert all(torch.equal(a, b) for a, b in zip(seen[3], seen[4], strict=True))
    assert not torch.equal(seen[4][0], seen[5][0]) and all(torch.isfinite(v).all() for v in seen[12])
    lines = read_metrics(tmp_path / "metrics.jsonl")
    assert [line["step"] for line in lines] == list(range(1, 13))
    assert [line["skipped_steps"] for line in lines] == [0] * 3 + [1] * 9
    assert "grad_norm" not in lines[3] and "grad_norm" in lines[4]
    assert out.getvalue().count("step 4: loss or gradient is not finite; the step is skipped") == 1


def test_repeated_ones_go_back_with_the_data_moved_on(tmp_path):
    display, out = shown()
    built = trainer(tmp_path, loss=plant(nan_at={7, 8, 10, 11, 12}), budget="30steps", display=display)
    assert built.run() and built.progress.step == 30
    assert "back to step 5, the data go on from where they are" in out.getvalue()
    lines = read_metrics(tmp_path / "metrics.jsonl")
    assert [line["step"] for line in lines] == list(range(1, 31)), "no step twice"
    assert lines[-1]["skipped_steps"] == 5 and lines[-1]["rollbacks"] == 1 and "rollbacks" not in lines[4]
    # The step read late is the thirteenth; packs that it and those before read are not read again.
    assert built.feed.position.next_pack == 30 + 13 - 5


def test_a_run_that_went_back_is_continued_alike(tmp_path, monkeypatch):
    storm = {7, 8, 10, 11, 12}
    whole = trainer(tmp_path / "whole", loss=plant(nan_at=storm), budget="30steps")
    whole.run()
    first = trainer(tmp_path / "parts", loss=plant(nan_at=storm), budget="30steps")
    take = Trainer.take

    def then_crash(self, batch):
        if self.progress.step == 18 and self.guard.rollbacks:
            raise RuntimeError("power cut")
        return take(self, batch)

    monkeypatch.setattr(Trainer, "take", then_crash)
    with pytest.raises(RuntimeError, match="power cut"):
        first.run()
    monkeypatch.undo()
    second = trainer(tmp_path / "parts", budget="30steps", resume=True)
    assert second.progress.step == 15 and second.guard.rollbacks == 1 and second.guard.skipped == 5
    second.run()
    assert torch.equal(weights(second), weights(whole))


def test_going_back_in_vain_ends_the_run(tmp_path):
    with pytest.raises(ValueError, match="again after going back 3 times; begin a new run with a lower --lr"):
        trainer(tmp_path, loss=plant(nan_at=range(6, 1000)), budget="99steps").run()
    assert [p.name for p in (tmp_path / "checkpoints").iterdir()] == ["step-5"]
    display, out = shown()
    never = trainer(tmp_path / "new", loss=plant(nan_at=range(1000)), budget="99steps", display=display)
    with pytest.raises(ValueError, match="again after going back 3 times"):
        never.run()
    assert "there is no checkpoint to go back to" in out.getvalue()


def test_a_plateau_at_the_entropy_of_single_tokens_is_named(tmp_path):
    def stuck(model, head, pack):
        loss_sum, num_correct = pack_loss(model, head, pack)
        return loss_sum * 0 + 4.0 * pack.num_targets, num_correct

    display, out = shown()
    watch = Watch(unigram_entropy=4.05)
    trainer(tmp_path, loss=stuck, budget="230steps", display=display, watch=watch, evaluations=0).run()
    assert out.getvalue().count("which is the entropy of single tokens (4.05)") == 1
