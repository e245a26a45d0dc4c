"""Scaling on paper: what one rank holds and sends, for DDP, FSDP2 and hybrid sharding.

Nothing is measured here. Sizes of parameters and optimizer state come from the encoder and the optimizers themselves
(built without memory, on the meta device); the rest is arithmetic that this page states.

N parameters, M of them in matrices that Muon steps, R ranks, S ranks of a node, G = R / S nodes,
T tokens of a pack, W width, I inner width, H heads, V vocabulary, K selected positions of a pack

**Memory of a rank**, in bytes

| | DDP | FSDP2 | hybrid |
| --- | --- | --- | --- |
| weights, float32 | 4 N | 4 N / R | 4 N / S |
| bf16 copies | 2 N (autocast) | 2 (two largest units) | the same |
| gradients, float32 | 4 N | 4 N / R, and 4 (largest unit) | with S |
| optimizer | 4 M + 8 (N - M) for Muon, 8 N for AdamW | / R | / S |
| activations | T (L (20 W + 8 I + 4 H) + 18 W) + K (10 V + 14 W) | the same | the same |

A unit is what is gathered together: a layer, or the embedding with the head. Activations are what backward needs under
bf16 autocast with the variable-length kernel: float32 inputs of the norms, bf16 inputs of the matrix products, queries,
keys, values and outputs of attention, both halves of the gated block; at selected positions logits in bf16, and their
softmax and gradient.

**Bytes that a rank sends in a step**, by ring algorithms, f(n) = (n - 1) / n

| | inside the node | between nodes, through the rank's own network card |
| --- | --- | --- |
| DDP | 8 N f(R): gradients reduced in float32 | the same / S, once for each node that the rings cross |
| FSDP2 | (2 + 2 + 4) N f(R): weights gathered in bf16 forward and backward, gradients scattered | the same / S |
| hybrid | 8 N f(S) | 8 N / S f(G): each shard's gradients reduced among nodes |

Sharded Muon gathers each momentum once, 4 M bytes more: over R for FSDP2, over S for hybrid.
"""

from dataclasses import dataclass
from typing import Literal

import torch

from mlm_pytorch.doctor.findings import Finding
from mlm_pytorch.encoder import Encoder, EncoderConfig, num_parameters
from mlm_pytorch.training.muon import Muon
from mlm_pytorch.training.optimizer import build_optimizers

Layout = Literal["DDP", "FSDP2", "hybrid"]
LAYOUTS: tuple[Layout, ...] = ("DDP", "FSDP2", "hybrid")
NODE = 8  # GPUs of a node
# What a GPU of an H100 or H200 node is taken to do; measured nowhere here, stated with the plan.
MATMUL_FLOPS = 300e12  # of 790e12 that large products reach: what training gets of it
INSIDE_BYTES = 300e9  # a second, NVLink
BETWEEN_BYTES = 50e9  # a second, a 400 Gbit/s card per GPU


@dataclass(frozen=True)
class ModelSizes:
    """Counts of parameters: all, those that Muon steps, the largest layer's, and the embedding's with the head."""

    parameters: int
    muon_parameters: int
    layer: int
    embedding: int
    optimizer_bytes: int


@dataclass(frozen=True)
class RankPlan:
    """One way to spread a model over ranks. All sizes are bytes of one rank; times are seconds of one step."""

    layout: Layout
    ranks: int
    weights: int
    gradients: int
    optimizer: int
    activations: int
    sent_inside: int
    sent_between: int
    compute_seconds: float
    communication_seconds: float

    @property
    def total(self) -> int:
        """Memory of a rank."""
        return self.weights + self.gradients + self.optimizer + self.activations


def model_sizes(config: EncoderConfig, optimizer: Literal["muon", "adamw"]) -> ModelSizes:
    """Sizes as the code has them: the encoder and its optimizers, built without memory.

    >>> model_sizes(preset("base", vocab_size=50_368), "muon").muon_parameters
    110886912
    """
    with torch.device("meta"):
        encoder = Encoder(config)
    groups = [
        (type(stepped) is Muon, sum(p.numel() for group in stepped.param_groups for p in group["params"]))
        for stepped in build_optimizers(encoder, optimizer, 1e-3, 0.0)
    ]
    muon = sum(count for is_muon, count in groups if is_muon)
    total = num_parameters(config)
    layers = [sum(p.numel() for p in layer.parameters()) for layer in encoder.model.layers]
    state = 4 * muon + 8 * (total - muon)
    return ModelSizes(total, muon, max(layers), total - sum(layers), state)


