"""What a page may ask, read from JSON with nothing taken on trust."""

import json
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any

MOST_BYTES = 256 * 1024  # of a request; the longest text that a model of 8,192 tokens takes is a fraction of that
MOST_MODELS = 2  # compared at a time
MOST_MASKS = 32  # words hidden at a time
MOST_MASK_TOKENS = 8  # that stand for one word, where their number is chosen
MOST_CANDIDATES = 50


class RequestError(ValueError):
    """A request that cannot be answered: one line for who sent it, and the status that HTTP has for it."""

    def __init__(self, status: int, message: str):
        super().__init__(message)
        self.status = status


@dataclass(frozen=True)
class TextRequest:
    """A text, and the models that are to read it."""

    text: str
    models: tuple[str, ...]


@dataclass(frozen=True)
class MaskRequest:
    """The same with words to hide.

    Attributes:
        masks: number of the word -> how many mask tokens stand for it; None for as many as it has.
        top_k: candidates of each.
    """

    text: str
    models: tuple[str, ...]
    masks: Mapping[int, int | None]
    top_k: int


def text_request(body: bytes, known: Collection[str]) -> TextRequest:
    """Read `{"text": "…", "models": ["…"]}`.

    Raises:
        RequestError: 400 for what is no JSON object, 404 for a model that is not served, 422 for anything else that
            does not fit.
    """
    fields = _fields(body, {"text", "models"})
    return TextRequest(_text(fields), _models(fields, known))


def mask_request(body: bytes, known: Collection[str]) -> MaskRequest:
    """Read `{"text": "…", "models": ["…"], "masks": [{"word": 2, "tokens": 1}, {"word": 5}], "top_k": 8}`.

    Raises:
        RequestError: as `text_request`.
    """
    fields = _fields(body, {"text", "models", "masks", "top_k"})
    masks: dict[int, int | None] = {}
    for mask in _list(fields, "masks", MOST_MASKS):
        if not isinstance(mask, dict) or not {"word"} <= set(mask) <= {"word", "tokens"}:
            raise RequestError(422, 'each of masks is an object with "word" and, where chosen, "tokens"')
        tokens = mask.get("tokens")
        count = None if tokens is None else _whole_number(tokens, "tokens", 1, MOST_MASK_TOKENS)
        masks[_whole_number(mask["word"], "word", 0, MOST_BYTES)] = count
    top_k = _whole_number(fields["top_k"], "top_k", 1, MOST_CANDIDATES)
    return MaskRequest(_text(fields), _models(fields, known), masks, top_k)


def _fields(body: bytes, names: set[str]) -> dict[str, Any]:
    try:
        fields = json.loads(body)
    except (ValueError, RecursionError) as error:  # RecursionError: brackets in brackets in brackets
        reason = "too deep" if isinstance(error, RecursionError) else " ".join(str(error).split())
        raise RequestError(400, f"the body is no JSON ({reason[:100]})") from None
    if not isinstance(fields, dict):
        raise RequestError(400, "the body is no JSON object")
    if set(fields) != names:
        missing, strange = sorted(names - set(fields)), sorted(set(fields) - names)
        what = f"{missing[0]!r} is missing" if missing else f"{strange[0][:40]!r} is unknown"
        raise RequestError(422, f"{what}; the fields are {', '.join(sorted(names))}")
    return fields


def _text(fields: dict[str, Any]) -> str:
    text = fields["text"]
    if not isinstance(text, str):
        raise RequestError(422, f"text is {_name(text)}; send a string")
    return text


def _models(fields: dict[str, Any], known: Collection[str]) -> tuple[str, ...]:
    names = _list(fields, "models", MOST_MODELS)
    if not names or not all(isinstance(name, str) for name in names) or len(set(names)) < len(names):
        raise RequestError(422, f"models is no list of 1 to {MOST_MODELS} different names")
    for name in names:
        if name not in known:
            raise RequestError(404, f"no model {name[:100]!r} is served; name one that mlm play was started with")
    return tuple(names)


def _list(fields: dict[str, Any], name: str, most: int) -> list[Any]:
    value = fields[name]
    if not isinstance(value, list):
        raise RequestError(422, f"{name} is {_name(value)}; send a list")
    if len(value) > most:
        raise RequestError(422, f"{name} has {len(value):,} entries, more than {most}")
    return value


def _whole_number(value: Any, name: str, least: int, most: int) -> int:
    if type(value) is not int:  # True is an int to isinstance
        raise RequestError(422, f"{name} is {_name(value)}; send a whole number")
    if not least <= value <= most:
        raise RequestError(422, f"{name} is outside {least} to {most:,}")
    return value


def _name(value: Any) -> str:
    """What JSON calls it."""
    kinds = {type(None): "null", bool: "a boolean", int: "a number", float: "a number", str: "a string", list: "a list"}
    return kinds.get(type(value), "an object")
