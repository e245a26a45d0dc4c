"""The encoder's layers: from token ids to hidden states, and the prediction head; which tokens see which is not theirs.

Modules and parameters have the names of `transformers.ModernBertForMaskedLM`. Shapes as in `encoder.encoder`.
"""

import itertools
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from mlm_pytorch.encoder.attention import rotated_parts
from mlm_pytorch.encoder.config import ACTIVATIONS, EncoderConfig


class Embeddings(nn.Module):
    """Token embeddings, normalized. ModernBERT has no position embeddings: positions are rotary."""

    def __init__(self, config: EncoderConfig):
        super().__init__()
        self.tok_embeddings = nn.Embedding(config.vocab_size, config.hidden_size, padding_idx=config.pad_token_id)
        self.norm = nn.LayerNorm(config.hidden_size, eps=config.norm_eps, bias=config.norm_bias)
        self.dropout = config.embedding_dropout

    def forward(self, input_ids: Tensor, table: Tensor | None = None) -> Tensor:
        """(..., W) from ids (...,). The gradient of a `table` (V, W) in place of the own one holds the rows alone that
        were looked up.
        """
        own = self.tok_embeddings
        rows = own(input_ids) if table is None else F.embedding(input_ids, table, own.padding_idx, sparse=True)
        return F.dropout(self.norm(rows), self.dropout, self.training)


def is_untouched(module: nn.Module, kind: type[nn.Module]) -> bool:
    """Whether a module is what it was made as: an adapter or a hook would be passed by if its work were done elsewhere.

    Example:
        >>> table = nn.Embedding(3, 2)
        >>> before = is_untouched(table, nn.Embedding)
        >>> _ = table.register_forward_hook(lambda *_: None)
        >>> before, is_untouched(table, nn.Embedding)
        (True, False)
    """
    hooks = (module._forward_hooks, module._forward_pre_hooks, module._backward_hooks, module._backward_pre_hooks)
    plain = type(module) is kind and "forward" not in vars(module) and not any(hooks)
    return plain and type(module.weight) in (nn.Parameter, Tensor)


class _LookedUpAndMultiplied(torch.autograd.Function):
    """A tied table (V, W) in its two uses, so that its gradient is made in one piece.

    The product with it has a gradient of the table's size, the lookup one of some rows. On a CPU, with a large
    vocabulary, filling another table with zeros, or a copy of it, takes longer than looking up.
    """

    @staticmethod
    def forward(ctx: Any, table: Tensor) -> tuple[Tensor, Tensor]:
        ctx.set_materialize_grads(False)
        return table.view_as(table), table.view_as(table)

    @staticmethod
    def backward(_: Any, of_rows: Tensor | None, of_product: Tensor | None) -> Tensor | None:  # pyright: ignore[reportIncompatibleMethodOverride]
        if of_rows is None or of_product is None:
            return of_product if of_rows is None else of_rows.to_dense()
        return of_product.add_(of_rows)


def looked_up_and_multiplied(table: Tensor) -> tuple[Tensor, Tensor]:
    """A tied table (V, W) for both its uses, whose gradient is then made in one piece."""
    return _LookedUpAndMultiplied.apply(table)  # pyright: ignore[reportReturnType]


Parts = Tensor | tuple[Tensor, Tensor, Tensor]  # queries, keys and values, as one or one by one


@dataclass(frozen=True)
class Attend:
    """How the layers of one kind attend, for one batch.

    Attributes:
        kernel: heads' outputs (..., W), from queries, keys and values (..., 3, H, E), or from `rotated_parts`.
        angles: what those parts are turned by, cosines and sines; None where the kernel sees to that.
        asking: (K, W) from the queries (K, H, E) of the positions where a result is wanted, and from keys and values
            (T, 2, H, E) of all; None where all had better ask.
    """

    kernel: Callable[..., Tensor]
    angles: tuple[Tensor, Tensor] | None = None
    asking: Callable[[Tensor, Tensor], Tensor] | None = None

    def __call__(self, parts: Parts) -> Tensor:
        """(..., W) from what `Layer.before` gave."""
        return self.kernel(parts) if isinstance(parts, Tensor) else self.kernel(*parts)


