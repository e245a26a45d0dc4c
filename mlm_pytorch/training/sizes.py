"""Choose how much of a step one forward takes, by the memory that its activations need and the memory there is."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from mlm_pytorch.encoder import PRESETS, Encoder, num_parameters, preset
from mlm_pytorch.training.device import free_memory
from mlm_pytorch.training.micro_batches import MicroBatches, halve
from mlm_pytorch.training.step import Loss

BYTES_PER_PARAMETER = 12  # beside its value: gradient, and two moments of AdamW (Muon keeps one)
TRANSIENT = 1.5  # what forward and backward take at their peak, over what forward leaves behind for backward
SPARED = 0.9  # share of the free memory that may be planned for
SAMPLE_TOKENS = 1024  # about how many tokens are tried
# Larger forwards than this keep a GPU no busier; on a CPU nothing is gained by more than a pack.
MOST_TOKENS = {"cuda": 1 << 16}


@dataclass(frozen=True)
class Plan:
    """What was chosen.

    Attributes:
        sizes: deals a step's batches to forwards.
        needed: bytes that this is thought to take beside the weights; None where memory is not known.
        free: bytes there were.
    """

    sizes: MicroBatches
    needed: int | None
    free: int | None

    def describe(self, num_batches: int) -> str:
        """In words, for a step of `num_batches`."""
        memory = f", about {gigabytes(self.needed)} of {gigabytes(self.free)}" if self.needed and self.free else ""
        return f"{self.sizes.sizes(num_batches)}{memory}"


def gigabytes(size: float) -> str:
    """Bytes as a person reads them.

    >>> gigabytes(2.5e9), gigabytes(40e6)
    ('2.5 GB', '0.04 GB')
    """
    return f"{size / 1e9:.1f} GB" if size >= 1e8 else f"{size / 1e9:.2f} GB"


def activation_bytes(model: nn.Module, loss: Loss, batch: Any, autocast: torch.dtype | None) -> tuple[int, int]:
    """What one forward leaves behind for backward, and how many slots of tokens it took, of a small part of `batch`.

    Counts every storage that autograd keeps, once, parameters left out. Costs one forward over about `SAMPLE_TOKENS`
    tokens, two where layers are computed again in backward; random state, gradients and buffers stay as they were.
    """
    while batch.input_ids.numel() > SAMPLE_TOKENS:
        try:
            batch = max(halve(batch), key=lambda part: part.num_targets)
        except ValueError:  # one long piece
            break
    tokens = batch.input_ids.numel()
    if not (isinstance(model, Encoder) and model.model.recompute):
        return _kept_bytes(model, loss, batch, autocast), tokens
    # Autograd keeps nothing of such a layer but its input, and in backward all of one layer after the other.
    trunk, num_layers = model.model, model.config.num_hidden_layers
    outside = _kept_bytes(model, loss, batch, autocast)
    trunk.recompute = False
    try:
        layer = (_kept_bytes(model, loss, batch, autocast) - outside) // num_layers
    finally:
        trunk.recompute = True
    inputs = num_layers * tokens * model.config.hidden_size * next(model.parameters()).element_size()
    return outside + inputs + layer, tokens


def _kept_bytes(model: nn.Module, loss: Loss, batch: Any, autocast: torch.dtype | None) -> int:
    device = next(model.parameters()).device
    own = {p.untyped_storage().data_ptr() for p in (*model.parameters(), *model.buffers())}
    kept: dict[int, int] = {}

    def keep(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in own:
            kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    was_training = model.training
    with torch.random.fork_rng([device] if device.type == "cuda" else []), _buffers_kept(model):
        model.train()
        with (
            torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor),
            torch.autocast(device.type, autocast, enabled=autocast is not None),
        ):
            loss(model, batch)
    model.train(was_training)
    return sum(kept.values())


@contextmanager
def _buffers_kept(model: nn.Module) -> Iterator[None]:
    """Put back what a pass in training mode leaves in buffers, such as the statistics of a batch normalization: a run
    that is continued passes here again, and must end as one in one piece.
    """
    buffers = [(module, *named) for module in model.modules() for named in module.named_buffers(recurse=False)]
    before = [value.clone() for _, _, value in buffers]
    try:
        yield
    finally:
        for (module, name, value), kept in zip(buffers, before, strict=True):
            if not torch.equal(value, kept):  # others may be views that cannot be written to
                value.copy_(kept)
            module._buffers[name] = value


def plan(
    model: nn.Module,
    loss: Loss,
    batch: Any,
    *,
    num_batches: int,
    longest: int,
    autocast: torch.dtype | None,
    notice: Callable[[str], None],
) -> Plan:
    """How a step of `num_batches` batches like `batch` is dealt to forwards.

    Args:
        model: on its device.
        loss: as the step has it.
        batch: a masked one.
        num_batches: of one step.
        longest: tokens of the longest piece: no part is made smaller.
        autocast: as the step has it.
        notice: told when memory turns out not to hold what was planned.

    Raises:
        ValueError: not even the longest piece fits; says what would.
    """
    device = next(model.parameters()).device
    free = free_memory(device)
    trained = sum(p.numel() for p in model.parameters() if p.requires_grad)
    fixed = BYTES_PER_PARAMETER * trained
    if free is None:
        return Plan(MicroBatches(1, notice), None, None)
    room = SPARED * free - fixed
    if room <= 0:
        raise ValueError(_too_large(trained, fixed, free, device))
    kept, tokens = activation_bytes(model, loss, batch, autocast)
    per_token = TRANSIENT * kept / tokens
    per_batch = per_token * batch.input_ids.numel()
    sizes = MicroBatches(1, notice)
    most = MOST_TOKENS.get(device.type, 0) // batch.input_ids.numel()
    while 2 * sizes.together <= min(num_batches, most) and 2 * sizes.together * per_batch <= room:
        sizes.together *= 2
    while per_batch / 2**sizes.halvings > room:
        sizes.halvings += 1
        if batch.input_ids.numel() / 2**sizes.halvings < longest / 2:
            raise ValueError(
                f"a piece of {longest:,} tokens takes about {gigabytes(per_token * longest)} and {gigabytes(room)} are "
                f"left on {device} beside the model; lower --seq-len to {max(8, int(room / per_token) // 8 * 8):,}, or "
                f"choose a smaller --model"
            )
    share = sizes.together / 2**sizes.halvings
    return Plan(sizes, int(fixed + share * per_batch), free)


def _too_large(trained: int, fixed: int, free: int, device: torch.device) -> str:
    fitting = [
        name for name in PRESETS if 2 * (BYTES_PER_PARAMETER + 4) * num_parameters(preset(name, vocab_size=8192)) < free
    ]
    would = f"--model {fitting[-1]} would" if fitting else "no preset would"
    return (
        f"training {trained:,} parameters takes {gigabytes(fixed)} beside the weights, and {gigabytes(free)} are free "
        f"on {device}; {would} fit"
    )
