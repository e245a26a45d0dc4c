"""Where a setup contradicts itself or will be slow, and why: lengths, precision, attention, the vocabulary's size."""

from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch

from mlm_pytorch.doctor.findings import Finding
from mlm_pytorch.encoder import EncoderConfig
from mlm_pytorch.encoder.blocks import BUCKET_STEP, LONGEST_KEPT, WEIGHTS_KEPT
from mlm_pytorch.training.device import native_precision
from mlm_pytorch.training.step import autocast_dtype


@dataclass(frozen=True)
class Setup:
    """What training would be told.

    model: as named; config: its shape. seq_len, pack_tokens, packs_per_step, mask_prob (its mean over the run),
    selection, optimizer, precision, budget, keep: as in `TrainConfig`, defaults resolved.
    """

    model: str
    config: EncoderConfig
    device: torch.device
    seq_len: int
    pack_tokens: int
    packs_per_step: int
    mask_prob: float
    selection: str
    optimizer: Literal["muon", "adamw"]
    precision: str
    budget: str
    keep: int

    @property
    def autocast(self) -> torch.dtype | None:
        """The dtype of matrix products; None for float32."""
        return autocast_dtype(self.precision, self.device)


def check_setup(setup: Setup, lengths: np.ndarray | None = None) -> list[Finding]:
    """All that a setup tells. `lengths` (D,): tokens of the corpus's documents, where there are any."""
    findings = [check_positions(setup), check_pack(setup), check_precision(setup), check_shapes(setup)]
    findings.append(check_attention(setup))
    if lengths is not None and len(lengths):
        findings.append(check_seq_len(setup, lengths))
    return findings


def check_positions(setup: Setup) -> Finding:
    """Whether the model has positions for a piece."""
    limit = setup.config.max_position_embeddings
    if setup.seq_len <= limit:
        return Finding("positions", "green", "pieces fit the model", f"seq_len {setup.seq_len} of {limit} positions")
    return Finding(
        "positions",
        "red",
        "Pieces are longer than the model's positions",
        f"seq_len {setup.seq_len}, max_position_embeddings {limit}",
        "training stops before its first step",
        f"pass --seq-len {limit} or less, or choose a model with longer positions",
        setup.seq_len / limit,
    )


def check_entries(setup: Setup, num_tokens: int) -> Finding:
    """Whether the model has an embedding for each of the tokenizer's tokens."""
    rows = setup.config.vocab_size
    if num_tokens <= rows:
        return Finding(
            "entries", "green", "every token has an embedding", f"{num_tokens:,} tokens, {rows:,} embeddings"
        )
    return Finding(
        "entries",
        "red",
        "Tokens without an embedding",
        f"the tokenizer has {num_tokens:,} tokens, the model {rows:,} embeddings",
        "they do not belong together: training stops at once, or learns nonsense",
        "leave --tokenizer out to take the model's own",
        num_tokens / rows,
    )


def check_pack(setup: Setup) -> Finding:
    """Whether the longest piece fits a pack."""
    if setup.seq_len <= setup.pack_tokens:
        return Finding("pack", "green", "pieces fit a pack", f"{setup.seq_len} of {setup.pack_tokens} tokens")
    return Finding(
        "pack",
        "red",
        "Pieces are longer than a pack",
        f"seq_len {setup.seq_len}, pack_tokens {setup.pack_tokens}",
        "training stops before its first step",
        f"pass --pack-tokens {setup.seq_len} or more",
        setup.seq_len / setup.pack_tokens,
    )


def check_precision(setup: Setup) -> Finding:
    """bf16 where the hardware multiplies it natively."""
    native, used = native_precision(setup.device), setup.autocast
    name = _device_name(setup.device)
    if used is not None and native is None:
        return Finding(
            "precision", "yellow", "bf16 is emulated", f"--precision bf16 on {name}",
            "without units for it every product is converted back and forth: slower than float32",
            "leave --precision out",
        )  # fmt: skip
    if used is None and native is not None:
        return Finding(
            "precision", "yellow", "float32 where bf16 is native", f"--precision {setup.precision} on {name}",
            "where bf16 is native, its products take a fraction of float32's time", "leave --precision out",
        )  # fmt: skip
    if native is None:
        return Finding(
            "precision", "yellow", "No native bf16", f"float32 on {name}",
            "products take several times as long as on hardware with bf16 units (AVX512-BF16, AMX, NVIDIA Ampere on)",
            "choose a smaller model, or another machine for long runs",
        )  # fmt: skip
    return Finding("precision", "green", "bf16, natively", f"on {name}")


