"""Train or load a tokenizer, derive its `SpecialTokens`, write it so that `transformers` loads it.

    train_tokenizer: texts -> Tokenizer            byte-level BPE, so that any text survives the round trip
    load_tokenizer: folder -> Tokenizer            any fast Hugging Face tokenizer; its own files are kept byte for byte
    sample_texts: texts -> TextSample              what to train on: spread over the corpus, bounded

`transformers` is imported only for a folder without `tokenizer.json`, whose slow tokenizer it must convert.
"""

import hashlib
import itertools
import json
import math
import tempfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import tokenizers
from tokenizers import AddedToken, decoders, models, pre_tokenizers, processors, trainers

from mlm_pytorch.tokens import SpecialTokens

SPECIAL_TOKENS = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")  # ids 0 to 4 of the tokenizers that we train
VOCABULARY_MULTIPLE = 64  # matrix multiplications like the output layer's width to be one
MIN_VOCABULARY, MAX_VOCABULARY = 320, 32_768
SAMPLE_CHARACTERS = 1 << 25  # bounds memory
CHARACTERS_PER_ENTRY = 1024  # of the vocabulary: four times as much takes five times as long and gains 0.5% in length
CHUNK_CHARACTERS = 1 << 16
LONG_TEXT_CHARACTERS = 1 << 20

