"""A model as a run trains it: which batches it takes, how its loss is computed, and how it is written down.

Two kinds. The built-in encoder takes flat packs; every other masked language model, of `transformers` or of the user's
own, takes padded batches, and gets the same masks, the same loss at selected positions alone, the same precision and
optimizers.
"""

import copy
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from mlm_pytorch.cli.factory import Sizes, load_built, save_built
from mlm_pytorch.data.batches import FLAT, PADDED, Layout
from mlm_pytorch.data.tokenizer import Tokenizer
from mlm_pytorch.encoder import Encoder
from mlm_pytorch.evaluation import PaddedModel
from mlm_pytorch.huggingface import CheckedExport, load_encoder, load_masked_lm, max_positions
from mlm_pytorch.objective.head import find_head
from mlm_pytorch.objective.packs import MaskedPack, PackMasker, pack_loss
from mlm_pytorch.objective.padded import MaskedRows, RowsInterface, inspect_rows, mask_padded, padded_loss
from mlm_pytorch.objective.verify import first_line

SaveTokenizer = Callable[[Path], None]


@dataclass(frozen=True)
class Learner:
    """What is common to both kinds.

    Attributes:
        model: on its device.
        tokenizer: of the store.
        save_tokenizer: writes its files into a folder.
        checked: writes a model as `transformers` loads it, and makes sure of that.
    """

    model: nn.Module
    tokenizer: Tokenizer
    save_tokenizer: SaveTokenizer
    checked: CheckedExport

    @property
    def device(self) -> torch.device:
        """Where the model is."""
        return next(self.model.parameters()).device

    @property
    def title(self) -> str:
        """What the model is and how large."""
        trained = sum(p.numel() for p in self.model.parameters() if p.requires_grad)
        return f"{type(self.model).__name__}, {trained / 1e6:.1f}M parameters"


@dataclass(frozen=True)
class FlatLearner(Learner):
    """The built-in encoder."""

    layout: Layout = FLAT

    @property
    def longest(self) -> int | None:
        """The longest piece that the model takes."""
        return max_positions(self.model)

    def mask(self, masker: PackMasker) -> Callable[[Any, int], MaskedPack]:
        """What makes a masked batch, on the model's device, of what the reader builds."""
        device = self.device
        return lambda pack, rate: masker(pack, rate).to(device)

    def loss(
        self, z_loss: float = 0.0, *, fused: bool = False
    ) -> Callable[[nn.Module, MaskedPack], tuple[Tensor, Tensor]]:
        """Summed loss of a masked batch, and how many of its targets were right; as `pack_loss`."""
        head = find_head(self.model)
        return lambda model, pack: pack_loss(model, head, pack, z_loss=z_loss, fused=fused)

    def measurable(self, model: nn.Module) -> nn.Module:
        """The model, or a copy of it with other weights, as every measure takes it."""
        return model

    def export(self, weights: Mapping[str, Tensor], folder: Path) -> None:
        """Write weights that the model had, with the tokenizer, and read them back."""
        assert isinstance(self.model, Encoder)
        with torch.device("meta"):  # a second encoder around the weights: this one is being trained meanwhile
            double = Encoder(self.model.config)
        double.load_state_dict(weights, assign=True)
        if self.model.config.tie_word_embeddings:
            double.decoder.weight = double.model.embeddings.tok_embeddings.weight
        self.checked(double, folder)

    def load(self, folder: Path) -> dict[str, Tensor]:
        """What `export` wrote, as the model's `state_dict`."""
        return load_encoder(folder).state_dict()

    @property
    def promise(self) -> str:
        """What can be said of an export."""
        return "loads with transformers"


