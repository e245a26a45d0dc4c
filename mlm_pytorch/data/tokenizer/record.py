"""What a tokenizer is to us: it encodes, knows its `SpecialTokens`, and saves what `transformers` loads."""

import hashlib
import itertools
import json
from array import array
from collections.abc import Container, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import tokenizers

from mlm_pytorch.tokens import SpecialTokens

LONG_TEXT_CHARACTERS = 1 << 20
# Put before a special token's name, it makes one that no text holds: Unicode keeps this code point free of meaning.
UNWRITABLE = "\U0010ffff" * 8


@dataclass(frozen=True)
class Tokenizer:
    """A `tokenizers.Tokenizer` with what pretraining must know about it.

    - `backend`: encodes with special tokens and understands "[MASK]" in a text; never truncates or pads.
    - `special`: the ids that masking must leave alone, and how a piece is framed.
    - `unknown_id`: the id for what the vocabulary lacks; None where nothing can be unknown to it (or it cannot say).
    - `files`: what `save` writes, by name.
    - `kind`: what `train_tokenizer` was told to train, or took ("kmer:6"); None for a tokenizer from elsewhere.
    """

    backend: tokenizers.Tokenizer
    special: SpecialTokens
    unknown_id: int | None
    files: Mapping[str, bytes]
    kind: str | None = None

    @cached_property
    def fingerprint(self) -> str:
        """sha256 of the canonical tokenizer.json: of what decides about ids, however the file was formatted."""
        content = json.loads(self.files["tokenizer.json"])
        for key in ("truncation", "padding", "version"):
            content.pop(key, None)
        merges = content.get("model", {}).get("merges")
        if merges:  # older files write "a b" for ["a", "b"]
            content["model"]["merges"] = [merge.split(" ") if isinstance(merge, str) else merge for merge in merges]
        return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()

    @cached_property
    def brings_blanks(self) -> bool:
        """Whether a word's first token holds the blank before the word, as byte-level BPE has it ("Ġthe")."""
        vocabulary = self.backend.get_vocab()
        holds = any(len(token) > 1 and token.startswith("Ġ") for token in vocabulary)
        return holds and "Ġ" in vocabulary and self.backend.decode([vocabulary["Ġ"]]) == " "

    @cached_property
    def _corpus_backend(self) -> tokenizers.Tokenizer:
        """A copy to which "[MASK]" in a text is six characters: a corpus must not be able to write special tokens."""
        content = json.loads(self.backend.to_str())
        _hide_special_tokens(content, self.special.ids)
        backend = tokenizers.Tokenizer.from_str(json.dumps(content))
        backend.encode_special_tokens = True
        return backend

    def encode(self, text: str) -> list[int]:
        """The ids of one text with its framing; special tokens written in it, such as "[MASK]", are understood.

        Raises ValueError for a text that the tokenizer cannot express, as one of words where it knows numbers only.
        """
        with _explained(self):
            return self.backend.encode(text).ids

    def encode_batch(self, texts: Sequence[str]) -> list[list[int]]:
        """Ids of each text: no special tokens added or recognised, nothing truncated. Releases the GIL meanwhile.

        Raises ValueError for a text that the tokenizer cannot express, as one of words where it knows numbers only.
        """
        backend = self._corpus_backend
        # Same ids, but no offsets into the text; tokenizers 0.20 and later have it.
        encode = getattr(backend, "encode_batch_fast", backend.encode_batch)
        with _explained(self):
            return [encoding.ids for encoding in encode(list(texts), add_special_tokens=False)]

    def encode_spans(self, text: str, *, understood: bool = False) -> tuple[list[int], list[tuple[int, int]]]:
        """The ids of one text without framing, and which characters of it each stands for: [start, end).

        Args:
            text: of a size that a page can show; a corpus goes through `encode_arrays`.
            understood: whether special tokens written in it, such as "[MASK]", are these tokens.

        Raises ValueError for a text that the tokenizer cannot express, as one of words where it knows numbers only.
        """
        backend = self.backend if understood else self._corpus_backend
        with _explained(self):
            encoding = backend.encode(text, add_special_tokens=False)
        return encoding.ids, encoding.offsets

    def encodings(self, texts: Sequence[str]) -> list[tokenizers.Encoding]:
        """As `encode_batch`, with each id's word and place in the text; takes longer.

        Raises ValueError for a text that the tokenizer cannot express, as one of words where it knows numbers only.
        """
        with _explained(self):
            return self._corpus_backend.encode_batch(list(texts), add_special_tokens=False)

    def encode_arrays(self, texts: Sequence[str]) -> tuple[np.ndarray, np.ndarray]:
        """The ids of all texts end to end (uint32), and how many each has (int64).

        Texts over `LONG_TEXT_CHARACTERS` are encoded in parts, cut where that leaves the ids the same, since an
        encoding takes about a hundred times the memory of its text.
        """
        if all(len(text) <= LONG_TEXT_CHARACTERS for text in texts):
            return _flatten(self.encode_batch(texts))
        encoded = [_flatten(self._encode_long(text)) for text in texts]
        lengths = np.array([len(ids) for ids, _ in encoded], dtype=np.int64)
        return np.concatenate([ids for ids, _ in encoded]), lengths

    def _encode_long(self, text: str) -> Iterator[list[int]]:
        """The ids of a text, part by part: up to white space, or where there is none (DNA) up to some token's end."""
        start = 0
        while len(text) - start > LONG_TEXT_CHARACTERS:
            cut = self._blank_to_cut_at(text, start, start + LONG_TEXT_CHARACTERS)
            if cut is not None:
                yield self.encode_batch([text[start:cut]])[0]
            else:
                ids, cut = self._ids_to_some_token(text, start, start + LONG_TEXT_CHARACTERS)
                if cut is None:
                    break  # this tokenizer looks far ahead: the rest goes in one
                yield ids
            start = cut
        yield self.encode_batch([text[start:]])[0]

    def _blank_to_cut_at(self, text: str, start: int, end: int) -> int | None:
        """Where white space begins, and its neighbourhood has the same ids in one part as in two."""
        places = range(end, max(start, end - (1 << 14)), -1)
        candidates = (i for i in places if text[i].isspace() and not text[i - 1].isspace())
        for cut in itertools.islice(candidates, 16):
            # Two reaches, of which k divides one at most: to k-mers it matters where a neighbourhood begins.
            if all(self._parts_at(text, max(start, cut - reach), cut) for reach in (256, 255)):
                return cut
        return None

    def _ids_to_some_token(self, text: str, start: int, end: int) -> tuple[list[int], int | None]:
        """The ids up to a token after which another text could begin, and where that is.

        The neighbourhood looked at begins where a word does, as the pre-tokenizer has it, or a token in a text of one
        word. For BPE this is exact: tokens are an encoding if every two neighbours are one.
        """
        with _explained(self):
            encoding = self._corpus_backend.encode(text[start:end], add_special_tokens=False)
        begins, words = [begin for begin, _ in encoding.offsets], encoding.word_ids
        latest = len(begins) - 16  # what follows the window's end may change its last tokens
        places = range(latest, max(latest - 128, 0), -1)  # WordPiece's cut words have up to 100 tokens
        for index in sorted(places, key=lambda i: words[i] == words[i - 1]):  # where a word begins it mostly succeeds
            cut, around = start + begins[index], max(0, index - 128)
            before = next((i for i in range(around, max(0, around - 1024), -1) if words[i] != words[i - 1]), around)
            if cut > start and self._parts_at(text, start + begins[before], cut):
                return encoding.ids[:index], cut
        return [], None

    def _parts_at(self, text: str, before: int, cut: int) -> bool:
        left, right = text[before:cut], text[cut : cut + 256]
        whole, left_ids, right_ids = self.encode_batch([left + right, left, right])
        return whole == left_ids + right_ids

    def save(self, folder: str | Path, model_max_length: int | None = None) -> None:
        """Write the files that `transformers.AutoTokenizer.from_pretrained(folder)` reads.

        A loaded tokenizer's own files are written as they were, save for `model_max_length` (in tokens, framing
        included) if given, for which tokenizer_config.json is made where there is none.
        """
        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        files = dict(self.files)
        if model_max_length is not None:
            config = json.loads(files.get("tokenizer_config.json", b"{}"))
            known = config if isinstance(config, dict) else {}  # which is all that is read of it, too
            files["tokenizer_config.json"] = to_json({**known, "model_max_length": model_max_length})
        for name, content in files.items():
            (folder / name).write_bytes(content)


