"""Deriving a `WordTable` from a tokenizer: ask its own pre-tokenizer about specimens of each kind of token end.

No list of scripts and no copy of any regular expression: the pre-tokenizer is shown pairs of short texts and says
whether it cuts between them. Tokens whose ends are made of the same kinds of characters are asked about once.
"""

from __future__ import annotations

import json
import unicodedata
from collections.abc import Callable, Hashable, Iterable, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

import torch

from mlm_pytorch.tokens import ALONE, INSIDE, WordTable

_FIRST_CLASS = 2  # after ALONE and INSIDE
_TABLED_POINTS = 0x20000  # planes 0 and 1; what lies above (ideographs) shares one more entry
_CONTRACTED = ("s", "t", "m", "d", "re", "ve", "ll")
_APOSTROPHES = "'\u2019"
_CJK = ((0x3040, 0x30FF), (0x3400, 0x4DBF), (0x4E00, 0x9FFF), (0xF900, 0xFAFF), (0x20000, 0x3FFFF))


@dataclass(frozen=True)
class _Token:
    """A token's surface, and the parts of characters at its ends (as `WordTable.pack_part` takes them)."""

    text: str
    head_bytes: int = 0
    head_bits: int = 0
    tail_bits: int = 0
    is_part: bool = False
    is_open: bool = False


Cut = Callable[[Any, Any], bool]  # (right end of one token, left end of the next) -> whether a word begins between them


def derive_words(tokenizer: Any, num_tokens: int | None = None) -> WordTable:
    """The `WordTable` of a `tokenizers.Tokenizer`, or of a transformers tokenizer that holds one.

    num_tokens: size of the model's vocabulary where it exceeds the tokenizer's; the ids beyond stand alone.
    Takes about a second per 100,000 entries; done once.

    Raises ValueError for tokenizers whose ids hold no trace of word boundaries, and where num_tokens is too small.
    """
    backend = getattr(tokenizer, "backend_tokenizer", tokenizer)
    if not hasattr(backend, "to_str"):  # one of transformers that is written in Python, such as CANINE's
        raise ValueError(_NO_TRACE.format(what=f"{type(tokenizer).__name__} has no backend of the tokenizers library"))
    spec = json.loads(backend.to_str())
    vocab: dict[str, int] = backend.get_vocab(with_added_tokens=True)
    size = max(vocab.values()) + 1
    if num_tokens is not None and num_tokens < size:
        raise ValueError(f"num_tokens {num_tokens} is less than the tokenizer's {size}; pass the model's number of ids")

    model, unknown = spec["model"], _unknown_token(spec["model"])
    added = {entry["id"] for entry in spec["added_tokens"] if entry["content"] != unknown}
    alone = [True] * (num_tokens or size)
    tokens: dict[int, str] = {}
    for token, index in vocab.items():
        if index not in added:
            alone[index], tokens[index] = False, token

    prefix, suffix = model.get("continuing_subword_prefix"), model.get("end_of_word_suffix")
    if prefix:
        return _from_marks(alone, starts={i: not token.startswith(prefix) for i, token in tokens.items()}, ends={})
    if suffix:
        return _from_marks(alone, starts={}, ends={i: token.endswith(suffix) for i, token in tokens.items()})
    if model["type"] == "WordLevel":
        return _from_marks(alone, starts=dict.fromkeys(tokens, True), ends={})
    return _from_surfaces(backend, spec, alone, tokens, unknown)


def _unknown_token(model: dict[str, Any]) -> str | None:
    """The token for what the vocabulary lacks. Unlike other added tokens it may be a part of a word."""
    if model["type"] == "Unigram":
        return None if model.get("unk_id") is None else model["vocab"][model["unk_id"]][0]
    return None if model["type"] in ("WordPiece", "WordLevel") else model.get("unk_token")


def _from_marks(alone: Sequence[bool], *, starts: dict[int, bool], ends: dict[int, bool]) -> WordTable:
    """For models whose tokens say of themselves that they start or end a word."""
    plain, marked = _FIRST_CLASS, _FIRST_CLASS + 1
    right = [ALONE if lone else marked if ends.get(i) else plain for i, lone in enumerate(alone)]
    left = [ALONE if lone else marked if starts.get(i) else plain for i, lone in enumerate(alone)]
    parted = torch.ones(marked + 1, marked + 1, dtype=torch.bool)
    parted[plain, plain] = False
    return WordTable.from_classes(torch.tensor(right), torch.tensor(left), parted)


