"""What a run starts from: a preset, a masked language model in a folder or on the Hub, or a factory of the user's own.

`--model` is looked up in that order; only the last look-up may ask the network.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch
from torch import nn

from mlm_pytorch.cli.factory import (
    Factory,
    Sizes,
    build,
    built_folder,
    import_factory,
    is_factory_name,
    load_built,
    sizes_for,
)
from mlm_pytorch.data.batches import count_tokens
from mlm_pytorch.data.cooccurrence import count_neighbours, token_vectors
from mlm_pytorch.data.store import TokenStore
from mlm_pytorch.data.tokenizer import Tokenizer, load_tokenizer
from mlm_pytorch.encoder import PRESETS, Encoder, Preset, preset
from mlm_pytorch.huggingface import fetch_masked_lm, load_masked_lm, max_positions, model_folder


@dataclass(frozen=True)
class PresetStart:
    """A new built-in encoder of a named shape.

    Attributes:
        name: the preset's.
        embeddings: what its embeddings begin with, as `--first-embeddings` has it.
    """

    name: str
    embeddings: Literal["corpus", "random"] = "corpus"

    @property
    def trained_at(self) -> Preset:
        """The preset whose lengths and batches are the default."""
        return PRESETS[self.name]

    @property
    def longest(self) -> int | None:
        """The longest piece that the model takes, where it sets a limit."""
        return self.trained_at.max_position_embeddings

    def make(self, store: TokenStore) -> nn.Module:
        """The model for a store."""
        special = store.special
        encoder = Encoder(preset(self.name, vocab_size=special.num_tokens, pad_token_id=special.pad_token_id))
        encoder.start_at_frequencies(torch.from_numpy(count_tokens(store)))
        if self.embeddings == "corpus":
            encoder.start_at_vectors(token_vectors(count_neighbours(store), encoder.config.hidden_size))
        return encoder


@dataclass(frozen=True)
class ModelStart:
    """A masked language model that is continued, loaded from a folder."""

    name: str
    folder: Path
    model: nn.Module
    tokenizer: Tokenizer

    @property
    def trained_at(self) -> Preset:
        """The preset whose lengths and batches are the default: the largest that is no wider than the model."""
        return preset_as_wide(width_of(self.model))

    @property
    def longest(self) -> int | None:
        """The longest piece that the model takes, where it sets a limit."""
        return max_positions(self.model)

    def check_tokenizer(self, named: str | None) -> None:
        """Raise ValueError where `--tokenizer` names another one than the model's."""
        if named is None:
            return
        if not Path(named).is_dir() or load_tokenizer(named).fingerprint != self.tokenizer.fingerprint:
            raise ValueError(
                f"--tokenizer {named} is not the tokenizer of {self.name}, which a model that is continued keeps; "
                "leave it out, or add tokens with --extend-vocabulary"
            )

    def check_store(self, store: TokenStore) -> None:
        """Raise ValueError for a store that was made with another tokenizer."""
        if self.tokenizer.fingerprint != store.tokenizer_fingerprint:
            raise ValueError(
                f"the tokenizer of {self.folder} is not the store's; prepare it with --tokenizer {self.folder}"
            )


@dataclass(frozen=True)
class FactoryStart:
    """A module that a function of the user's own makes."""

    name: str
    factory: Factory
    longest = None

    @property
    def trained_at(self) -> Preset:
        """The preset whose lengths and batches are the default."""
        return PRESETS["mini"]

    def make(self, store: TokenStore) -> nn.Module:
        """The model for a store."""
        return build(self.factory, self.name, sizes_for(store.special, store.seq_len))


Start = PresetStart | ModelStart | FactoryStart


