"""Make a `Tokenizer` of a folder's files, or of a backend that we built.

    load_tokenizer: folder -> Tokenizer            any fast Hugging Face tokenizer; its own files are kept byte for byte
    make_tokenizer, framed: backend -> Tokenizer   one that we built, with the files that describe it to transformers

`transformers` is imported only for a folder without `tokenizer.json`, whose slow tokenizer it must convert.
"""

import json
import tempfile
from collections.abc import Iterable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import tokenizers
from tokenizers import AddedToken, processors

from mlm_pytorch.data.tokenizer.record import Tokenizer, to_json
from mlm_pytorch.tokens import SpecialTokens

SPECIAL_TOKENS = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")  # ids 0 to 4 of the tokenizers that we train
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


# -- building ----------------------------------------------------------------------------------------------------------


def special_token(name: str, *, strips_blank: bool = False, single_word: bool = False) -> AddedToken:
    """A special token for a backend; `strips_blank` for one that takes the blank before it along."""
    return AddedToken(name, special=True, normalized=False, lstrip=strips_blank, single_word=single_word)


def make_tokenizer(
    backend: tokenizers.Tokenizer, kind: str, roles: Mapping[str, str], *, strips_blank: bool = False
) -> Tokenizer:
    """A `Tokenizer` of a backend that holds its special tokens, with the configuration that transformers reads.

    - `roles`: which token is what, as {"mask_token": "[MASK]", …}.
    - `strips_blank`: whether the mask takes the blank before it, since the word that it stands for would bring its own.
    """
    config: dict[str, Any] = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        **roles,
        "model_input_names": ["input_ids", "attention_mask"],
        "clean_up_tokenization_spaces": False,
    }
    if strips_blank:
        # As an object: transformers would otherwise put a token that eats no blank in the place of tokenizer.json's.
        config["mask_token"] = {
            "__type": "AddedToken",
            "content": roles["mask_token"],
            "lstrip": True,
            "normalized": False,
            "rstrip": False,
            "single_word": False,
            "special": True,
        }
    content = backend.to_str(pretty=True).encode()
    files = {"tokenizer.json": content, "tokenizer_config.json": to_json(config)}
    return replace(make_tokenizer_of_files(files, "the trained tokenizer"), kind=kind)


def framed(backend: tokenizers.Tokenizer, kind: str, *, strips_blank: bool = False) -> Tokenizer:
    """A `Tokenizer` of a backend whose vocabulary begins with `SPECIAL_TOKENS`, framing texts as [CLS] … [SEP]."""
    backend.add_special_tokens(
        [special_token(name, strips_blank=strips_blank and name == "[MASK]") for name in SPECIAL_TOKENS]
    )
    assert [backend.token_to_id(name) for name in SPECIAL_TOKENS] == [0, 1, 2, 3, 4]
    backend.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", pair="[CLS] $A [SEP] $B:1 [SEP]:1", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
    )
    pad, unk, cls, sep, mask = SPECIAL_TOKENS
    roles = {"pad_token": pad, "unk_token": unk, "cls_token": cls, "sep_token": sep, "mask_token": mask}
    return make_tokenizer(backend, kind, roles, strips_blank=strips_blank)


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
            return make_tokenizer_of_files(_read_files(Path(converted)), f"tokenizer {folder}")
    return make_tokenizer_of_files(_read_files(folder), f"tokenizer {folder}")


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


def make_tokenizer_of_files(files: dict[str, bytes], label: str) -> Tokenizer:
    """From the contents of a tokenizer's files, tokenizer.json among them; errors call it `label`.

    Raises ValueError as `load_tokenizer` does.
    """
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
    _add_roles(backend, named.values())
    added = backend.get_added_tokens_decoder()
    special_ids = {vocabulary[token] for token in named.values()} | {id for id, token in added.items() if token.special}
    prefix, suffix = _framing(backend, next((token for token, id in vocabulary.items() if id not in special_ids), "a"))
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


def _add_roles(backend: tokenizers.Tokenizer, names: Iterable[str]) -> None:
    """Let tokens that have a role, and are in the vocabulary alone, be found in a text whole, as transformers does."""
    added = {token.content for token in backend.get_added_tokens_decoder().values()}
    backend.add_special_tokens([special_token(name) for name in dict.fromkeys(names) if name not in added])


def _framing(backend: tokenizers.Tokenizer, ordinary: str) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """The ids that the tokenizer puts before and after a single text."""
    if backend.post_processor is None:
        return (), ()
    for probe in ("a", "A", "0", "the", ordinary):
        try:
            encoding = backend.encode(probe)
        except (
            Exception
        ) as error:  # the Rust library's bare one: a word unknown to a vocabulary that has no token for it
            if type(error) is not Exception:
                raise
            continue
        # None marks what the post-processor added; unlike special_tokens_mask it leaves an unknown "a" alone
        inside = [index for index, sequence in enumerate(encoding.sequence_ids) if sequence is not None]
        if inside:
            return tuple(encoding.ids[: inside[0]]), tuple(encoding.ids[inside[-1] + 1 :])
    return (), ()
