"""Tokenizers whose vocabulary is settled beforehand: bytes, k-mers, amino acids, and ids that stand for themselves.

Nothing of a corpus is read for them. Letters of sequences are upper-cased and white space is dropped, by normalizers
that travel in tokenizer.json, so that `transformers` reads a sequence as we do.
"""

import itertools
from collections.abc import Iterable
from typing import Literal, get_args

import tokenizers
from tokenizers import Regex, decoders, models, normalizers, pre_tokenizers

from mlm_pytorch.data.tokenizer.loading import SPECIAL_TOKENS, framed, make_tokenizer, special_token
from mlm_pytorch.data.tokenizer.record import Tokenizer

TokenizerKind = Literal["bpe", "wordpiece", "unigram", "characters", "bytes", "kmer", "amino-acids"]
TOKENIZER_KINDS: tuple[TokenizerKind, ...] = get_args(TokenizerKind)

NUCLEOTIDES = "ACGT"
# What else a sequence may hold (IUPAC 1984): N is any nucleotide, R is A or G, and so on; - is a gap.
NUCLEOTIDE_CODES = "NRYSWKMBDHV-"
AMINO_ACIDS = "ACDEFGHIKLMNPQRSTVWY"
# B is D or N, J is I or L, O pyrrolysine, U selenocysteine, X any, Z is E or Q; * ends a chain, - and . are gaps.
AMINO_ACID_CODES = "BJOUXZ*-."
MAX_IDS = 1 << 22  # each is an entry of the vocabulary, with its name, and a row of embeddings
DEFAULT_K, LARGEST_K = 6, 8


def parse_kind(kind: str) -> tuple[TokenizerKind, int]:
    """A kind as one writes it, and its k: "kmer:3" is ("kmer", 3), "kmer" is ("kmer", 6); others' k says nothing.

    Raises ValueError for what is no kind, and for a k outside 1 to 8 (4^8 k-mers are 65,536 entries).
    """
    name, colon, number = kind.partition(":")
    if name not in TOKENIZER_KINDS or (colon and name != "kmer"):
        raise ValueError(
            f"tokenizer kind {kind!r} is unknown; choose one of {', '.join(TOKENIZER_KINDS)} "
            f"(kmer:3 for another k than {DEFAULT_K}), or a folder that holds a tokenizer"
        )
    if colon and not (number.isdecimal() and number.isascii() and 1 <= int(number) <= LARGEST_K):
        raise ValueError(
            f"tokenizer kind {kind!r} has no k from 1 to {LARGEST_K}, of which there are 4^k k-mers; write kmer:6"
        )
    return name, int(number) if colon else DEFAULT_K


def byte_tokenizer() -> Tokenizer:
    """256 bytes: byte b is id 5 + b. Words are known to it (it is byte-level BPE with no merges), so it is quick."""
    visible = sorted(pre_tokenizers.ByteLevel.alphabet())  # by code point, which is the bytes' order in two runs
    order = [char for char in visible if ord(char) < 256]
    hidden = iter(char for char in visible if ord(char) >= 256)
    by_byte = [chr(byte) if chr(byte) in order else next(hidden) for byte in range(256)]
    backend = tokenizers.Tokenizer(models.BPE(_vocabulary(by_byte), []))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    return framed(backend, "bytes")


def kmer_tokenizer(k: int = DEFAULT_K) -> Tokenizer:
    """DNA in non-overlapping k-mers, from left to right; letter by letter where one would hold another code or the end.

    U is read as T, so that RNA and DNA are one language. Overlapping k-mers are not offered: each would hold k - 1
    letters of its neighbours, and a masked one could be read off them.

    >>> kmer_tokenizer(3).backend.encode("acgtaNGGUA").tokens
    ['[CLS]', 'ACG', 'T', 'A', 'N', 'GGT', 'A', '[SEP]']
    """
    letters = NUCLEOTIDES + NUCLEOTIDE_CODES
    kmers = ["".join(letters) for letters in itertools.product(NUCLEOTIDES, repeat=k)] if k > 1 else []
    backend = tokenizers.Tokenizer(models.WordLevel(_vocabulary([*letters, *kmers]), unk_token="[UNK]"))  # noqa: S106
    uracil = [normalizers.Replace("u", "T"), normalizers.Replace("U", "T")]
    backend.normalizer = normalizers.Sequence([*_upper_case(letters), *uracil])
    backend.pre_tokenizer = pre_tokenizers.Split(Regex(f"[{NUCLEOTIDES}]{{{k}}}|[\\s\\S]"), "isolated")
    backend.decoder = decoders.Fuse()
    return framed(backend, f"kmer:{k}")


