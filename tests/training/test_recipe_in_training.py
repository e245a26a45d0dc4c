"""What a recipe asks of the loop: growing batches, averaged weights, a z-loss."""

from itertools import pairwise

import pytest
import torch
from safetensors.torch import load_file
from small_trainer import Score, trainer, weights

from mlm_pytorch.objective.packs import pack_logits
from mlm_pytorch.training.metrics import read_metrics


def test_a_ramp_reads_more_packs_and_spends_the_budget_in_tokens(tmp_path):
    built = trainer(tmp_path, budget="3Ktokens", packs_per_step_end=3, ramp=0.5, evaluations=0)
    built.run()
    lines = read_metrics(tmp_path / "metrics.jsonl")
    packs = [round(line["tokens"] / line["fill"] / 96) for line in lines[:1]]
    for before, line in pairwise(lines):
        packs.append(round((line["tokens"] - before["tokens"]) / line["fill"] / 96))
    assert packs == [built.plan.ramp(k / len(packs)) for k in range(len(packs))] and packs[0] == 1 and packs[-1] == 3
    assert abs(96 * sum(packs) - 3000) <= 3 * 96
    assert built.feed.position.next_pack == sum(packs)


def test_a_ramp_within_a_time_budget_continues(tmp_path):
    built = trainer(tmp_path, budget="1s", packs_per_step_end=3)
    assert built.run()
    longer = trainer(tmp_path, budget="2s", packs_per_step_end=3, resume=True)
    packs = longer.feed.position.next_pack
    left = longer.plan.ramp.packs(longer.progress.total_steps, longer.progress.step)
    assert left == pytest.approx(packs * (2 / longer.progress.seconds - 1), abs=3)
    assert longer.run() and longer.feed.position.next_pack > packs


def test_averaged_weights_are_measured_and_exported(tmp_path):
    seen = []

    def evaluate(model):
        seen.append(weights(built))
        score = Score()
        score.loss = float(seen[-1].norm())
        return score

    built = trainer(tmp_path, ema=0.9, evaluations=2, evaluate=evaluate)
    assert built.run()
    lines = [line for line in read_metrics(tmp_path / "metrics.jsonl") if "valid_loss" in line]
    assert [(line["valid_loss"], line["ema_valid_loss"]) for line in lines] == [
        (float(seen[i].norm()), float(seen[i + 1].norm())) for i in (0, 2)
    ]
    exported = load_file(tmp_path / "checkpoints/step-12/model/model.safetensors")
    assert torch.equal(torch.cat([exported[n].flatten() for n, _ in built.model.named_parameters()]), seen[-1])
    assert torch.equal(weights(built), seen[-2]) and not torch.equal(seen[-1], seen[-2])


def test_z_loss_is_a_part_of_the_loss(tmp_path):
    plain, with_z = trainer(tmp_path / "a"), trainer(tmp_path / "b", z_loss=0.5)
    packs = [plain.feed.mask(pack, 300_000) for pack in plain.feed.reader.take(1)]
    log_normalisers = pack_logits(plain.model, None, packs[0]).logsumexp(-1)
    agreement = plain.world.agree(packs[0].num_targets, 0, stop=bool, seconds=float)
    difference = with_z.step.backward(packs, agreement)[0] - plain.step.backward(packs, agreement)[0]
    torch.testing.assert_close(difference, 0.5 * log_normalisers.square().sum(), atol=1e-4, rtol=1e-4)
