"""Minimal pairs: does a model find the acceptable sentence of two likelier (Warstadt et al. 2020, arXiv 1912.00582)?

A file has one JSON object a line, with the fields `good` and `bad` (BLiMP's own: `sentence_good`, `sentence_bad`), and
as far as known `uid` (the paradigm) and `phenomenon` (BLiMP's own: `UID`, `linguistics_term`).
"""

import gzip
import json
import zlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
from torch import nn

from mlm_pytorch.data.tokenizer import Tokenizer
from mlm_pytorch.evaluation.pseudo_likelihood import Variant, pseudo_log_likelihood

RESAMPLES = 1000
BOOTSTRAP_SEED = 0
COVERAGE = 0.95
GZIP_MAGIC = b"\x1f\x8b"
_FIELDS = {
    "good": ("good", "sentence_good"),
    "bad": ("bad", "sentence_bad"),
    "uid": ("uid", "UID"),
    "phenomenon": ("phenomenon", "linguistics_term"),
}


@dataclass(frozen=True)
class MinimalPair:
    """Two sentences that differ in what makes one of them unacceptable."""

    good: str
    bad: str
    uid: str
    phenomenon: str


@dataclass(frozen=True)
class PairAccuracy:
    """A share of right pairs with its bootstrap interval.

    Attributes:
        accuracy: share of pairs whose good sentence scores higher; for a group of paradigms, the mean of theirs.
        low, high: 95% interval, resampling the pairs of each paradigm.
        num_pairs: pairs compared.
        num_ties: pairs with equal scores, which count as wrong.
    """

    accuracy: float
    low: float
    high: float
    num_pairs: int
    num_ties: int


@dataclass(frozen=True)
class MinimalPairsResult:
    """Accuracy overall (macro over `uid`), per phenomenon (macro over its `uid`s) and per `uid`."""

    overall: PairAccuracy
    phenomena: dict[str, PairAccuracy]
    uids: dict[str, PairAccuracy]


def read_minimal_pairs(path: Path) -> list[MinimalPair]:
    """The pairs of a .jsonl or .jsonl.gz file.

    `uid` is the file's name where a record has none, `phenomenon` the `uid`.

    Raises:
        ValueError: no such file, a damaged one, no pairs in it, or a record that is no pair, named by its line.
    """
    try:
        content = path.read_bytes()
        if content[:2] == GZIP_MAGIC:
            content = gzip.decompress(content)
        lines = content.decode("utf-8-sig").split("\n")
    except OSError as error:
        raise ValueError(
            f"{path} cannot be read ({error.strerror or error}); name a .jsonl or .jsonl.gz file"
        ) from None
    except (EOFError, zlib.error) as error:
        raise ValueError(f"{path} is damaged ({error}); copy it again") from None
    except UnicodeDecodeError as error:
        raise ValueError(f"{path} is not UTF-8 (byte {error.start:,}); convert it") from None
    name = path.name.removesuffix(".gz").removesuffix(".jsonl")
    pairs = [_pair(line, f"{path} line {number}", name) for number, line in enumerate(lines, 1) if line.strip()]
    if not pairs:
        raise ValueError(f"{path} holds no pairs; each line is an object with the fields good and bad")
    return pairs


def _pair(line: str, where: str, name: str) -> MinimalPair:
    try:
        record = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{where} is not JSON ({error}); write one object a line") from None
    if not isinstance(record, dict):
        raise ValueError(f"{where} is no object; each line is an object with the fields good and bad")
    found: dict[str, Any] = {}
    for field, spellings in _FIELDS.items():
        found[field] = next((record[spelling] for spelling in spellings if spelling in record), None)
    for field in ("good", "bad"):
        if not isinstance(found[field], str) or not found[field].strip():
            has = ", ".join(map(str, list(record)[:8])) or "no fields"
            raise ValueError(
                f"{where} is no pair: it has no sentence in {' or '.join(_FIELDS[field])} (its fields: {has}); "
                "rename those that hold the sentences"
            )
        broken = next((char for char in found[field] if 0xD800 <= ord(char) < 0xE000), None)
        if broken is not None:
            raise ValueError(f"{where} holds half a character (\\u{ord(broken):04x}); repair it")
    uid = str(found["uid"] or name)
    return MinimalPair(found["good"], found["bad"], uid, str(found["phenomenon"] or uid))


