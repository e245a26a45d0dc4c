"""Train a tokenizer: settle its kind, take a sample of the texts, let the trainer of that kind learn from it.

Trainers of `tokenizers` are used where they are deterministic, since a corpus must give the same store every time. That
of WordPiece is not (which of equally frequent tokens it takes changes from run to run), so WordPiece is learned as BPE
over words with a marked beginning and written in WordPiece's form. Of Unigram's scores the last digits vary, and are
rounded away.
"""

import json
import math
from collections import Counter
from collections.abc import Callable, Iterable, Iterator

import tokenizers
from tokenizers import Regex, decoders, models, normalizers, pre_tokenizers, trainers

from mlm_pytorch.data.tokenizer.alphabets import (
    TokenizerKind,
    amino_acid_tokenizer,
    byte_tokenizer,
    kmer_tokenizer,
    parse_kind,
    single_letters,
)
from mlm_pytorch.data.tokenizer.content import kind_of_content
from mlm_pytorch.data.tokenizer.loading import SPECIAL_TOKENS, framed
from mlm_pytorch.data.tokenizer.record import Tokenizer
from mlm_pytorch.data.tokenizer.sample import TextSample, sample_for_training, sample_texts

VOCABULARY_MULTIPLE = 64  # matrix multiplications like the output layer's width to be one
MIN_VOCABULARY, MAX_VOCABULARY = 320, 32_768
CHARACTERS_PER_ENTRY = 1024  # of the vocabulary: four times as much takes five times as long and gains 0.5% in length
RUN_CHARACTERS = 1 << 21  # of text without blanks, for BPE: half a minute
# Unigram keeps all segmentations of all different words in view, again and again: 50 µs for each of their characters.
UNIGRAM_CHARACTERS, UNIGRAM_RUN_CHARACTERS = 1 << 22, 1 << 18
JUDGED_CHARACTERS = 1 << 20  # enough to tell the kind
COVERED_SHARE = 0.9999  # of the characters: the rest is too rare to be learned, and costs an entry each
LONGEST_TOKEN = 64  # a ruler of dashes is no word
LONGEST_WORD = 100  # WordPiece looks for the longest token that fits: time grows with the cube of a word's length
WORD_START = "\ufdd0"  # a code point that Unicode keeps free of meaning, and that BERT's normalizer removes from texts
BYTE_TOKENS = [f"<0x{byte:02X}>" for byte in range(256)]


def choose_vocab_size(characters: int) -> int:
    """A vocabulary for a corpus of so many characters: 2·√characters, which is 16k for 67 MB, within 320 and 32,768.

    The number of different words grows with about the square root of a text's length (Heaps' law), and a token that is
    hardly ever seen is not learned.
    """
    size = round(2 * math.sqrt(characters) / VOCABULARY_MULTIPLE) * VOCABULARY_MULTIPLE
    return min(max(size, MIN_VOCABULARY), MAX_VOCABULARY)


def train_tokenizer(texts: Iterable[str], vocab_size: int | None = None, kind: str | None = None) -> Tokenizer:
    """Train a tokenizer with [PAD] 0, [UNK] 1, [CLS] 2, [SEP] 3, [MASK] 4, framing pieces as [CLS] … [SEP].

    - `kind`: one of `TOKENIZER_KINDS`, or "kmer:K". None looks at a sample of the texts: "kmer" for DNA, "amino-acids"
      for proteins, "bpe" for everything else, and wherever a `vocab_size` is given. The result's `kind` says which.
    - `vocab_size`: None chooses it from the amount of text, and takes the nearest multiple of 64 below when the texts
      do not hold enough different words. A given one is a limit, which small texts do not reach either.

    "bpe", "wordpiece" and "characters" learn from at most 33M characters, spread over the texts, "unigram" from 4M; all
    of them from less where writing has no blanks. The alphabets of "bytes", "kmer" and "amino-acids" are settled, and
    the texts are not read.

    Raises ValueError for an unknown kind, no text, less room than the kind's special tokens and alphabet need, and a
    size that is not that of a settled alphabet.

    >>> train_tokenizer(["low lower lowest"] * 100).backend.encode("low lower").tokens
    ['[CLS]', 'low', 'Ġlower', '[SEP]']
    >>> train_tokenizer([], kind="kmer:3").backend.encode("ACGTAC").tokens
    ['[CLS]', 'ACG', 'TAC', '[SEP]']
    """
    name, k = (None, 0) if kind is None else parse_kind(kind)
    if name is None and vocab_size is not None:
        name = "bpe"
    if name in ("bytes", "kmer", "amino-acids"):
        return _fixed(name, k, vocab_size)
    if name == "bpe":
        _require_room(vocab_size, len(SPECIAL_TOKENS) + 256, "5 special tokens and 256 bytes")
    sample = sample_texts(texts)
    if sample.characters == 0:
        raise ValueError("there is no text to train a tokenizer on; check the corpus")
    if name is None:
        name = kind_of_content(sample_texts(sample.texts, JUDGED_CHARACTERS).texts)
        if name != "bpe":
            return _fixed(name, parse_kind(name)[1], None)
    learn: dict[TokenizerKind, Callable[[TextSample, int | None], Tokenizer]] = {
        "bpe": _bpe,
        "wordpiece": _wordpiece,
        "unigram": _unigram,
        "characters": _characters,
    }
    return learn[name](sample, vocab_size)


