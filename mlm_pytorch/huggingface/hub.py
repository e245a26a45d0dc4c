"""Masked language models by their name on the Hugging Face Hub: the one place that may ask the network."""

import re
from pathlib import Path

from mlm_pytorch.huggingface.folder import CONFIG, INDEX, WEIGHTS

# What is fetched: configuration, safetensors and tokenizer. No pickles (*.bin, *.pt, *.pkl) and no code (*.py).
PATTERNS = (
    CONFIG,
    WEIGHTS,
    INDEX,
    "model-*-of-*.safetensors",
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.txt",
    "vocab.json",
    "merges.txt",
    "spiece.model",
    "tokenizer.model",
    "sentencepiece.bpe.model",
)
_PART = r"[A-Za-z0-9](?:[A-Za-z0-9._-]{0,94}[A-Za-z0-9_])?"
_NAME = re.compile(rf"(?:{_PART}/)?{_PART}")


def fetch_masked_lm(name: str) -> Path:
    """The folder that holds a model of the Hub, in `huggingface_hub`'s own cache; downloaded where it is not there yet.

    Args:
        name: as the Hub has it, `owner/name` or a bare `name`.

    Returns:
        A folder for `load_masked_lm` and the tokenizer's loader. Only configuration, safetensors and tokenizer files
        are ever fetched.

    Raises:
        ValueError: no such name, a model that is private, gated or has no safetensors, or no connection.

    Example:
        >>> model = load_masked_lm(fetch_masked_lm("answerdotai/ModernBERT-base"))           # doctest: +SKIP
    """
    if not _NAME.fullmatch(name) or "--" in name or ".." in name:
        raise ValueError(
            f"--model {name!r} is no preset, folder or module:factory, and no name on the Hugging Face Hub "
            "(owner/name); correct it"
        )
    from huggingface_hub import errors, snapshot_download

    # httpx's own errors, where huggingface_hub uses it; those of requests, which older ones use, are OSErrors.
    transport: type[Exception] = getattr(errors, "HTTPError", OSError)
    try:
        folder = Path(snapshot_download(name, allow_patterns=list(PATTERNS)))
    except errors.GatedRepoError:
        raise ValueError(
            f"--model {name} is gated on the Hugging Face Hub; accept its terms there, log in with `hf auth login`, "
            "and try again"
        ) from None
    except errors.RepositoryNotFoundError:
        raise ValueError(
            f"--model {name} is no preset or folder, and not on the Hugging Face Hub (or private); correct the name, "
            "or log in with `hf auth login`"
        ) from None
    except errors.LocalEntryNotFoundError:
        raise ValueError(
            f"--model {name} is no preset or folder, and the Hugging Face Hub cannot be reached to look for it; "
            "connect once, or name a folder that holds it"
        ) from None
    except (OSError, ValueError, transport) as error:
        reason = " ".join(str(error).split())
        raise ValueError(f"--model {name} cannot be fetched from the Hugging Face Hub ({reason}); try again") from None
    if not (folder / CONFIG).is_file():
        raise ValueError(f"{name} on the Hugging Face Hub holds no {CONFIG}; name a model that transformers loads")
    if not (folder / WEIGHTS).is_file() and not (folder / INDEX).is_file():
        raise ValueError(
            f"{name} on the Hugging Face Hub has no {WEIGHTS}, and no other format is loaded, for safety; convert it "
            "with transformers (save_pretrained) and name that folder"
        )
    return folder
