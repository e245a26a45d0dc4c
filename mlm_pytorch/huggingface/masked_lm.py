"""Any masked language model that Hugging Face can load from a folder, to be evaluated beside ours.

ModernBERT folders become the built-in encoder; every other architecture is loaded by `transformers`. Nothing from a
folder is executed and nothing is fetched: JSON and safetensors only.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import nn

from mlm_pytorch.encoder import Encoder, EncoderConfig
from mlm_pytorch.huggingface.folder import CONFIG, WEIGHTS, load_encoder, model_folder, read_config, weight_files


def load_masked_lm(folder: Path) -> nn.Module:
    """The masked language model in a run's folder or a Hugging Face folder, in float32 and in evaluation mode.

    Returns:
        The built-in `Encoder` for ModernBERT, else a `transformers` model, called with padded batches.

    Raises:
        ValueError: no model there, one that is no masked language model, one that needs code from its folder, or
            weights that are not safetensors, are damaged, or lack the head.
    """
    folder = model_folder(folder)
    config = read_config(folder)
    if config.get("model_type") == "modernbert" and _is_built_in(config):
        return load_encoder(folder).eval()
    _check_kind(folder, config)
    _check_size(folder)
    model, report = load_through_transformers(folder)
    missing = sorted(report["missing_keys"]) + sorted(str(key) for key in report["mismatched_keys"])
    if missing:
        raise ValueError(
            f"{folder} lacks weights of {type(model).__name__} ({', '.join(missing[:3])}); it was saved without its "
            "masked-language-modelling head, or is damaged"
        )
    return model.eval()


def empty_masked_lm(folder: Path) -> nn.Module:
    """What `load_masked_lm` would load, without its weights and in no memory: cheap to look at.

    Raises:
        ValueError: no model there, one that is no masked language model, or none that has weights beside it.
    """
    folder = model_folder(folder)
    config = read_config(folder)
    if config.get("model_type") == "modernbert" and _is_built_in(config):
        weight_files(folder)
        with torch.device("meta"):
            return Encoder(EncoderConfig.from_huggingface(config))
    _check_kind(folder, config)
    return _empty(folder)


def _is_built_in(config: dict[str, Any]) -> bool:
    try:
        EncoderConfig.from_huggingface(config)
    except ValueError:  # a variant of ModernBERT that only transformers computes
        return False
    return True


def _check_kind(folder: Path, config: dict[str, Any]) -> None:
    """Refuse what is no masked language model, needs code of its own, or has no safetensors."""
    from transformers.models.auto.modeling_auto import MODEL_FOR_MASKED_LM_MAPPING_NAMES

    kind = config.get("model_type")
    known = isinstance(kind, str) and kind in MODEL_FOR_MASKED_LM_MAPPING_NAMES
    if not known or config.get("is_encoder_decoder"):
        needs_code = " by transformers' own code (the folder's code is never run)" if "auto_map" in config else ""
        raise ValueError(
            f"{folder} holds a model of type {kind!r}, which is no masked language model{needs_code}; name one that "
            "AutoModelForMaskedLM loads"
        )
    weight_files(folder)


def _check_size(folder: Path) -> None:
    """Refuse a configuration that asks for more memory than the weights beside it can fill.

    The model is built without memory; at least a byte of weights belongs to each parameter, tied ones counted once.
    """
    size = sum(path.stat().st_size for path in folder.glob("*.safetensors"))
    needed = sum(parameter.numel() for parameter in _empty(folder).parameters())
    if needed > max(size, 1):
        raise ValueError(
            f"{folder} is damaged: its {CONFIG} describes {needed:,} parameters, and its weights have {size:,} bytes; "
            "export the model again"
        )


def _empty(folder: Path) -> nn.Module:
    """The model that a folder's configuration describes, as `transformers` builds it, without memory."""
    from transformers import AutoConfig, AutoModelForMaskedLM

    try:
        config = AutoConfig.from_pretrained(str(folder), trust_remote_code=False, local_files_only=True)
        with torch.device("meta"):
            return AutoModelForMaskedLM.from_config(config, trust_remote_code=False)
    except loading_errors() as error:
        reason = " ".join(str(error).split())
        raise ValueError(f"{folder} cannot be loaded by transformers ({reason}); export the model again") from None


def loading_errors() -> tuple[type[Exception], ...]:
    """What `transformers` raises of files that it cannot load: of its own, and where it computes with what they say."""
    from huggingface_hub import errors

    strict: type[Exception] = getattr(errors, "StrictDataclassError", ValueError)  # of its checked configurations
    faults = (TypeError, AttributeError, LookupError, ArithmeticError, AssertionError)
    return (OSError, ValueError, RuntimeError, ImportError, strict, *faults)


def load_through_transformers(folder: Path) -> tuple[nn.Module, dict[str, Any]]:
    """The masked language model in a folder as `transformers` loads it, in float32, and its report on the weights.

    Raises:
        ValueError: files that it cannot load.
    """
    from transformers import AutoModelForMaskedLM

    try:
        with quiet():  # it warns of missing weights, which are an error here
            return AutoModelForMaskedLM.from_pretrained(
                str(folder),
                trust_remote_code=False,
                use_safetensors=True,
                local_files_only=True,
                dtype=torch.float32,
                output_loading_info=True,
            )
    except loading_errors() as error:
        reason = " ".join(str(error).split())
        raise ValueError(f"{folder} cannot be loaded by transformers ({reason}); export the model again") from None
    except Exception as error:  # what the safetensors library raises derives from Exception alone
        if type(error).__name__ != "SafetensorError":
            raise
        raise ValueError(f"{folder / WEIGHTS} is damaged ({error}); export the model again") from None


@contextmanager
def quiet() -> Iterator[None]:
    """No warnings and no progress bars of `transformers`, which were meant for its own users."""
    from transformers.utils import logging

    verbosity, shows_bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.set_verbosity(verbosity)
        if shows_bars:
            logging.enable_progress_bar()


def max_positions(model: nn.Module) -> int | None:
    """The longest piece in tokens that a model takes, special ones included; None where it sets no limit.

    A table of position embeddings limits it, less what RoBERTa and its kin leave unused: positions there begin after
    the padding id.
    """
    config = model.config
    limits = [getattr(config, "max_position_embeddings", None)]
    for name, module in model.named_modules():
        table = getattr(module, "weight", None)  # I-BERT's is no nn.Embedding
        if name.endswith("position_embeddings") and isinstance(table, torch.Tensor):
            padding: int | None = getattr(module, "padding_idx", None)
            limits.append(len(table) - (0 if padding is None else padding + 1))
    known = [limit for limit in limits if isinstance(limit, int) and limit > 0]
    return min(known, default=None)
