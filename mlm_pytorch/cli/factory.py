"""A model of the user's own: `module:factory`, and how its weights are kept.

The record in a run's folder names the factory, but nothing is ever imported because a record says so: whoever opens
such a model names its factory again.
"""

import importlib
import inspect
import json
import re
import sys
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_model, save_model
from torch import nn

from mlm_pytorch.tokens import SpecialTokens

RECORD, WEIGHTS = "factory.json", "model.safetensors"
_NAME = re.compile(r"[A-Za-z_][\w.]*:[A-Za-z_][\w.]*")
# What importing someone's module may raise, other than the faults that a traceback explains better.
_IMPORT_ERRORS = (ImportError, SyntaxError, NameError, AttributeError, TypeError, ValueError, RuntimeError, OSError)

Factory = Callable[..., object]


@dataclass(frozen=True)
class Sizes:
    """What a factory is told: `factory(num_tokens=…, max_seq_len=…, pad_token_id=…) -> nn.Module`."""

    num_tokens: int
    max_seq_len: int
    pad_token_id: int


def is_factory_name(name: str) -> bool:
    """Whether a name has the form `module:factory`.

    >>> is_factory_name("my_models.small:build"), is_factory_name("hf://bert")
    (True, False)
    """
    return _NAME.fullmatch(name) is not None


def import_factory(name: str) -> Factory:
    """The function that `module:factory` names; modules beside the user are found too.

    Raises:
        ValueError: a module that does not import, or that has no such function, or one that takes other arguments.
    """
    module_name, _, attribute = name.partition(":")
    if str(Path.cwd()) not in sys.path:
        sys.path.insert(0, str(Path.cwd()))
    try:
        target = importlib.import_module(module_name)
    except _IMPORT_ERRORS as error:
        raise ValueError(
            f"--model {name}: the module {module_name} does not import ({type(error).__name__}: {error}); mend it, or "
            "start where it lies"
        ) from error
    for part in attribute.split("."):
        target = getattr(target, part, None)
    if not callable(target):
        raise ValueError(f"--model {name}: {module_name} has no function {attribute}; define it, or name another")
    try:
        inspect.signature(target).bind(**asdict(Sizes(0, 0, 0)))
    except TypeError as error:
        raise ValueError(
            f"--model {name} cannot be called as factory(num_tokens=…, max_seq_len=…, pad_token_id=…) ({error}); "
            "give it these arguments"
        ) from None
    return target


def build(factory: Factory, name: str, sizes: Sizes) -> nn.Module:
    """The module that a factory makes.

    Raises:
        ValueError: a factory that returns something else.
    """
    model = factory(**asdict(sizes))
    if not isinstance(model, nn.Module):
        raise ValueError(f"--model {name} returned {type(model).__name__}, which is no nn.Module; return the model")
    if not any(p.requires_grad for p in model.parameters()):
        raise ValueError(f"--model {name} returned a {type(model).__name__} without parameters to train; return one")
    _give_own_memory(model)
    return model


def _give_own_memory(model: nn.Module) -> None:
    """Give buffers that are parts of one tensor, such as cosines and sines, or one number seen many times, memory of
    their own: safetensors writes no others, and torch loads none.
    """
    for buffer in model.buffers():
        if not buffer.is_contiguous() and buffer.untyped_storage().nbytes() != buffer.nbytes:
            buffer.data = buffer.data.clone(memory_format=torch.contiguous_format)


def save_built(model: nn.Module, name: str, sizes: Sizes, folder: Path, save_tokenizer: Callable[[Path], None]) -> None:
    """Write a module's weights, tied ones once, with what made it and its tokenizer."""
    folder.mkdir(parents=True, exist_ok=True)
    save_model(model, str(folder / WEIGHTS))
    (folder / RECORD).write_text(json.dumps({"factory": name} | asdict(sizes), indent=2) + "\n", encoding="utf-8")
    save_tokenizer(folder)


def built_folder(folder: Path) -> Path | None:
    """Where a module's weights lie in a run's folder, or the folder itself; None where it holds none."""
    return next((place for place in (folder / "model", folder) if (place / RECORD).is_file()), None)


def load_built(folder: Path, name: str | None) -> nn.Module:
    """The module whose weights lie in a folder, made by the factory that the user names.

    Raises:
        ValueError: no factory named, or one whose module these weights do not fit.
    """
    sizes = sizes_of_built(folder, name)
    assert name is not None
    model = build(import_factory(name), name, sizes)
    try:
        load_model(model, str(folder / WEIGHTS))
    except (RuntimeError, SafetensorError, OSError) as error:
        reason = " ".join(str(error).split())
        raise ValueError(
            f"{folder / WEIGHTS} does not fit what {name} makes ({reason:.300}); name the one that made it"
        ) from None
    return model.eval()


def sizes_of_built(folder: Path, name: str | None) -> Sizes:
    """What the factory was told that made the module whose weights lie in a folder.

    Raises:
        ValueError: a damaged record, or no factory named, without which nobody makes the module again.
    """
    try:
        record = json.loads((folder / RECORD).read_text(encoding="utf-8"))
        recorded = str(record.pop("factory"))
        sizes = Sizes(**{field: int(value) for field, value in record.items()})
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(f"{folder / RECORD} is damaged ({error}); take an earlier checkpoint") from None
    if name is None:
        told = recorded if is_factory_name(recorded) else "module:factory"
        raise ValueError(
            f"{folder} holds the weights of a module of your own, and no code is run because a folder names it; add "
            f"--factory {told}"
        )
    return sizes


def sizes_for(special: SpecialTokens, max_seq_len: int) -> Sizes:
    """What a factory is told for a vocabulary and a store."""
    return Sizes(special.num_tokens, max_seq_len, special.pad_token_id)
