"""The doctor's pieces, packs and models are those that training would take."""

import shutil
from collections.abc import Callable

import pytest
import torch
from examined import assert_found, look
from torch import nn

from mlm_pytorch.cli.options import DoctorConfig
from mlm_pytorch.cli.settling import pack_tokens_of, settle_by_budget
from mlm_pytorch.cli.starting import find_start
from mlm_pytorch.cli.store import named_store
from mlm_pytorch.data.prepare import prepare
from mlm_pytorch.data.store import Manifest, TokenStore
from mlm_pytorch.data.tokenizer import load_tokenizer
from mlm_pytorch.doctor.examination import _settled, _setup, examine
from mlm_pytorch.encoder import PRESETS, Encoder, EncoderConfig
from mlm_pytorch.huggingface import export_encoder
from mlm_pytorch.training.config import TrainConfig
from mlm_pytorch.training.distributed import World
from mlm_pytorch.training.metrics import Display


def test_an_architecture_that_is_not_tried(write, texts, tmp_path, tokenizer_folder):
    folder = shutil.copytree(tokenizer_folder, tmp_path / "bert")
    (folder / "config.json").write_text('{"model_type": "bert"}')
    with pytest.raises(
        ValueError, match=r"is of type 'bert', .* architecture only; .* pass --tokenizer .*bert --trial-s"
    ):
        look(write(texts), model=str(folder))


def test_pieces_longer_than_the_model_or_the_pack(write, texts, tokenizer_folder):
    corpus = write(texts)
    assert_found(look(corpus, tokenizer=str(tokenizer_folder), seq_len=4096), "positions", "red")
    assert_found(look(corpus, tokenizer=str(tokenizer_folder), seq_len=512, pack_tokens=256), "pack", "red")
    assert_found(look(corpus, tokenizer=str(tokenizer_folder), seq_len=2048, pack_tokens=4096), "seq-len")


def test_truncation_that_loses_text(write, texts, tokenizer_folder):
    report = look(write(texts), tokenizer=str(tokenizer_folder), seq_len=32, long_documents="truncate")
    assert_found(report, "long-documents", "red")
    report = look(write(texts), tokenizer=str(tokenizer_folder), seq_len=8)
    assert_found(report, "long-documents")


def test_a_corpus_of_one_short_document(write):
    assert_found(look(write(["One short document."])), "vocabulary-size", "red")


@pytest.mark.parametrize(("budget", "model"), [("10steps", "nano"), ("20000steps", "mini"), ("1s", "nano")])
def test_the_model_is_the_one_that_training_would_choose(write, texts, tokenizer_folder, budget, model):
    said: list[str] = []
    config = DoctorConfig(corpus=(write(texts),), tokenizer=str(tokenizer_folder), budget=budget, trial_seconds=0.0)
    examine(config, said.append)
    assert said[-1] == f"trying {model}, which mlm train would choose for {budget}"


@pytest.fixture
def training_of(monkeypatch, tmp_path) -> Callable[..., tuple[int, int]]:
    """Tells the tokens of a pack, and of a piece, that `mlm train` takes with some options; both measure one peak."""
    for module in ("mlm_pytorch.doctor.examination", "mlm_pytorch.cli.settling"):
        monkeypatch.setattr(f"{module}.measure_peak", lambda device, dtype: 1e11)

    def training_of(device: torch.device, corpus: str, **options) -> tuple[int, int]:
        config = TrainConfig(corpus=(corpus,), out=tmp_path / "run", **options)
        config = settle_by_budget(config, tmp_path / "run", Display(quiet=True), World(device=device))
        start, store = find_start(config.model), named_store(config)
        by_default = min(start.trained_at.seq_len, start.longest)
        seq_len = Manifest.read(store).seq_len if store else config.seq_len or by_default
        return pack_tokens_of(config, getattr(start, "model", nn.Module())), seq_len

    return training_of


def packs_of(device: torch.device, store: TokenStore | None, **options) -> tuple[int, int]:
    """The same of what the doctor tries."""
    setup = _setup(_settled(DoctorConfig(**options), store, device), None, store, device)
    return setup.pack_tokens, setup.seq_len


@pytest.mark.parametrize("device", ["cpu", "cuda"])
@pytest.mark.parametrize("model", [None, *PRESETS])
def test_packs_are_those_of_training(training_of, device, model):
    """With a preset that is named as with one that is left open: the forecast is for the packs that will be trained on.

    A GPU need not be there: nothing is computed on it.
    """
    cases = [{"budget": budget} for budget in ("1Mtokens", "4Mtokens", "1Btokens", "10steps", "20m", "100epochs")]
    for changes in (*cases, {"budget": "10steps", "seq_len": 1000}, {"budget": "1Btokens", "pack_tokens": 640}):
        options = {"model": model, "precision": "float32"} | changes
        expected = training_of(torch.device(device), "corpus.txt", **options)
        assert packs_of(torch.device(device), None, **options) == expected, changes


@pytest.mark.parametrize("seq_len", [64, 3000])
@pytest.mark.parametrize("budget", ["1Mtokens", "5000epochs"])
def test_packs_of_a_store_are_those_of_training(training_of, write, texts, tokenizer_folder, tmp_path, seq_len, budget):
    prepare([write(texts)], tmp_path / "store", tokenizer=load_tokenizer(tokenizer_folder), seq_len=seq_len)
    options = {"model": "mini", "budget": budget}
    expected = training_of(torch.device("cpu"), str(tmp_path / "store"), **options)
    assert expected == (max(2048 if budget == "1Mtokens" else 4096, seq_len), seq_len)
    assert packs_of(torch.device("cpu"), TokenStore.open(tmp_path / "store"), **options) == expected


@pytest.mark.parametrize(("width", "positions"), [(128, 2048), (320, 128), (768, 8192)])
def test_packs_of_a_model_that_is_continued_are_those_of_training(
    training_of, tokenizer_folder, tmp_path, width, positions
):
    tokenizer = load_tokenizer(tokenizer_folder)
    shape = EncoderConfig(tokenizer.special.num_tokens, width, 64, 2, 2, max_position_embeddings=positions)
    export_encoder(Encoder(shape), tokenizer.special, tmp_path / "model", tokenizer.save)
    for changes in ({}, {"seq_len": 100}, {"pack_tokens": 640}, {"budget": "1Btokens"}):
        options = {"model": str(tmp_path / "model")} | changes
        expected = training_of(torch.device("cpu"), "corpus.txt", **options)
        assert packs_of(torch.device("cpu"), None, **options) == expected, changes