# -- small parts -------------------------------------------------------------------------------------------------------


@contextmanager
def _explained(tokenizer: Tokenizer) -> Iterator[None]:
    """Say what a text is in which the Rust library found a word that its vocabulary has no token for."""
    try:
        yield
    except Exception as error:  # it raises bare Exception, nothing narrower
        if type(error) is not Exception:
            raise
        reason = " ".join(str(error).split())
        raise ValueError(
            f"a text holds a word that is none of the tokenizer's {tokenizer.special.num_tokens} tokens, and there is "
            f"no token for unknown words ({reason}); write known ones (of a vocabulary of ids, numbers alone)"
        ) from None


def _hide_special_tokens(content: dict[str, Any], special_ids: Container[int]) -> None:
    """Rename the special tokens of a tokenizer.json's model, which may find them in a text like any other token.

    Unigram and WordLevel do, and WordPiece where nothing cuts at brackets. BPE does for a token of one character, and
    for what merges make or (`ignore_merges`) a whole word is; there the merges go as well.

    Special is what has such a role, too: a mask may be an added token without the flag, or lie in the vocabulary alone.
    """
    for token in content["added_tokens"]:
        token["special"] = token["special"] or token["id"] in special_ids
    model = content["model"]
    vocabulary = model.get("vocab")
    if model.get("type") not in ("BPE", "Unigram", "WordLevel", "WordPiece") or not vocabulary:
        return
    names = {token["content"] for token in content["added_tokens"] if token["special"]}
    if model["type"] == "Unigram":
        ids = {token: id for id, (token, _) in enumerate(vocabulary)}
    else:
        ids = vocabulary
    names = {token for token, id in ids.items() if token in names or id in special_ids}
    if model["type"] == "BPE":
        names = _hide_merges(model, names)
    if model["type"] == "Unigram":
        model["vocab"] = [[UNWRITABLE + token if token in names else token, score] for token, score in vocabulary]
    else:
        model["vocab"] = {UNWRITABLE + token if token in names else token: id for token, id in vocabulary.items()}
        if model["unk_token"] in names:
            model["unk_token"] = UNWRITABLE + model["unk_token"]
    content["added_tokens"] = [token for token in content["added_tokens"] if token["content"] not in names]
    content["post_processor"] = None  # it names them, and a corpus is encoded without


