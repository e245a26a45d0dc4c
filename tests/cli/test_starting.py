"""What a run may start from, from the first step to the evaluated export."""

import importlib
import json
import random
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file
from transformers import AutoModelForMaskedLM

from mlm_pytorch.cli import main
from mlm_pytorch.cli.factory import import_factory
from mlm_pytorch.cli.learners import make_learner
from mlm_pytorch.data.tokenizer import load_tokenizer, train_tokenizer
from mlm_pytorch.training.config import TrainConfig
from mlm_pytorch.training.metrics import read_metrics

WORDS = [
    "the",
    "cat",
    "sat",
    "on",
    "a",
    "mat",
    "and",
    "dog",
    "ran",
    "to",
    "its",
    "own",
    "red",
    "house",
    "by",
    "old",
    "river",
]
FACTORY = """
import threading
import torch
from torch import nn

class Own(nn.Module):
    def __init__(self, num_tokens, max_seq_len, pad_token_id):
        super().__init__()
        torch.manual_seed(0)
        self.embed = nn.Embedding(num_tokens, 32, padding_idx=pad_token_id)
        self.places = nn.Embedding(max_seq_len, 32)
        self.layer = nn.TransformerEncoderLayer(32, 2, 64, dropout=0.0, batch_first=True)
        nn.init.normal_(self.embed.weight, std=0.02)
        self.out = nn.Linear(32, num_tokens)
        self.out.weight = self.embed.weight

    def forward(self, ids, mask=None):
        x = self.embed(ids) + self.places(torch.arange(ids.shape[1], device=ids.device))
        return self.out(self.layer(x, src_key_padding_mask=None if mask is None else ~mask))

def build(num_tokens, max_seq_len, pad_token_id):
    return Own(num_tokens, max_seq_len, pad_token_id)

def xt(num_tokens, max_seq_len, pad_token_id):
    from x_transformers import Encoder, TransformerWrapper
    torch.manual_seed(0)
    layers = Encoder(dim=32, depth=2, heads=2, attn_dim_head=16)
    return TransformerWrapper(num_tokens=num_tokens, max_seq_len=max_seq_len, attn_layers=layers)

def nothing(num_tokens, max_seq_len, pad_token_id):
    return 3

def other_arguments(vocabulary):
    return None

def other_shape(num_tokens, max_seq_len, pad_token_id):
    return nn.Embedding(num_tokens, 8)

class Inverted(Own):
    def forward(self, ids, mask=None):
        return super().forward(ids, None if mask is None else ~mask)

class Forgetful(Own):
    def forward(self, ids, mask=None):
        x = self.embed(ids)
        return self.out(self.layer(x, src_key_padding_mask=None if mask is None else ~mask))

class Maskless(Own):
    def forward(self, ids):
        return super().forward(ids)

class Cut(Own):
    def __init__(self, num_tokens, max_seq_len, pad_token_id):
        super().__init__(num_tokens, max_seq_len, pad_token_id)
        self.norm = nn.BatchNorm1d(32)
        for name, table in zip(("cosines", "sines"), torch.ones(max_seq_len, 64).chunk(2, -1)):
            self.register_buffer(name, table)
        self.register_buffer("shift", torch.zeros(1).expand(32))

    def forward(self, ids, mask=None):
        x = self.embed(ids) * self.cosines[: ids.shape[1]] + self.sines[: ids.shape[1]] + self.shift
        x = self.norm(x.transpose(1, 2)).transpose(1, 2)
        return self.out(self.layer(x, src_key_padding_mask=None if mask is None else ~mask))

class Counting(Own):
    def get_extra_state(self):
        return {"calls": 0}

class Locked(Own):
    def __init__(self, *arguments, **sizes):
        super().__init__(*arguments, **sizes)
        self.lock = threading.Lock()

broken = 5
"""


def sentences(count: int) -> list[str]:
    draw = random.Random(0)
    return [" ".join(draw.choices(WORDS, k=draw.randint(4, 30))) + "." for _ in range(count)]