class Attention(nn.Module):
    """The projections around attention; which tokens see which is the caller's business."""

    def __init__(self, config: EncoderConfig):
        super().__init__()
        self.num_heads = config.num_attention_heads
        self.Wqkv = nn.Linear(config.hidden_size, 3 * config.hidden_size, bias=config.attention_bias)
        self.Wo = nn.Linear(config.hidden_size, config.hidden_size, bias=config.attention_bias)

    def project(self, x: Tensor) -> Tensor:
        """Queries, keys and values (..., 3, H, E) of (..., W)."""
        qkv = self.Wqkv(x)
        return qkv.view(*qkv.shape[:-1], 3, self.num_heads, -1)

    @property
    def divisible(self) -> bool:
        """Whether the projection is what it was made as: an adapter or a hook would be passed by if it were divided."""
        return is_untouched(self.Wqkv, nn.Linear)

    def project_apart(self, x: Tensor, positions: Tensor) -> tuple[Tensor, Tensor]:
        """Queries (K, H, E) of some tokens of (T, W), keys and values (T, 2, H, E) of all."""
        width = x.shape[-1]
        parts = (width, 2 * width)
        biases = (None, None) if self.Wqkv.bias is None else self.Wqkv.bias.split(parts)
        (of_queries, of_rest), rows = self.Wqkv.weight.split(parts), x.index_select(0, positions)
        q, kv = F.linear(rows, of_queries, biases[0]), F.linear(x, of_rest, biases[1])
        return q.view(len(q), self.num_heads, -1), kv.view(len(kv), 2, self.num_heads, -1)


class GatedMLP(nn.Module):
    """Gated feed-forward block (GeGLU, Shazeer 2020)."""

    def __init__(self, config: EncoderConfig):
        super().__init__()
        self.Wi = nn.Linear(config.hidden_size, 2 * config.intermediate_size, bias=config.mlp_bias)
        self.Wo = nn.Linear(config.intermediate_size, config.hidden_size, bias=config.mlp_bias)
        self.act = ACTIVATIONS[config.hidden_activation]
        self.dropout = config.mlp_dropout

    def forward(self, x: Tensor) -> Tensor:
        """(..., W) from (..., W)."""
        if torch.compiler.is_compiling() and x.is_cuda and is_untouched(self.Wi, nn.Linear):
            # One product each: the gradients of value and gate are then written where the next products read them.
            biases = (None, None) if self.Wi.bias is None else self.Wi.bias.chunk(2)
            value, gate = (F.linear(x, *half) for half in zip(self.Wi.weight.chunk(2), biases, strict=True))
        else:
            value, gate = self.Wi(x).chunk(2, dim=-1)
        return self.Wo(F.dropout(self.act(value) * gate, self.dropout, self.training))


class Layer(nn.Module):
    """Pre-norm attention, then a pre-norm gated MLP. The first layer's attention takes the embeddings' own norm."""

    def __init__(self, config: EncoderConfig, index: int):
        super().__init__()
        assert config.layer_types is not None
        self.kind = config.layer_types[index]
        norm = nn.LayerNorm(config.hidden_size, eps=config.norm_eps, bias=config.norm_bias)
        self.attn_norm = nn.Identity() if index == 0 else norm
        self.attn = Attention(config)
        self.mlp_norm = nn.LayerNorm(config.hidden_size, eps=config.norm_eps, bias=config.norm_bias)
        self.mlp = GatedMLP(config)

    @property
    def takes_queries_apart(self) -> bool:
        """Whether this layer can ask for some tokens only, on this device: where a GPU would wait for the plan, not."""
        return self.attn.Wqkv.weight.device.type == "cpu" and self.attn.divisible

    def before(self, x: Tensor, angles: tuple[Tensor, Tensor] | None) -> Parts:
        """What attention takes, from (..., W): (..., 3, H, E), or given angles three parts (..., H, E), turned."""
        qkv = self.attn.project(self.attn_norm(x))
        return qkv if angles is None else rotated_parts(qkv, *angles)

    def after(self, x: Tensor, attended: Tensor) -> Tensor:
        """(..., W) from the layer's input and what attention gave, both (..., W)."""
        x = x + self.attn.Wo(attended)
        return x + self.mlp(self.mlp_norm(x))

    def between(
        self, x: Tensor, attended: Tensor, following: "Layer", angles: tuple[Tensor, Tensor] | None
    ) -> tuple[Tensor, Parts]:
        """What this layer gives, and what the attention of the one after it takes."""
        x = self.after(x, attended)
        return x, following.before(x, angles)

    def forward(self, x: Tensor, attend: Attend, positions: Tensor | None = None) -> Tensor:
        """(..., W) from (..., W). Given `positions` (K,), all are seen, but the layer goes on with those: (K, W)."""
        if positions is not None and attend.asking is not None:
            parts = self.attn.project_apart(self.attn_norm(x), positions)
            return self.after(_at(x, positions), attend.asking(*parts))
        return self.end(x, attend(self.before(x, attend.angles)), positions)

    def end(self, x: Tensor, attended: Tensor, positions: Tensor | None) -> Tensor:
        """As `after`, at `positions` (K,) where they are given."""
        if positions is not None:
            x, attended = _at(x, positions), _at(attended, positions)
        return self.after(x, attended)


