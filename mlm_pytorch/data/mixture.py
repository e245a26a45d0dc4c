"""Documents of several corpora, interleaved in given proportions.

    parse_mix:  "news.jsonl=0.7"          ->  ("news.jsonl", 0.7)
    schedule:   weights                   ->  which part comes next, for ever
    Mixture:    parts with their weights  ->  Document...              (what a `Corpus` is, for a preparation)

Nothing is drawn at random: the order is a function of the weights.

**How exact it is.** Let part i have weight w (all weights adding up to 1). In any window of 1,000 consecutive documents
it has floor(1000 w) or ceil(1000 w) of them: less than one away from its due, and exactly its due where that is a whole
number. No order can be more exact. In a window of another length L it is at most one away from w L where there are two
parts. For three or more no order achieves that at every L (but for a few weights: Fraenkel's conjecture); here it is
less than two away where all weights are multiples of 1/1000, and otherwise hardly more than four (in trials 4.1).
"""

import math
from collections.abc import Iterator, Sequence
from fractions import Fraction
from itertools import islice
from pathlib import Path
from typing import Any

from mlm_pytorch.data.corpus import Corpus
from mlm_pytorch.data.files import CorpusFile
from mlm_pytorch.data.formats.record import Document
from mlm_pytorch.data.formats.text import SplitText
from mlm_pytorch.data.lines import EncodingErrors

WINDOW = 1000  # documents within which proportions are exact


def parse_mix(given: str) -> tuple[str, float]:
    """A corpus and its weight. The last "=" separates them.

    >>> parse_mix("news.jsonl=0.7")
    ("news.jsonl", 0.7)
    """
    name, separator, weight = given.rpartition("=")
    if not separator or not name:
        raise ValueError(f"{given!r} is no part of a mixture; write FILE=WEIGHT, such as news.jsonl=0.7")
    try:
        return name, float(weight)
    except ValueError:
        raise ValueError(f"{given!r}: weight {weight!r} is not a number; write for example {name}=0.7") from None


class Mixture:
    """Several corpora as one: see the top of this file for the order of their documents.

    - `parts`: each a path, folder, glob, URL or hub:NAME, and its weight; the weights need not add up to 1.
    - The other arguments are those of `Corpus`, for all parts.

    It ends as soon as every part has been read to its end; until then a part that is shorter begins again.
    `repeats` says how often each one did. `bytes_done` and `empty_documents` count the first reading alone.

    Raises ValueError for weights that are no proportions, and all that `Corpus` raises; while iterating also for a part
    without documents, and one that cannot be read again (a pipe, unless `spool` has copied it).
    """

    def __init__(
        self,
        parts: Sequence[tuple[str, float]],
        *,
        column: str | None = None,
        split_text: SplitText | None = None,
        encoding_errors: EncodingErrors = "strict",
        num_tokens: int | None = None,
    ):
        _check_parts(parts)
        self.begins_again = True
        self.weights = [weight for _, weight in parts]
        options = {"column": column, "split_text": split_text, "encoding_errors": encoding_errors}
        self.parts = [_Part(name, Corpus([name], **options, num_tokens=num_tokens)) for name, _ in parts]

    @property
    def files(self) -> list[CorpusFile]:
        """Those of all parts."""
        return [file for part in self.parts for file in part.corpus.files]

    @property
    def skipped_files(self) -> list[Path]:
        """Those of all parts."""
        return [path for part in self.parts for path in part.corpus.skipped_files]

    @property
    def bytes_total(self) -> int | None:
        """Compressed bytes of all files, each counted once; None where that cannot be known."""
        totals = [part.corpus.bytes_total for part in self.parts]
        return None if None in totals else sum(total for total in totals if total is not None)

    @property
    def bytes_done(self) -> int:
        """Of these, how many have been read at least once."""
        return sum(part.bytes_done for part in self.parts)

    @property
    def empty_documents(self) -> int:
        """Left out of the parts, each counted once."""
        return sum(part.empty_documents for part in self.parts)

    @property
    def identity(self) -> Any:
        """As a `Corpus` has one: those of the parts, with their weights."""
        identities = [part.corpus.identity for part in self.parts]
        if None in identities:
            return None
        names = [part.name for part in self.parts]
        return [list(part) for part in zip(names, self.weights, identities, strict=True)]

    @property
    def repeats(self) -> dict[str, int]:
        """How often each part was begun again: 0 for one that was read once."""
        return {part.name: part.repeats for part in self.parts}

    def __iter__(self) -> Iterator[Document]:
        for part in self.parts:
            part.rewind()
        reading = set(range(len(self.parts)))  # parts that have not been read to their end
        for index in schedule(self.weights):
            part = self.parts[index]
            yield part.take()
            if index in reading and part.was_read:
                reading.remove(index)
                if not reading:
                    return

    def spool(self, folder: Path) -> None:
        """Copy the inputs that can be read only once into `folder`, so that all can be read again."""
        for index, part in enumerate(self.parts):
            if any(file.is_stream for file in part.corpus.files):
                copies = folder / f"part-{index:03d}"
                copies.mkdir()
                part.corpus.spool(copies)


