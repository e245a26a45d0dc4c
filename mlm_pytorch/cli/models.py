"""How a trained model is opened, and `mlm export`."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mlm_pytorch.cli.factory import built_folder, load_built
from mlm_pytorch.cli.options import ExportConfig
from mlm_pytorch.data.tokenizer import Tokenizer, load_tokenizer
from mlm_pytorch.encoder import Encoder
from mlm_pytorch.evaluation import PaddedModel
from mlm_pytorch.huggingface import (
    check_export,
    copy_export,
    load_masked_lm,
    max_positions,
    model_folder,
)

LONGEST_PIECE = 8192  # where neither model nor tokenizer names a limit (transformers writes 10**30 for "not known")


@dataclass(frozen=True)
class OpenedModel:
    """A model with its tokenizer, as every measure takes it.

    Attributes:
        folder: as the user named it.
        model: takes flat packs and rows.
        tokenizer: the model's.
        max_seq_len: the longest piece that the model takes, in tokens, framing included.
        seq_len: the longest that it was trained at, as its tokenizer declares it.
    """

    folder: Path
    model: Encoder | PaddedModel
    tokenizer: Tokenizer
    max_seq_len: int
    seq_len: int


def open_model(folder: Path, factory: str | None = None) -> OpenedModel:
    """The model and tokenizer of a run, or of any Hugging Face masked language model.

    Args:
        folder: a run, or a Hugging Face folder.
        factory: `module:factory`, for the run of a module of the user's own; never taken from the folder.

    Raises:
        ValueError: no such model, a tokenizer without a mask token, or one with more tokens than the model has.
    """
    built = built_folder(folder)
    if built is not None:
        tokenizer = load_tokenizer(built)
        longest = _declared_length(built)
        model = PaddedModel(load_built(built, factory), tokenizer.special, longest)
        return OpenedModel(folder, model, tokenizer, longest, longest)
    model = load_masked_lm(folder)
    tokenizer = load_tokenizer(model_folder(folder))
    config: Any = model.config
    rows = getattr(config, "vocab_size", None)
    if isinstance(rows, int) and tokenizer.special.num_tokens > rows:
        raise ValueError(
            f"the tokenizer of {folder} has {tokenizer.special.num_tokens:,} tokens and its model {rows:,}; "
            "they do not belong together"
        )
    if isinstance(model, Encoder):
        limit: int | None = model.config.max_position_embeddings
    else:
        limit = max_positions(model)
        model = PaddedModel(model, tokenizer.special, limit)
    longest = min(limit or LONGEST_PIECE, LONGEST_PIECE)
    return OpenedModel(folder, model, tokenizer, longest, min(longest, _declared_length(model_folder(folder))))


def _declared_length(folder: Path) -> int:
    """The piece length that a model was trained at, as its tokenizer declares it."""
    path = folder / "tokenizer_config.json"
    declared = json.loads(path.read_text(encoding="utf-8")).get("model_max_length") if path.is_file() else None
    return int(min(declared or 512, LONGEST_PIECE))


def printable(text: str) -> str:
    """Text without what a terminal would obey: an escape character becomes the picture of one, and so on."""
    shown = (
        chr(0x2400 + ord(c)) if ord(c) < 32 else c if c.isprintable() else "\N{REPLACEMENT CHARACTER}" for c in text
    )
    return "".join(shown)


def export_command(config: ExportConfig) -> None:
    """`mlm export`."""
    if built_folder(config.run) is not None:
        raise ValueError(
            f"{config.run} holds the weights of a module of your own, which transformers has no class for; copy "
            f"{built_folder(config.run)} instead"
        )
    encoder, tokenizer = load_masked_lm(config.run), load_tokenizer(model_folder(config.run))
    source = model_folder(config.run)
    difference = check_export(encoder, tokenizer.special, source)
    copy_export(source.resolve(), config.folder)
    print(f"{config.folder}: loads with transformers, logits equal to {difference:.1g}")
