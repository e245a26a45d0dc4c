"""Logits at one column of each row: all that scoring a sentence by its masked variants asks of a model.

Shapes: B rows, L columns, H heads, E width of a head, W width, V vocabulary.
"""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mlm_pytorch.encoder import Encoder
from mlm_pytorch.encoder.attention import rotary_tables
from mlm_pytorch.encoder.layers import Attention, GatedMLP, Layer
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

    Variants of a sentence share their tokens, so the first layer projects each different token once. The last layer
    computes one query of each row, and goes on with that alone. Of four layers this saves nearly a third of the work.
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
        theta = config.global_rope_theta if is_global else config.local_rope_theta
        cos_LE, sin_LE = rotary_tables(positions, theta, head_dim)
        window = None if is_global else config.local_attention // 2
        normed = layer.attn_norm(x)
        if is_last:
            normed, x = (normed[inverse_BL], x[inverse_BL]) if is_first else (normed, x)
            attended = _attend_column(layer.attn, normed, column_B, cos_LE, sin_LE, window)
            x = x[rows, column_B]
        else:
            qkv = product(normed, layer.attn.Wqkv).view(*normed.shape[:-1], 3, config.num_attention_heads, -1)
            qkv, x = (qkv[inverse_BL], x[inverse_BL]) if is_first else (qkv, x)
            attended = _attend_rows(qkv, cos_LE, sin_LE, window)
        x = product(attended, layer.attn.Wo, plus=x)
        x = _gated(layer.mlp, layer.mlp_norm(x), x, config.hidden_activation)
    hidden = product(trunk.final_norm(x), encoder.head.dense)
    return product(encoder.head.norm(encoder.head.act(hidden)), encoder.decoder)


def _gated(mlp: GatedMLP, normed: Tensor, x: Tensor, activation: str) -> Tensor:
    """x + mlp(normed), value and gate computed one after the other, so that what follows each is fused with it."""
    width = mlp.Wo.in_features
    value = product(normed, mlp.Wi, slice(0, width), gelu=activation == "gelu")
    if activation != "gelu":
        value = mlp.act(value)
    return product(product(normed, mlp.Wi, slice(width, None), times=value), mlp.Wo, plus=x)


def product(
    x: Tensor,
    linear: nn.Linear,
    outputs: slice = slice(None),
    *,
    gelu: bool = False,
    times: Tensor | None = None,
    plus: Tensor | None = None,
) -> Tensor:
    """Some outputs of a linear layer, without gradients; then GELU, or times or plus another tensor (one of these).

    In float32 on a CPU by oneDNN, which does what follows while the product is in the cache, and is itself a fifth
    faster than MKL on AMD's processors. The operator is private to torch (its compiler uses it), so where it is missing
    plain operations do the same.
    """
    weight, bias = linear.weight[outputs], None if linear.bias is None else linear.bias[outputs]
    fused = getattr(torch.ops.mkldnn, "_linear_pointwise", None)
    if fused is not None and x.device.type == "cpu" and x.dtype == weight.dtype == torch.float32:
        other = times if plus is None else plus
        if other is not None:
            return fused.binary(x, other, weight, bias, "mul" if plus is None else "add")
        return fused(x, weight, bias, *(("gelu", [], "none") if gelu else ("none", [], "")))
    out = F.linear(x, weight, bias)
    out = F.gelu(out) if gelu else out
    out = out if times is None else out * times
    return out if plus is None else out + plus


def _turn(x_BLHE: Tensor, cos_LE: Tensor, sin_LE: Tensor) -> None:
    """Rotary positions, in place, which spares the memory traffic that would take as long as attention itself.

    Any number of dimensions may stand between columns and the last one.
    """
    half = cos_LE.shape[-1]
    between = (slice(None), *[None] * (x_BLHE.ndim - 3), slice(None))
    cos, sin = cos_LE[between], sin_LE[between]
    first, second = x_BLHE[..., :half], x_BLHE[..., half:]
    turned = first * sin
    first.mul_(cos).addcmul_(second, sin, value=-1)
    second.mul_(cos).add_(turned)


def _attend_rows(qkv_BL3HE: Tensor, cos_LE: Tensor, sin_LE: Tensor, window: int | None) -> Tensor:
    """Attention within rows of one length, without gradients: (B, L, W) from (B, L, 3, H, E), which is overwritten."""
    _turn(qkv_BL3HE[:, :, :2], cos_LE, sin_LE)
    q, k, v = qkv_BL3HE.permute(2, 0, 3, 1, 4)
    mask = None
    length = qkv_BL3HE.shape[1]
    if window is not None and window < length - 1:
        position = torch.arange(length, device=q.device)
        mask = (position[:, None] - position).abs() <= window
    return F.scaled_dot_product_attention(q, k, v, attn_mask=mask).transpose(1, 2).flatten(2)


def _attend_column(
    attention: Attention, x_BLW: Tensor, column_B: Tensor, cos_LE: Tensor, sin_LE: Tensor, window: int | None
) -> Tensor:
    """What one column of each row attends to, (B, W), before the output's projection.

    Values are weighted before they are projected, since that is linear: one projection a head and row, not a column.
    """
    rows, length, width = x_BLW.shape
    heads = attention.num_heads
    here = x_BLW[torch.arange(rows, device=x_BLW.device), column_B]
    q_BHE = product(here, attention.Wqkv, slice(0, width)).view(rows, heads, -1)
    k_BLHE = product(x_BLW, attention.Wqkv, slice(width, 2 * width)).view(rows, length, heads, -1)
    _turn(k_BLHE, cos_LE, sin_LE)
    _turn(q_BHE[None], cos_LE[column_B], sin_LE[column_B])  # here the rows stand where columns did
    scores_BHL = (k_BLHE * q_BHE[:, None]).sum(-1).transpose(1, 2) * q_BHE.shape[-1] ** -0.5
    if window is not None and window < length - 1:
        far = (torch.arange(length, device=column_B.device) - column_B[:, None]).abs() > window
        scores_BHL = scores_BHL.masked_fill(far[:, None], float("-inf"))
    seen_HBW = (scores_BHL.softmax(-1) @ x_BLW).transpose(0, 1)
    projection = attention.Wqkv.weight[2 * width :].view(heads, -1, width)
    out = (seen_HBW @ projection.transpose(1, 2)).transpose(0, 1).flatten(1)
    bias = attention.Wqkv.bias
    return out if bias is None else out + bias[2 * width :]
