"""Which script and language a text is in, told from its letters and its commonest words. Rough, quick, no model.

Only to see that a corpus is mixed: a few documents in another language are found, which language it is matters less.
"""

import re
import unicodedata
from collections import Counter
from collections.abc import Sequence
from functools import cache

from mlm_pytorch.doctor.findings import Finding, shortened

LOOKED_AT = 1200  # characters of a document
FEWEST_LETTERS = 24
MINOR = 0.004  # share of documents in another script or language that is worth a look
_WORD = re.compile(r"[^\W\d_]+")

# Words that are common in one of these languages and in none of the others.
_COMMON = {
    "English": "the and of that with this was for are which from have they been would there",
    "German": "der die und das nicht ist mit auch auf eine dem wird sich bei oder als für einen",
    "French": "les des est une dans pour qui avec sur pas au cette sont mais être aux leur été",
    "Spanish": "el los las por una del con para como más pero sus fue también está hay muy",
    "Italian": "il di che della sono gli nel alla più anche dei questo delle ha è nella essere",
    "Portuguese": "os não uma em ao mais foi são dos também pelo pela ou nos isso até já",
    "Dutch": "het een van zijn niet voor met aan ook maar naar worden deze door wordt heeft bij",
    "Polish": "nie się jest jak przez ale był oraz tym jego tego które już może dla lub",
    "Swedish": "och att det som är av för inte den till ett har från kan eller hade skulle",
    "Turkish": "bir bu ve için ile olarak daha çok olan ancak sonra gibi kadar değil ise",
    "Indonesian": "yang dan dari untuk dengan pada adalah tidak ini itu dalam juga akan oleh",
}
_LANGUAGE_OF = {word: name for name, words in _COMMON.items() for word in words.split()}


@cache
def _script(char: str) -> str:
    name = unicodedata.name(char, "")
    first = name.partition(" ")[0]
    if first in ("CJK", "HIRAGANA", "KATAKANA", "HANGUL", "KANGXI", "BOPOMOFO"):
        return "Han, Kana or Hangul"
    return first.capitalize() if first else "unnamed"


def script_of(text: str) -> str | None:
    """The script of most letters; None for a text of few letters.

    >>> script_of("Слова на другом языке, другими буквами"), script_of("12")
    ('Cyrillic', None)
    """
    head = text[:LOOKED_AT]
    if head.isascii():
        return "Latin" if sum(map(len, _WORD.findall(head[:400]))) >= FEWEST_LETTERS else None
    counts = Counter(_script(char) for char in head if char.isalpha())
    total = sum(counts.values())
    if total < FEWEST_LETTERS and counts.get("Han, Kana or Hangul", 0) < FEWEST_LETTERS // 3:
        return None
    name, most = counts.most_common(1)[0]
    return name if most > total / 2 else "several scripts"


def language_of(text: str) -> str | None:
    """The language of a text in Latin letters, where its commonest words tell it clearly.

    >>> language_of("Der Hund ist nicht im Haus und die Katze auch nicht"), language_of("Chapter 1")
    ('German', None)
    """
    counts = Counter(_LANGUAGE_OF.get(word) for word in _WORD.findall(text[:LOOKED_AT].lower()))
    counts.pop(None, None)
    (name, most), (_, second) = [*counts.most_common(2), ("", 0), ("", 0)][:2]
    return name if most >= 4 and most > 2 * second else None


def check_languages(texts: Sequence[str]) -> list[Finding]:
    """Whether the documents are in more than one script, and in more than one language."""
    found = [_mixed("scripts", "script", texts, [script_of(text) for text in texts])]
    found.append(_mixed("languages", "language", texts, [language_of(text) for text in texts]))
    return found


def _mixed(check: str, what: str, texts: Sequence[str], names: Sequence[str | None]) -> Finding:
    counts = Counter(name for name in names if name is not None)
    told = sum(counts.values())
    if not told or len(texts) < 20:
        return Finding(check, "green", f"one {what}", f"too few documents tell their {what}")
    (main, most), others = counts.most_common(1)[0], told - counts.most_common(1)[0][1]
    share = others / len(texts)
    if share < MINOR:
        return Finding(check, "green", f"one {what}", f"{main} in {most / told:.1%} of those that tell", value=share)
    minor = [f"{name} {count / told:.1%}" for name, count in counts.most_common(5)[1:]]
    examples = [text for text, name in zip(texts, names, strict=True) if name not in (None, main)]
    return Finding(
        check,
        "yellow",
        f"More than one {what}",
        f"{main} {most / told:.1%}, {', '.join(minor)} (of {told:,} documents that tell)",
        f"a small {what} takes entries of the vocabulary and is hardly learned; where it is not meant, it is rubbish",
        f"filter by {what} (fastText's language identification does it well), or leave it if it is meant",
        share,
        tuple(shortened(text) for text in examples[:3]),
    )
