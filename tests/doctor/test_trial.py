"""A short trial, and what is made of it."""

from dataclasses import replace
from itertools import product
from pathlib import Path

import numpy as np
import pytest
import torch

from mlm_pytorch.data.packing import build_pack
from mlm_pytorch.doctor import trial as trials
from mlm_pytorch.doctor.masks import SampledPieces, check_masks, pieces_of
from mlm_pytorch.doctor.setup import Setup, check_attention, check_entries, check_setup
from mlm_pytorch.doctor.trial import (
    Resources,
    Trial,
    check_forecast,
    check_loss,
    forecast,
    free_resources,
    run_trial,
)
from mlm_pytorch.encoder import Encoder, EncoderConfig, preset
from mlm_pytorch.encoder.blocks import LONGEST_KEPT, Blocks
from mlm_pytorch.objective.packs import PackMasker
from mlm_pytorch.tokens import SpecialTokens

SPECIAL = SpecialTokens(512, mask_token_id=4, pad_token_id=0, ids=(0, 2, 3, 4), prefix=(2,), suffix=(3,))
PLENTY = Resources(memory=1 << 40, disk=1 << 40)


def pieces(count: int = 100) -> SampledPieces:
    draw = np.random.default_rng(0)
    return SampledPieces(SPECIAL, [draw.integers(5, 512, draw.integers(4, 60)) for _ in range(count)])


@pytest.fixture
def setup() -> Setup:
    return Setup(
        model="tiny",
        config=preset("tiny", vocab_size=512),
        device=torch.device("cpu"),
        seq_len=64,
        pack_tokens=512,
        packs_per_step=2,
        mask_prob=0.3,
        selection="tokens",
        optimizer="muon",
        precision="float32",
        budget="100steps",
        keep=2,
    )


RUN = Trial("cpu", "bf16", 512, 9, 1.0, 1000.0, 1.0, 0.99, 10**8, 10**9, 6.0, 5.0)


def test_a_trial_measures(setup, monkeypatch):
    monkeypatch.setattr(trials, "measure_peak", lambda device, dtype: 1e12)  # a busy machine's would be no time for it
    trial = run_trial(setup, pieces(), PackMasker(SPECIAL, 0), 1.0, PLENTY, lambda: Encoder(setup.config))
    assert trial.steps >= 1
    assert trial.step_seconds > 0
    assert trial.pack_tokens == 512
    assert 0.9 < trial.fill <= 1
    assert trial.first_loss is not None
    assert trial.first_loss < 12
    assert trial.peak_bytes > trial.state_bytes


@pytest.mark.parametrize("free", [Resources(memory=1000, disk=1 << 40), PLENTY])
def test_what_would_not_fit_is_reckoned_and_not_run(setup, free):
    seconds = 1.0 if free.memory == 1000 else 1e-9
    trial = run_trial(setup, pieces(), PackMasker(SPECIAL, 0), seconds, free, lambda: pytest.fail("nothing is built"))
    assert trial.steps == 0
    assert trial.step_seconds > 0
    assert "no step was run" in trial.note
    assert check_loss(trial, 512).level == "green"


def test_forecasts(setup):
    expected = forecast(setup, RUN, tokens=1_000_000, pieces=1000, prepare_seconds=3.0)
    assert expected.steps == 100
    assert expected.budget_seconds == 100
    assert expected.epoch_seconds == 1000
    assert expected.epochs == pytest.approx(100 * 1024 * 0.99 / 1_000_000)
    assert expected.store_bytes == 2_000_000 + 16_000
    timed = forecast(replace(setup, budget="20m"), RUN, tokens=1_000_000, pieces=1000, prepare_seconds=3.0)
    assert timed.steps == 1200
    with pytest.raises(ValueError, match=r"^budget 'soon' cannot be read"):
        forecast(replace(setup, budget="soon"), RUN, tokens=1, pieces=1, prepare_seconds=0.0)


def test_a_forecast_of_a_corpus_whose_size_is_not_known_is_a_bound(setup):
    long = replace(setup, budget="9000epochs")
    known = forecast(long, RUN, tokens=1_000_000, pieces=1000, prepare_seconds=3.0)
    unknown = replace(known, at_least=True)
    budget = check_forecast(long, RUN, unknown, PLENTY)[-1]
    assert check_forecast(long, RUN, known, PLENTY)[-1].level == "yellow" and budget.level == "green"
    assert f"at most {known.epochs:.2f} passes over at least 1,000,000 tokens" in budget.seen


def levels(setup: Setup, tokens: int = 1_000_000, free: Resources = PLENTY) -> dict[str, str]:
    expected = forecast(setup, RUN, tokens=tokens, pieces=1000, prepare_seconds=3.0)
    return {finding.check: finding.level for finding in check_forecast(setup, RUN, expected, free)}


def test_memory_disk_and_budget_are_judged(setup):
    assert set(levels(replace(setup, budget="5000steps"), tokens=10_000_000).values()) == {"green"}
    assert levels(setup, free=Resources(10**8, 10**6)) == {"memory": "red", "disk": "red", "budget": "yellow"}
    assert levels(replace(setup, budget="10steps"))["budget"] == "yellow"
    assert levels(replace(setup, budget="9000epochs"))["budget"] == "yellow"