def minimal_pairs(
    model: nn.Module,
    tokenizer: Tokenizer,
    pairs: Sequence[MinimalPair],
    *,
    variant: Variant = "original",
    score: Literal["sum", "mean"] = "sum",
    max_seq_len: int | None = None,
    batch_tokens: int | None = None,
    progress: Callable[[int], None] | None = None,
) -> MinimalPairsResult:
    """Compare the pseudo-log-likelihoods of the sentences of each pair.

    Args:
        model, tokenizer, variant, max_seq_len, batch_tokens: as `pseudo_log_likelihood` takes them.
        pairs: at least one.
        score: compare the sums (the field's custom) or the means per token.
        progress: called with the number of sentences done so far, of two a pair.

    Raises:
        ValueError: as `pseudo_log_likelihood`; sentence 2k - 1 and 2k are those of pair k.
    """
    texts = [text for pair in pairs for text in (pair.good, pair.bad)]
    scores = pseudo_log_likelihood(
        model,
        tokenizer,
        texts,
        variant=variant,
        max_seq_len=max_seq_len,
        batch_tokens=batch_tokens,
        progress=progress,
    )
    values = np.array([getattr(s, score) for s in scores]).reshape(-1, 2)
    same = [pair.good == pair.bad for pair in pairs]
    values[same, 1] = values[same, 0]  # computed in other batches, they could differ by a rounding
    return summarize(pairs, values[:, 0], values[:, 1])


def summarize(pairs: Sequence[MinimalPair], good: np.ndarray, bad: np.ndarray) -> MinimalPairsResult:
    """Accuracies with intervals from the scores of the sentences, (number of pairs,) each.

    Resampling n pairs with replacement makes the number of right ones binomial, so that number is what is drawn.

    >>> pairs = [MinimalPair("a", "b", "u", "p"), MinimalPair("c", "d", "v", "p"), MinimalPair("e", "f", "v", "p")]
    >>> summarize(pairs, np.array([2.0, 1.0, 3.0]), np.array([1.0, 1.0, 2.0])).overall.accuracy     # (1 + 1/2) / 2
    0.75
    """
    uids = np.array([pair.uid for pair in pairs])
    phenomenon_of = {pair.uid: pair.phenomenon for pair in reversed(pairs)}
    generator = np.random.default_rng(BOOTSTRAP_SEED)
    cells: dict[str, tuple[PairAccuracy, np.ndarray]] = {}
    for uid in sorted(phenomenon_of):
        here = uids == uid
        right, count = int((good[here] > bad[here]).sum()), int(here.sum())
        draws = generator.binomial(count, right / count, RESAMPLES) / count
        cells[uid] = _accuracy(right / count, draws, count, int((good[here] == bad[here]).sum())), draws
    groups: dict[str, list[str]] = {}
    for uid in cells:
        groups.setdefault(phenomenon_of[uid], []).append(uid)
    return MinimalPairsResult(
        overall=_macro(list(cells.values())),
        phenomena={name: _macro([cells[uid] for uid in groups[name]]) for name in sorted(groups)},
        uids={uid: cell for uid, (cell, _) in cells.items()},
    )


def _accuracy(value: float, draws: np.ndarray, num_pairs: int, num_ties: int) -> PairAccuracy:
    low, high = np.quantile(draws, [(1 - COVERAGE) / 2, (1 + COVERAGE) / 2])
    return PairAccuracy(value, float(low), float(high), num_pairs, num_ties)


def _macro(cells: list[tuple[PairAccuracy, np.ndarray]]) -> PairAccuracy:
    draws = np.mean([draws for _, draws in cells], axis=0)
    mean = float(np.mean([cell.accuracy for cell, _ in cells]))
    num_pairs, num_ties = (sum(getattr(cell, name) for cell, _ in cells) for name in ("num_pairs", "num_ties"))
    return _accuracy(mean, draws, num_pairs, num_ties)