# --- tokens that carry no marks: what their characters say ------------------------------------------------------------


def _from_surfaces(
    backend: Any, spec: dict[str, Any], alone: Sequence[bool], tokens: dict[int, str], unknown: str | None
) -> WordTable:
    """Classes of equal answers to the same questions, asked once per kind of end."""
    blank = _blank(spec)
    byte_level = "ByteLevel" in _types(spec.get("pre_tokenizer"))
    byte_of = {char: byte for byte, char in _byte_chars().items()} if byte_level else None
    cut = _cut(backend.pre_tokenizer, blank)
    _require_traces(backend.pre_tokenizer, spec, blank)

    surfaces = {i: _surface(token, byte_of, blank) for i, token in tokens.items() if token != unknown}
    for i, token in tokens.items():
        if token == unknown:
            surfaces[i] = _Token("a")  # some characters that the vocabulary lacks: letters, as far as anyone knows
    chars = _specimens(surfaces.values())
    rights: dict[Hashable, str] = {_right_key(char): char for char in chars.values()}
    lefts: dict[Hashable, str] = {_left_key(char): char for char in chars.values()}
    right_probes = list(rights.values())
    left_probes = [*lefts.values(), *_CONTRACTED]
    # a specimen should not happen to begin like a contraction, so these come last
    for token in sorted(surfaces.values(), key=lambda token: token.text.lower().startswith(_CONTRACTED)):
        if token.text:
            rights.setdefault(_right_key(token.text), token.text)
            lefts.setdefault(_left_key(token.text), token.text)
    if blank is None:  # elsewhere the blank decides, and what is before a token does not
        inner = {key: text for key, text in rights.items() if key != text or len(text) == 1}  # not for contractions
        rights |= {(key, "inner"): _within(text, cut) for key, text in inner.items()}

    right_class, left_class, right_specimens, left_specimens = _classes(rights, lefts, right_probes, left_probes, cut)
    parted = torch.ones(_FIRST_CLASS + len(right_specimens), _FIRST_CLASS + len(left_specimens), dtype=torch.bool)
    for r, right_text in enumerate(right_specimens, _FIRST_CLASS):
        for c, left_text in enumerate(left_specimens, _FIRST_CLASS):
            parted[r, c] = cut(right_text, left_text)
    if not parted[_FIRST_CLASS:, _FIRST_CLASS:].any():
        raise ValueError(_NO_TRACE.format(what="its pre-tokenizer cuts nothing"))

    size = len(alone)
    right, inner, left, parts = ([ALONE] * size for _ in range(4))
    for i, token in surfaces.items():
        key = _right_key(token.text or "a")  # parts of characters: until the ids around them say more
        right[i] = right_class[key]
        inner[i] = right_class.get((key, "inner"), right_class[key])
        left[i] = INSIDE if token.head_bytes else left_class[_left_key(token.text or "a")]
        parts[i] = WordTable.pack_part(
            part=token.is_part,
            opens=token.is_open,
            head_bytes=token.head_bytes,
            head_bits=token.head_bits,
            tail_bits=token.tail_bits,
        )
    char_class = None
    if any(token.is_part for token in surfaces.values()):
        char_class = _char_classes(right_class, left_class)
    return WordTable.from_classes(
        torch.tensor(right),
        torch.tensor(left),
        parted,
        inner=torch.tensor(inner),
        parts=torch.tensor(parts),
        char_class=char_class,
    )


_NO_TRACE = (
    "the ids of this tokenizer hold no trace of word boundaries ({what}); "
    "select tokens or spans, or use a tokenizer that marks words"
)


def _require_traces(pre_tokenizer: Any, spec: dict[str, Any], blank: str | None) -> None:
    """Refuse tokenizers that drop blanks without a mark: "foo bar" and "foobar" could have the same ids."""
    if blank is not None:
        return
    if pre_tokenizer is None:
        raise ValueError(_NO_TRACE.format(what="it has no pre-tokenizer"))
    adds_blank = any(part.get("add_prefix_space") for part in _parts(spec.get("pre_tokenizer")))
    covered = any(start <= 1 < end for _, (start, end) in pre_tokenizer.pre_tokenize_str("a b"))
    if not covered and not adds_blank:
        raise ValueError(_NO_TRACE.format(what="its pre-tokenizer drops blanks"))


