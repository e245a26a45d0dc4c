"""The built-in encoder: ModernBERT's architecture (Warner et al. 2024, arXiv 2412.13663), under its own weight names.

`Encoder(config).state_dict()` has the keys, shapes and meaning of `transformers.ModernBertForMaskedLM`, so weights go
both ways by copying. What differs is how they are computed: a pack of whole pieces goes through without padding, and
the head, and of the last layer all but keys and values, run at the selected positions alone.

Shapes: B batch, L length, T tokens of a pack, D pieces in a pack, W width, H heads, E width of a head, V vocabulary.
"""

import math
from dataclasses import replace
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from mlm_pytorch.encoder.attention import (
    attend_padded,
    attend_varlen,
    rotary_tables,
    tiles_available,
    varlen_available,
)
from mlm_pytorch.encoder.blocks import BlockPlan, Blocks, attend_blocks
from mlm_pytorch.encoder.config import EncoderConfig
from mlm_pytorch.encoder.layers import (
    Attend,
    Decoder,
    Layer,
    PredictionHead,
    Trunk,
    is_untouched,
    looked_up_and_multiplied,
)
from mlm_pytorch.encoder.queries import Queries, attend_queries

# Standard deviation of embeddings that start at known vectors, in `initializer_range`s. The first logits are then a
# worse guess than frequencies, and the last ones better: AdamW's steps are of one size, so larger embeddings keep
# longer what they began with (docs/results/recipes.md).
KNOWN_RANGE = 4


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
        if config.pad_token_id is not None:
            self.model.embeddings.tok_embeddings.weight[config.pad_token_id].zero_()

    @torch.no_grad()
    def start_at_frequencies(self, counts: Tensor) -> None:
        """Set the output bias to the tokens' log frequencies: with random embeddings, the entropy of single tokens.

        Without it the first steps are spent on learning which tokens are common.

        Args:
            counts: (V',) how often each token occurs in the corpus, V' at most `vocab_size`.
        """
        if self.decoder.bias is not None:
            smoothed = torch.full((self.config.vocab_size,), 0.1, device=self.decoder.bias.device)
            smoothed[: len(counts)] += counts.to(smoothed)
            self.decoder.bias.copy_((smoothed / smoothed.sum()).log())

    @torch.no_grad()
    def start_at_vectors(self, vectors: Tensor) -> None:
        """Set the embeddings to token vectors that are known beforehand, at `KNOWN_RANGE` times `initializer_range`.

        A model that knows which tokens are alike need not find it out first.

        Args:
            vectors: (V', W) of standard deviation 1, V' at most `vocab_size`, W `hidden_size`, such as
                `data.cooccurrence.token_vectors` makes them. The padding token's stays zero.

        Raises:
            ValueError: vectors of another width, or more of them than tokens.
        """
        table = self.model.embeddings.tok_embeddings.weight
        if vectors.ndim != 2 or vectors.shape[1] != table.shape[1] or len(vectors) > len(table):
            raise ValueError(
                f"vectors {tuple(vectors.shape)} do not fit embeddings {tuple(table.shape)}; give one of width "
                f"{table.shape[1]} for each of at most {len(table)} tokens"
            )
        table[: len(vectors)] = vectors.to(table) * (KNOWN_RANGE * self.config.initializer_range)
        if self.config.pad_token_id is not None:
            table[self.config.pad_token_id].zero_()

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
            last = self.model.layers[-1]
            assert isinstance(last, Layer)
            if positions is not None and last.takes_queries_apart and not self.model.joined:
                queries = Queries.of(plans[last.kind], cu_seqlens, positions)
                if queries is not None:
                    asking = partial(attend_queries, queries=queries)
                    attend[last.kind] = replace(attend[last.kind], asking=asking)
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
        own, decoder = self.model.embeddings.tok_embeddings, self.decoder
        table = own.weight
        tied = decoder.weight is table and is_untouched(own, nn.Embedding)
        if not tied or table.device.type != "cpu" or torch.compiler.is_compiling():
            return decoder(self.head(self.model(input_ids, attend, positions)))
        looked_up, multiplied = looked_up_and_multiplied(table)
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