# Everything that a folder may hold of a tokenizer, as transformers names it.
TOKENIZER_FILES = (
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
TOKEN_ROLES = ("pad_token", "unk_token", "cls_token", "sep_token", "mask_token", "bos_token", "eos_token")
# For a tokenizer.json alone, which does not say which of its tokens is which.
USUAL_NAMES = {
    "mask_token": ("[MASK]", "<mask>", "<|mask|>"),
    "pad_token": ("[PAD]", "<pad>", "<|pad|>"),
    "unk_token": ("[UNK]", "<unk>"),
}


@dataclass(frozen=True)
class Tokenizer:
    """A `tokenizers.Tokenizer` with what pretraining must know about it.

    - `backend`: encodes with special tokens and understands "[MASK]" in a text; never truncates or pads.
    - `special`: the ids that masking must leave alone, and how a piece is framed.
    - `unknown_id`: the id for what the vocabulary lacks; None where nothing can be unknown to it (or it cannot say).
    - `files`: what `save` writes, by name.
    """

    backend: tokenizers.Tokenizer
    special: SpecialTokens
    unknown_id: int | None
    files: Mapping[str, bytes]

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
    def _corpus_backend(self) -> tokenizers.Tokenizer:
        """A copy to which "[MASK]" in a text is six characters: a corpus must not be able to write special tokens."""
        backend = tokenizers.Tokenizer.from_str(self.backend.to_str())
        backend.encode_special_tokens = True
        return backend

    def encode_batch(self, texts: Sequence[str]) -> list[list[int]]:
        """Ids of each text: no special tokens added or recognised, nothing truncated. Releases the GIL meanwhile."""
        backend = self._corpus_backend
        # Same ids, but no offsets into the text; tokenizers 0.20 and later have it.
        encode = getattr(backend, "encode_batch_fast", backend.encode_batch)
        return [encoding.ids for encoding in encode(list(texts), add_special_tokens=False)]

    def encode_arrays(self, texts: Sequence[str]) -> tuple[np.ndarray, np.ndarray]:
        """The ids of all texts end to end (uint32), and how many each has (int64).

        Texts over `LONG_TEXT_CHARACTERS` are encoded in parts, cut where that leaves the ids the same, since an
        encoding takes about a hundred times the memory of its text.
        """
        if all(len(text) <= LONG_TEXT_CHARACTERS for text in texts):
            return _flatten(self.encode_batch(texts))
        owners, parts = [], []
        for index, text in enumerate(texts):
            for part in self._split_long(text):
                owners.append(index)
                parts.append(part)
        encoded = [_flatten(self.encode_batch([part])) for part in parts]
        lengths = np.bincount(owners, weights=[len(ids) for ids, _ in encoded], minlength=len(texts)).astype(np.int64)
        return np.concatenate([ids for ids, _ in encoded]), lengths

    def _split_long(self, text: str) -> Iterator[str]:
        """Cut a long text before white space where its neighbourhood has the same ids in one part as in two."""
        start, reach = 0, 256
        while len(text) - start > LONG_TEXT_CHARACTERS:
            latest, cut = start + LONG_TEXT_CHARACTERS, None
            places = range(latest, max(start, latest - (1 << 14)), -1)
            candidates = (i for i in places if text[i].isspace() and not text[i - 1].isspace())
            for candidate in itertools.islice(candidates, 16):
                left, right = text[max(start, candidate - reach) : candidate], text[candidate : candidate + reach]
                whole, left_ids, right_ids = self.encode_batch([left + right, left, right])
                if whole == left_ids + right_ids:
                    cut = candidate
                    break
            if cut is None:
                break  # this tokenizer looks across white space (or there is none): the rest goes in one
            yield text[start:cut]
            start = cut
        yield text[start:]

    def save(self, folder: str | Path, model_max_length: int | None = None) -> None:
        """Write the files that `transformers.AutoTokenizer.from_pretrained(folder)` reads.

        A loaded tokenizer's own files are written as they were, save for `model_max_length` (in tokens, framing
        included) if given.
        """
        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        for name, content in self.files.items():
            if name == "tokenizer_config.json" and model_max_length is not None:
                content = _to_json({**json.loads(content), "model_max_length": model_max_length})
            (folder / name).write_bytes(content)


# -- training ----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class TextSample:
    """Texts to train a tokenizer on, and how much there was to choose from."""

    texts: list[str]
    characters: int  # of everything seen, not of the sample


def sample_texts(texts: Iterable[str], max_characters: int = SAMPLE_CHARACTERS) -> TextSample:
    """Choose at most `max_characters` of text, spread evenly over the whole, in one pass and bounded memory.

    Texts are taken in chunks, so that a single long one is sampled as well. Chunk i has priority i·φ mod 1 (multiples
    of the golden ratio fall as evenly as numbers can); the lowest priorities stay, and whenever there is too much the
    bound on them is halved. Deterministic; a corpus that fits is taken whole.
    """
    golden, bound = 0x9E3779B97F4A7C15, 1 << 64
    kept: list[tuple[int, str]] = []
    kept_characters = characters = index = 0
    for text in texts:
        characters += len(text)
        for start in range(0, len(text), CHUNK_CHARACTERS):
            priority = index * golden % (1 << 64)
            index += 1
            if priority >= bound:
                continue
            chunk = text if len(text) <= CHUNK_CHARACTERS else text[start : start + CHUNK_CHARACTERS]
            kept.append((priority, chunk))
            kept_characters += len(chunk)
            while kept_characters > max_characters and len(kept) > 1:
                bound //= 2
                kept = [item for item in kept if item[0] < bound]
                kept_characters = sum(len(chunk) for _, chunk in kept)
    return TextSample([chunk for _, chunk in kept], characters)


def choose_vocab_size(characters: int) -> int:
    """A vocabulary for a corpus of so many characters: 2·√characters, which is 16k for 67 MB, within 320 and 32,768.

    The number of different words grows with about the square root of a text's length (Heaps' law), and a token that is
    hardly ever seen is not learned.
    """
    size = round(2 * math.sqrt(characters) / VOCABULARY_MULTIPLE) * VOCABULARY_MULTIPLE
    return min(max(size, MIN_VOCABULARY), MAX_VOCABULARY)


def train_tokenizer(texts: Iterable[str], vocab_size: int | None = None) -> Tokenizer:
    """Train a byte-level BPE tokenizer with [PAD] 0, [UNK] 1, [CLS] 2, [SEP] 3, [MASK] 4, framing pieces as [CLS] …
    [SEP].

    `vocab_size` None chooses it from the amount of text, and takes the nearest multiple of 64 below when the texts do
    not hold enough different words. A given one is a limit, which small texts do not reach either. Raises ValueError
    when there is no text, or less room than the 5 special tokens and 256 bytes need.

    >>> train_tokenizer(["low lower lowest"] * 100).backend.encode("lower").tokens
    ['[CLS]', 'lower', '[SEP]']
    """
    smallest = len(SPECIAL_TOKENS) + 256
    if vocab_size is not None and vocab_size < smallest:
        raise ValueError(
            f"vocab_size {vocab_size} is below {smallest} (5 special tokens and 256 bytes); choose a larger one"
        )
    sample = sample_texts(texts)
    if sample.characters == 0:
        raise ValueError("there is no text to train a tokenizer on; check the corpus")
    size = vocab_size if vocab_size is not None else choose_vocab_size(sample.characters)
    texts = sample_texts(sample.texts, size * CHARACTERS_PER_ENTRY).texts
    backend = _train_bpe(texts, size)
    reached = backend.get_vocab_size()
    if vocab_size is None and reached % VOCABULARY_MULTIPLE and reached > MIN_VOCABULARY:
        backend = _train_bpe(texts, reached // VOCABULARY_MULTIPLE * VOCABULARY_MULTIPLE)
    pad, unk, cls, sep, mask = SPECIAL_TOKENS
    config = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "pad_token": pad,
        "unk_token": unk,
        "cls_token": cls,
        "sep_token": sep,
        # As an object: transformers would otherwise put a token that eats no blank in the place of tokenizer.json's.
        "mask_token": {
            "__type": "AddedToken",
            "content": mask,
            "lstrip": True,
            "normalized": False,
            "rstrip": False,
            "single_word": False,
            "special": True,
        },
        "model_input_names": ["input_ids", "attention_mask"],
        "clean_up_tokenization_spaces": False,
    }
    return _tokenizer(
        {"tokenizer.json": backend.to_str(pretty=True).encode(), "tokenizer_config.json": _to_json(config)},
        "the trained tokenizer",
    )


def _train_bpe(texts: list[str], vocab_size: int) -> tokenizers.Tokenizer:
    backend = tokenizers.Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    special: list[Any] = [
        AddedToken(name, special=True, normalized=False, lstrip=name == "[MASK]") for name in SPECIAL_TOKENS
    ]
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        min_frequency=2,
        special_tokens=special,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
        max_token_length=64,  # a ruler of dashes is no word
    )
    backend.train_from_iterator(_batched(texts, 1000), trainer)
    backend.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", pair="[CLS] $A [SEP] $B:1 [SEP]:1", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
    )
    return backend


