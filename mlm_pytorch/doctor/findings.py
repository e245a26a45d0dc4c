"""What a check says: green, yellow or red, with what was seen, why it matters and one remedy."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

Level = Literal["green", "yellow", "red"]
_GRAVITY: dict[Level, int] = {"green": 0, "yellow": 1, "red": 2}
EXAMPLES = 3
EXAMPLE_CHARACTERS = 160


@dataclass(frozen=True)
class Finding:
    """One thing that was looked at, and found good or not.

    check: its stable name, such as "mojibake".
    level: "green", "yellow" (look at it) or "red" (do not train on it like this).
    title: what is wrong, or right, in a few words.
    seen: what was seen, with figures.
    why: what it does to training; "" where the level is green.
    remedy: what to do about it; "" where the level is green.
    value: the number that was compared with the threshold; None where there is none.
    examples: up to three places of the corpus, each shortened; they are the corpus's text, never to be interpreted.
    """

    check: str
    level: Level
    title: str
    seen: str
    why: str = ""
    remedy: str = ""
    value: float | None = None
    examples: tuple[str, ...] = ()


def level_of(value: float, yellow: float, red: float | None) -> Level:
    """The level of a value that is worse the larger it is.

    >>> [level_of(share, 0.01, 0.1) for share in (0.0, 0.01, 0.5)]
    ['green', 'yellow', 'red']
    """
    if red is not None and value >= red:
        return "red"
    return "yellow" if value >= yellow else "green"


def worst(findings: Sequence[Finding]) -> Level:
    """The level of them all together; green where there are none."""
    return max(findings, key=_gravity).level if findings else "green"


def by_gravity(findings: Sequence[Finding]) -> list[Finding]:
    """Red ones first, else in the order given."""
    return sorted(findings, key=_gravity, reverse=True)


def _gravity(finding: Finding) -> int:
    return _GRAVITY[finding.level]


def shortened(text: str, around: int = 0) -> str:
    """At most `EXAMPLE_CHARACTERS` of a text, those from a little before `around` on."""
    start = max(0, around - EXAMPLE_CHARACTERS // 4)
    shown = text[start : start + EXAMPLE_CHARACTERS]
    return ("…" if start else "") + shown + ("…" if start + EXAMPLE_CHARACTERS < len(text) else "")