def _at(x: Tensor, positions: Tensor) -> Tensor:
    """(K, W): some tokens of (..., W), counted through the leading dimensions. The gradient is one index_add."""
    return x.reshape(-1, x.shape[-1]).index_select(0, positions)


class Trunk(nn.Module):
    """Embeddings and layers: token ids to hidden states."""

    def __init__(self, config: EncoderConfig):
        super().__init__()
        self.config = config
        self.embeddings = Embeddings(config)
        self.layers = nn.ModuleList(Layer(config, i) for i in range(config.num_hidden_layers))
        self.final_norm = nn.LayerNorm(config.hidden_size, eps=config.norm_eps, bias=config.norm_bias)
        self.recompute = False  # layers' activations in backward, instead of keeping them, as --recompute has it
        self.compiled = self.joined = False  # see `compile_layers`

    def compile_layers(self, *, joined: bool = True, **options: Any) -> None:
        """Let `torch.compile` fuse what stands around attention; `options` are its own.

        Attention is left out: its kernels are opaque to the compiler, and its plans have other shapes with each pack.
        All layers share one graph, so compiling costs the same for 4 layers as for 22. On CUDA in half precision,
        attention takes kernels of our own (`encoder.tiles`), which need the same compilers.

        Args:
            joined: as one what stands between two layers' attention, which saves passes over the hidden states. Not for
                layers that are put together one at a time, as FSDP does it.
            options: of `torch.compile`.
        """
        self.compiled, self.joined = True, joined
        for layer in self.layers:
            assert isinstance(layer, Layer)
            layer.before = torch.compile(layer.before, **options)
            # The last one goes on with the selected positions only, in each pack another number of them.
            changes = True if layer is self.layers[-1] else None
            layer.after = torch.compile(layer.after, dynamic=changes, **options)
            layer.between = torch.compile(layer.between, **options)

    def forward(
        self,
        input_ids: Tensor,
        attend: dict[str, Attend],
        positions: Tensor | None = None,
        table: Tensor | None = None,
    ) -> Tensor:
        """Hidden states (..., W) from ids (...,), or (K, W) at `positions`; `attend` has one entry per kind of layer.

        What the last layer computes after attention at other positions, nobody reads: it is left out. `table` as in
        `Embeddings`.
        """
        x = self.embeddings(input_ids, table)
        layers = [layer for layer in self.layers if isinstance(layer, Layer)]
        recompute = self.recompute and torch.is_grad_enabled()
        if self.joined and not recompute:
            return self.final_norm(self._through_joined(layers, x, attend, positions))
        for layer in layers:
            arguments = (x, attend[layer.kind], positions if layer is layers[-1] else None)
            x = checkpoint(layer, *arguments, use_reentrant=False) if recompute else layer(*arguments)
        return self.final_norm(x)

    def _through_joined(
        self, layers: list[Layer], x: Tensor, attend: dict[str, Attend], positions: Tensor | None
    ) -> Tensor:
        parts = layers[0].before(x, attend[layers[0].kind].angles)
        for layer, following in itertools.pairwise(layers):
            x, parts = layer.between(x, attend[layer.kind](parts), following, attend[following.kind].angles)
        return layers[-1].end(x, attend[layers[-1].kind](parts), positions)


class PredictionHead(nn.Module):
    """What stands between the hidden states and the vocabulary."""

    def __init__(self, config: EncoderConfig):
        super().__init__()
        self.dense = nn.Linear(config.hidden_size, config.hidden_size, bias=config.classifier_bias)
        self.act = ACTIVATIONS[config.classifier_activation]
        self.norm = nn.LayerNorm(config.hidden_size, eps=config.norm_eps, bias=config.norm_bias)

    def forward(self, x: Tensor) -> Tensor:
        """(..., W) from hidden states (..., W)."""
        return self.norm(self.act(self.dense(x)))


class Decoder(nn.Linear):
    """The projection onto the vocabulary."""

    def forward(self, input: Tensor, table: Tensor | None = None) -> Tensor:
        """Logits (..., V) from (..., W), by a `table` (V, W) in place of the own weight where one is given."""
        return F.linear(input, self.weight if table is None else table, self.bias)
