"""Folders that Hugging Face loads: find one, read a ModernBERT from it, copy it.

Folders come from anywhere, so sizes are looked at before memory is given to them, and nothing in them is executed.
Tokenizers are the data room's business.
"""

import json
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file
from torch import Tensor

from mlm_pytorch.encoder import Encoder, EncoderConfig

WEIGHTS, CONFIG = "model.safetensors", "config.json"
INDEX = f"{WEIGHTS}.index.json"  # of weights in several files
TIED, _EMBEDDINGS = "decoder.weight", "model.embeddings.tok_embeddings.weight"
MOST_CONFIG_BYTES = 1 << 24  # of JSON; real ones have a few kilobytes, or megabytes where they name many labels
MOST_LAYERS = 1024


def model_folder(folder: Path) -> Path:
    """Where the model lies in a run's folder, or the folder itself where it is a Hugging Face folder.

    Raises:
        ValueError: neither.
    """
    for candidate in (folder / "model", folder):
        if (candidate / CONFIG).is_file():
            return candidate
    raise ValueError(f"{folder} holds no model ({CONFIG} is missing); name a run or a Hugging Face folder")


def read_config(folder: Path) -> dict[str, Any]:
    """The config.json of a Hugging Face folder, with no more layers than a model may have.

    Raises:
        ValueError: a file that is too large, no JSON object, or names a number of layers that is none.
    """
    path = folder / CONFIG
    config = _read_object(path)
    for name in ("num_hidden_layers", "num_layers", "n_layers", "n_layer", "encoder_layers"):
        layers = config.get(name)
        if layers is not None and not (isinstance(layers, int) and 0 <= layers <= MOST_LAYERS):
            raise ValueError(f"{path} is damaged ({name} is {layers!r:.40}, not 0 to {MOST_LAYERS}); export it again")
    return config


def _read_object(path: Path) -> dict[str, Any]:
    if path.stat().st_size > MOST_CONFIG_BYTES:
        raise ValueError(f"{path} has {path.stat().st_size:,} bytes, too many for a configuration; export it again")
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path} is damaged ({error}); export the model again") from None
    if not isinstance(content, dict):
        raise ValueError(f"{path} is damaged (it holds no object); export the model again")
    return content


def weight_files(folder: Path) -> list[Path]:
    """The safetensors files of a model: the one, or those that an index names.

    Raises:
        ValueError: no such file, or an index that is damaged or names files that are not there.
    """
    if (folder / WEIGHTS).is_file():
        return [folder / WEIGHTS]
    index = folder / INDEX
    if not index.is_file():
        raise ValueError(f"{folder} has no {WEIGHTS}; save the model with safe_serialization=True")
    files = _read_object(index).get("weight_map")
    if not isinstance(files, dict) or not files:
        raise ValueError(f"{index} is damaged (it holds no weight_map); export the model again")
    names = sorted(set(map(str, files.values())))
    for name in names:
        if Path(name).name != name or not (folder / name).is_file():
            raise ValueError(f"{index} names {name!r:.80}, which is not in {folder}; copy or download it again")
    return [folder / name for name in names]


def load_encoder(folder: Path) -> Encoder:
    """Read a ModernBERT masked-language model: JSON and safetensors only, nothing is executed.

    Raises:
        ValueError: no model there, another architecture, or weights that are damaged or do not fit. They are compared
            with the configuration before memory is taken for either.
    """
    folder = model_folder(folder)
    config = EncoderConfig.from_huggingface(read_config(folder))
    files = weight_files(folder)
    with torch.device("meta"):
        encoder = Encoder(config)
    expected = {name: tuple(value.shape) for name, value in encoder.state_dict().items()}
    shapes: dict[str, tuple[int, ...]] = {}
    weights: dict[str, Tensor] = {}
    for path in files:
        with _explained(path), safe_open(path, framework="pt") as file:
            shapes |= {name: tuple(file.get_slice(name).get_shape()) for name in file.keys()}  # noqa: SIM118 -- no dict
    if config.tie_word_embeddings:
        _complete(shapes)
    wrong = sorted(set(expected) ^ set(shapes)) or [name for name in expected if expected[name] != shapes[name]]
    if wrong:
        where = files[0] if len(files) == 1 else folder / INDEX
        raise ValueError(f"{where} does not fit its {CONFIG}: {', '.join(wrong[:3])}; export the model again")
    for path in files:
        with _explained(path):
            weights |= load_file(path)
    if config.tie_word_embeddings:
        _complete(weights)
        if not torch.equal(weights[TIED], weights[_EMBEDDINGS]):  # not tied after all, as transformers takes it
            with torch.device("meta"):
                encoder = Encoder(replace(config, tie_word_embeddings=False))
    encoder.to_empty(device="cpu")
    if encoder.config.tie_word_embeddings:
        encoder.decoder.weight = encoder.model.embeddings.tok_embeddings.weight
    encoder.load_state_dict(weights)
    return encoder


def _complete(named: dict[str, Any]) -> None:
    """Give both uses of a tied table what is there for one of them."""
    for name, other in ((TIED, _EMBEDDINGS), (_EMBEDDINGS, TIED)):
        if other in named:
            named.setdefault(name, named[other])


@contextmanager
def _explained(path: Path) -> Iterator[None]:
    try:
        yield
    except (SafetensorError, OSError) as error:
        raise ValueError(f"{path} is damaged ({error}); export the model again") from None


def copy_export(source: Path, target: Path, check: Callable[[Path], object]) -> None:
    """Copy an exported model to a new or empty folder, complete and checked, or not at all.

    Args:
        source: an export.
        target: the folder that will hold the copy.
        check: looks at the copy before it gets its name, and raises where something is wrong.

    Raises:
        ValueError: the target exists and is not an empty folder; or what `check` raises.
    """
    if target.exists() and (not target.is_dir() or any(target.iterdir())):
        raise ValueError(f"{target} exists and is not an empty folder; choose another one")
    partial = target.with_name(f".{target.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    try:
        shutil.copytree(source, partial)
        check(partial)
        if target.exists():
            target.rmdir()
        partial.replace(target)
    except (OSError, ValueError):
        shutil.rmtree(partial, ignore_errors=True)
        raise