def _fixed(name: TokenizerKind, k: int, vocab_size: int | None) -> Tokenizer:
    if name == "bytes":
        tokenizer = byte_tokenizer()
    else:
        tokenizer = kmer_tokenizer(k) if name == "kmer" else amino_acid_tokenizer()
    size = tokenizer.special.num_tokens
    if vocab_size not in (None, size):
        raise ValueError(
            f"vocab_size {vocab_size} is given, but the alphabet of {tokenizer.kind} makes it {size}; leave it out"
        )
    return tokenizer


def _require_room(vocab_size: int | None, smallest: int, what: str) -> None:
    if vocab_size is not None and vocab_size < smallest:
        raise ValueError(f"vocab_size {vocab_size} is below {smallest} ({what}); choose a larger one")


# -- the four that learn -----------------------------------------------------------------------------------------------


def _bpe(sample: TextSample, vocab_size: int | None) -> Tokenizer:
    """Byte-level BPE (Radford et al. 2019), so that any text survives the round trip."""
    size = vocab_size if vocab_size is not None else choose_vocab_size(sample.characters)
    texts = sample_for_training(sample.texts, size * CHARACTERS_PER_ENTRY, RUN_CHARACTERS)
    backend = _train_bpe(texts, size)
    reached = backend.get_vocab_size()
    if vocab_size is None and reached % VOCABULARY_MULTIPLE and reached > MIN_VOCABULARY:
        backend = _train_bpe(texts, reached // VOCABULARY_MULTIPLE * VOCABULARY_MULTIPLE)
    return framed(backend, "bpe", strips_blank=True)


def _train_bpe(texts: list[str], vocab_size: int) -> tokenizers.Tokenizer:
    backend = tokenizers.Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        min_frequency=2,
        special_tokens=list(SPECIAL_TOKENS),
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
        max_token_length=LONGEST_TOKEN,
    )
    backend.train_from_iterator(_batched(texts, 1000), trainer)
    return backend