def _hide_merges(model: dict[str, Any], names: set[str]) -> set[str]:
    """Drop a BPE model's merges of the named tokens and into them; returns those of the names that texts can reach."""
    pairs = [tuple(merge.split(" ")) if isinstance(merge, str) else tuple(merge) for merge in model["merges"]]
    prefix = model.get("continuing_subword_prefix") or ""
    made = {left + right.removeprefix(prefix) for left, right in pairs}
    reached = {name for name in names if len(name) == 1 or name in made or model.get("ignore_merges")}
    if reached:
        kept = [(a, b) for a, b in pairs if not {a, b, a + b.removeprefix(prefix)} & reached]
        model["merges"] = [list(pair) for pair in kept]
    return reached


def _flatten(lists: Iterable[list[int]]) -> tuple[np.ndarray, np.ndarray]:
    ids, lengths = array("I"), array("q")
    for numbers in lists:  # one at a time: a list takes nine times the memory of the array
        ids.fromlist(numbers)  # five times as fast as np.fromiter
        lengths.append(len(numbers))
    return np.frombuffer(ids, dtype=np.uint32), np.frombuffer(lengths, dtype=np.int64)


def to_json(value: Any) -> bytes:
    """A configuration file's contents."""
    return (json.dumps(value, indent=2, sort_keys=True, ensure_ascii=False) + "\n").encode()
