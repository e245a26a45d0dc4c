"""What can be wrong with a corpus as a whole: what was not read, what is empty, repeated, leaked, cut wrongly or mixed.

Each check is a function of a `Sample` (or of its texts) that returns a finding.
"""

import re
import statistics
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from mlm_pytorch.doctor.findings import Finding, level_of, shortened
from mlm_pytorch.doctor.repeats import REPEATED_CHARACTERS, Repeats
from mlm_pytorch.doctor.sample import Sample

OPENING = 48  # characters in which documents begin alike
_DIGITS = re.compile(r"\d+")
_NEXT_SENTENCE = re.compile(r"[.!?][\"'”’)\]]*\s+[\"'“‘(\[]*([^\W\d_])")


def check_corpus(sample: Sample) -> list[Finding]:
    """All that a sample tells of its corpus."""
    texts = sample.texts
    findings = [check_failures(sample), check_barren(sample), check_skipped(sample), check_empty(sample)]
    if texts:
        findings += [check_openings(texts), check_values(texts), check_lines(sample), check_giants(sample)]
    return findings


def check_failures(sample: Sample) -> Finding:
    """Records that cannot be read: broken JSON, bytes that are no UTF-8, a file that was cut off."""
    if not sample.failed:
        return Finding("unreadable", "green", "every record could be read", f"{sample.documents_read:,} documents read")
    share = sample.failed / (sample.failed + sample.documents_read + sample.empty_documents)
    return Finding(
        "unreadable",
        "red",
        "Records cannot be read",
        f"{sample.failed:,} of them ({share:.1%}); the first: {sample.failure}",
        "preparation stops at the first of them",
        "repair what the message names, or leave the file out",
        share,
    )


def check_barren(sample: Sample) -> Finding:
    """Files in which nothing was found: a part of a corpus that drops out without a word."""
    if not sample.barren_files:
        return Finding(
            "barren-files", "green", "every file that was read holds documents", f"{sample.files_read:,} files"
        )
    return Finding(
        "barren-files",
        level_of(len(sample.barren_files) / sample.files_read, 0.0, 0.1),
        "Files without a document",
        f"{len(sample.barren_files):,} of {sample.files_read:,} files",
        "a part of the corpus is missing, and nothing else will say so",
        "look at these files: were they cut off, or is the text in another column?",
        len(sample.barren_files) / sample.files_read,
        sample.barren_files[:3],
    )


def check_skipped(sample: Sample) -> Finding:
    """Files of folders that are not read because of their suffix."""
    count = len(sample.skipped_files)
    if not count:
        return Finding("skipped-files", "green", "no file is left out", f"{sample.files:,} files")
    return Finding(
        "skipped-files",
        level_of(count / (count + sample.files), 0.0, 0.5),
        "Files are left out of folders",
        f"{count:,} beside the {sample.files:,} that are read",
        "their suffix is not one that is read, so a corpus can be smaller than its folder",
        "name them by a glob, or convert them",
        count / (count + sample.files),
        sample.skipped_files[:3],
    )


def check_empty(sample: Sample) -> Finding:
    """Documents that hold nothing but white space."""
    total = sample.empty_documents + sample.documents_read
    share = sample.empty_documents / total
    seen = f"{sample.empty_documents:,} of {total:,} ({share:.1%})"
    level = level_of(share, 0.005, 0.3)
    # Between the lines of a text there are often blank ones.
    if level == "green" or (sample.line_documents and share < 0.6):
        return Finding("empty-documents", "green", "few documents are empty", seen, value=share)
    return Finding(
        "empty-documents",
        level,
        "Empty documents",
        seen,
        "they are left out, so there is less to learn from than it seems",
        "see whether their text is in another column (--column), or was lost when the corpus was made",
        share,
    )


