"""Folders are found, read with care, and copied complete or not at all."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForMaskedLM

from mlm_pytorch.data.tokenizer import train_tokenizer
from mlm_pytorch.encoder import Encoder, EncoderConfig
from mlm_pytorch.huggingface import copy_export, export_encoder, load_encoder, load_masked_lm, model_folder
from mlm_pytorch.huggingface.masked_lm import empty_masked_lm

TOKENIZER = train_tokenizer(["a few words to make a tokenizer of", "and some more of them"] * 20, 320)


def encoder(**changes) -> Encoder:
    torch.manual_seed(0)
    shape = {
        "vocab_size": 320,
        "hidden_size": 32,
        "intermediate_size": 48,
        "num_hidden_layers": 3,
        "num_attention_heads": 2,
    }
    return Encoder(EncoderConfig(**shape | {"max_position_embeddings": 128, "local_attention": 8} | changes))


@pytest.fixture
def exported(tmp_path) -> tuple[Encoder, Path]:
    model = encoder()
    export_encoder(model, TOKENIZER.special, tmp_path / "model", TOKENIZER.save)
    return model, tmp_path / "model"


def test_a_run_folder_is_found(exported):
    assert model_folder(exported[1].parent) == exported[1] == model_folder(exported[1])


def damage(folder: Path, change) -> None:
    weights = load_file(folder / "model.safetensors")
    change(weights)
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})


def test_loading_names_what_is_wrong(exported, tmp_path):
    _, folder = exported
    with pytest.raises(ValueError, match="holds no model"):
        load_encoder(tmp_path / "nowhere")

    def copy(name: str) -> Path:
        return Path(shutil.copytree(folder, tmp_path / name))

    other = copy("other")
    config = json.loads((other / "config.json").read_text())
    (other / "config.json").write_text(json.dumps(config | {"model_type": "bert"}))
    with pytest.raises(ValueError, match="model_type 'bert' is not 'modernbert'"):
        load_encoder(other)
    (other / "config.json").write_text("{]")
    with pytest.raises(ValueError, match=r"config.json is damaged"):
        load_encoder(other)
    bare = copy("bare")
    (bare / "model.safetensors").unlink()
    with pytest.raises(ValueError, match=r"has no model.safetensors; save the model with"):
        load_encoder(bare)
    (bare / "model.safetensors").write_bytes(b"pickled?")
    with pytest.raises(ValueError, match=r"model.safetensors is damaged"):
        load_encoder(bare)
    short = copy("short")
    damage(short, lambda w: w.pop("model.final_norm.weight"))
    with pytest.raises(ValueError, match=r"does not fit its config.json: model.final_norm.weight"):
        load_encoder(short)
    deep = copy("deep")
    (deep / "config.json").write_text(json.dumps(config | {"model_type": "modernbert", "num_hidden_layers": 10**9}))
    with pytest.raises(ValueError, match=r"num_hidden_layers is 1000000000, not 0 to 1024"):
        load_encoder(deep)
    (deep / "config.json").write_text(json.dumps(config | {"model_type": "modernbert", "vocab_size": 10**13}))
    with pytest.raises(ValueError, match=r"does not fit its config.json: model.embeddings"):
        load_encoder(deep)
    with (deep / "config.json").open("wb") as file:
        file.truncate(1 << 33)
    with pytest.raises(ValueError, match=r"has 8,589,934,592 bytes, too many"):
        load_encoder(deep)
    wide = copy("wide")
    damage(wide, lambda w: w.update({"decoder.bias": torch.ones(7)}))
    with pytest.raises(ValueError, match=r"does not fit its config.json: decoder.bias"):
        load_encoder(wide)


def test_weights_in_several_files(exported, tmp_path):
    model, folder = exported
    AutoModelForMaskedLM.from_pretrained(folder).save_pretrained(tmp_path / "parts", max_shard_size="20KB")
    assert len(list((tmp_path / "parts").glob("model-*.safetensors"))) > 1
    loaded = load_masked_lm(tmp_path / "parts")
    assert isinstance(loaded, Encoder) and isinstance(empty_masked_lm(tmp_path / "parts"), Encoder)
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), loaded.parameters(), strict=True))
    index = tmp_path / "parts" / "model.safetensors.index.json"
    good = json.loads(index.read_text())
    for content, message in (
        ("{", "index.json is damaged"),
        ("{}", "it holds no weight_map"),
        (json.dumps({"weight_map": {"decoder.bias": "../model/model.safetensors"}}), "which is not in"),
        (json.dumps({"weight_map": good["weight_map"] | {"decoder.bias": "gone.safetensors"}}), "names 'gone.safe"),
        (json.dumps({"weight_map": {"decoder.bias": good["weight_map"]["decoder.bias"]}}), "does not fit its config"),
    ):
        index.write_text(content)
        with pytest.raises(ValueError, match=message):
            load_encoder(tmp_path / "parts")


@pytest.mark.parametrize("present", ["both", "decoder"])
def test_tied_tables_of_which_both_or_only_the_other_is_there_load_as_in_transformers(exported, present):
    _, folder = exported

    def change(weights):
        table = "model.embeddings.tok_embeddings.weight"
        weights["decoder.weight"] = torch.randn(weights[table].shape)
        if present == "decoder":
            del weights[table]

    damage(folder, change)
    ours, theirs = load_encoder(folder).eval(), AutoModelForMaskedLM.from_pretrained(folder).eval()
    assert ours.config.tie_word_embeddings == (present == "decoder")
    ids = torch.randint(5, 320, (2, 9))
    with torch.no_grad():
        torch.testing.assert_close(ours(ids), theirs(ids).logits, atol=1e-4, rtol=0)


def test_copy_is_complete_or_absent(exported, tmp_path, monkeypatch):
    _, folder = exported
    checked = []
    copy_export(folder, tmp_path / "copy", checked.append)
    assert len(checked) == 1 and checked[0].name != "copy" and not checked[0].exists()
    assert (tmp_path / "copy/model.safetensors").read_bytes() == (folder / "model.safetensors").read_bytes()
    with pytest.raises(ValueError, match="exists and is not an empty folder"):
        copy_export(folder, tmp_path / "copy", checked.append)

    def refuse(copy):
        raise ValueError(f"{copy} is wrong")

    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError, match="is wrong"):
        copy_export(folder, tmp_path / "empty", refuse)
    assert not list((tmp_path / "empty").iterdir())

    def full(source, target):
        Path(target).mkdir()
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(shutil, "copytree", full)
    with pytest.raises(OSError, match="No space left"):
        copy_export(folder, tmp_path / "second", checked.append)
    assert {p.name for p in tmp_path.iterdir()} == {"model", "copy", "empty"}
