"""Loading masked language models of any architecture, and what bad folders get."""

import json

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import (
    BertConfig,
    BertForMaskedLM,
    BertModel,
    DistilBertConfig,
    DistilBertForMaskedLM,
    EsmConfig,
    EsmForMaskedLM,
    IBertConfig,
    IBertForMaskedLM,
    ModernBertConfig,
    ModernBertForMaskedLM,
    RobertaConfig,
    RobertaForMaskedLM,
)

from mlm_pytorch.encoder import Encoder
from mlm_pytorch.evaluation import PaddedModel
from mlm_pytorch.huggingface import load_masked_lm, max_positions
from mlm_pytorch.huggingface.masked_lm import empty_masked_lm
from mlm_pytorch.tokens import SpecialTokens

SIZE = {"vocab_size": 64, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 48}
IDS = {"pad_token_id": 0, "bos_token_id": 2, "eos_token_id": 3, "cls_token_id": 2, "sep_token_id": 3}
ESM = {"pad_token_id": 0, "mask_token_id": 4, "position_embedding_type": "rotary"}
SPECIAL = SpecialTokens(64, mask_token_id=4, pad_token_id=0, ids=(0, 2, 3, 4), prefix=(2,), suffix=(3,))
CASES = {
    "bert": (lambda: BertForMaskedLM(BertConfig(**SIZE, max_position_embeddings=40)), 40),
    "roberta": (lambda: RobertaForMaskedLM(RobertaConfig(**SIZE, pad_token_id=1, max_position_embeddings=42)), 40),
    "ibert": (lambda: IBertForMaskedLM(IBertConfig(**SIZE, pad_token_id=1, max_position_embeddings=42)), 40),
    "esm": (
        lambda: EsmForMaskedLM(
            EsmConfig(
                **SIZE, pad_token_id=0, mask_token_id=4, max_position_embeddings=40, position_embedding_type="rotary"
            )
        ),
        40,
    ),
    "distilbert": (
        lambda: DistilBertForMaskedLM(
            DistilBertConfig(vocab_size=64, dim=32, n_layers=2, n_heads=2, hidden_dim=48, max_position_embeddings=40)
        ),
        40,
    ),
    "modernbert with attention dropout": (
        lambda: ModernBertForMaskedLM(
            ModernBertConfig(**SIZE, **IDS, attention_dropout=0.1, max_position_embeddings=40)
        ),
        40,
    ),
}


@pytest.mark.parametrize("name", CASES)
def test_loads_and_finds_a_head_and_a_limit(tmp_path, name):
    build, limit = CASES[name]
    torch.manual_seed(0)
    model = build().eval()
    model.save_pretrained(tmp_path)
    loaded = load_masked_lm(tmp_path)
    assert not isinstance(loaded, Encoder) and not loaded.training and max_positions(loaded) == limit
    padded, ids = PaddedModel(loaded, SPECIAL, limit), torch.randint(5, 64, (11,))
    assert padded.head is not None
    with torch.no_grad():
        row = ids[None, 4:]
        expected = model(row, attention_mask=torch.ones_like(row)).logits[0]
        got = padded(ids, cu_seqlens=torch.tensor([0, 4, 11]))[4:]
    torch.testing.assert_close(got, expected, atol=1e-4, rtol=1e-4)


def saved(folder, model=None):
    (model or BertForMaskedLM(BertConfig(**SIZE))).save_pretrained(folder)
    return folder


def with_config(folder, **changes):
    config = json.loads((folder / "config.json").read_text()) | changes
    (folder / "config.json").write_text(json.dumps(config))
    return folder


def test_errors(tmp_path):
    def refused(folder, message):
        with pytest.raises(ValueError, match=message) as caught:
            load_masked_lm(folder)
        assert "\n" not in str(caught.value)

    refused(tmp_path, "holds no model")
    refused(saved(tmp_path / "trunk", BertModel(BertConfig(**SIZE))), "lacks weights of BertForMaskedLM .*cls.predict")
    refused(with_config(saved(tmp_path / "a"), model_type="gpt2"), "type 'gpt2', which is no masked language model;")
    own = with_config(saved(tmp_path / "b"), model_type="mine", auto_map={"AutoModelForMaskedLM": "m.M"})
    refused(own, "type 'mine', .* by transformers' own code")
    refused(with_config(saved(tmp_path / "c"), hidden_size=30), "cannot be loaded|lacks weights")
    pickled = saved(tmp_path / "d")
    torch.save(load_file(pickled / "model.safetensors"), pickled / "pytorch_model.bin")
    (pickled / "model.safetensors").unlink()
    refused(pickled, "has no model.safetensors; save the model with safe_serialization=True")
    damaged = saved(tmp_path / "e")
    (damaged / "model.safetensors").write_bytes((damaged / "model.safetensors").read_bytes()[:500])
    refused(damaged, "damaged|cannot be loaded")
    for number, content in enumerate(("{", "[]")):
        broken = saved(tmp_path / f"f{number}")
        (broken / "config.json").write_text(content)
        refused(broken, "config.json is damaged")
    weights = load_file(saved(tmp_path / "g") / "model.safetensors")
    del weights["bert.encoder.layer.0.output.dense.weight"]
    save_file(weights, tmp_path / "g/model.safetensors", metadata={"format": "pt"})
    refused(tmp_path / "g", "lacks weights of BertForMaskedLM")


WRONG_IN_ANY = [{"hidden_size": "32"}, {"num_attention_heads": 0}, {"pad_token_id": 10**6}, {"model_type": []}]
WRONG_IN_BERT = [{"vocab_size": 0}, {"dtype": []}]
WRONG_IN_MODERNBERT = [
    {"hidden_activation": {}},
    {"norm_bias": "x"},
    {"rope_parameters": 3},
    {"layer_types": None, "global_attn_every_n_layers": 0},
    {"intermediate_size": -1},
]


@pytest.mark.parametrize(
    ("make", "changes"),
    [(BertForMaskedLM, changes) for changes in WRONG_IN_ANY + WRONG_IN_BERT]
    + [(ModernBertForMaskedLM, changes) for changes in WRONG_IN_ANY + WRONG_IN_MODERNBERT],
)
def test_a_configuration_of_wrong_values_is_one_line(tmp_path, make, changes):
    folder = with_config(saved(tmp_path, make(make.config_class(**SIZE | {"pad_token_id": 0}))), **changes)
    for load in (load_masked_lm, empty_masked_lm):
        with pytest.raises(ValueError, match=str(folder)) as caught:
            load(folder)
        assert "\n" not in str(caught.value)


def test_a_configuration_cannot_ask_for_more_than_its_weights_fill(tmp_path):
    wide = with_config(saved(tmp_path / "wide"), vocab_size=10**12)
    with pytest.raises(ValueError, match=r"is damaged: its config.json describes 33,000,\d{3},\d{3},\d{3} param"):
        load_masked_lm(wide)
    deep = with_config(saved(tmp_path / "deep"), num_hidden_layers=10**9)
    with pytest.raises(ValueError, match="num_hidden_layers is 1000000000, not 0 to 1024"):
        load_masked_lm(deep)