def amino_acid_tokenizer() -> Tokenizer:
    """Proteins letter by letter: the 20 amino acids and the IUPAC codes B J O U X Z * - .

    >>> amino_acid_tokenizer().backend.encode("mkt[MASK]LV").tokens
    ['[CLS]', 'M', 'K', 'T', '[MASK]', 'L', 'V', '[SEP]']
    """
    letters = AMINO_ACIDS + AMINO_ACID_CODES
    backend = tokenizers.Tokenizer(single_letters(letters))
    backend.normalizer = normalizers.Sequence(_upper_case(letters))
    backend.decoder = decoders.Fuse()
    return framed(backend, "amino-acids")


def tokenizer_for_ids(
    num_tokens: int,
    *,
    mask_token_id: int | None = None,
    pad_token_id: int | None = None,
    special_ids: Iterable[int] = (),
    add_special_tokens: bool = False,
) -> Tokenizer:
    """A tokenizer for a corpus of ids below `num_tokens`: its tokens are their decimal numbers, between blanks.

    - `mask_token_id`, `pad_token_id`: which ids these are; written [MASK] and [PAD].
    - `add_special_tokens`: append those of the two that are not given, [MASK] first; the vocabulary grows by as many.
    - `special_ids`: further ids that masking must leave alone, such as those that begin and end a sequence. They are
      written as numbers, too. Nothing is put around a sequence: it holds what it holds.

    Raises ValueError for more than `MAX_IDS`, an id out of range, a mask that is the padding, and where one of the two
    is neither given nor added.

    >>> tokenizer = tokenizer_for_ids(100, add_special_tokens=True)
    >>> tokenizer.encode("17 4 [MASK] 99"), tokenizer.special.num_tokens
    ([17, 4, 100, 99], 102)
    """
    if num_tokens < 1:
        raise ValueError(f"num_tokens {num_tokens} is not positive; give the number of ids, the largest and one")
    if num_tokens > MAX_IDS:
        raise ValueError(
            f"num_tokens {num_tokens} is more than the {MAX_IDS:,} ids of the largest vocabulary; renumber them "
            "from 0, without gaps"
        )
    special_ids = tuple(special_ids)
    given = {"mask_token_id": mask_token_id, "pad_token_id": pad_token_id}
    for name, id in [*given.items(), *(("special id", id) for id in special_ids)]:
        if id is not None and not 0 <= id < num_tokens:
            raise ValueError(f"{name} {id} is outside the ids 0 to {num_tokens - 1}; raise num_tokens or name another")
    if mask_token_id is not None and mask_token_id == pad_token_id:
        raise ValueError(f"mask_token_id and pad_token_id are both {mask_token_id}; masked is not padded: name two ids")
    missing = [name for name, id in given.items() if id is None]
    if missing and not add_special_tokens:
        raise ValueError(
            f"{' and '.join(missing)} not given; name the ids that the corpus reserves (--mask-token-id, "
            "--pad-token-id), or let special tokens be added (--add-special-tokens)"
        )
    if add_special_tokens and not missing:
        raise ValueError(
            f"mask_token_id {mask_token_id} and pad_token_id {pad_token_id} are both given, which leaves no special "
            "token to add; do not ask for any"
        )
    total = num_tokens + len(missing)
    appended = itertools.count(num_tokens)
    mask, pad = (next(appended) if id is None else id for id in given.values())
    named = {mask: "[MASK]", pad: "[PAD]"}
    words = {named.get(id) or str(id): id for id in range(total)}
    backend = tokenizers.Tokenizer(models.WordLevel(words, unk_token=""))
    backend.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    backend.add_special_tokens(
        [
            special_token(named[id]) if id in named else special_token(str(id), single_word=True)
            for id in sorted({mask, pad, *special_ids})
        ]
    )
    return make_tokenizer(backend, "ids", {"mask_token": "[MASK]", "pad_token": "[PAD]"})


def check_largest_id(largest: int, where: str) -> None:
    """Raise ValueError where an id, found `where`, is none of the largest vocabulary that is made for ids."""
    if largest >= MAX_IDS:
        raise ValueError(
            f"{where} holds id {largest}, and the largest vocabulary has {MAX_IDS:,}; renumber the ids from 0, without "
            "gaps, or see whether it stands for a value that is missing"
        )


def single_letters(letters: Iterable[str]) -> models.BPE:
    """The quickest model of one token per character: BPE that merges nothing. What it lacks is [UNK], one for each."""
    return models.BPE(_vocabulary(letters), [], unk_token="[UNK]")  # noqa: S106


def _vocabulary(tokens: Iterable[str]) -> dict[str, int]:
    return {token: id for id, token in enumerate([*SPECIAL_TOKENS, *tokens])}


def _upper_case(letters: str) -> list[normalizers.Normalizer]:
    """Drop white space, upper-case these letters. Costs a scan for each where a text is upper case already."""
    dropped = normalizers.Replace(Regex(r"\s+"), "")
    return [dropped, *(normalizers.Replace(letter.lower(), letter) for letter in letters if letter.isalpha())]