# -- loading -----------------------------------------------------------------------------------------------------------


def load_tokenizer(folder: str | Path) -> Tokenizer:
    """Load a fast Hugging Face tokenizer from a folder, without running code from it.

    Raises ValueError when the folder does not exist or holds no tokenizer, a file is damaged, or there is no mask
    token or no padding token.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise ValueError(f"tokenizer folder {folder} does not exist; give the folder that holds tokenizer.json")
    if not (folder / "tokenizer.json").exists():
        with tempfile.TemporaryDirectory() as converted:
            _convert_slow(folder, Path(converted))
            return _tokenizer(_read_files(Path(converted)), f"tokenizer {folder}")
    return _tokenizer(_read_files(folder), f"tokenizer {folder}")


def _read_files(folder: Path) -> dict[str, bytes]:
    return {name: (folder / name).read_bytes() for name in TOKENIZER_FILES if (folder / name).is_file()}


def _convert_slow(folder: Path, converted: Path) -> None:
    """Let transformers turn a tokenizer of older files (vocab.txt, a SentencePiece model) into tokenizer.json."""
    if not any((folder / name).is_file() for name in TOKENIZER_FILES):
        raise ValueError(
            f"{folder} holds no tokenizer (no tokenizer.json); give the folder of a fast Hugging Face tokenizer"
        )
    remedy = "convert it with transformers (save_pretrained of its fast tokenizer) and give that folder"
    try:
        from transformers import AutoTokenizer
    except ImportError:
        raise ValueError(
            f"{folder} holds no tokenizer.json, and transformers is not installed to make one; {remedy}"
        ) from None
    try:
        loaded = AutoTokenizer.from_pretrained(str(folder), trust_remote_code=False, local_files_only=True)
    except (OSError, ValueError, KeyError, TypeError, AttributeError, ImportError) as error:
        reason = " ".join(str(error).split())
        raise ValueError(
            f"{folder} holds no tokenizer.json, and transformers cannot load it ({reason}); {remedy}"
        ) from None
    if not loaded.is_fast:
        raise ValueError(f"{folder} holds a slow tokenizer ({type(loaded).__name__}) with no fast form; {remedy}")
    loaded.save_pretrained(str(converted))


def _tokenizer(files: dict[str, bytes], label: str) -> Tokenizer:
    """From the contents of a tokenizer's files."""
    backend = _backend(files["tokenizer.json"], label)
    vocabulary = backend.get_vocab(with_added_tokens=True)
    named = _named_tokens(files, vocabulary, label)
    for role, meaning in (("mask_token", "mask token"), ("pad_token", "padding token")):
        if role not in named:
            raise ValueError(
                f"{label} has no {meaning}; choose a tokenizer of a masked language model, or add one and name it as "
                f'"{role}" in '
                "tokenizer_config.json"
            )
    added = backend.get_added_tokens_decoder()
    special_ids = {vocabulary[token] for token in named.values()} | {id for id, token in added.items() if token.special}
    prefix, suffix = _framing(backend)
    special = SpecialTokens(
        num_tokens=max(vocabulary.values()) + 1,
        mask_token_id=vocabulary[named["mask_token"]],
        pad_token_id=vocabulary[named["pad_token"]],
        ids=tuple(sorted(special_ids | set(prefix) | set(suffix))),
        prefix=prefix,
        suffix=suffix,
    )
    unknown = named.get("unk_token")
    return Tokenizer(backend, special, None if unknown is None else vocabulary[unknown], files)


