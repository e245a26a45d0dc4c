"""Choose what to train a tokenizer on: spread over the corpus, bounded, the same every time."""

import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

SAMPLE_CHARACTERS = 1 << 25  # bounds memory
CHUNK_CHARACTERS = 1 << 16
LONGEST_RUN = 64  # a longer word is no word: a sequence, or writing without blanks
_LONG_RUNS = re.compile(rf"\S{{{LONGEST_RUN + 1},}}")
_RUN_CUTS = re.compile(rf"\S{{{LONGEST_RUN}}}(?=\S)")


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


def sample_for_training(texts: list[str], max_characters: int, max_run_characters: int) -> list[str]:
    """A smaller sample for a trainer whose time grows with the number of different words.

    At most `max_characters`, and of characters in long runs without a blank (DNA, proteins, some scripts), whose words
    hardly ever repeat, about `max_run_characters`. These runs are cut, since trainers take time with the square of a
    word's length; of 64 pairs of neighbours one is not counted.
    """
    characters = sum(map(len, texts))
    in_runs = sum(len(run) for text in texts for run in _LONG_RUNS.findall(text))
    if in_runs > max_run_characters:
        max_characters = min(max_characters, characters * max_run_characters // in_runs)
    return [part for text in sample_texts(texts, max_characters).texts for part in _cut_runs(text)]


def _cut_runs(text: str) -> Iterator[str]:
    start = 0
    for cut in _RUN_CUTS.finditer(text):
        yield text[start : cut.end()]
        start = cut.end()
    yield text[start:]
