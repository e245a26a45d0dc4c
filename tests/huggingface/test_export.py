"""What leaves for Hugging Face loads there and computes the same, or is refused."""

import json
from pathlib import Path

import pytest
import tokenizers
import torch
from safetensors.torch import load_file, save_file
from tokenizers import AddedToken, decoders, models, normalizers, pre_tokenizers, processors, trainers
from transformers import (
    AutoModelForMaskedLM,
    AutoTokenizer,
    BertConfig,
    BertForMaskedLM,
    DistilBertConfig,
    DistilBertForMaskedLM,
    ModernBertConfig,
    ModernBertForMaskedLM,
    RobertaConfig,
    RobertaForMaskedLM,
)

from mlm_pytorch.data.tokenizer import load_tokenizer, tokenizer_for_ids, train_tokenizer
from mlm_pytorch.encoder import Encoder, EncoderConfig
from mlm_pytorch.huggingface import CheckedExport, export_encoder, load_encoder, load_masked_lm

TEXTS = ["a few words to make a tokenizer of", "and some more of them, as it seems"]
TOKENIZER = train_tokenizer(TEXTS * 20, 320)
SPECIAL = TOKENIZER.special
SAMPLE = TOKENIZER.encode_batch([" ".join(TEXTS * 8), "more words"])
SIZE = {"vocab_size": 320, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 48}
ARCHITECTURES = {
    "bert": lambda: BertForMaskedLM(BertConfig(**SIZE, max_position_embeddings=40)),
    "roberta": lambda: RobertaForMaskedLM(RobertaConfig(**SIZE, pad_token_id=0, max_position_embeddings=42)),
    "untied": lambda: BertForMaskedLM(BertConfig(**SIZE, tie_word_embeddings=False)),
    "distilbert": lambda: DistilBertForMaskedLM(
        DistilBertConfig(vocab_size=320, dim=32, n_layers=2, n_heads=2, hidden_dim=48)
    ),
    "modernbert": lambda: ModernBertForMaskedLM(
        ModernBertConfig(**SIZE, pad_token_id=0, bos_token_id=2, eos_token_id=3, cls_token_id=2, sep_token_id=3)
    ),
}


def encoder(**changes) -> Encoder:
    torch.manual_seed(0)
    shape = SIZE | {"num_hidden_layers": 3, "max_position_embeddings": 128, "local_attention": 8}
    return Encoder(EncoderConfig(**shape | changes))


def checked(**changes) -> CheckedExport:
    return CheckedExport(
        **{"special": SPECIAL, "backend": TOKENIZER.backend, "save_tokenizer": TOKENIZER.save, "sample": SAMPLE}
        | changes
    )


@pytest.fixture
def exported(tmp_path) -> tuple[Encoder, Path]:
    model = encoder()
    export_encoder(model, SPECIAL, tmp_path / "model", TOKENIZER.save)
    return model, tmp_path / "model"


@pytest.mark.parametrize("changes", [{}, {"tie_word_embeddings": False}, {"global_attn_every_n_layers": 1}])
def test_export_loads_in_transformers_and_back(tmp_path, changes):
    model = encoder(**changes)
    export = checked()
    export(model, tmp_path)
    assert model.training and export.check(model, tmp_path) < 1e-4
    back = load_encoder(tmp_path)
    assert back.config == model.config
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), back.parameters(), strict=True))
    theirs = AutoModelForMaskedLM.from_pretrained(tmp_path)
    assert theirs.config.pad_token_id == SPECIAL.pad_token_id and theirs.config.cls_token_id == SPECIAL.prefix[0]
    assert AutoTokenizer.from_pretrained(tmp_path).mask_token_id == SPECIAL.mask_token_id


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_any_architecture_is_exported(tmp_path, name):
    torch.manual_seed(0)
    model = ARCHITECTURES[name]()
    export = checked()
    export(model, tmp_path)
    assert export.check(model, tmp_path) < 1e-4
    loaded = load_masked_lm(tmp_path)
    assert not any(module.training for module in loaded.modules())
    back = loaded.state_dict()
    for key, value in model.state_dict().items():
        assert torch.equal(back[key], value)
    written = load_file(tmp_path / "model.safetensors")
    assert len({value.data_ptr() for value in written.values()}) == len(written)
    parameters = sum(p.numel() for p in model.parameters())  # tied ones once
    assert sum(value.numel() for value in written.values()) == parameters


