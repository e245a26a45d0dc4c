"""The built-in encoder: ModernBERT's architecture (Warner et al. 2024, arXiv 2412.13663), under its own weight names.

`Encoder(config).state_dict()` has the keys, shapes and meaning of `transformers.ModernBertForMaskedLM`, so weights go
both ways by copying. What differs is how they are computed: a pack of whole pieces goes through without padding, and
the head, and the last layer after its attention, run at the selected positions alone.

Shapes: B batch, L length, T tokens of a pack, D pieces in a pack, W width, H heads, E width of a head, V vocabulary.
"""

import itertools
import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from mlm_pytorch.encoder.attention import (
    attend_padded,
    attend_varlen,
    rotary_tables,
    rotated_parts,
    tiles_available,
    varlen_available,
)
from mlm_pytorch.encoder.blocks import BlockPlan, Blocks, attend_blocks
from mlm_pytorch.encoder.config import ACTIVATIONS, EncoderConfig
from mlm_pytorch.encoder.queries import Queries, attend_queries


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
        hooked = self.Wqkv._forward_hooks or self.Wqkv._forward_pre_hooks
        return type(self.Wqkv) is nn.Linear and not hooked

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
        if torch.compiler.is_compiling() and x.is_cuda:
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
        if positions is not None and attend.asking is not None and self.attn.divisible:
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