def check_duplicates(repeats: Repeats, share_read: float | None) -> Finding:
    """Documents that are equal to an earlier one. `share_read`: of the corpus; None where that is not known."""
    share = repeats.duplicates / max(1, repeats.documents)
    read = f"{_known(share_read)} of the corpus read"
    seen = f"{share:.1%} of {repeats.documents:,} documents repeat an earlier one ({read})"
    level = level_of(share, 0.005, 0.1) if repeats.documents >= 20 else "green"
    if level == "green":
        return Finding("duplicates", "green", "few documents repeat", seen, value=share)
    return Finding(
        "duplicates",
        level,
        "Documents repeat",
        seen + f"; those under {REPEATED_CHARACTERS} characters are not counted",
        "what repeats is learned by heart, and what is held out is in the training data as well",
        "pass --drop-duplicates",
        share,
    )


def _known(share_read: float | None) -> str:
    return "an unknown share" if share_read is None else f"{share_read:.0%}"


def check_leak(repeats: Repeats, share_read: float | None) -> Finding:
    """Held-out documents that are in the training corpus: at least those found, where it is not known how much of it
    was read.
    """
    total = len(repeats.held_out)
    found = len(repeats.found) / (1.0 if share_read is None else max(share_read, 1e-9))
    share = min(1.0, found / max(1, total))
    least = "at least" if share_read is None else "about"
    read = _known(share_read)
    seen = f"{least} {share:.1%} of the {total:,} held-out documents are in the corpus ({read} of it read)"
    level = level_of(share, 0.001, 0.005)
    if level == "green":
        return Finding("leak", "green", "what is held out is not in the corpus", seen, value=share)
    return Finding(
        "leak",
        level,
        "Held-out documents are in the training corpus",
        seen,
        "the held-out loss then tells how well they were learned by heart",
        "remove them from either file",
        share,
    )


def check_openings(texts: Sequence[str]) -> Finding:
    """Different documents that begin with the same words: navigation, licences, headers."""
    counts: Counter[str] = Counter()
    whole: dict[str, set[int]] = {}
    for text in texts:
        if len(text) >= 2 * OPENING:
            opening = _DIGITS.sub("0", " ".join(text[: 2 * OPENING].split()))[:OPENING]
            counts[opening] += 1
            whole.setdefault(opening, set()).add(hash(text))
    alike = {opening: len(whole[opening]) for opening in counts if len(whole[opening]) >= 5}
    share = sum(alike.values()) / max(1, len(texts))
    level = level_of(share, 0.005, 0.3) if len(texts) >= 100 else "green"
    if level == "green":
        return Finding(
            "openings", "green", "documents begin differently", f"{share:.1%} begin like four others", value=share
        )
    common = sorted(alike, key=lambda opening: -alike[opening])
    return Finding(
        "openings",
        level,
        "Documents begin alike",
        f"{share:.1%} of documents begin like at least four others, in {len(alike):,} ways",
        "boilerplate (menus, licences, headers) is learned by heart and makes the loss look good",
        "cut it off, or keep it in one document of many",
        share,
        tuple(shortened(opening) for opening in common[:3]),
    )


def check_values(texts: Sequence[str]) -> Finding:
    """A column of a few values, over and over: a label, not a text."""
    different = len(set(texts))
    share = different / len(texts)
    if len(texts) < 50 or share > 0.05:
        return Finding(
            "values", "green", "documents differ", f"{different:,} different among {len(texts):,}", value=share
        )
    return Finding(
        "values",
        "red",
        "The documents are a few values",
        f"{different:,} different ones among {len(texts):,}",
        "this is a column of labels or names, not of texts",
        "name the column that holds the text with --column",
        share,
        tuple(shortened(text) for text, _ in Counter(texts).most_common(3)),
    )