def _wordpiece(sample: TextSample, vocab_size: int | None) -> Tokenizer:
    """WordPiece in BERT's form, cased: words end at blanks and punctuation; what continues a word is written ##so."""
    size = vocab_size if vocab_size is not None else choose_vocab_size(sample.characters)
    texts = sample_for_training(sample.texts, size * CHARACTERS_PER_ENTRY, RUN_CHARACTERS)
    normalizer = normalizers.BertNormalizer(strip_accents=False, lowercase=False)
    words = pre_tokenizers.Sequence([pre_tokenizers.BertPreTokenizer(), pre_tokenizers.FixedLength(LONGEST_WORD)])
    counts = Counter(
        {char: n for char, n in _count_characters(texts).items() if normalizer.normalize_str(char).strip()}
    )
    letters = _frequent(counts)
    # What can continue a word; punctuation and ideographs never do.
    inner = [char for char in letters if len(words.pre_tokenize_str(normalizer.normalize_str("a" + char))) == 1]
    size = _room(
        size, vocab_size, len(letters) + len(inner), f"{len(letters)} characters and {len(inner)} inside words"
    )

    marked = tokenizers.Tokenizer(models.BPE())
    marked.normalizer = normalizer
    mark = pre_tokenizers.Metaspace(replacement=WORD_START, prepend_scheme="always", split=False)
    marked.pre_tokenizer = pre_tokenizers.Sequence([words, mark])
    trainer = trainers.BpeTrainer(
        vocab_size=size + len(letters),  # more than needed: some tokens are a marked letter
        min_frequency=2,
        initial_alphabet=[*letters, WORD_START],
        show_progress=False,
        max_token_length=LONGEST_TOKEN,
    )
    marked.train_from_iterator(_batched(_without_others(texts, letters), 1000), trainer)
    learned = sorted(marked.get_vocab(), key=marked.get_vocab().__getitem__)
    pieces = [token[1:] if token.startswith(WORD_START) else f"##{token}" for token in learned]
    tokens = list(dict.fromkeys([*SPECIAL_TOKENS, *letters, *(f"##{char}" for char in inner)]))
    smallest = len(tokens)
    tokens += [piece for piece in pieces if len(piece.removeprefix("##")) > 1]
    tokens = tokens[: _rounded(min(len(tokens), size), smallest, vocab_size)]

    backend = tokenizers.Tokenizer(
        models.WordPiece(
            {token: id for id, token in enumerate(tokens)},
            unk_token="[UNK]",  # noqa: S106
            max_input_chars_per_word=LONGEST_WORD,
        )
    )
    backend.normalizer, backend.pre_tokenizer, backend.decoder = normalizer, words, decoders.WordPiece()
    return framed(backend, "wordpiece", strips_blank=True)


def _unigram(sample: TextSample, vocab_size: int | None) -> Tokenizer:
    """Unigram (Kudo 2018) in SentencePiece's form: ▁ is a blank, what has no token of its own is written in bytes."""
    size = vocab_size if vocab_size is not None else choose_vocab_size(sample.characters)
    texts = sample_for_training(sample.texts, UNIGRAM_CHARACTERS, UNIGRAM_RUN_CHARACTERS)
    # With the characters of "<0x0A>", so that six of them are always more likely than the one token of that name.
    letters = _frequent(_count_characters(texts), "▁<>x0123456789ABCDEF")
    size = _room(size, vocab_size, len(BYTE_TOKENS) + len(letters), f"256 bytes and {len(letters)} characters")

    backend = tokenizers.Tokenizer(models.Unigram())
    backend.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Split(Regex(r"[^\S ]+"), "isolated"), pre_tokenizers.Metaspace(prepend_scheme="first")]
    )
    learnable = size - len(SPECIAL_TOKENS) - len(BYTE_TOKENS)
    trainer = trainers.UnigramTrainer(
        vocab_size=learnable,
        initial_alphabet=letters,
        seed_size=10 * size,  # pyright: ignore[reportCallIssue] -- missing from the type stubs
        # Faster than its custom (1,000,000 seeds, 0.75, 2), for tokens that are 1.3% shorter.
        shrinking_factor=0.7,
        n_sub_iterations=1,
        show_progress=False,
    )
    backend.train_from_iterator(_batched(_without_others(texts, letters), 1000), trainer)
    pieces = _settled(_pieces(backend), len(letters))
    fixed = len(SPECIAL_TOKENS) + len(BYTE_TOKENS)
    keep = _rounded(fixed + len(pieces), fixed + len(letters), vocab_size) - fixed
    dropped = {piece for piece, _ in [item for item in pieces if len(item[0]) > 1][::-1][: len(pieces) - keep]}
    pieces = [item for item in pieces if item[0] not in dropped]
    least = 8 * min(score for _, score in pieces)
    vocabulary = [(token, 0.0) for token in SPECIAL_TOKENS] + [(token, least) for token in BYTE_TOKENS] + pieces
    backend.model = models.Unigram(vocabulary, unk_id=SPECIAL_TOKENS.index("[UNK]"), byte_fallback=True)
    backend.decoder = decoders.Sequence([decoders.ByteFallback(), decoders.Metaspace(prepend_scheme="first")])
    return framed(backend, "unigram", strips_blank=True)