def find_start(name: str, embeddings: Literal["corpus", "random"] = "corpus") -> Start:
    """What `--model` names: a preset, a folder, `module:factory`, or a model of the Hub. `embeddings` are a preset's.

    Raises:
        ValueError: none of these, or one that cannot be trained: no masked language model, weights that are missing or
            not finite, a tokenizer that does not belong to it, a factory that does not import.
    """
    if name in PRESETS:
        return PresetStart(name, embeddings)
    if Path(name).is_dir():
        return _model_start(name, Path(name))
    if is_factory_name(name):
        return FactoryStart(name, import_factory(name))
    if "/" in name or "-" in name:  # as names of the Hub have, and a preset that is mistyped has not
        try:
            folder = fetch_masked_lm(name)
        except ValueError as error:
            raise ValueError(
                f"--model {name!r} is neither a preset ({', '.join(PRESETS)}) nor a folder here, and no model of the "
                f"Hub: {error}"
            ) from None
        return _model_start(name, folder)
    raise ValueError(
        f"--model {name!r} is neither a preset ({', '.join(PRESETS)}) nor a folder, no module:factory, and no name of "
        "the Hub (owner/name); give one of these, or leave it out and one is chosen"
    )


def _model_start(name: str, folder: Path) -> ModelStart:
    if built_folder(folder) is not None:
        raise ValueError(
            f"{folder} holds the weights of a module of your own; continue its run with the same command, or load them "
            "in a factory"
        )
    model = load_masked_lm(folder)
    tokenizer = load_tokenizer(model_folder(folder))
    check_fit(name, model, tokenizer)
    return ModelStart(name, model_folder(folder), model, tokenizer)


def check_fit(name: str, model: nn.Module, tokenizer: Tokenizer) -> None:
    """Refuse a model that cannot be continued with its tokenizer.

    Raises:
        ValueError: weights that are not finite, or a vocabulary smaller than the tokenizer's.
    """
    broken = next((n for n, p in model.named_parameters() if not bool(p.isfinite().all())), None)
    if broken is not None:
        raise ValueError(f"--model {name}: its weight {broken} is not finite; take another export of it")
    config = getattr(model, "config", None)
    rows = getattr(config, "vocab_size", None)
    if isinstance(rows, int) and tokenizer.special.num_tokens > rows:
        raise ValueError(
            f"--model {name}: its tokenizer has {tokenizer.special.num_tokens:,} tokens and the model {rows:,}, so "
            "some ids would have no embedding: they do not belong together; take model and tokenizer from one export"
        )


def width_of(model: nn.Module) -> int:
    """The width of a model's hidden states: as its configuration says, or its widest embedding table's."""
    config = getattr(model, "config", None)
    for name in ("hidden_size", "d_model", "dim"):
        if isinstance(width := getattr(config, name, None), int):
            return width
    tables = [m.embedding_dim for m in model.modules() if isinstance(m, nn.Embedding)]
    return max(tables, default=768)


def preset_as_wide(width: int) -> Preset:
    """The largest preset that is no wider than so much."""
    fitting = [shape for shape in PRESETS.values() if shape.hidden_size <= width]
    return fitting[-1] if fitting else PRESETS["nano"]


def restart(name: str, model_of_checkpoint: Path, store: TokenStore) -> tuple[nn.Module, tuple[str, Sizes] | None]:
    """The model of a checkpoint, and the factory that made it, if one did.

    Raises:
        ValueError: another kind of model than `--model` names, or files that are damaged.
    """
    if built_folder(model_of_checkpoint) is None:
        return load_masked_lm(model_of_checkpoint), None
    if not is_factory_name(name):
        raise ValueError(f"the run trains a module of your own; repeat --model module:factory, not {name!r}")
    return load_built(model_of_checkpoint, name), (name, sizes_for(store.special, store.seq_len))


def check_lengths(seq_len: int, longest: int | None, pack_tokens: int) -> None:
    """Raise ValueError for pieces that are longer than the model takes, or than a pack."""
    if longest is not None and seq_len > longest:
        raise ValueError(
            f"seq_len {seq_len} exceeds max_position_embeddings {longest}; "
            "lower --seq-len or choose a model with longer positions"
        )
    if seq_len > pack_tokens:
        raise ValueError(f"seq_len {seq_len} exceeds the {pack_tokens} tokens of a pack; raise --pack-tokens")
