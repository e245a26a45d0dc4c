"""What leaves for Hugging Face loads there and computes the same, or is refused."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForMaskedLM, AutoTokenizer

from mlm_pytorch.data.tokenizer import train_tokenizer
from mlm_pytorch.encoder import Encoder, EncoderConfig
from mlm_pytorch.huggingface import check_export, copy_export, export_encoder, load_encoder, model_folder

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


@pytest.mark.parametrize("changes", [{}, {"tie_word_embeddings": False}, {"global_attn_every_n_layers": 1}])
def test_export_loads_in_transformers_and_back(tmp_path, changes):
    model = encoder(**changes)
    export_encoder(model, TOKENIZER.special, tmp_path, TOKENIZER.save)
    assert check_export(model, TOKENIZER.special, tmp_path) < 1e-4
    back = load_encoder(tmp_path)
    assert back.config == model.config
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), back.parameters(), strict=True))
    theirs = AutoModelForMaskedLM.from_pretrained(tmp_path)
    special = TOKENIZER.special
    assert theirs.config.pad_token_id == special.pad_token_id and theirs.config.cls_token_id == special.prefix[0]
    assert AutoTokenizer.from_pretrained(tmp_path).mask_token_id == special.mask_token_id


def test_what_transformers_saved_loads_here(exported, tmp_path):
    model, folder = exported
    AutoModelForMaskedLM.from_pretrained(folder).save_pretrained(tmp_path / "saved")
    back = load_encoder(tmp_path / "saved")
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), back.parameters(), strict=True))


def test_weights_are_written_once(exported):
    _, folder = exported
    names = set(load_file(folder / "model.safetensors"))
    assert "decoder.weight" not in names and "decoder.bias" in names


def test_older_keys_stand_beside_the_new(exported):
    config = json.loads((exported[1] / "config.json").read_text())
    assert config["global_rope_theta"] == config["rope_parameters"]["full_attention"]["rope_theta"]
    assert config["global_attn_every_n_layers"] == 3 and config["layer_types"][1] == "sliding_attention"


def test_a_run_folder_is_found(exported):
    assert model_folder(exported[1].parent) == exported[1] == model_folder(exported[1])


def damage(folder: Path, change) -> None:
    weights = load_file(folder / "model.safetensors")
    change(weights)
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda w: w["decoder.bias"].fill_(float("nan")), "computes other logits: they differ by nan"),
        (lambda w: w["model.layers.1.attn.Wo.weight"].mul_(30), "computes other logits"),
        (lambda w: w.pop("model.layers.1.attn.Wo.weight"), "does not load cleanly: .*missing_keys"),
        (lambda w: w.update(strange=torch.ones(1)), "does not load cleanly: .*unexpected_keys"),
    ],
)
def test_a_wrong_export_is_found(exported, change, message):
    model, folder = exported
    damage(folder, change)
    with pytest.raises(ValueError, match=message):
        check_export(model, TOKENIZER.special, folder)


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
    wide = copy("wide")
    damage(wide, lambda w: w.update({"decoder.bias": torch.ones(7)}))
    with pytest.raises(ValueError, match=r"does not fit its config.json: decoder.bias"):
        load_encoder(wide)


def test_another_mask_token_is_found(exported):
    model, folder = exported
    config = json.loads((folder / "tokenizer_config.json").read_text())
    (folder / "tokenizer_config.json").write_text(json.dumps(config | {"mask_token": "[SEP]"}))
    with pytest.raises(ValueError, match="another mask token"):
        check_export(model, TOKENIZER.special, folder)


def test_copy_is_complete_or_absent(exported, tmp_path, monkeypatch):
    _, folder = exported
    copy_export(folder, tmp_path / "copy")
    assert (tmp_path / "copy/model.safetensors").read_bytes() == (folder / "model.safetensors").read_bytes()
    with pytest.raises(ValueError, match="exists and is not an empty folder"):
        copy_export(folder, tmp_path / "copy")

    def full(source, target):
        Path(target).mkdir()
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(shutil, "copytree", full)
    with pytest.raises(OSError, match="No space left"):
        copy_export(folder, tmp_path / "second")
    assert {p.name for p in tmp_path.iterdir()} == {"model", "copy"}