def test_half_precision_is_written_in_full_and_no_code_is_referred_to(tmp_path):
    model = ARCHITECTURES["bert"]().to(torch.bfloat16)
    model.config.auto_map = {"AutoModelForMaskedLM": "someone/somewhere--code.Model"}
    checked()(model, tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    assert config["dtype"] == "float32" and "auto_map" not in config
    assert {value.dtype for value in load_file(tmp_path / "model.safetensors").values()} == {torch.float32}
    assert next(model.parameters()).dtype == torch.bfloat16 and model.config.auto_map


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


def test_the_check_draws_no_random_numbers_and_changes_no_precision(exported):
    model, folder = exported
    model.train()
    model.model.layers[0].eval()  # a part that its owner keeps asleep
    torch.set_float32_matmul_precision("high")
    before = torch.get_rng_state()
    try:
        checked().check(model, folder)
        assert torch.get_float32_matmul_precision() == "high"
    finally:
        torch.set_float32_matmul_precision("highest")
    assert torch.equal(torch.get_rng_state(), before)
    assert model.training and not model.model.layers[0].training


def test_the_check_where_precision_was_set_for_one_backend(exported):
    torch.backends.cuda.matmul.fp32_precision = "tf32"  # after which torch does not tell the setting for all
    try:
        checked().check(*exported)
        assert torch.backends.cuda.matmul.fp32_precision == "tf32"
    finally:
        torch.set_float32_matmul_precision("highest")


def damage(folder: Path, change) -> None:
    weights = load_file(folder / "model.safetensors")
    change(weights)
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})


def unseen(weights) -> None:
    """Change the embedding of a token that is in no sample."""
    seen = {*SPECIAL.ids, *SAMPLE[0], *SAMPLE[1]}
    row = next(i for i in range(320) if i not in seen)
    weights["model.embeddings.tok_embeddings.weight"][row] += 1e-4


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda w: w["decoder.bias"].fill_(float("nan")), "computes other logits: they differ by nan"),
        (lambda w: w["model.layers.1.attn.Wo.weight"].mul_(30), "computes other logits"),
        (lambda w: w.pop("model.layers.1.attn.Wo.weight"), "does not load cleanly: .*missing_keys"),
        (lambda w: w.update(strange=torch.ones(1)), "does not load cleanly: .*unexpected_keys"),
        (unseen, r"the weight model.embeddings.tok_embeddings.weight is another in the export"),
    ],
)
def test_a_wrong_export_is_found(exported, change, message):
    model, folder = exported
    damage(folder, change)
    with pytest.raises(ValueError, match=message):
        checked().check(model, folder)


@pytest.mark.parametrize("name", ["encoder", "bert"])
def test_weights_that_are_not_finite_are_refused_before_anything_is_written(tmp_path, name):
    model = encoder() if name == "encoder" else ARCHITECTURES[name]()
    with torch.no_grad():
        next(model.parameters())[7, 3] = float("inf")
    with pytest.raises(ValueError, match=r"1 of the model's \d+ weights hold NaN or infinity \(.*embeddings"):
        checked()(model, tmp_path / "model")
    assert not (tmp_path / "model").exists()


def changed_config(folder: Path, **changes) -> None:
    config = json.loads((folder / "tokenizer_config.json").read_text())
    (folder / "tokenizer_config.json").write_text(json.dumps(config | changes))


def changed_backend(folder: Path, change) -> None:
    content = json.loads((folder / "tokenizer.json").read_text())
    change(content)
    (folder / "tokenizer.json").write_text(json.dumps(content))