@pytest.fixture(scope="module")
def place(tmp_path_factory) -> Path:
    """A corpus, a tokenizer, a store of both, and a module of factories."""
    folder = tmp_path_factory.mktemp("starting")
    (folder / "corpus.txt").write_text("\n".join(sentences(120)))
    train_tokenizer(sentences(120), kind="wordpiece", vocab_size=120).save(folder / "tokenizer", model_max_length=40)
    (folder / "own_models.py").write_text(FACTORY)
    (folder / "falls.py").write_text("import a_module_that_nobody_has")
    main(["prepare", str(folder / "corpus.txt"), "--out", str(folder / "store"), "--seq-len", "40", "--tokenizer",
          str(folder / "tokenizer")])  # fmt: skip
    return folder


@pytest.fixture
def there(place, monkeypatch, tmp_path) -> Path:
    """Work where the factories are."""
    monkeypatch.chdir(place)
    monkeypatch.setattr(sys, "path", [str(place), *sys.path])
    return tmp_path


def mlm(*arguments: object) -> None:
    main([str(argument) for argument in arguments])


def fails(capsys, *arguments: object) -> str:
    capsys.readouterr()
    with pytest.raises(SystemExit) as stop:
        mlm(*arguments)
    assert stop.value.code == 2
    said = capsys.readouterr().err
    assert "Traceback" not in said
    return said.splitlines()[-1]


SHAPE = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 48}
NO_DROPOUT = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
ARCHITECTURES = {
    "Bert": SHAPE | NO_DROPOUT | {"max_position_embeddings": 48},
    "Roberta": SHAPE | NO_DROPOUT | {"max_position_embeddings": 42, "pad_token_id": 1},
    "DebertaV2": SHAPE
    | NO_DROPOUT
    | {"max_position_embeddings": 48, "relative_attention": True, "pos_att_type": ["p2c"]},
    "DistilBert": {
        "dim": 32,
        "n_layers": 2,
        "n_heads": 2,
        "hidden_dim": 48,
        "max_position_embeddings": 48,
        "dropout": 0.0,
        "attention_dropout": 0.0,
    },
}


def save_architecture(name: str, folder: Path, place: Path, **changes) -> Path:
    torch.manual_seed(0)
    config = getattr(transformers, f"{name}Config")(**({"vocab_size": 128} | ARCHITECTURES[name] | changes))
    getattr(transformers, f"{name}ForMaskedLM")(config).save_pretrained(folder)
    for path in (place / "tokenizer").iterdir():
        (folder / path.name).write_bytes(path.read_bytes())
    return folder


OPTIONS = ("--pack-tokens", "256", "--threads", "1", "--evaluations", "2", "--precision", "float32")


def weights(run: Path) -> dict[str, torch.Tensor]:
    return load_file(run / "model/model.safetensors")


def test_words_of_a_tokenizer_that_knows_none_are_refused_before_a_corpus_is_read(place, there, capsys):
    train_tokenizer(["MKTAYIAKQRQISFVKSHFS"] * 9, kind="amino-acids").save(there / "letters", model_max_length=40)
    options = ("--tokenizer", there / "letters", "--selection", "words", "--out", there / "run", "--budget", "1steps")
    with pytest.raises(SystemExit):
        mlm("train", place / "corpus.txt", *options)
    said = capsys.readouterr().err
    assert "the ids of this tokenizer hold no trace of word boundaries" in said and "documents" not in said


def test_what_was_chosen_for_a_continued_model_is_kept_with_its_run(place, there, capsys):
    """And the same command goes on, also where an earlier version kept nothing."""
    folder, out = save_architecture("Bert", there / "model", place), there / "run"
    run = ("train", place / "store", "--model", folder, "--out", out, *OPTIONS)
    mlm(*run, "--budget", "2steps")
    begun = TrainConfig.from_yaml((out / "config.yaml").read_text())
    assert begun.chosen == ("decay", "lr", "optimizer", "warmup")
    assert (begun.optimizer, begun.warmup, begun.decay) == ("adamw", 0.06, 0.94) and begun.lr
    open_again = dict.fromkeys(begun.chosen)
    for before in (begun, replace(begun, **open_again, chosen=())):
        (out / "config.yaml").write_text(before.to_yaml())
        step = read_metrics(out / "metrics.jsonl")[-1]["step"]
        mlm(*run, "--budget", f"{step + 1}steps")
        after = TrainConfig.from_yaml((out / "config.yaml").read_text())
        assert replace(after, budget=begun.budget) == begun
        assert read_metrics(out / "metrics.jsonl")[-1]["step"] == step + 1
    mlm(*run, "--budget", "5steps", "--lr", begun.lr)  # typed as it was chosen, and left open again
    mlm(*run, "--budget", "6steps")
    assert "of another configuration (lr: " in fails(capsys, *run, "--budget", "9steps", "--lr", "0.5")
    assert "continued from `" in (out / "model/README.md").read_text()


