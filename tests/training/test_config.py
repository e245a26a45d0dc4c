from pathlib import Path

import pytest

from mlm_pytorch.training.config import TrainConfig


def config(**changes) -> TrainConfig:
    return TrainConfig(**{"corpus": ("a.txt", "b"), "out": Path("runs/x")} | changes)


def test_round_trip():
    full = config(valid=("v.txt",), tokenizer="tok", mix=("a.txt=1",), lr=1e-3, precision="bf16", seq_len=77)
    assert TrainConfig.from_yaml(full.to_yaml()) == full


def test_yaml_is_read_safely():
    with pytest.raises(ValueError, match="holds no fields"):
        TrainConfig.from_yaml("- a\n- b\n")
    with pytest.raises(ValueError, match="fields unknown to this version: hush"):
        TrainConfig.from_yaml(config().to_yaml() + "hush: 1\n")
    with pytest.raises(Exception, match="could not determine a constructor"):
        TrainConfig.from_yaml("!!python/object/apply:os.system ['true']")


def test_differences_name_the_fields_and_let_some_change():
    other = config(seed=5, mask_prob=0.2, budget="9h", threads=1, checkpoint_every="1m", keep=9, stop_before="1h")
    assert config().differences(other) == ["mask_prob: 0.3 -> 0.2", "seed: 0 -> 5"]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"corpus": ()}, "no corpus is named; give files"),
        ({"budget": "long"}, "budget 'long' cannot be read"),
        ({"checkpoint_every": "2epochs"}, "--checkpoint-every 2epochs is neither a time nor steps"),
        ({"mask_prob": 0.0}, r"--mask-prob 0.0 is outside \(0, 1\]"),
        ({"mask_prob_end": 1.5}, "--mask-prob-end 1.5 is outside"),
        ({"replace_prob": -0.1}, r"--replace-prob -0.1 is outside \[0, 1\]"),
        ({"replace_prob": 0.1, "random_token_prob": 0.2}, "--random-token-prob 0.2 exceeds --replace-prob 0.1"),
        ({"warmup": 0.6, "decay": 0.6}, "--warmup 0.6 and --decay 0.6 exceed the budget together"),
        ({"keep_every": "2h"}, "--keep-every 2h is no number of steps; write it like 1000steps"),
        ({"stop_before": "50steps"}, "--stop-before 50steps is no time; write it like 3h50m"),
        ({"track": ("none", "wandb")}, "--track none and --track wandb contradict each other"),
        ({"lr": -0.1}, "--lr -0.1 is not positive"),
        ({"lr": 0.0}, "--lr 0.0 is not positive"),
        ({"pack_tokens": 0}, "--pack-tokens 0 is too small; give at least 1"),
        ({"evaluations": -1}, "--evaluations -1 is too small; give at least 0"),
        ({"model": "huge"}, r"--model 'huge' is neither a preset \(tiny, mini, small, base, large\) nor a folder"),
    ],
)
def test_errors(changes, message):
    with pytest.raises(ValueError, match=message):
        config(**changes).check()