def swap(content) -> None:
    vocabulary = content["model"]["vocab"]
    first, second = [token for token, id in vocabulary.items() if id in SAMPLE[0]][-2:]
    vocabulary[first], vocabulary[second] = vocabulary[second], vocabulary[first]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda f: changed_config(f, mask_token="[SEP]"), "mask_token_id is 3 in .* and 4 in training"),
        (lambda f: changed_config(f, pad_token="[UNK]"), "pad_token_id is 1 in .* and 0 in training"),
        (lambda f: changed_config(f, cls_token="[SEP]"), "cls_token_id is 3 in .* and 2 in training"),
        (lambda f: changed_config(f, sep_token="[CLS]"), "sep_token_id is 2 in .* and 3 in training"),
        (lambda f: changed_backend(f, swap), "decodes .* to .* and not to"),
        (
            lambda f: changed_backend(f, lambda c: c.update(post_processor=None)),
            "encodes .* to other ids, from token 0",
        ),
        (lambda f: (f / "tokenizer.json").write_text("{]"), "cannot be loaded by transformers|damaged"),
    ],
)
def test_a_wrong_tokenizer_is_found(exported, change, message):
    model, folder = exported
    export = checked()
    export.check(model, folder)
    change(folder)
    with pytest.raises(ValueError, match=message) as caught:
        export.check(model, folder)
    assert "\n" not in str(caught.value)


def test_an_unchanged_tokenizer_is_read_once(exported, monkeypatch):
    model, folder = exported
    export = checked()
    export.check(model, folder)
    monkeypatch.setattr(AutoTokenizer, "from_pretrained", None)
    export.check(model, folder)


def test_a_sample_must_hold_something():
    with pytest.raises(ValueError, match="the sample holds no token"):
        checked(sample=[[]])


# -- tokenizers that transformers would read otherwise -----------------------------------------------------------------

ROBERTA = ["<s>", "<pad>", "</s>", "<unk>", "<mask>"]


def byte_level(folder: Path, normalizer=None, **config) -> Path:
    """A folder in RoBERTa's form, as published ones are."""
    backend = tokenizers.Tokenizer(models.BPE())
    backend.normalizer = normalizer
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=320, special_tokens=ROBERTA, initial_alphabet=alphabet, show_progress=False
    )
    backend.train_from_iterator(TEXTS * 20, trainer)
    backend.add_special_tokens([AddedToken("<mask>", lstrip=True, normalized=False, special=True)])
    backend.post_processor = processors.RobertaProcessing(("</s>", 2), ("<s>", 0), add_prefix_space=False)
    return saved_backend(folder, backend, config)


def word_pieces(folder: Path, lowercase: bool, **config) -> Path:
    """A folder in BERT's form."""
    pieces = {token: id for id, token in enumerate(["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"])}
    for letter in "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ":
        pieces |= {letter: len(pieces), f"##{letter}": len(pieces) + 1}
    backend = tokenizers.Tokenizer(models.WordPiece(pieces, unk_token="[UNK]"))
    backend.normalizer = normalizers.BertNormalizer(lowercase=lowercase)
    backend.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    backend.decoder = decoders.WordPiece()
    backend.add_special_tokens(["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"])
    backend.post_processor = processors.BertProcessing(("[SEP]", 3), ("[CLS]", 2))
    return saved_backend(folder, backend, config)


def saved_backend(folder: Path, backend, config) -> Path:
    folder.mkdir()
    backend.save(str(folder / "tokenizer.json"))
    (folder / "tokenizer_config.json").write_text(json.dumps(config))
    return folder


def dropped_normalizer(folder: Path) -> Path:
    both = normalizers.Sequence([normalizers.NFKC(), normalizers.Lowercase()])
    return byte_level(
        folder, both, tokenizer_class="RobertaTokenizerFast", mask_token="<mask>", pad_token="<pad>", mine=1
    )


def export_with(folder: Path, out: Path, architecture: str = ""):
    """The tokenizer in `folder`, and the export that was written with it. For a ModernBERT, which the encoder is,
    transformers heeds no class; for others it takes the one of the tokenizer's files, or the one of the architecture.
    """
    if not architecture:
        architecture = "bert" if "WordPiece" in (folder / "tokenizer.json").read_text() else "roberta"
    loaded = load_tokenizer(folder)
    sample = loaded.encode_batch([" ".join(TEXTS * 8), "more words"])
    model = encoder() if architecture == "encoder" else ARCHITECTURES[architecture]()
    export = CheckedExport(loaded.special, loaded.backend, loaded.save, sample)
    export(model, out)
    return loaded, model, export