@pytest.mark.parametrize("name", ["Bert", "Roberta", "DebertaV2", "DistilBert"])
def test_any_masked_language_model_is_continued(name, place, there, capsys):
    folder = save_architecture(name, there / "model", place)
    run = ("train", place / "store", "--model", folder, *OPTIONS, "--checkpoint-every", "2steps")
    mlm(*run, "--out", there / "whole", "--budget", "4steps")
    said = capsys.readouterr().err
    assert f"{name}ForMaskedLM" in said and "gentle on a model that is continued: --optimizer adamw" in said
    assert "step 0: held-out loss" in said and "loads with transformers" in said
    assert "the tokenizer makes" in said and "every position" not in said
    lines = read_metrics(there / "whole/metrics.jsonl")
    assert lines[0]["step"] == 0 and lines[-1]["step"] == 4 and lines[-1]["valid_loss"] < lines[0]["valid_loss"]
    assert max(line.get("tokens_per_second", 0) for line in lines) < 1e8  # measured first, which is no part of a step
    # stopped at a checkpoint and continued, it is the same to the last bit
    mlm(*run, "--out", there / "parts", "--budget", "4steps")
    for later in (there / "parts/checkpoints").glob("step-4"):
        (later / "manifest.json").unlink()
    mlm(*run, "--out", there / "parts", "--budget", "4steps")
    assert "continuing at step 2" in capsys.readouterr().err
    one, two = weights(there / "whole"), weights(there / "parts")
    assert one.keys() == two.keys() and all(torch.equal(one[key], two[key]) for key in one)
    model = AutoModelForMaskedLM.from_pretrained(there / "parts/model")
    assert type(model).__name__ == f"{name}ForMaskedLM"
    mlm("evaluate", there / "parts", "--json")
    assert json.loads(capsys.readouterr().out)["loss"] < 5
    mlm("fill", there / "parts", "the [MASK] sat", "--json")
    assert len(json.loads(capsys.readouterr().out)["masks"][0]["candidates"]) == 5


@pytest.mark.parametrize("name", ["own_models:build", "own_models:xt", "own_models:Cut"])
def test_a_module_of_the_users_own(name, place, there, capsys):
    if name.endswith("xt"):
        pytest.importorskip("x_transformers")
    run = ("train", place / "store", "--model", name, *OPTIONS, "--checkpoint-every", "2steps")
    mlm(*run, "--out", there / "whole", "--budget", "4steps")
    said = capsys.readouterr().err
    assert "for a module of your own: --optimizer adamw" in said and "passes through its output head" not in said
    assert f"next: mlm fill {there / 'whole'} --factory {name}" in said
    mlm(*run, "--out", there / "parts", "--budget", "4steps")
    (there / "parts/checkpoints/step-4/manifest.json").unlink()
    mlm(*run, "--out", there / "parts", "--budget", "4steps")
    one, two = weights(there / "whole"), weights(there / "parts")
    assert one.keys() == two.keys() and all(torch.equal(one[key], two[key]) for key in one)
    for command in (("evaluate", there / "whole"), ("fill", there / "whole", "a [MASK]")):
        assert f"no code is run because a folder names it; add --factory {name}" in fails(capsys, *command)
    mlm("evaluate", there / "whole", "--json", "--factory", name)
    assert json.loads(capsys.readouterr().out)["loss"] < 6
    mlm("fill", there / "whole", "a [MASK]", "--json", "--factory", name)
    assert json.loads(capsys.readouterr().out)["masks"]
    assert "does not fit what own_models:other_shape makes" in fails(
        capsys, "fill", there / "whole", "a [MASK]", "--factory", "own_models:other_shape"
    )
    assert "which transformers has no class for" in fails(capsys, "export", there / "whole", there / "out")
    assert "holds the weights of a module of your own" in fails(
        capsys, "train", place / "store", "--model", there / "whole/model", "--out", there / "next"
    )


