"""The shape of the built-in encoder, read from and written as a ModernBERT `config.json`."""

from collections.abc import Callable
from dataclasses import asdict, dataclass, fields
from typing import Any

import torch.nn.functional as F
from torch import Tensor

ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "gelu": F.gelu,
    "gelu_pytorch_tanh": lambda x: F.gelu(x, approximate="tanh"),
    "relu": F.relu,
    "silu": F.silu,
}
_PUBLISHED_PADDING = 50_283  # the published ModernBERT's [PAD]
_SIZES = (
    "vocab_size",
    "hidden_size",
    "intermediate_size",
    "num_hidden_layers",
    "num_attention_heads",
    "max_position_embeddings",
    "local_attention",
    "global_attn_every_n_layers",
)


@dataclass(frozen=True)
class EncoderConfig:
    """The shape of an encoder, in the words of `transformers.ModernBertConfig`.

    `layer_types` may be left out: then every `global_attn_every_n_layers`-th layer, the first among them, sees the
    whole piece and the others a window of `local_attention` tokens (half of it on each side).

    Raises:
        ValueError: sizes that do not fit each other.

    Example:
        >>> config = EncoderConfig(vocab_size=1024, hidden_size=64, num_hidden_layers=2, num_attention_heads=1)
        >>> config.layer_types
        ('full_attention', 'sliding_attention')
    """

    vocab_size: int = 50368
    hidden_size: int = 768
    intermediate_size: int = 1152
    num_hidden_layers: int = 22
    num_attention_heads: int = 12
    max_position_embeddings: int = 8192
    local_attention: int = 128
    global_attn_every_n_layers: int = 3
    layer_types: tuple[str, ...] | None = None
    global_rope_theta: float = 160_000.0
    local_rope_theta: float = 10_000.0
    hidden_activation: str = "gelu"
    classifier_activation: str = "gelu"
    norm_eps: float = 1e-5
    norm_bias: bool = False
    attention_bias: bool = False
    mlp_bias: bool = False
    classifier_bias: bool = False
    decoder_bias: bool = True
    tie_word_embeddings: bool = True
    embedding_dropout: float = 0.0
    mlp_dropout: float = 0.0
    initializer_range: float = 0.02
    initializer_cutoff_factor: float = 2.0
    pad_token_id: int | None = 0
    # Of classifiers that others put on the trunk: kept for them.
    classifier_pooling: str = "mean"
    classifier_dropout: float = 0.0

    @property
    def head_dim(self) -> int:
        """E, the width of a head."""
        return self.hidden_size // self.num_attention_heads

    def __post_init__(self) -> None:
        for name in _SIZES:
            if getattr(self, name) < 1:
                raise ValueError(f"{name} {getattr(self, name)} is not positive; choose at least 1")
        if self.hidden_size % self.num_attention_heads or self.hidden_size // self.num_attention_heads % 2:
            raise ValueError(
                f"hidden_size {self.hidden_size} is not an even multiple of num_attention_heads "
                f"{self.num_attention_heads}; choose a width of 64 per head"
            )
        if self.local_attention % 2:
            raise ValueError(
                f"local_attention {self.local_attention} is odd; half of it lies on each side, so make it even"
            )
        if self.pad_token_id is not None and not 0 <= self.pad_token_id < self.vocab_size:
            raise ValueError(
                f"pad_token_id {self.pad_token_id} is not below vocab_size {self.vocab_size}; "
                "padding is one of the tokens"
            )
        for name in (self.hidden_activation, self.classifier_activation):
            if name not in ACTIVATIONS:
                raise ValueError(f"activation {name!r} is unknown; choose one of {', '.join(ACTIVATIONS)}")
        types = self.layer_types
        if types is None:
            period = self.global_attn_every_n_layers
            types = tuple(
                "sliding_attention" if i % period else "full_attention" for i in range(self.num_hidden_layers)
            )
        if len(types) != self.num_hidden_layers or set(types) - {"full_attention", "sliding_attention"}:
            raise ValueError(
                f"layer_types {types} must name full_attention or sliding_attention for each of "
                f"{self.num_hidden_layers} layers"
            )
        object.__setattr__(self, "layer_types", tuple(types))

    @classmethod
    def from_huggingface(cls, config: dict[str, Any]) -> "EncoderConfig":
        """Read a ModernBERT `config.json`, of transformers 4 (`global_rope_theta`, …) or 5 (`rope_parameters`).

        Raises:
            ValueError: another architecture, attention dropout, scaled rotary positions, or values of another type.
        """
        if config.get("model_type") != "modernbert":
            raise ValueError(
                f"model_type {config.get('model_type')!r} is not 'modernbert', the built-in encoder's architecture; "
                "transformers loads others"
            )
        if config.get("attention_dropout"):
            raise ValueError(f"attention_dropout {config['attention_dropout']} is not supported; set it to 0")
        values = {field.name: config[field.name] for field in fields(cls) if config.get(field.name) is not None}
        # What transformers takes where a file is silent; an id of null is none.
        values = {"pad_token_id": config.get("pad_token_id", _PUBLISHED_PADDING), "classifier_pooling": "cls"} | values
        parameters = _object(config, "rope_parameters")
        for kind, key in (("full_attention", "global_rope_theta"), ("sliding_attention", "local_rope_theta")):
            rope = _object(parameters, kind)
            if _rope_type(rope) != "default":
                raise ValueError(f"rope_type {_rope_type(rope)!r} is not supported; only 'default' is")
            if "rope_theta" in rope:
                values[key] = rope["rope_theta"]
        kind = _rope_type(_object(config, "rope_scaling"))
        if kind != "default":
            raise ValueError(f"rope_scaling of type {kind!r} is not supported; only 'default' is")
        if "layer_types" in values:
            if not isinstance(values["layer_types"], list):
                raise ValueError(f"layer_types {values['layer_types']!r:.40} is no list; export the model again")
            values["layer_types"] = tuple(map(str, values["layer_types"]))
        for field in fields(cls):
            if field.name in values and not _is_a(kind := field.type, values[field.name]):
                name = getattr(kind, "__name__", kind)
                raise ValueError(f"{field.name} is {values[field.name]!r:.40} and no {name}; export the model again")
        return cls(**values)

    def to_huggingface(self) -> dict[str, Any]:
        """The same as a `config.json`, with the keys of transformers 5 and the older ones beside them."""
        types = self.layer_types
        assert types is not None
        values = asdict(self) | {
            "architectures": ["ModernBertForMaskedLM"],
            "model_type": "modernbert",
            "layer_types": list(types),
            "attention_dropout": 0.0,
            "rope_parameters": {
                "full_attention": {"rope_type": "default", "rope_theta": self.global_rope_theta},
                "sliding_attention": {"rope_type": "default", "rope_theta": self.local_rope_theta},
            },
            "torch_dtype": "float32",
            # ModernBERT's own defaults for these lie outside a small vocabulary.
            "bos_token_id": None,
            "eos_token_id": None,
            "cls_token_id": None,
            "sep_token_id": None,
        }
        if any(
            kind != ("sliding_attention" if i % self.global_attn_every_n_layers else "full_attention")
            for i, kind in enumerate(types)
        ):
            del values["global_attn_every_n_layers"]  # it cannot say what layer_types says
        return values


def _object(config: dict[str, Any], name: str) -> dict[str, Any]:
    """An object of a configuration, empty where it is left out. Raises ValueError for anything else."""
    value = config.get(name)
    if value is not None and not isinstance(value, dict):
        raise ValueError(f"{name} is {value!r:.40} and no object; export the model again")
    return value or {}


def _is_a(kind: Any, value: object) -> bool:
    """Whether a value of JSON is of a field's type; types that are not plain are not judged."""
    kind = int if kind == int | None and value is not None else kind
    if kind not in (int, float, bool, str):
        return True
    if isinstance(value, bool):
        return kind is bool
    return isinstance(value, int | float if kind is float else kind)


def _rope_type(rope: dict[str, Any]) -> Any:
    return rope.get("rope_type", rope.get("type", "default"))  # the latter in older files