READ_OTHERWISE = {
    "a normalizer that RobertaTokenizer drops": dropped_normalizer,
    "roles that only the class knows": lambda f: byte_level(
        f, normalizers.Lowercase(), tokenizer_class="RobertaTokenizer"
    ),
    "lower case, against the configuration": lambda f: word_pieces(
        f, lowercase=True, tokenizer_class="BertTokenizer", do_lower_case=False
    ),
    "case kept, against the configuration": lambda f: word_pieces(
        f, lowercase=False, tokenizer_class="BertTokenizer", do_lower_case=True
    ),
}


@pytest.mark.parametrize("make", READ_OTHERWISE.values(), ids=READ_OTHERWISE)
def test_a_normalizer_that_transformers_would_drop_is_kept(tmp_path, make):
    loaded, model, export = export_with(make(tmp_path / "source"), tmp_path / "out")
    theirs = AutoTokenizer.from_pretrained(tmp_path / "out")
    mask = loaded.backend.id_to_token(loaded.special.mask_token_id)
    for text in ("SOME Words", "some words", "ÉCOLE Ａﬁ  x\u00a0y\tZ", f"the {mask} of"):
        assert theirs(text)["input_ids"] == loaded.encode(text)
    own = json.loads((tmp_path / "source" / "tokenizer_config.json").read_text())
    config = json.loads((tmp_path / "out" / "tokenizer_config.json").read_text())
    assert config["tokenizer_class"] == "PreTrainedTokenizerFast" and config.get("mine") == own.get("mine")
    before = (tmp_path / "out" / "tokenizer_config.json").read_bytes()
    export(model, tmp_path / "out")  # a later checkpoint
    assert (tmp_path / "out" / "tokenizer_config.json").read_bytes() == before


def test_roles_that_only_the_class_knows_are_written_for_a_model_that_heeds_no_class(tmp_path):
    source = word_pieces(tmp_path / "source", lowercase=True, tokenizer_class="BertTokenizer")
    export_with(source, tmp_path / "out", "encoder")
    assert AutoTokenizer.from_pretrained(tmp_path / "out").mask_token_id == 4


@pytest.mark.parametrize(
    "make",
    [
        lambda f: byte_level(f, tokenizer_class="RobertaTokenizerFast", mask_token="<mask>", pad_token="<pad>"),
        lambda f: byte_level(f, tokenizer_class="RobertaTokenizer"),
        lambda f: word_pieces(f, lowercase=True, tokenizer_class="BertTokenizer", do_lower_case=True),
        lambda f: word_pieces(f, lowercase=False, tokenizer_class="BertTokenizer", do_lower_case=False),
    ],
)
def test_a_tokenizer_that_transformers_reads_right_keeps_its_files(tmp_path, make):
    export_with(make(tmp_path / "source"), tmp_path / "out")
    for path in (tmp_path / "source").iterdir():
        assert (tmp_path / "out" / path.name).read_bytes() == path.read_bytes()


def test_a_tokenizer_that_no_class_mends_is_refused_with_its_own_files(tmp_path):
    source = byte_level(tmp_path / "source", tokenizer_class="RobertaTokenizer", mask_token="<mask>", pad_token="<pad>")
    loaded = load_tokenizer(source)

    def save(folder):
        loaded.save(folder)
        changed_backend(folder, lambda content: content.update(normalizer={"type": "Lowercase"}))
        changed_config(folder, tokenizer_class="PreTrainedTokenizerFast")

    sample = loaded.encode_batch(["more words"])
    export = CheckedExport(loaded.special, loaded.backend, save, sample)
    with pytest.raises(
        ValueError, match=r"encodes 'MORE WORDS'… to other ids, from token 1 on; .*prepare with another"
    ):
        export(encoder(), tmp_path / "out")
    assert json.loads((tmp_path / "out" / "tokenizer_config.json").read_text())["mask_token"] == "<mask>"


def test_a_vocabulary_without_a_token_for_unknown_words_is_no_false_alarm(tmp_path):
    numbers = tokenizer_for_ids(320, mask_token_id=4, pad_token_id=0)
    export = CheckedExport(numbers.special, numbers.backend, numbers.save, [[7, 9, 11], [12, 13]])
    export(encoder(), tmp_path / "out")
