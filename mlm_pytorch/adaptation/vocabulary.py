"""Add tokens to a tokenizer's vocabulary: those that shorten a corpus most, and without touching other words.

New tokens join pieces that the tokenizer puts side by side, the most frequent pair first, as byte-pair encoding learns
them (Sennrich et al. 2016, arXiv 1508.07909, section 3.2), beginning at the pieces that there are. A pair that occurs n
times saves n pieces, so this picks, one after the other, what saves most.

They become part of the model itself, not "added tokens": those are cut out of a text before anything else looks at it,
which would part a word from its blank, and a token from the rest of its word. What each model needs, so that a word is
cut as before save for pieces that are now one:

- BPE: the pair becomes the last of the merges. Merges apply in order, so it joins what the old ones leave.
- Unigram: the score of a new token is the sum of its pieces' scores and a hair more, so it wins against just this way
  of cutting, and against no other.
- WordPiece takes the longest match from the left, so a new token may cut a word elsewhere than before ("cardiol" would
  cut "cardio##logy", "film" cuts "fil##ms"). Every word that was counted is cut again, and tokens that cut elsewhere
  as many of them as they shorten are refused.
"""

import heapq
import itertools
import json
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

from mlm_pytorch.adaptation.words import WordCounts
from mlm_pytorch.data.tokenizer import Tokenizer, make_tokenizer_of_files

LEAST_COUNT = 3  # of a pair; rarer ones would not be seen often enough to learn an embedding
_HAIR = 1e-6  # added to a Unigram token's score
_ROUNDS = 8  # of refusing WordPiece tokens and choosing others in their place

Pair = tuple[str, str]


@dataclass(frozen=True)
class Extension:
    """A tokenizer with new tokens.

    Attributes:
        tokenizer: the extended one; the ids of the old tokens are the old ones.
        pieces: the old ids that each new token joins, by new id.
    """

    tokenizer: Tokenizer
    pieces: dict[int, tuple[int, ...]]


def extend_vocabulary(tokenizer: Tokenizer, counts: WordCounts, num_tokens: int) -> Extension:
    """Add up to `num_tokens` tokens to a BPE, WordPiece or Unigram tokenizer; fewer where the text repeats too little.

    Args:
        tokenizer: stays as it is.
        counts: the corpus' words, by `count_pieces` with this tokenizer.
        num_tokens: how many to add.

    Raises:
        ValueError: a tokenizer of another kind, DNA or proteins, or a text that nothing can be gained from.
    """
    if counts.sequences:
        raise ValueError(
            "the corpus or the tokenizer is of DNA or proteins, where new tokens would join letters as if there were "
            "words; leave --extend-vocabulary out"
        )
    content = json.loads(tokenizer.files["tokenizer.json"])
    kind = content["model"].get("type") or ("BPE" if "merges" in content["model"] else None)
    if kind not in ("BPE", "WordPiece", "Unigram"):
        raise ValueError(
            f"the tokenizer is of the kind {kind}, to which no tokens can be added; BPE, WordPiece and Unigram can"
        )
    names = {id: name for name, id in tokenizer.backend.get_vocab(with_added_tokens=True).items()}
    added = {entry["id"] for entry in content["added_tokens"]}
    fixed = added | set(tokenizer.special.ids) | {tokenizer.unknown_id}
    fixed |= {id for id, name in names.items() if len(name) == 6 and name.startswith("<0x")}  # a byte each, by name
    words = Counter(
        {
            tuple(names[id] for id in word): n
            for word, n in counts.words.items()
            if len(word) > 1 and not fixed & set(word)
        }
    )
    joined = _joining(content["model"], kind)
    known = set(names.values())
    refused: set[str] = set()
    on_the_way: list[Pair] = []
    pairs: list[Pair] = []
    for _ in range(_ROUNDS):
        on_the_way = list(_most_frequent_pairs(words, num_tokens, joined, known, refused))
        pairs = [pair for pair in on_the_way if joined(pair) not in refused]
        harmful = _harmful(content["model"], words, [joined(pair) for pair in pairs]) if kind == "WordPiece" else set()
        if not harmful:
            break
        refused |= harmful
    pairs = [pair for pair in pairs if joined(pair) not in refused]
    if not pairs:
        raise ValueError(
            f"no two pieces of the corpus come together {LEAST_COUNT} times, so nothing would be gained; leave "
            "--extend-vocabulary out, or give more text"
        )
    first = tokenizer.special.num_tokens
    _write_tokens(content, kind, pairs, joined, first, names)
    parts: dict[str, tuple[int, ...]] = {name: (id,) for id, name in names.items()}
    for pair in on_the_way:
        parts[joined(pair)] = parts[pair[0]] + parts[pair[1]]
    pieces = {first + i: parts[joined(pair)] for i, pair in enumerate(pairs)}
    # Files of older formats would contradict tokenizer.json; transformers reads that alone.
    files = {
        name: tokenizer.files[name]
        for name in ("tokenizer_config.json", "special_tokens_map.json")
        if name in tokenizer.files
    }
    files["tokenizer.json"] = json.dumps(content, ensure_ascii=False).encode()
    extended = make_tokenizer_of_files(files, "the extended tokenizer")
    return Extension(extended, pieces)


def _joining(model: dict[str, Any], kind: str) -> Callable[[Pair], str]:
    """What the token of two pieces is called; a mark of continuation is written at its head only."""
    prefix = model.get("continuing_subword_prefix") or "" if kind != "Unigram" else ""
    return lambda pair: pair[0] + (pair[1].removeprefix(prefix) if prefix else pair[1])