def activation_bytes(config: EncoderConfig, pack_tokens: int, mask_prob: float) -> int:
    """What backward needs of one pack, by the formula on top of this page."""
    width, inner, heads = config.hidden_size, config.intermediate_size, config.num_attention_heads
    per_token = config.num_hidden_layers * (20 * width + 8 * inner + 4 * heads) + 18 * width
    return int(pack_tokens * per_token + mask_prob * pack_tokens * (10 * config.vocab_size + 14 * width))


def flops_per_token(config: EncoderConfig, mean_length: float, mask_prob: float) -> float:
    """Of a training step, forward and backward: 6 for each weight of a matrix product, and attention's.

    The head's products count at the selected positions alone.
    """
    width, inner, layers = config.hidden_size, config.intermediate_size, config.num_hidden_layers
    matrices = layers * (4 * width * width + 3 * width * inner)
    head = mask_prob * (width * width + width * config.vocab_size)
    assert config.layer_types is not None
    seen = sum(
        min(mean_length, config.local_attention + 1) if kind == "sliding_attention" else mean_length
        for kind in config.layer_types
    )
    return 6 * (matrices + head) + 12 * width * seen


def check_count(ranks: int) -> None:
    """Raise ValueError for fewer than one rank."""
    if ranks < 1:
        raise ValueError(f"--ranks {ranks} is too small; give at least 1")


def plan_ranks(
    config: EncoderConfig,
    ranks: int,
    *,
    pack_tokens: int,
    packs_per_step: int,
    seq_len: int,
    optimizer: Literal["muon", "adamw"],
    mask_prob: float,
) -> list[RankPlan]:
    """One plan for each layout. Raises ValueError for fewer than one rank."""
    check_count(ranks)
    sizes = model_sizes(config, optimizer)
    activations = activation_bytes(config, pack_tokens, mask_prob)
    packs = max(1, packs_per_step // ranks)
    compute = packs * pack_tokens * flops_per_token(config, seq_len, mask_prob) / MATMUL_FLOPS
    return [_plan(layout, ranks, sizes, activations, compute) for layout in LAYOUTS]


def _plan(layout: Layout, ranks: int, sizes: ModelSizes, activations: int, compute: float) -> RankPlan:
    node = min(NODE, ranks)
    nodes = -(-ranks // NODE)
    n, muon = sizes.parameters, sizes.muon_parameters

    def ring(size: float, count: int) -> float:
        return size * (count - 1) / count

    shards = {"DDP": 1, "FSDP2": ranks, "hybrid": node}[layout]
    units = sorted((sizes.layer, sizes.layer, sizes.embedding))[-2:]
    if layout == "DDP" or ranks == 1:
        weights, gradients = 6 * n, 4 * n
    else:
        weights, gradients = 4 * n / shards + 2 * sum(units), 4 * n / shards + 4 * units[-1]
    momentum = 0 if layout == "DDP" else 4 * muon
    if layout == "hybrid":
        inside, between = ring(8 * n + momentum, node), ring(8 * n / node, nodes)
    else:
        inside = ring(8 * n + momentum, ranks)
        between = inside / node if nodes > 1 else 0.0
    return RankPlan(
        layout=layout,
        ranks=ranks,
        weights=int(weights),
        gradients=int(gradients),
        optimizer=int(sizes.optimizer_bytes / shards),
        activations=activations,
        sent_inside=int(inside),
        sent_between=int(between),
        compute_seconds=compute,
        communication_seconds=inside / INSIDE_BYTES + between / BETWEEN_BYTES,
    )


def check_ranks(ranks: int, packs_per_step: int, plans: list[RankPlan]) -> Finding:
    """Whether every rank gets packs at every step, and whether communication hides behind computation."""
    if packs_per_step < ranks or packs_per_step % ranks:
        idle = "some ranks read no pack in a step" if packs_per_step < ranks else "ranks read unequal numbers of packs"
        return Finding(
            "ranks",
            "red" if packs_per_step < ranks else "yellow",
            "Packs cannot be dealt evenly to the ranks",
            f"{packs_per_step} packs a step for {ranks} ranks",
            f"{idle}, and all wait for the slowest",
            f"pass --packs-per-step {-(-packs_per_step // ranks) * ranks}",
            packs_per_step / ranks,
        )
    ratio = plans[0].communication_seconds / max(1e-12, plans[0].compute_seconds)
    sends, computes = (1e3 * seconds for seconds in (plans[0].communication_seconds, plans[0].compute_seconds))
    seen = f"on {ranks} ranks DDP sends for {sends:.1f} ms and computes for {computes:.1f} ms"
    if ratio < 0.5:
        return Finding("ranks", "green", "communication hides behind computation", seen, value=ratio)
    return Finding(
        "ranks",
        "yellow",
        "Ranks wait for each other",
        seen,
        "what is sent takes as long as a large part of what is computed in a step",
        "raise --packs-per-step or --pack-tokens, or use fewer ranks",
        ratio,
    )