def _parts(step: dict[str, Any] | None) -> list[dict[str, Any]]:
    """The steps of a normalizer's or pre-tokenizer's description, sequences opened."""
    if step is None:
        return []
    inner = step.get("pretokenizers") or step.get("normalizers")
    return [step] if inner is None else [part for each in inner for part in _parts(each)]


def _types(step: dict[str, Any] | None) -> set[str]:
    return {part["type"] for part in _parts(step)}


def _blank(spec: dict[str, Any]) -> str | None:
    """The character that stands for a blank at the head of a word, as SentencePiece has it; None where none does."""
    for part in _parts(spec.get("pre_tokenizer")):
        if part["type"] == "Metaspace":
            return part.get("replacement", "\u2581")
    return "\u2581" if "\u2581" in json.dumps(spec.get("normalizer"), ensure_ascii=False) else None


def _cut(pre_tokenizer: Any, blank: str | None) -> Cut:
    """Whether the pre-tokenizer ends a word between two texts: whether none of its pieces holds both sides."""

    @cache
    def cut(left: str, right: str) -> bool:
        # Neither end of the text may matter: some pre-tokenizers put a blank before it, and a run of blanks at its end
        # is another thing than one before a word, which is what it mostly is.
        left = left if left[0].isalnum() or left[0].isspace() else "a" + left
        text = left + right + ("a" if right.isspace() else "")
        at = len(left)
        return not any(start < at < end for _, (start, end) in pre_tokenizer.pre_tokenize_str(text))

    if blank is None:
        return cut

    def cut_at_blanks(left: str, right: str) -> bool:
        if right.startswith(blank):
            return True
        if pre_tokenizer is None:
            return False
        if left.strip(blank):
            return cut(left.lstrip(blank), right)
        # the mark alone: cut off only where the pre-tokenizer leaves it as a piece of its own
        pieces = [piece for piece, _ in pre_tokenizer.pre_tokenize_str(" " + right)]
        return bool(pieces) and pieces[0] == blank

    return cut_at_blanks


def _byte_chars() -> dict[int, str]:
    """Byte-level tokenizers' visible stand-ins (Radford et al. 2019): printable Latin-1 as it is, the rest from 256."""
    visible = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    hidden = [byte for byte in range(256) if byte not in set(visible)]
    return {byte: chr(byte) for byte in visible} | {byte: chr(256 + n) for n, byte in enumerate(hidden)}


def _surface(token: str, byte_of: dict[str, int] | None, blank: str | None) -> _Token:
    if byte_of is not None:
        if all(char in byte_of for char in token):
            return _split_bytes(bytes(byte_of[char] for char in token))
    elif blank is not None and len(token) == 6 and token.startswith("<0x") and token.endswith(">"):
        return _split_bytes(bytes([int(token[3:5], 16)]))  # SentencePiece's fallback for unknown characters
    return _Token(token)


def _split_bytes(data: bytes) -> _Token:
    """A token's whole characters, the payload of continuation bytes before them and of an open character after them."""
    head = 0
    while head < min(len(data), 3) and data[head] & 0xC0 == 0x80:
        head += 1
    tail = len(data)
    for back in range(1, min(3, len(data) - head) + 1):
        lead = data[len(data) - back]
        if lead >= 0xC0:
            if back < (2 if lead < 0xE0 else 3 if lead < 0xF0 else 4):
                tail = len(data) - back
            break
    text = data[head:tail].decode("utf-8", errors="replace")
    tail_bits = 0
    if tail < len(data):
        lead = data[tail]
        tail_bits = lead & (0x1F if lead < 0xE0 else 0x0F if lead < 0xF0 else 0x07)
        for byte in data[tail + 1 :]:
            tail_bits = tail_bits << 6 | byte & 0x3F
    head_bits = 0
    for byte in data[:head]:
        head_bits = head_bits << 6 | byte & 0x3F
    return _Token(
        text,
        head_bytes=head,
        head_bits=head_bits,
        tail_bits=tail_bits,
        is_part=head == len(data) or (tail == 0 and bool(data)),
        is_open=tail == 0 and bool(data),
    )


# --- kinds of characters ----------------------------------------------------------------------------------------------