def test_mistakes_with_what_a_run_starts_from(place, there, capsys):
    bert = save_architecture("Bert", there / "bert", place)
    small = save_architecture("Bert", there / "small", place, vocab_size=70)
    headless, broken = (
        save_architecture("Bert", there / "headless", place),
        save_architecture("Bert", there / "nan", place),
    )
    config = json.loads((headless / "config.json").read_text())
    (headless / "config.json").write_text(json.dumps(config | {"model_type": "gpt2"}))
    damaged = load_file(broken / "model.safetensors")
    next(iter(damaged.values())).view(-1)[0] = float("nan")
    save_file(damaged, broken / "model.safetensors", metadata={"format": "pt"})
    text = place / "corpus.txt"
    cases = [
        ((text, "--model", "falls:build"), "the module falls does not import (ModuleNotFoundError"),
        ((text, "--model", "own_models:absent"), "own_models has no function absent"),
        ((text, "--model", "own_models:broken"), "own_models has no function broken"),
        ((text, "--model", "own_models:nothing"), "returned int, which is no nn.Module"),
        ((text, "--model", "own_models:other_arguments"), "cannot be called as factory(num_tokens=…"),
        ((text, "--model", "own_models:other_shape"), "returns logits (2, 16, 8) for ids (2, 16)"),
        ((text, "--model", "own_models:Counting"), "Counting keeps _extra_state in its state, which is no tensor and"),
        (
            (text, "--model", "own_models:Locked"),
            "Locked cannot be copied, and a copy is what its weights are saved from",
        ),
        ((text, "--model", "enormous"), "is neither a preset (nano, tiny, mini, small, base, large) nor a folder"),
        ((text, "--model", small), "they do not belong together; take model and tokenizer from one export"),
        ((text, "--model", headless), "type 'gpt2', which is no masked language model"),
        ((text, "--model", broken), "is not finite; take another export of it"),
        ((text, "--model", bert, "--seq-len", "64"), "seq_len 64 exceeds max_position_embeddings 48"),
        ((text, "--model", bert, "--tokenizer", "bpe"), "--tokenizer bpe is not the tokenizer of"),
        ((text, "--model", bert, "--keep", there / "none.txt"), "none.txt"),
        ((text, "--extend-vocabulary", "9"), "is for a model that has a vocabulary already"),
        ((text, "--model", "own_models:build", "--extend-vocabulary", "9"), "so pass --vocab-size"),
        ((place / "store", "--model", bert, "--extend-vocabulary", "9"), "is settled by the store"),
        ((text, "--model", bert, "--first-embeddings", "random"), "random is for presets, and --model"),
        ((text, "--model", bert, "--recompute"), "is for the built-in encoder (presets and ModernBERT's), not Bert"),
        ((text, "--device", "cuda:31"), "--device cuda:31 is not there; this machine has cpu"),
        ((text, "--device", "tpu"), "--device 'tpu' is unknown; choose auto, cpu, cuda"),
    ]
    for arguments, expected in cases:
        said = fails(capsys, "train", *arguments, "--out", there / "run", "--budget", "1steps")
        assert expected in said, (arguments, said)
        assert not (there / "run").exists()
    with pytest.raises(ValueError, match="cannot be called as factory"):  # before a corpus is read
        import_factory("own_models:other_arguments")