def _characters(sample: TextSample, vocab_size: int | None) -> Tokenizer:
    """One token per character, of all that the sample holds, the most frequent first; others are [UNK]."""
    _require_room(vocab_size, len(SPECIAL_TOKENS) + 1, "5 special tokens and a character")
    limit = (MAX_VOCABULARY if vocab_size is None else vocab_size) - len(SPECIAL_TOKENS)
    backend = tokenizers.Tokenizer(single_letters(_by_frequency(_count_characters(sample.texts))[:limit]))
    # Words, so that whole ones can be masked; and what repeats is looked up once.
    backend.pre_tokenizer = pre_tokenizers.Split(Regex(r"\s+|\w+|[^\s\w]+"), "isolated")
    backend.decoder = decoders.Fuse()
    return framed(backend, "characters")


# -- small parts -------------------------------------------------------------------------------------------------------


def _pieces(backend: tokenizers.Tokenizer) -> list[tuple[str, float]]:
    """A Unigram model's pieces with their scores; only its description tells them."""
    return [(piece, score) for piece, score in json.loads(backend.to_str())["model"]["vocab"]]


def _settled(pieces: list[tuple[str, float]], letters: int) -> list[tuple[str, float]]:
    """The pieces, likeliest first, without what differs from run to run: the scores' last digits, and the small steps,
    in the order of a hash table, that part the characters which no segmentation uses."""
    floor = min(score for _, score in pieces)
    steps = floor + 1e-4 * letters
    reserved = {*SPECIAL_TOKENS, *BYTE_TOKENS}
    settled = [
        (piece, round(floor if len(piece) == 1 and score <= steps else score, 4))
        for piece, score in pieces
        if piece not in reserved
    ]
    return sorted(settled, key=lambda item: (-item[1], item[0]))


def _count_characters(texts: Iterable[str]) -> Counter[str]:
    counts: Counter[str] = Counter()
    for text in texts:
        counts.update(text)
    return counts


def _by_frequency(counts: Counter[str]) -> list[str]:
    return sorted(counts, key=lambda char: (-counts[char], char))


def _frequent(counts: Counter[str], always: str = "") -> list[str]:
    """The characters, blanks left out, that make up `COVERED_SHARE` of a text, most frequent first; and `always`."""
    chars = [char for char in _by_frequency(counts) if char != " "]
    wanted, covered = COVERED_SHARE * sum(counts[char] for char in chars), 0
    kept = []
    for char in chars:
        if covered >= wanted:
            break
        kept.append(char)
        covered += counts[char]
    return list(dict.fromkeys([*kept, *always]))


def _without_others(texts: Iterable[str], letters: Iterable[str]) -> list[str]:
    """The texts with blanks for the characters that are not to be learned."""
    known = {*letters, " ", "\t", "\n", "\r"}
    rare = {char for text in texts for char in set(text) if char not in known}
    table = dict.fromkeys(map(ord, rare), " ")
    return [text.translate(table) for text in texts] if rare else list(texts)


def _room(size: int, vocab_size: int | None, alphabet: int, what: str) -> int:
    """The size to learn, with room for the alphabet and a little more where it was ours to choose."""
    smallest = len(SPECIAL_TOKENS) + alphabet
    _require_room(vocab_size, smallest, f"5 special tokens, {what}")
    if vocab_size is not None:
        return vocab_size
    return max(size, -(-smallest // VOCABULARY_MULTIPLE) * VOCABULARY_MULTIPLE + VOCABULARY_MULTIPLE)


def _rounded(reached: int, smallest: int, vocab_size: int | None) -> int:
    """The size to end with: a multiple of 64 where that leaves the alphabet whole, and the choice was ours."""
    rounded = reached // VOCABULARY_MULTIPLE * VOCABULARY_MULTIPLE
    return reached if vocab_size is not None or rounded < max(smallest, MIN_VOCABULARY) else rounded


def _batched(texts: list[str], size: int) -> Iterator[list[str]]:
    return (texts[start : start + size] for start in range(0, len(texts), size))
