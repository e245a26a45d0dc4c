"""Logits at one column of each row: all that scoring a sentence by its masked variants asks of a model.

Shapes: B rows, L columns, H heads, E width of a head, W width, V vocabulary.
"""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mlm_pytorch.encoder import Encoder
from mlm_pytorch.encoder.attention import rotary_tables
from mlm_pytorch.encoder.encoder import Layer
from mlm_pytorch.objective.head import find_head, logits_at

RowLogits = Callable[[Tensor, Tensor], Tensor]


def row_logits(model: nn.Module) -> RowLogits:
    """A function from rows (B, L) without padding, and a column (B,) of each, to the logits (B, V) there.

    Costs of the built-in encoder: its last layer and its head compute one token of each row; see `_encoder_rows`.
    """
    if isinstance(model, Encoder):
        return lambda ids_BL, column_B: _encoder_rows(model, ids_BL, column_B)
    own = getattr(model, "logits_at", None)
    head = find_head(model)

    def rows(ids_BL: Tensor, column_B: Tensor) -> Tensor:
        positions = torch.arange(len(ids_BL), device=ids_BL.device) * ids_BL.shape[1] + column_B
        if own is not None:
            return own(positions, ids_BL)
        if head is None:
            return model(ids_BL).flatten(0, 1)[positions]
        return logits_at(model, head, positions, ids_BL)

    return rows


def _encoder_rows(encoder: Encoder, ids_BL: Tensor, column_B: Tensor) -> Tensor:
    """`encoder(ids_BL)` at one column of each row, without gradients.

    Variants of a sentence share their tokens, so the first layer projects each different token once. After the last
    layer's attention only the wanted tokens are gone on with. Of four layers this saves a quarter of the work.
    """
    config = encoder.config
    length = ids_BL.shape[1]
    if length > config.max_position_embeddings:
        raise ValueError(
            f"a piece of {length} tokens exceeds max_position_embeddings {config.max_position_embeddings}; "
            "cut the documents shorter or choose a model with longer positions"
        )
    rows = torch.arange(len(ids_BL), device=ids_BL.device)
    head_dim = config.hidden_size // config.num_attention_heads
    positions = torch.arange(length, device=ids_BL.device)
    different, inverse_BL = ids_BL.unique(return_inverse=True)
    trunk = encoder.model
    x = trunk.embeddings(different)  # (number of different tokens, W) until the first layer's attention

    for index, layer in enumerate(trunk.layers):
        assert isinstance(layer, Layer)
        is_first, is_last = index == 0, index == len(trunk.layers) - 1
        is_global = layer.kind == "full_attention"
        cos, sin = rotary_tables(
            positions, config.global_rope_theta if is_global else config.local_rope_theta, head_dim
        )
        window = None if is_global else config.local_attention // 2

        def attend(
            qkv: Tensor,
            cos: Tensor = cos,
            sin: Tensor = sin,
            window: int | None = window,
            is_first: bool = is_first,
            is_last: bool = is_last,
        ) -> Tensor:
            out = _attend_rows(qkv[inverse_BL] if is_first else qkv, cos, sin, window)
            return out[rows, column_B] if is_last else out

        attended = layer.attn.Wo(attend(layer.before(x)))
        x = x[inverse_BL] if is_first else x
        x = x[rows, column_B] if is_last else x
        x = attended.add_(x)
        x = layer.mlp(layer.mlp_norm(x)).add_(x)
    return encoder.decoder(encoder.head(trunk.final_norm(x)))


def _attend_rows(qkv_BL3HE: Tensor, cos_LE: Tensor, sin_LE: Tensor, window: int | None) -> Tensor:
    """Attention within rows of one length, without gradients: (B, L, W) from (B, L, 3, H, E), which is overwritten.

    Queries and keys are turned in place, which spares the memory traffic that would take as long as attention itself.
    """
    half = cos_LE.shape[-1]
    cos, sin = cos_LE[:, None, None, :], sin_LE[:, None, None, :]
    first, second = qkv_BL3HE[:, :, :2, :, :half], qkv_BL3HE[:, :, :2, :, half:]
    turned = first * sin
    first.mul_(cos).addcmul_(second, sin, value=-1)
    second.mul_(cos).add_(turned)
    q, k, v = qkv_BL3HE.permute(2, 0, 3, 1, 4)
    mask = None
    length = qkv_BL3HE.shape[1]
    if window is not None and window < length - 1:
        position = torch.arange(length, device=q.device)
        mask = (position[:, None] - position).abs() <= window
    return F.scaled_dot_product_attention(q, k, v, attn_mask=mask).transpose(1, 2).flatten(2)