class Encoder(nn.Module):
    """ModernBERT with its masked-language-modelling head, for flat packs and for padded batches.

    Args:
        config: the shape.

    Example:
        >>> config = EncoderConfig(vocab_size=128, hidden_size=64, num_hidden_layers=2, num_attention_heads=1)
        >>> encoder = Encoder(config)
        >>> encoder(torch.randint(5, 128, (2, 10))).shape                              # padded: (B, L) -> (B, L, V)
        torch.Size([2, 10, 128])
        >>> encoder(torch.randint(5, 128, (9,)), cu_seqlens=torch.tensor([0, 4, 9])).shape   # flat: (T,) -> (T, V)
        torch.Size([9, 128])
    """

    def __init__(self, config: EncoderConfig):
        super().__init__()
        self.config = config
        self.model = Trunk(config)
        self.head = PredictionHead(config)
        self.decoder = Decoder(config.hidden_size, config.vocab_size, bias=config.decoder_bias)
        self.reset_parameters()
        if config.tie_word_embeddings:
            self.decoder.weight = self.model.embeddings.tok_embeddings.weight

    takes_positions = True  # `mlm_pytorch.objective.logits_at` passes the selected positions on

    @property
    def output_head(self) -> nn.Module:
        """Where the head begins, for whoever gathers positions in front of it."""
        return self.head

    @torch.no_grad()
    def reset_parameters(self) -> None:
        """Draw the weights as ModernBERT does: truncated normals, those that write to the residual stream narrower."""
        config = self.config
        narrow = config.initializer_range / math.sqrt(2 * config.num_hidden_layers)
        for name, module in self.named_modules():
            if isinstance(module, nn.Linear | nn.Embedding):
                residual = name.endswith(("Wo", "dense", "decoder"))
                std = narrow if residual else config.initializer_range
                cut = config.initializer_cutoff_factor * std
                nn.init.trunc_normal_(module.weight, std=std, a=-cut, b=cut)
            if isinstance(module, nn.Linear) and module.bias is not None:
                nn.init.zeros_(module.bias)
        self.model.embeddings.tok_embeddings.weight[config.pad_token_id].zero_()

    @torch.no_grad()
    def start_at_frequencies(self, counts: Tensor) -> None:
        """Set the output bias to the tokens' log frequencies, so that training starts at the entropy of single tokens.

        Without it the first steps are spent on learning which tokens are common.

        Args:
            counts: (V',) how often each token occurs in the corpus, V' at most `vocab_size`.
        """
        if self.decoder.bias is not None:
            smoothed = torch.full((self.config.vocab_size,), 0.1, device=self.decoder.bias.device)
            smoothed[: len(counts)] += counts.to(smoothed)
            self.decoder.bias.copy_((smoothed / smoothed.sum()).log())

    def hidden_states(
        self,
        input_ids: Tensor,
        attention_mask: Tensor | None = None,
        *,
        cu_seqlens: Tensor | None = None,
        max_seqlen: int | None = None,
        positions: Tensor | None = None,
    ) -> Tensor:
        """Hidden states before the head: (B, L, W) for a padded batch, (T, W) for a flat pack, (K, W) at `positions`.

        Args:
            input_ids: (B, L), or (T,) with `cu_seqlens`.
            attention_mask: (B, L), 0 or False at padding; for padded batches only.
            cu_seqlens: (D + 1,) borders of the pieces of a flat pack, from 0 to T; a piece may be empty.
            max_seqlen: the longest piece. Given, a CUDA pack runs without waiting for the device.
            positions: (K,) where hidden states are wanted, counted through the rows; by default everywhere. The rest of
                the last layer is then not computed.

        Raises:
            ValueError: a flat pack without borders, or a piece longer than `max_position_embeddings`.
        """
        layout = {"cu_seqlens": cu_seqlens, "max_seqlen": max_seqlen}
        return self.model(input_ids, self._attend(input_ids, attention_mask, positions, **layout), positions)

    def _attend(
        self,
        input_ids: Tensor,
        attention_mask: Tensor | None,
        positions: Tensor | None,
        cu_seqlens: Tensor | None = None,
        max_seqlen: int | None = None,
    ) -> dict[str, Attend]:
        """How each kind of layer attends to this input; arguments and errors as of `hidden_states`."""
        if cu_seqlens is None:
            if input_ids.ndim != 2:
                raise ValueError(
                    f"input_ids of shape {tuple(input_ids.shape)} need cu_seqlens; a padded batch is (B, L)"
                )
            longest = input_ids.shape[1]
        else:
            longest = int(cu_seqlens.diff().max()) if max_seqlen is None else max_seqlen
        if longest > self.config.max_position_embeddings:
            raise ValueError(
                f"a piece of {longest} tokens exceeds max_position_embeddings {self.config.max_position_embeddings}; "
                f"cut the documents shorter or choose a model with longer positions"
            )
        if cu_seqlens is None:
            return self._attend_in_rows(input_ids, attention_mask)
        return self._attend_in_pieces(input_ids, positions, cu_seqlens, longest)

    def _kinds(self) -> dict[str, tuple[float, int | None]]:
        """Rotary base and window of each kind of layer that there is."""
        config = self.config
        kinds = {
            "full_attention": (config.global_rope_theta, None),
            "sliding_attention": (config.local_rope_theta, config.local_attention // 2),
        }
        return {kind: kinds[kind] for kind in set(config.layer_types or ())}

    def _attend_in_rows(self, input_ids: Tensor, attention_mask: Tensor | None) -> dict[str, Attend]:
        attended = None if attention_mask is None else attention_mask.bool()
        where = torch.arange(input_ids.shape[1], device=input_ids.device)
        return {
            kind: Attend(
                partial(attend_padded, attended_BL=attended, window=window),
                rotary_tables(where, theta, self.config.head_dim),
            )
            for kind, (theta, window) in self._kinds().items()
        }

    def _attend_in_pieces(
        self, input_ids: Tensor, positions: Tensor | None, cu_seqlens: Tensor, longest: int
    ) -> dict[str, Attend]:
        dtype, heads, head_dim = compute_dtype(self), self.config.num_attention_heads, self.config.head_dim
        kinds = self._kinds().items()
        if not varlen_available(input_ids.device, dtype):
            blocks = Blocks.of(cu_seqlens, heads)
            plans = {kind: BlockPlan.of(blocks, theta, head_dim, dtype, window) for kind, (theta, window) in kinds}
            attend = {kind: Attend(partial(attend_blocks, plan=plan)) for kind, plan in plans.items()}
            if positions is not None and self.config.layer_types:
                last = self.config.layer_types[-1]
                queries = Queries.of(plans[last], cu_seqlens, positions)
                if queries is not None:
                    attend[last] = replace(attend[last], asking=partial(attend_queries, queries=queries))
            return attend
        where = positions_within(cu_seqlens, len(input_ids))
        angles = {kind: rotary_tables(where, theta, head_dim) for kind, (theta, _) in kinds}
        if self.model.compiled and tiles_available(head_dim):
            from mlm_pytorch.encoder.tiles import TilePlan, Tiles, attend_tiles  # needs Triton

            tiles = Tiles.of(cu_seqlens, len(input_ids))
            return {
                kind: Attend(partial(attend_tiles, plan=TilePlan(tiles, *angles[kind], window)))
                for kind, (_, window) in kinds
            }
        bounds = cu_seqlens.to(torch.int32)
        return {
            kind: Attend(partial(attend_varlen, cu_seqlens=bounds, max_seqlen=longest, window=window), angles[kind])
            for kind, (_, window) in kinds
        }

    def forward(
        self,
        input_ids: Tensor,
        attention_mask: Tensor | None = None,
        *,
        positions: Tensor | None = None,
        **layout: Any,
    ) -> Tensor:
        """Logits: (B, L, V) or (T, V), or (K, V) at `positions`. Arguments as `hidden_states`."""
        attend = self._attend(input_ids, attention_mask, positions, **layout)
        table, decoder = self.model.embeddings.tok_embeddings.weight, self.decoder
        if decoder.weight is not table or table.device.type != "cpu" or torch.compiler.is_compiling():
            return decoder(self.head(self.model(input_ids, attend, positions)))
        looked_up, multiplied = _LookedUpAndMultiplied.apply(table)  # pyright: ignore[reportGeneralTypeIssues]
        return decoder(self.head(self.model(input_ids, attend, positions, looked_up)), multiplied)


def positions_within(cu_seqlens: Tensor, num_tokens: int) -> Tensor:
    """Positions (T,) that restart at 0 with each piece, computed on the device.

    Example:
        >>> positions_within(torch.tensor([0, 3, 5]), 5).tolist()
        [0, 1, 2, 0, 1]
    """
    token = torch.arange(num_tokens, device=cu_seqlens.device)
    piece = torch.searchsorted(cu_seqlens, token, right=True, out_int32=False) - 1
    return token - cu_seqlens[piece]


def compute_dtype(module: nn.Module) -> torch.dtype:
    """The dtype that matrix products of `module` run in: autocast's where it is on, else the parameters'."""
    parameter = next(module.parameters())
    if torch.is_autocast_enabled(parameter.device.type):
        return torch.get_autocast_dtype(parameter.device.type)
    return parameter.dtype
