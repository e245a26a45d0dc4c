"""Cut a text into words that several tokenizers agree on: what is clicked, coloured and compared.

Spans are [start, end) in characters (code points) of the text.
"""

import re
import unicodedata
from collections.abc import Sequence
from itertools import pairwise

Span = tuple[int, int]

LONGEST_WORD = 24  # characters; a longer one (DNA, a protein, an address) is cut where all tokenizers begin a token
MASK = "[MASK]"  # written in a text, it is a mask whatever the tokenizers call theirs
_JOINERS = "\u200c\u200d"  # within words of some scripts, and within emoji
_SKIN_TONES = "\U0001f3fb\U0001f3fc\U0001f3fd\U0001f3fe\U0001f3ff"
_APOSTROPHES = "'\u2019"
# Scripts that put no blanks between words: each character is a unit, which tokens that hold several join.
_WITHOUT_BLANKS = re.compile(
    "[\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff\u3040-\u30ff\u3400-\u9fff\uf900-\ufaff\U00020000-\U0003ffff]"
)


def words_of(text: str, tokens: Sequence[Sequence[Span]], *, by_token: bool = False) -> list[Span]:
    """The words of a text: runs of letters and digits, and what stands between blanks besides.

    No token of any tokenizer reaches across a word's border, so each token belongs to one word of each reading, and
    words can be compared where tokens cannot.

    Args:
        text: the text.
        tokens: for each tokenizer, the spans of its tokens, in order; blanks at their ends do not count.
        by_token: cut words wherever all tokenizers begin a token, as for proteins. Else only those longer than
            `LONGEST_WORD`.

    >>> text = "it isn't Tokyo."
    >>> [text[a:b] for a, b in words_of(text, [[(0, 2), (3, 8), (9, 14), (14, 15)]])]
    ['it', "isn't", 'Tokyo', '.']
    >>> words_of("ACGTAC", [[(0, 3), (3, 6)], [(0, 1), (1, 3), (3, 6)]], by_token=True)
    [(0, 3), (3, 6)]
    """
    trimmed = [[span for span in (trim(text, token) for token in each) if span is not None] for each in tokens]
    units = _joined(_units(text), _inside(trimmed))
    begun = [{start for start, _ in each} for each in trimmed]
    common = set.intersection(*begun) - _inside(trimmed) if begun else set()
    words = []
    for start, end in units:
        cuts = {i for i in common if start < i < end} if by_token or end - start > LONGEST_WORD else set()
        words += pairwise(sorted({start, end} | cuts))
    return words


def trim(text: str, span: Span) -> Span | None:
    """A span without the blanks at its ends; None where it is nothing else.

    >>> trim("a  b ", (1, 5)), trim("a  b ", (1, 3))
    ((3, 4), None)
    """
    start, end = span
    while start < end and text[start].isspace():
        start += 1
    while start < end and text[end - 1].isspace():
        end -= 1
    return (start, end) if start < end else None


def _inside(tokens: Sequence[Sequence[Span]]) -> set[int]:
    """Places where a cut would go through a token."""
    return {i for each in tokens for start, end in each for i in range(start + 1, end)}


def _units(text: str) -> list[Span]:
    """What a reader would call words, and each mark that is no part of one."""
    units: list[Span] = []
    end_of_mask = 0
    for index, char in enumerate(text):
        if index < end_of_mask or char.isspace():
            continue
        if text.startswith(MASK, index):
            end_of_mask = index + len(MASK)
            units.append((index, end_of_mask))
        elif units and units[-1][1] == index and _goes_on(text, index):
            units[-1] = (units[-1][0], index + 1)
        else:
            units.append((index, index + 1))
    return units


def _goes_on(text: str, index: int) -> bool:
    """Whether a character belongs to the word of the one before it."""
    before, char = text[index - 1], text[index]
    if before == "]" and text.endswith(MASK, 0, index):
        return False
    if char in _JOINERS or char in _SKIN_TONES or unicodedata.category(char)[0] == "M":
        return True
    if before == _JOINERS[1] and not char.isalnum():
        return True  # emoji made of several
    if char in _APOSTROPHES:
        return before.isalnum() and text[index + 1 : index + 2].isalpha()
    if not _is_letter(char) or _WITHOUT_BLANKS.match(char):
        return False
    if before in _APOSTROPHES:
        return index > 1 and text[index - 2].isalnum()
    return (_is_letter(before) or unicodedata.category(before)[0] == "M") and not _WITHOUT_BLANKS.match(before)


def _is_letter(char: str) -> bool:
    return char.isalnum() or char == "_" or char in _JOINERS


def _joined(units: Sequence[Span], inside: set[int]) -> list[Span]:
    """Units put together where a token holds parts of both."""
    joined: list[Span] = []
    for start, end in units:
        if joined and all(i in inside for i in range(joined[-1][1], start + 1)):
            joined[-1] = (joined[-1][0], end)
        else:
            joined.append((start, end))
    return joined