def test_a_loss_that_is_no_number():
    assert check_loss(replace(RUN, last_loss=float("nan")), 512).level == "red"
    assert check_loss(RUN, 512).level == "green"


def test_resources_are_positive():
    free = free_resources(torch.device("cpu"), Path())
    assert free.memory > 0
    assert free.disk > 0


@pytest.mark.parametrize(
    ("changes", "check", "level"),
    [
        ({}, "positions", "green"),
        ({"seq_len": 4096}, "positions", "red"),
        ({"seq_len": 1024}, "pack", "red"),
        ({"seq_len": 1024, "pack_tokens": 2048}, "attention", "green"),
        ({"seq_len": 1024, "pack_tokens": 8192}, "attention", "yellow"),
        ({"config": replace(preset("tiny", vocab_size=512), vocab_size=1000)}, "shapes", "yellow"),
        ({"seq_len": 2048}, "seq-len", "yellow"),
    ],
)
def test_setups(setup, changes, check, level):
    findings = check_setup(replace(setup, **changes), np.full(100, 40.0))
    assert next(f for f in findings if f.check == check).level == level


@pytest.mark.parametrize("kinds", [("full_attention",) * 2, ("full_attention", "sliding_attention")])
@pytest.mark.parametrize("seq_len", [64, 512, 513, 1000, 2048, 4100])
def test_attention_on_a_cpu_is_judged_by_what_is_kept_of_it(setup, kinds, seq_len):
    """Yellow where the encoder would compute weights again: it says so itself of a pack of such pieces."""
    for heads, num_pieces in product((1, 2, 8), (1, 2, 5)):
        config = EncoderConfig(512, 16 * heads, 48, 2, heads, layer_types=kinds, max_position_embeddings=8192)
        long = replace(setup, config=config, seq_len=seq_len, pack_tokens=num_pieces * seq_len + seq_len // 2)
        blocks = Blocks.of(torch.arange(num_pieces + 1) * seq_len, heads)
        kept = all(bucket.kept for bucket in blocks.buckets)
        finding = check_attention(long)
        assert finding.level == ("green" if kept else "yellow"), (heads, num_pieces)
        if not kept:
            assert finding.remedy == f"pass --seq-len {LONGEST_KEPT} or less, up to which they are always kept"
            assert check_attention(replace(long, seq_len=LONGEST_KEPT)).level == "green"


def test_windows_alone_keep_no_weights_and_are_not_warned_of(setup):
    config = EncoderConfig(512, 64, 48, 2, 4, layer_types=("sliding_attention",) * 2, max_position_embeddings=8192)
    assert check_attention(replace(setup, config=config, seq_len=8192, pack_tokens=65_536)).level == "green"


def test_a_tokenizer_larger_than_the_model(setup):
    assert check_entries(setup, 512).level == "green"
    assert check_entries(setup, 513).level == "red"


@pytest.mark.parametrize("native", [None, torch.bfloat16])
def test_precision(setup, monkeypatch, native):
    for module in ("doctor.setup", "training.step"):
        monkeypatch.setattr(f"mlm_pytorch.{module}.native_precision", lambda device: native)
    levels = {
        name: next(f for f in check_setup(replace(setup, precision=name)) if f.check == "precision").level
        for name in ("auto", "bf16", "float32")
    }
    green = "green" if native else "yellow"
    assert levels == {"auto": green, "bf16": green, "float32": "yellow"}


# -- masks -------------------------------------------------------------------------------------------------------------


def test_masks_that_are_wrong_are_found():
    held = pieces(20)
    pack = build_pack(held, np.arange(20), np.zeros(20, np.int64))
    masked = PackMasker(SPECIAL, 0)(pack, 300_000)
    borders = pack.cu_seqlens.tolist()

    def check(**changes) -> str:
        return check_masks(pack.input_ids, borders, replace(masked, **changes), SPECIAL, 300_000).seen

    assert check_masks(pack.input_ids, borders, masked, SPECIAL, 300_000).level == "green"
    assert "special tokens are predicted" in check(positions=torch.cat((masked.positions, torch.tensor([0]))))
    overwritten = torch.where(masked.input_ids == 2, 9, masked.input_ids)
    assert "tokens are overwritten that are not predicted" in check(input_ids=overwritten)
    assert "pieces have nothing to predict" in check(
        positions=masked.positions[:5], input_ids=torch.tensor(pack.input_ids)
    )


def test_pieces_are_cut_as_a_preparation_cuts_them():
    held = pieces_of([np.arange(5, 105), np.arange(0), np.arange(5, 8)], SPECIAL, 32)
    assert [len(held.piece(i)) for i in range(len(held))] == [30, 30, 30, 10, 3]
    assert held.num_tokens == 103
    with pytest.raises(ValueError, match=r"^seq_len 2 leaves no room beside the tokens that frame a piece; choose a"):
        pieces_of([np.arange(5, 105)], SPECIAL, 2)