def check_shapes(setup: Setup) -> Finding:
    """Sizes that matrix units like: the vocabulary a multiple of 64, heads of 64, widths of 64."""
    config = setup.config
    odd = [
        f"{name} {size}"
        for name, size in (
            ("vocab_size", config.vocab_size),
            ("hidden_size", config.hidden_size),
            ("intermediate_size", config.intermediate_size),
        )
        if size % 64
    ]
    head = config.hidden_size // config.num_attention_heads
    if head not in (32, 64, 128):
        odd.append(f"heads of {head}")
    if not odd:
        return Finding(
            "shapes", "green", "sizes suit matrix units", f"vocabulary {config.vocab_size:,}, heads of {head}"
        )
    return Finding(
        "shapes",
        "yellow",
        "Sizes that matrix units do not like",
        f"{', '.join(odd)}: no multiple of 64",
        "products are padded inside or take slower kernels",
        "choose a preset, which pads its vocabulary, or resize the model's embeddings to a multiple of 64",
    )


def check_attention(setup: Setup) -> Finding:
    """Which kernel attention will take, and where that is slow."""
    config, device = setup.config, setup.device
    assert config.layer_types is not None
    sliding = sum(kind == "sliding_attention" for kind in config.layer_types)
    window = f"{sliding} of {len(config.layer_types)} layers see a window of {config.local_attention}"
    if device.type == "cuda":
        if setup.autocast is None:
            return Finding(
                "attention", "yellow", "No variable-length attention", f"{setup.precision} on {_device_name(device)}",
                "the kernel needs bf16 or fp16: pieces are attended in dense blocks",
                "leave --precision out, or use a GPU with bf16",
            )  # fmt: skip
        return Finding("attention", "green", "variable-length attention", window)
    weights = attention_weights(setup)
    if setup.seq_len > LONGEST_KEPT and weights > WEIGHTS_KEPT and sliding < len(config.layer_types):
        return Finding(
            "attention",
            "yellow",
            "Long pieces on a CPU",
            f"seq_len {setup.seq_len}, packs of {setup.pack_tokens:,} tokens; {window}",
            f"a pack of such pieces has {weights / 1e6:.1f}M attention weights in each layer that sees all of a piece; "
            f"beyond {WEIGHTS_KEPT / 1e6:.1f}M they are not kept for backward but computed again",
            f"pass --seq-len {LONGEST_KEPT} or less, up to which they are always kept",
            weights / WEIGHTS_KEPT,
        )
    if sliding and setup.seq_len <= config.local_attention // 2:
        return Finding("attention", "green", "pieces fit the window", f"{window}, so all layers see all of a piece")
    return Finding("attention", "green", "attention in dense blocks", f"seq_len {setup.seq_len}; {window}")


def attention_weights(setup: Setup) -> int:
    """Attention weights of a layer that sees all of a piece, for one pack full of pieces of `seq_len`."""
    length = -(-setup.seq_len // BUCKET_STEP) * BUCKET_STEP
    return setup.pack_tokens // setup.seq_len * setup.config.num_attention_heads * length**2


def check_seq_len(setup: Setup, lengths: np.ndarray) -> Finding:
    """Whether the limit on pieces is far above what the corpus holds."""
    usual = float(np.quantile(lengths, 0.99)) + 2
    seen = f"seq_len {setup.seq_len}; 99 in 100 documents have at most {usual:,.0f} tokens"
    if setup.seq_len <= 8 * usual or setup.seq_len <= 128:
        return Finding("seq-len", "green", "seq_len suits the corpus", seen, value=setup.seq_len / usual)
    return Finding(
        "seq-len",
        "yellow",
        "seq_len is far above the data",
        seen,
        "packs waste nothing by it, but the positions beyond are never trained, though the model seems to have them",
        f"pass --seq-len {max(32, int(2 ** np.ceil(np.log2(usual))))}",
        setup.seq_len / usual,
    )


def _device_name(device: torch.device) -> str:
    return torch.cuda.get_device_name(device) if device.type == "cuda" else "this CPU"
