"""Encoder shapes by name, from a laptop's to ModernBERT's own."""

from dataclasses import dataclass

from mlm_pytorch.encoder.config import EncoderConfig


@dataclass(frozen=True)
class Preset:
    """The shape of an encoder, and what it is trained at unless other values are asked for.

    Attributes:
        hidden_size, intermediate_size, num_hidden_layers, num_attention_heads: as in `EncoderConfig`.
        global_attn_every_n_layers: 1 attends to the whole piece in every layer.
        max_position_embeddings: the longest piece that the model may ever see.
        initializer_range: standard deviation of the first weights; narrow models start wider.
        seq_len: longest piece in training.
        pack_tokens: tokens of a pack.
    """

    hidden_size: int
    intermediate_size: int
    num_hidden_layers: int
    num_attention_heads: int
    global_attn_every_n_layers: int = 1
    max_position_embeddings: int = 2048
    initializer_range: float = 0.05
    seq_len: int = 256
    pack_tokens: int = 2048


_MODERNBERT = {"global_attn_every_n_layers": 3, "max_position_embeddings": 8192, "initializer_range": 0.02}
_MODERNBERT |= {"seq_len": 1024, "pack_tokens": 8192}

# The small ones attend to the whole piece in every layer: at the lengths they are trained on, a window of 128 saves
# nothing. `base` and `large` are ModernBERT's.
PRESETS: dict[str, Preset] = {
    "nano": Preset(128, 384, 3, 2),
    "tiny": Preset(192, 512, 3, 3),
    "mini": Preset(256, 704, 4, 4),
    "small": Preset(512, 1408, 6, 8, initializer_range=0.04, pack_tokens=4096),
    "base": Preset(768, 1152, 22, 12, **_MODERNBERT),
    "large": Preset(1024, 2624, 28, 16, **_MODERNBERT),
}
_TRAINED_AT = ("seq_len", "pack_tokens")  # fields that are not part of the model


def preset(name: str, *, vocab_size: int, pad_token_id: int = 0) -> EncoderConfig:
    """The configuration of a named shape over a vocabulary, which is padded to a multiple of 64.

    Raises:
        ValueError: no preset of that name.

    Example:
        >>> preset("mini", vocab_size=16_384).hidden_size
        256
    """
    if name not in PRESETS:
        raise ValueError(f"preset {name!r} does not exist; choose one of {', '.join(PRESETS)}")
    shape = PRESETS[name]
    return EncoderConfig(
        vocab_size=-(-vocab_size // 64) * 64,
        pad_token_id=pad_token_id,
        **{k: v for k, v in vars(shape).items() if k not in _TRAINED_AT},
    )


def num_parameters(config: EncoderConfig) -> int:
    """Trainable parameters of an encoder of this shape, without building it.

    Example:
        >>> num_parameters(preset("base", vocab_size=50_368)) // 10**6
        149
    """
    width, inner = config.hidden_size, config.intermediate_size
    norm = width * (2 if config.norm_bias else 1)
    attention = 4 * width * width + (4 * width if config.attention_bias else 0)
    mlp = 3 * width * inner + (2 * inner + width if config.mlp_bias else 0)
    layers = config.num_hidden_layers * (attention + mlp + 2 * norm) - norm  # the first layer has no attention norm
    head = width * width + (width if config.classifier_bias else 0) + norm
    vocabulary = config.vocab_size * width * (1 if config.tie_word_embeddings else 2)
    return vocabulary + layers + head + 2 * norm + (config.vocab_size if config.decoder_bias else 0)