def _backend(content: bytes, label: str) -> tokenizers.Tokenizer:
    try:
        json.loads(content)
    except ValueError as error:
        raise ValueError(f"{label}: tokenizer.json is not JSON ({error}); copy or download it again") from None
    try:
        backend = tokenizers.Tokenizer.from_str(content.decode())
    except Exception as error:  # what the Rust library raises is bare Exception, nothing narrower
        if type(error) is not Exception:
            raise
        reason = " ".join(str(error).split())
        raise ValueError(
            f"{label}: tokenizer.json cannot be read by tokenizers {tokenizers.__version__} ({reason}); copy it again, "
            "or install the version that wrote it"
        ) from None
    # A limit that a file brings along would cut documents without a word.
    backend.no_truncation()
    backend.no_padding()
    return backend


def _named_tokens(files: Mapping[str, bytes], vocabulary: Mapping[str, int], label: str) -> dict[str, str]:
    """Which token plays which role ("mask_token": "[MASK]"), as the config files or else custom says."""
    named: dict[str, str] = {}
    for name in ("special_tokens_map.json", "tokenizer_config.json"):  # the later has the last word, as in transformers
        try:
            config = json.loads(files.get(name, b"{}"))
        except ValueError as error:
            raise ValueError(f"{label}: {name} is not JSON ({error}); copy or download it again") from None
        for role in TOKEN_ROLES:
            token = config.get(role) if isinstance(config, dict) else None
            token = token.get("content") if isinstance(token, dict) else token
            if isinstance(token, str):
                named[role] = token
    for role, usual in USUAL_NAMES.items():
        if role not in named and (token := next((token for token in usual if token in vocabulary), None)):
            named[role] = token
    for role in ("mask_token", "pad_token"):
        if role in named and named[role] not in vocabulary:
            raise ValueError(
                f"{label} names {named[role]!r} as its {role}, which is not in its vocabulary; add it to "
                "tokenizer.json or name another"
            )
    return {role: token for role, token in named.items() if token in vocabulary}


def _framing(backend: tokenizers.Tokenizer) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """The ids that the tokenizer puts before and after a single text."""
    for probe in ("a", "A", "0", "the"):
        encoding = backend.encode(probe)
        # None marks what the post-processor added; unlike special_tokens_mask it leaves an unknown "a" alone
        inside = [index for index, sequence in enumerate(encoding.sequence_ids) if sequence is not None]
        if inside:
            return tuple(encoding.ids[: inside[0]]), tuple(encoding.ids[inside[-1] + 1 :])
    return (), ()


# -- small parts -------------------------------------------------------------------------------------------------------


def _flatten(lists: list[list[int]]) -> tuple[np.ndarray, np.ndarray]:
    lengths = np.fromiter(map(len, lists), dtype=np.int64, count=len(lists))
    return np.fromiter(itertools.chain.from_iterable(lists), dtype=np.uint32, count=int(lengths.sum())), lengths


def _batched(texts: list[str], size: int) -> Iterator[list[str]]:
    return (texts[start : start + size] for start in range(0, len(texts), size))


def _to_json(value: Any) -> bytes:
    return (json.dumps(value, indent=2, sort_keys=True, ensure_ascii=False) + "\n").encode()
