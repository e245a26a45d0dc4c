"""How a trained model is opened, and `mlm export`."""

import json
from dataclasses import dataclass
from pathlib import Path

from torch import nn

from mlm_pytorch.cli.factory import built_folder, load_built, sizes_of_built
from mlm_pytorch.cli.options import ExportConfig
from mlm_pytorch.data.store import MANIFEST, TokenStore
from mlm_pytorch.data.tokenizer import Tokenizer, load_tokenizer
from mlm_pytorch.encoder import Encoder
from mlm_pytorch.evaluation import PaddedModel
from mlm_pytorch.huggingface import (
    CheckedExport,
    check_finite,
    copy_export,
    load_masked_lm,
    max_positions,
    model_folder,
)
from mlm_pytorch.huggingface.masked_lm import empty_masked_lm
from mlm_pytorch.training.run import STORE

# To check the export of a model that has no corpus beside it.
SENTENCES = (
    "The harbour was quiet that morning; two fishermen mended their nets and said nothing about the storm.",
    "In 1928 she published a second, longer paper (see p. 41), and nobody noticed it for ten years.",
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


@dataclass(frozen=True)
class ModelFacts:
    """What is known of a model before its weights are read; see `OpenedModel`."""

    folder: Path
    tokenizer: Tokenizer
    max_seq_len: int
    seq_len: int


def look_at_model(folder: Path, factory: str | None = None) -> ModelFacts:
    """What `open_model` would open, at a small part of its cost.

    Raises:
        ValueError: most of what `open_model` raises, but for weights that are damaged or do not fit.
    """
    built = built_folder(folder)
    if built is not None:
        sizes_of_built(built, factory)
        longest = _declared_length(built)
        return ModelFacts(folder, load_tokenizer(built), longest, longest)
    empty = empty_masked_lm(folder)
    return ModelFacts(folder, _tokenizer_of(folder, empty), *_lengths(folder, empty))


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
    tokenizer = _tokenizer_of(folder, model)
    longest, trained_at = _lengths(folder, model)
    if not isinstance(model, Encoder):
        model = PaddedModel(model, tokenizer.special, max_positions(model))
    return OpenedModel(folder, model, tokenizer, longest, trained_at)


def _tokenizer_of(folder: Path, model: nn.Module) -> Tokenizer:
    """The tokenizer beside a model, which must not have more tokens than the model."""
    tokenizer = load_tokenizer(model_folder(folder))
    rows = getattr(model.config, "vocab_size", None)
    if isinstance(rows, int) and tokenizer.special.num_tokens > rows:
        raise ValueError(
            f"the tokenizer of {folder} has {tokenizer.special.num_tokens:,} tokens and its model {rows:,}, so they do "
            "not belong together; take model and tokenizer from one export"
        )
    return tokenizer


def _lengths(folder: Path, model: nn.Module) -> tuple[int, int]:
    """The longest piece that a model takes, and the longest that it was trained at."""
    longest = min(max_positions(model) or LONGEST_PIECE, LONGEST_PIECE)
    return longest, min(longest, _declared_length(model_folder(folder)))


def _declared_length(folder: Path) -> int:
    """The piece length that a model was trained at, as its tokenizer declares it; 512 where it names no such number."""
    path = folder / "tokenizer_config.json"
    config = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else None
    declared = config.get("model_max_length") if isinstance(config, dict) else None
    if isinstance(declared, bool) or not isinstance(declared, int | float) or not declared >= 1:
        return 512
    return int(min(declared, LONGEST_PIECE))


def export_command(config: ExportConfig) -> None:
    """`mlm export`."""
    if built_folder(config.run) is not None:
        raise ValueError(
            f"{config.run} holds the weights of a module of your own, which transformers has no class for; copy "
            f"{built_folder(config.run)} instead"
        )
    source = model_folder(config.run)
    model, tokenizer = load_masked_lm(source), load_tokenizer(source)
    check_finite(model)
    export = CheckedExport(tokenizer.special, tokenizer.backend, tokenizer.save, _sample(config.run, tokenizer))
    differences: list[float] = []
    copy_export(source.resolve(), config.folder, lambda copy: differences.append(export.check(model, copy)))
    print(f"{config.folder}: loads with transformers, logits equal to {differences[0]:.1g}")


def _sample(folder: Path, tokenizer: Tokenizer) -> list[list[int]]:
    """Ids of real pieces to check an export on: of the run's own store, else of a few sentences."""
    if (folder / STORE / MANIFEST).is_file():
        return sample_pieces(TokenStore.open(folder / STORE))
    try:
        return [ids for ids in tokenizer.encode_batch(SENTENCES) if ids]
    except ValueError:  # a vocabulary of ids, which knows no words
        return [tokenizer.special.drawable_ids()[:64].tolist()]


def sample_pieces(store: TokenStore) -> list[list[int]]:
    """The ids of a store's first piece and its last one, on which `CheckedExport` checks an export."""
    return [store.piece(index).tolist() for index in (0, len(store) - 1)]