@dataclass(frozen=True)
class RowsLearner(Learner):
    """Any other model.

    Attributes:
        interface: how it is called.
        longest: the longest piece that it takes, or None where it sets no limit.
        double: a copy of it, for exporting weights while the model itself is being trained.
        factory: the name and arguments of the factory that made it; None for a model of `transformers`.
    """

    interface: RowsInterface
    longest: int | None
    double: nn.Module
    factory: tuple[str, Sizes] | None = None
    layout: Layout = PADDED

    def mask(self, masker: PackMasker) -> Callable[[Any, int], MaskedRows]:
        """What makes a masked batch, on the model's device, of what the reader builds."""
        device = self.device
        return lambda rows, rate: mask_padded(masker, rows, rate).to(device)

    def loss(
        self, z_loss: float = 0.0, *, fused: bool = False
    ) -> Callable[[nn.Module, MaskedRows], tuple[Tensor, Tensor]]:
        """Summed loss of a masked batch, and how many of its targets were right; as `padded_loss`."""
        interface = self.interface
        return lambda model, rows: padded_loss(model, interface, rows, z_loss=z_loss, fused=fused)

    def measurable(self, model: nn.Module) -> nn.Module:
        """The model, or a copy of it with other weights, as every measure takes it."""
        return PaddedModel(model, self.tokenizer.special, self.longest, self.interface)

    def export(self, weights: Mapping[str, Tensor], folder: Path) -> None:
        """Write weights that the model had, with the tokenizer; those of `transformers` are read back."""
        self.double.load_state_dict(weights)
        if self.factory is not None:
            save_built(self.double, *self.factory, folder, self.save_tokenizer)
        else:
            self.checked(self.double, folder)

    def load(self, folder: Path) -> dict[str, Tensor]:
        """What `export` wrote, as the model's `state_dict`."""
        return (load_masked_lm(folder) if self.factory is None else load_built(folder, self.factory[0])).state_dict()

    @property
    def promise(self) -> str:
        """What can be said of an export."""
        return "loads with transformers" if self.factory is None else f"is opened with --factory {self.factory[0]}"


Learning = FlatLearner | RowsLearner


def make_learner(
    model: nn.Module,
    tokenizer: Tokenizer,
    seq_len: int,
    *,
    sample: Sequence[Sequence[int]],
    factory: tuple[str, Sizes] | None,
    say: Callable[[str], None],
) -> Learning:
    """The learner of a model on its device.

    Args:
        model: the built-in encoder, a masked language model of `transformers`, or a module that `factory` made.
        tokenizer: of the store.
        seq_len: longest piece of the store.
        sample: ids of real pieces, on which exports are checked.
        factory: the factory's name and arguments, where one made the model.
        say: told when every position has to pass through the head, and when the model sees too much or too little.

    Raises:
        ValueError: a model without logits for the whole vocabulary, or one that cannot be copied or saved.
    """

    def save_tokenizer(folder: Path) -> None:
        tokenizer.save(folder, model_max_length=seq_len)

    checked = CheckedExport(tokenizer.special, tokenizer.backend, save_tokenizer, sample)
    if isinstance(model, Encoder):
        return FlatLearner(model, tokenizer, save_tokenizer, checked)
    longest = max_positions(model) if hasattr(model, "config") else None
    interface = inspect_rows(model, tokenizer.special, longest)
    if interface.head is None:
        say(
            f"every position of {type(model).__name__} passes through its output head, which is slow: "
            f"{interface.reason}"
        )
    if interface.mask_argument is None:
        say(f"{type(model).__name__} takes no padding mask (an argument attention_mask or mask), so it sees padding")
    if interface.sees_padding:
        say(
            f"{type(model).__name__} sees padding in spite of its argument {interface.mask_argument}, which is True at "
            "tokens here; if yours is True at padding, as torch's key_padding_mask, turn it round in forward"
        )
    for oddity in interface.oddities:
        say(oddity)
    return RowsLearner(model, tokenizer, save_tokenizer, checked, interface, longest, _double(model), factory)


def _double(model: nn.Module) -> nn.Module:
    """A copy of a model on the host. Raises ValueError, before hours are spent, where it cannot be copied or saved."""
    kind = type(model).__name__
    other = next((name for name, value in model.state_dict().items() if not isinstance(value, Tensor)), None)
    if other is not None:
        raise ValueError(
            f"{kind} keeps {other} in its state, which is no tensor and cannot be saved; keep it in a buffer"
        )
    try:
        return copy.deepcopy(model).cpu()
    except (RuntimeError, TypeError) as error:
        raise ValueError(
            f"{kind} cannot be copied, and a copy is what its weights are saved from while it trains "
            f"({first_line(error)}); hold nothing in it that copy.deepcopy refuses"
        ) from error
