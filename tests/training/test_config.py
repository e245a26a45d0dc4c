import dataclasses
import typing
from pathlib import Path

import pytest

from mlm_pytorch.masking import SELECTIONS
from mlm_pytorch.objective.packs import BALANCED
from mlm_pytorch.training.config import SelectionName, TrainConfig


def config(**changes) -> TrainConfig:
    return TrainConfig(**{"corpus": ("a.txt", "b"), "out": Path("runs/x")} | changes)


def test_round_trip():
    full = config(valid=("v.txt",), tokenizer="tok", mix=("a.txt=1",), lr=1e-3, precision="bf16", seq_len=77)
    assert TrainConfig.from_yaml(full.to_yaml()) == full


def test_yaml_is_read_safely():
    with pytest.raises(
        ValueError, match="holds no fields, .*; restore config.yaml from a copy, or choose another --out"
    ):
        TrainConfig.from_yaml("- a\n- b\n")
    with pytest.raises(ValueError, match="fields unknown to this version: hush"):
        TrainConfig.from_yaml(config().to_yaml() + "hush: 1\n")
    for damaged, trouble in (
        ("!!python/object/apply:os.system ['true']", "could not determine a constructor"),
        ("corpus: [a.txt", "while parsing a flow sequence"),
        ("corpus: [a.txt]", "holds no fields"),
    ):
        with pytest.raises(
            ValueError, match=f"config.yaml .*{trouble}.*, so the run folder is damaged; restore"
        ) as told:
            TrainConfig.from_yaml(damaged)
        assert "\n" not in str(told.value)


def test_every_selection_can_be_named():
    assert typing.get_args(SelectionName) == (*SELECTIONS, BALANCED)


def test_differences_name_the_fields_and_let_some_change():
    other = config(seed=5, mask_prob=0.2, budget="9h", threads=1, checkpoint_every="1m", keep_checkpoints=9)
    other = dataclasses.replace(other, stop_before="1h")
    assert config().differences(other) == ["mask_prob: 0.3 -> 0.2", "seed: 0 -> 5"]


def test_what_was_left_open_may_be_left_open_again():
    begun = config(lr=1e-3).settled(model="mini", lr=4e-3, pack_tokens=2048)
    assert (begun.model, begun.lr, begun.chosen) == ("mini", 1e-3, ("model", "pack_tokens"))
    assert TrainConfig.from_yaml(begun.to_yaml()) == begun
    assert begun.differences(config(lr=1e-3)) == []
    assert begun.differences(config(lr=1e-3, model="mini")) == []
    assert begun.differences(config(lr=1e-3, model="tiny")) == ["model: mini -> tiny"]
    assert begun.differences(config()) == ["lr: 0.001 -> left open"]
    assert begun.differences(config(lr=1e-3, model="mini", corpus=("a.txt", "b.txt"))) == [
        "corpus: a.txt b -> a.txt b.txt"
    ]


def test_what_depends_on_progress():
    plain = config()
    assert [plain.learning_rate_factor(p) for p in (0.01, 0.3, 0.7, 1.0)] == pytest.approx([0.5, 1, 0.5, 0])
    assert (plain.rate(0.0), plain.rate(1.0), plain.batch_ramp(1.0)) == (300_000, 150_000, 1)
    other = config(schedule="linear", warmup=0.0, final_lr=0.2, mask_schedule="constant", packs_per_step_end=3)
    assert other.learning_rate_factor(0.5) == pytest.approx(0.6)
    assert (other.rate(1.0), other.batch_ramp(0.49), other.batch_ramp(0.5)) == (300_000, 2, 3)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"schedule": "cosine", "decay": 0.3}, "--decay 0.3 is of --schedule wsd, not cosine; leave one"),
        ({"mask_schedule": "constant", "mask_prob_end": 0.1}, "--mask-prob-end 0.1 is never reached with --mask-sched"),
        ({"decay": -0.5}, r"--decay -0.5 is outside \[0, 1\]"),
        ({"final_lr": 1.5}, r"--final-lr 1.5 is outside \[0, 1\]"),
        ({"ramp": 0.0}, r"--ramp 0.0 is outside \(0, 1\]; 0.5 is usual"),
        ({"ramp": 0.7}, "--ramp 0.7 is for --packs-per-step-end, which is left out; give it too, or leave out"),
        ({"packs_per_step_end": 0}, "--packs-per-step-end 0 is too small; give at least 1"),
        ({"embedding_lr": 0.0}, "--embedding-lr 0.0 is not positive; 1 is usual"),
        ({"weight_decay": -0.1}, "--weight-decay -0.1 is below 0 or not finite; 0.01 to 0.1 is usual"),
        ({"z_loss": float("nan")}, "--z-loss nan is below 0 or not finite; 1e-4 is usual"),
        ({"ema": 1.0}, r"--ema 1.0 is outside \[0, 1\); 0.99 to 0.9999 is usual, 0 turns averaging off"),
        ({"corpus": ()}, "no corpus is named; give files"),
        ({"budget": "long"}, "budget 'long' cannot be read"),
        ({"checkpoint_every": "2epochs"}, "--checkpoint-every 2epochs is neither a time nor steps"),
        ({"mask_prob": 0.0}, r"--mask-prob 0.0 is outside \(0, 1\]"),
        ({"mask_prob_end": 1.5}, "--mask-prob-end 1.5 is outside"),
        ({"replace_prob": -0.1}, r"--replace-prob -0.1 is outside \[0, 1\]"),
        ({"replace_prob": 0.1, "random_token_prob": 0.2}, "--random-token-prob 0.2 exceeds --replace-prob 0.1"),
        ({"warmup": 0.6, "decay": 0.6}, "--warmup 0.6 and --decay 0.6 exceed the budget together"),
        ({"shard_ranks": 2}, "--shard-ranks 2 is for --parallel hybrid, but --parallel is auto; change one of them"),
        ({"keep_every": "2h"}, "--keep-every 2h is no number of steps; write it like 1000steps"),
        ({"stop_before": "50steps"}, "--stop-before 50steps is no time; write it like 3h50m"),
        ({"track": ("none", "wandb")}, "--track none and --track wandb contradict each other"),
        ({"lr": -0.1}, "--lr -0.1 is not positive"),
        ({"ema": 0.9, "parallel": "fsdp"}, "--ema 0.9 keeps whole weights, and --parallel fsdp parts of them"),
        ({"lr": 0.0}, "--lr 0.0 is not positive"),
        ({"pack_tokens": 0}, "--pack-tokens 0 is too small; give at least 1"),
        ({"evaluations": -1}, "--evaluations -1 is too small; give at least 0"),
        ({"seq_len": 2}, "--seq-len 2 is too small; give at least 3"),
        ({"device": "cuda:99"}, "--device cuda:99 is not there; this machine has cpu"),
    ],
)
def test_errors(changes, message):
    with pytest.raises(ValueError, match=message):
        config(**changes).check()


def test_a_ramp_that_said_nothing_does_not_keep_a_run_from_going_on():
    before, now = (TrainConfig(corpus=("a.txt",), out=Path("x"), ramp=ramp) for ramp in (0.7, 0.5))
    assert before.differences(now) == []
    with_end = dataclasses.replace(now, packs_per_step_end=4)
    assert dataclasses.replace(with_end, ramp=0.7).differences(with_end) == ["ramp: 0.7 -> 0.5"]