def _kind(char: str) -> str:
    """Characters of one kind are taken to be treated alike by every pre-tokenizer."""
    if char in " \n\r\t_\u2581" or char in _APOSTROPHES:
        return char
    if char.isspace():
        return "blank"
    category = unicodedata.category(char)
    if category in ("Cs", "Cn"):
        return "Cn"  # lone surrogates cannot even be shown to a tokenizer
    if category[0] in "PS" and char.isascii():
        return "ascii " + category
    if category == "Lo":
        for low, high in _CJK:
            if low <= ord(char) <= high:
                return "cjk"
    return category


@cache
def _kinds() -> tuple[str, ...]:
    """The kind of every code point of planes 0 and 1; half of the time that deriving a table would take."""
    return tuple(_kind(chr(point)) for point in range(_TABLED_POINTS))


def _right_key(text: str) -> Hashable:
    """What may matter of a token for a cut after it: its last three characters' kinds, and whether there are more."""
    if text[0] in _APOSTROPHES and len(text) <= 3:
        return text  # contractions
    return len(text) <= 3, *map(_kind, text[-3:])


def _left_key(text: str) -> Hashable:
    """What may matter of a token for a cut before it: its first two characters' kinds, and whether there are more."""
    if text.lower() in _CONTRACTED:
        return text
    return len(text) <= 2, *map(_kind, text[:2])


def _specimens(tokens: Iterable[_Token]) -> dict[str, str]:
    """One character of every kind, from the tokens where they have it, else from all of Unicode's first two planes."""
    found: dict[str, str] = {}
    for token in tokens:
        for char in token.text[:1] + token.text[-1:]:
            found.setdefault(_kind(char), char)
    for point, kind in enumerate(_kinds()):
        if kind not in found and not 0xD800 <= point < 0xE000:
            found[kind] = chr(point)
    return found


def _classes(
    rights: dict[Hashable, str], lefts: dict[Hashable, str], right_probes: list[str], left_probes: list[str], cut: Cut
) -> tuple[dict[Hashable, int], dict[Hashable, int], list[str], list[str]]:
    """(class of each right key, class of each left key, a specimen per right class, one per left class)."""

    def round_of(right_probes: list[str], left_probes: list[str]):
        right_answers = {key: tuple(cut(text, probe) for probe in left_probes) for key, text in rights.items()}
        left_answers = {key: tuple(cut(probe, text) for probe in right_probes) for key, text in lefts.items()}
        return *_numbered(right_answers, rights), *_numbered(left_answers, lefts)

    # Two rounds: ends that the first could not tell apart, the classes that the other side has found may.
    _, right_specimens, _, left_specimens = round_of(right_probes, left_probes)
    right_class, right_specimens, left_class, left_specimens = round_of(
        [*right_probes, *right_specimens], [*left_probes, *left_specimens]
    )
    return right_class, left_class, right_specimens, left_specimens


def _numbered(
    answers: dict[Hashable, tuple[bool, ...]], texts: dict[Hashable, str]
) -> tuple[dict[Hashable, int], list[str]]:
    """Keys with the same answers share a class; (class of each key, one text per class)."""
    numbers: dict[tuple[bool, ...], int] = {}
    specimens: list[str] = []
    for key, answer in answers.items():
        if answer not in numbers:
            numbers[answer] = _FIRST_CLASS + len(numbers)
            specimens.append(texts[key])
    return {key: numbers[answer] for key, answer in answers.items()}, specimens


def _within(text: str, cut: Cut) -> str:
    """The text with something before it that it continues the word of; as it is, where nothing was found."""
    for before in (text[0], "a", "."):
        if not cut(before, text):
            return before + text
    return text


def _char_classes(right_class: dict[Hashable, int], left_class: dict[Hashable, int]) -> torch.Tensor:
    """The packed classes of every code point of planes 0 and 1, and of an ideograph for all above."""
    kinds = [*_kinds(), _kind(chr(_TABLED_POINTS))]
    of_kind: dict[str, int] = {}
    for point, kind in enumerate(kinds):
        if kind not in of_kind:
            key = _right_key(chr(point))
            of_kind[kind] = WordTable.pack_classes(
                left=left_class[_left_key(chr(point))],
                right=right_class[key],
                inner=right_class.get((key, "inner"), right_class[key]),
            )
    return torch.tensor([of_kind[kind] for kind in kinds])