class _Part:
    """A corpus that begins again when it ends. It reads one document ahead, so as to know its end when it is there."""

    def __init__(self, name: str, corpus: Corpus):
        self.name, self.corpus = name, corpus
        self.repeats = 0
        self.was_read = False  # to its end, at least once
        self.first_counts: tuple[int, int] | None = None

    @property
    def bytes_done(self) -> int:
        return self.first_counts[0] if self.first_counts else self.corpus.bytes_done

    @property
    def empty_documents(self) -> int:
        return self.first_counts[1] if self.first_counts else self.corpus.empty_documents

    def rewind(self) -> None:
        """Begin anew, counts and all."""
        for file in self.corpus.files:
            if file.is_stream:
                raise ValueError(
                    f"{file.label} can be read only once, but a part of a mixture may have to be repeated; save it to "
                    "a file first"
                )
        self.repeats, self.was_read, self.first_counts = 0, False, None
        self.documents = iter(self.corpus)
        self.upcoming = next(self.documents, None)
        if self.upcoming is None:
            held = f"only {self.corpus.empty_documents:,} empty ones" if self.corpus.empty_documents else "none at all"
            raise ValueError(f"{self.name} holds no documents ({held}); leave it out of the mixture")

    def take(self) -> Document:
        if self.upcoming is None:
            self.repeats += 1
            self.documents = iter(self.corpus)
            self.upcoming = next(self.documents, None)
        document = self.upcoming
        if document is None:
            raise ValueError(f"{self.name} holds no documents any more; it was changed while it was read")
        self.upcoming = next(self.documents, None)
        if self.upcoming is None and not self.was_read:
            self.was_read = True
            self.first_counts = self.corpus.bytes_done, self.corpus.empty_documents
        return document


def _check_parts(parts: Sequence[tuple[str, float]]) -> None:
    if not parts:
        raise ValueError("a mixture has no parts; give at least one as FILE=WEIGHT")
    names = [name for name, _ in parts]
    for name, weight in parts:
        if names.count(name) > 1:
            raise ValueError(f"{name} is in the mixture twice; name it once, with its whole weight")
        if not math.isfinite(weight) or weight < 0:
            raise ValueError(f"{name} has weight {weight}; a weight is a number above 0")
    if not any(weight for _, weight in parts):
        raise ValueError(f"the weights of {', '.join(names[:12])} add up to 0; give at least one a number above 0")
    for name, weight in parts:
        if weight == 0:
            raise ValueError(f"{name} has weight 0, so none of it would be read; leave it out")
    if len(parts) > WINDOW:
        raise ValueError(f"a mixture of {len(parts):,} parts is too fine; choose at most {WINDOW:,}")


# -- the order ---------------------------------------------------------------------------------------------------------


def schedule(weights: Sequence[float]) -> Iterator[int]:
    """Yield for ever the index of the part that comes next. Weights are taken as the decimals that they print as.

    All blocks of 1,000 documents are alike: floor(1000 w) places belong to each part, spread by `_spread`. The places
    left over, fewer than there are parts, go to different parts in each block: to those that are owed most. One that
    has such a place in two blocks running stays there. So any 1,000 documents in a row hold each of a part's own places
    once, and the part at most once at the places left over, where its visits are at least 1,000 documents apart.
    """
    exact = [Fraction(repr(float(weight))) for weight in weights]
    shares = [weight / sum(exact) for weight in exact]
    if len(shares) <= 2:  # for which `_spread` is as exact in any window at all
        yield from _spread(shares)
        return
    fixed = [int(WINDOW * share) for share in shares]
    fractions = [WINDOW * share - count for share, count in zip(shares, fixed, strict=True)]
    left_over = WINDOW - sum(fixed)
    # The places left over are a part of their own here, the last one.
    template = list(islice(_spread([Fraction(count, WINDOW) for count in (*fixed, left_over)]), WINDOW))
    if not left_over:
        while True:
            yield from template
    owed = [Fraction(0)] * len(shares)
    places: list[int] = []  # the part at each of the places left over
    while True:
        owed = [debt + fraction for debt, fraction in zip(owed, fractions, strict=True)]
        chosen = sorted(range(len(shares)), key=lambda index: (-owed[index], index))[:left_over]
        for index in chosen:
            owed[index] -= 1
        entering = iter([index for index in chosen if index not in places])
        places = [index if index in chosen else next(entering) for index in places] or chosen
        taken = iter(places)
        for index in template:
            yield next(taken) if index == len(shares) else index


def _spread(shares: Sequence[Fraction]) -> Iterator[int]:
    """Tijdeman's order ("The chairman assignment problem", Discrete Mathematics 32, 1980): yield indices so that after
    any n of them, index i has come n·share(i) times, give or take at most 1 - 1/(2k - 2) for k indices.

    A part may come as soon as it is owed 1/(2k - 2); of these that one comes which would be owed too much soonest. Two
    prefixes make a window, so a window is at most 2 - 1/(k - 1) off: one for two parts.
    """
    scale = math.lcm(*(share.denominator for share in shares))
    parts = {index: int(share * scale) for index, share in enumerate(shares) if share}
    grain = max(2 * len(parts) - 2, 1)
    # A part that has come c times is owed 1 - 1/grain more than that after (grain - 1 + grain c) / (grain share).
    steps = {index: math.lcm(*parts.values()) // part for index, part in parts.items()}
    deadlines = {index: (grain - 1) * step for index, step in steps.items()}
    owed = dict.fromkeys(parts, 0)  # in units of 1 / (grain scale)
    while True:
        for index, part in parts.items():
            owed[index] += grain * part
        index = min((index for index in parts if owed[index] >= scale), key=deadlines.__getitem__)
        owed[index] -= grain * scale
        deadlines[index] += grain * steps[index]
        yield index