# -- choosing ----------------------------------------------------------------------------------------------------------


def _most_frequent_pairs(
    words: Counter[tuple[str, ...]], num_tokens: int, joined: Callable[[Pair], str], taken: set[str], refused: set[str]
) -> Iterator[Pair]:
    """Pairs of neighbours in the order in which they are joined, until so many make a token that is not `refused`.

    `taken` are names that no new token may have. What is refused is joined all the same, since WordPiece needs no token
    on the way to a longer one. Each step costs the number of words that hold the pair, and a look at a heap.
    """
    cuts = [list(word) for word in words]
    counts = list(words.values())
    totals: Counter[Pair] = Counter()
    holders: defaultdict[Pair, set[int]] = defaultdict(set)
    for index, (cut, count) in enumerate(zip(cuts, counts, strict=True)):
        for pair in itertools.pairwise(cut):
            totals[pair] += count
            holders[pair].add(index)
    heap = [(-total, pair) for pair, total in totals.items()]
    heapq.heapify(heap)
    taken = set(taken)
    found = 0
    while heap and found < num_tokens:
        total, pair = heapq.heappop(heap)
        if -total != totals[pair]:  # an older figure: the newer one is in the heap as well
            continue
        if -total < LEAST_COUNT:
            return
        token = joined(pair)
        # A Unigram tokenizer without a pre-tokenizer has words side by side in one: they stay apart.
        if token in taken or pair[1].startswith("\u2581"):
            continue
        taken.add(token)
        found += token not in refused
        yield pair
        changed: Counter[Pair] = Counter()
        for index in holders.pop(pair):
            before = cuts[index]
            after = _join(before, pair, token)
            cuts[index] = after
            for sign, cut in ((-1, before), (1, after)):
                for neighbours in itertools.pairwise(cut):
                    changed[neighbours] += sign * counts[index]
                    if sign > 0:
                        holders[neighbours].add(index)
        for neighbours, change in changed.items():
            if change:
                totals[neighbours] += change
                heapq.heappush(heap, (-totals[neighbours], neighbours))


def _join(cut: list[str], pair: Pair, token: str) -> list[str]:
    """Pieces with every occurrence of a pair made one, from the left.

    >>> _join(["a", "b", "a", "b", "a"], ("a", "b"), "ab")
    ['ab', 'ab', 'a']
    """
    out, i = [], 0
    while i < len(cut):
        if cut[i] == pair[0] and i + 1 < len(cut) and cut[i + 1] == pair[1]:
            out.append(token)
            i += 2
        else:
            out.append(cut[i])
            i += 1
    return out


# -- WordPiece: what a longest match from the left makes of it -------------------------------------------------------


def _harmful(model: dict[str, Any], words: Counter[tuple[str, ...]], tokens: list[str]) -> set[str]:
    """The new tokens after which a word can't be cut, or that cut elsewhere as many words as they shorten.

    A word that is cut elsewhere is a price to be weighed: "film" is no token without "film ##s" in place of "fil ##ms".
    One that gets longer counts once for each piece that it gains.
    """
    prefix = model["continuing_subword_prefix"]
    vocabulary = set(model["vocab"]) | set(tokens)
    new = set(tokens)
    ending: set[str] = set()
    shortened: Counter[str] = Counter()
    moved: Counter[str] = Counter()
    for word, count in words.items():
        text = "".join(piece.removeprefix(prefix) if i else piece for i, piece in enumerate(word))
        borders = {*itertools.accumulate(len(piece) - (len(prefix) if i else 0) for i, piece in enumerate(word))}
        cut, blamed, start = 0, None, 0
        while start < len(text):
            end = len(text)
            while end > start and (prefix if start else "") + text[start:end] not in vocabulary:
                end -= 1
            piece = (prefix if start else "") + text[start:end]
            if piece in new and blamed is None:
                if end in borders:
                    shortened[piece] += count
                else:
                    blamed = piece
            if end == start:  # no token begins as the rest does
                if blamed is not None:
                    ending.add(blamed)
                break
            start, cut = end, cut + 1
        if blamed is not None:
            moved[blamed] += count * max(1, cut - len(word))
    return ending | {token for token, count in moved.items() if count >= shortened[token]}


# -- writing -----------------------------------------------------------------------------------------------------------


def _write_tokens(
    content: dict[str, Any],
    kind: str,
    pairs: list[Pair],
    joined: Callable[[Pair], str],
    first: int,
    names: dict[int, str],
) -> None:
    """Put the tokens into a tokenizer.json, with ids from `first` on."""
    model = content["model"]
    if kind == "Unigram":
        vocabulary = model["vocab"]
        lowest = min(score for _, score in vocabulary)
        # Ids are places in this list, and added tokens may stand behind its end: they keep their ids by standing in it.
        for id in range(len(vocabulary), first):
            vocabulary.append([names.get(id, f"<unused {id}>"), lowest])
        scores = dict(vocabulary)
        for pair in pairs:
            score = scores[pair[0]] + scores[pair[1]] + _HAIR
            scores[joined(pair)] = score
            vocabulary.append([joined(pair), score])
        return
    for i, pair in enumerate(pairs):
        model["vocab"][joined(pair)] = first + i
    if kind == "BPE":
        as_text = bool(model["merges"]) and isinstance(model["merges"][0], str)
        model["merges"] += [" ".join(pair) if as_text else list(pair) for pair in pairs]