def check_lines(sample: Sample) -> Finding:
    """Lines read as documents where a paragraph runs over several: they end in mid-sentence, and the next goes on."""
    texts = sample.texts
    if not sample.line_documents or len(texts) < 20:
        return Finding("lines", "green", "documents are not cut at line ends", "nothing is read line by line")
    lengths = [len(text) for text in texts if len(text) > 20]
    goes_on = sum(text.rstrip()[-1:].isalnum() or text.rstrip()[-1:] == "," for text in texts)
    starts_low = sum(text.lstrip()[:1].islower() for text in texts)
    even = bool(lengths) and max(lengths) <= 130 and statistics.median(lengths) >= 0.6 * max(lengths)
    # Where no line holds the beginning of a sentence in capitals (chat, queries), lower case says nothing.
    sentences = sum(any(map(str.isupper, _NEXT_SENTENCE.findall(text))) for text in texts) / len(texts)
    share = min(goes_on, starts_low) / len(texts)
    seen = f"{goes_on / len(texts):.0%} of lines end in mid-sentence, {starts_low / len(texts):.0%} begin in lower case"
    if share < 0.3 or not (even or (share > 0.5 and sentences > 0.1)):
        return Finding("lines", "green", "lines are documents of their own", seen, value=share)
    return Finding(
        "lines",
        "red",
        "Lines are parts of paragraphs",
        seen,
        "each line becomes a document, so nothing is learned beyond one line",
        "pass --split-text paragraph (or file)",
        share,
        tuple(shortened(text) for text in texts[:3]),
    )


def check_giants(sample: Sample) -> Finding:
    """One document that is most of the corpus: a file whose line breaks were lost, or that was read as a whole."""
    longest = max(document.characters for document in sample.documents)
    share = longest / max(1, sum(document.characters for document in sample.documents))
    giant = longest >= 100_000 and share >= 0.2
    seen = f"the longest document of {len(sample.documents):,} has {longest:,} characters, {share:.1%} of all"
    if not giant:
        return Finding("giants", "green", "no document is a corpus of its own", seen, value=share)
    return Finding(
        "giants",
        "red" if share >= 0.5 else "yellow",
        "One document is much of the corpus",
        seen,
        "a file whose line breaks were lost, or that is read whole, mixes all its texts into one",
        "split it into documents (--split-text line or paragraph), or write one per line",
        share,
    )


# -- mixtures ----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Part:
    """One corpus of a mixture: its weight, and about how many documents it has; None where that is not known."""

    name: str
    weight: float
    documents: int | None


def check_mixture(parts: Sequence[Part]) -> list[Finding]:
    """Whether one part drowns the others, and how often a small one is begun again before all have been read once."""
    total = sum(part.weight for part in parts)
    largest = max(parts, key=lambda part: part.weight)
    share = largest.weight / total
    findings = [
        Finding(
            "balance", "green", "every part has its share", f"the largest, {largest.name}, {share:.1%}", value=share
        )
    ]
    if share > 0.98 and len(parts) > 1:
        findings = [
            Finding(
                "balance",
                "yellow",
                "One part is nearly all",
                f"{largest.name} has {share:.1%} of the documents",
                "the others are too rare to be learned",
                "raise their weights, or leave them out",
                share,
            )
        ]
    sizes = {part.name: part.documents for part in parts if part.documents is not None}
    if len(sizes) < len(parts):
        return findings
    # Reading ends when every part has been read: the part that takes longest decides how often others begin again.
    length = max(sizes[part.name] * total / part.weight for part in parts)
    times = {part.name: length * part.weight / total / max(1, sizes[part.name]) for part in parts}
    name, most = max(times.items(), key=lambda item: item[1])
    seen = f"{name} is read {most:,.1f} times before every part has been read once"
    if most < 5:
        return [*findings, Finding("repeats", "green", "no part is repeated often", seen, value=most)]
    return [
        *findings,
        Finding(
            "repeats",
            level_of(most, 5, 50),
            "A small part is repeated often",
            seen,
            "after about four times, what is repeated brings little, and is learned by heart",
            "lower its weight, or find more of it",
            most,
        ),
    ]