def test_embeddings_begin_with_what_the_corpus_tells_or_at_random(place, there, capsys):
    """After a step so small that it moves nothing, the export holds what training began with."""
    begun = {}
    options = ("--model", "nano", "--budget", "1steps", "--lr", "1e-9", "--evaluations", "0")
    for asked in ("corpus", "again", "random"):
        ours = () if asked == "again" else ("--first-embeddings", asked)
        mlm("train", "store", "--out", there / asked, *options, *ours)
        told = "counting what stands beside each token" in capsys.readouterr().err
        assert told == (asked != "random")
        begun[asked] = weights(there / asked)["model.embeddings.tok_embeddings.weight"]
    assert torch.equal(begun["corpus"], begun["again"])  # the default, and the same each time
    tokenizer = load_tokenizer(there / "corpus" / "model")
    words = [tokenizer.backend.token_to_id(word) for word in WORDS]  # any may stand beside any other, nothing else may
    stop = tokenizer.backend.token_to_id(".")

    def likeness(table: torch.Tensor) -> tuple[float, float]:
        unit = torch.nn.functional.normalize(table[[*words, stop]], dim=1)
        cosines = unit @ unit.T
        return float(cosines[:-1, :-1].mean()), float(cosines[-1, :-1].mean())

    among_words, to_the_stop = likeness(begun["corpus"])
    assert among_words > to_the_stop + 0.1
    assert abs(likeness(begun["random"])[0] - 1 / len(WORDS)) < 0.1  # each is like itself alone
    assert begun["corpus"][0].count_nonzero() == 0  # padding


def test_activations_may_be_computed_again_from_one_sitting_to_the_next(place, there, capsys):
    run = ("train", place / "store", "--model", "tiny", *OPTIONS, "--checkpoint-every", "2steps", "--budget", "4steps")
    mlm(*run, "--out", there / "kept")
    mlm(*run, "--out", there / "again", "--recompute")
    (there / "again/checkpoints/step-4/manifest.json").unlink()
    mlm(*run, "--out", there / "again")
    assert "continuing at step 2" in capsys.readouterr().err
    one, two = weights(there / "kept"), weights(there / "again")
    assert all(torch.equal(one[key], two[key]) for key in one)


def test_a_name_of_the_hub_is_asked_for_last(place, there, capsys, monkeypatch):
    folder = save_architecture("Bert", there / "downloaded", place)
    asked = []
    monkeypatch.setattr("mlm_pytorch.cli.starting.fetch_masked_lm", lambda name: asked.append(name) or folder)
    mlm(
        "train", place / "store", "--model", "someone/some-bert", "--out", there / "run", "--budget", "1steps", *OPTIONS
    )
    assert asked == ["someone/some-bert"] and "someone/some-bert: BertForMaskedLM" in capsys.readouterr().err

    def missing(name):
        raise ValueError("someone/none is not on the Hub; check the name")

    monkeypatch.setattr("mlm_pytorch.cli.starting.fetch_masked_lm", missing)
    said = fails(capsys, "train", place / "store", "--model", "someone/none", "--out", there / "other")
    assert "no model of the Hub: someone/none is not on the Hub" in said


@pytest.mark.parametrize(
    ("module", "told"),
    [
        ("Own", None),
        ("Inverted", "Inverted sees padding in spite of its argument mask, which is True at tokens here; if yours is"),
        ("Maskless", "Maskless takes no padding mask (an argument attention_mask or mask), so it sees padding"),
    ],
)
def test_a_module_that_sees_padding_is_told_of(place, there, module, told):
    tokenizer = load_tokenizer(place / "tokenizer")
    model = getattr(importlib.import_module("own_models"), module)(tokenizer.special.num_tokens, 40, 0)
    said: list[str] = []
    make_learner(model, tokenizer, 40, sample=[[5, 6, 7]], factory=None, say=said.append)
    assert ([told] if told else []) == [line[: len(told or "")] for line in said if "padding" in line]


def test_a_module_without_positions_is_told_of(place, there):
    tokenizer = load_tokenizer(place / "tokenizer")
    model = importlib.import_module("own_models").Forgetful(tokenizer.special.num_tokens, 40, 0)
    said: list[str] = []
    make_learner(model, tokenizer, 40, sample=[[5, 6, 7]], factory=None, say=said.append)
    assert any(line.startswith("Forgetful takes no notice of order: shuffled tokens around a mask") for line in said)
