"""What can be wrong with a document's text: one small predicate per fault, and a table of what each means.

`check_texts` counts in how many documents of a sample each predicate holds. A fault that is in one document of a
hundred is found: every threshold lies at half of that or below.
"""

import re
import zlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from mlm_pytorch.doctor.findings import Finding, level_of, shortened

LOOKED_AT = 1 << 12  # characters of a document that the predicates are shown
FEWEST = 20  # documents from which a share says anything
SURE, SUSPICIOUS = (0.0005, 0.005), (0.005, 0.1)  # shares of documents from which a fault is yellow, and red

# What UTF-8's bytes look like when they are read as latin-1 or Windows-1252: a lead byte, then continuation bytes.
_CONTINUED = "\u0080-\u00bf€‚ƒ„…†‡ˆ‰Š‹ŒŽ‘’“”•–—˜™š›œžŸ"
_MOJIBAKE = re.compile(
    rf"[\u00c2\u00c3\u00c5\u00d0\u00d1][{_CONTINUED}]|[\u00e2\u00e3][{_CONTINUED}]{{2}}|\u00ef[»¿¼½][{_CONTINUED}]|\u00f0[\u009fŸ]"
)
_CONTROL = re.compile("[\x00-\x08\x0b\x0e-\x1f\x7f-\x84\x86-\x9f]")
_INVISIBLE = re.compile("[\ufeff\u200b\u2060\u00ad\ue000-\uf8ff]")
_HTML = re.compile(
    r"(?!(?<=[\w:])<(?-i:[ABIPU])>)"  # Vec<B>, a type of code
    r"</?(?:a|b|br|body|button|code|div|em|font|form|h[1-6]|head|html|i|iframe|img|input|li|link|meta|nav|ol|option|p"
    r"|pre|script|span|strong|style|sub|sup|table|tbody|td|th|title|tr|u|ul)(?:\s[^<>]{0,500})?/?>"
    r"|&(?:nbsp|amp|lt|gt|quot|#\d{2,6}|#x[0-9a-f]{2,6});",
    re.IGNORECASE,
)
_SPECIAL = re.compile(
    r"\[(?:MASK|CLS|SEP|PAD|UNK)\]|</?s>|<(?:mask|pad|unk|cls|sep|eos|bos)>|<\|(?:endoftext|mask|pad|im_start|im_end)\|>"
)
_PIECES = re.compile(r"(?:^|\s)##\w|\w@@(?:\s|$)|(?:^|\s)[Ġ▁]\w|-(?:LRB|RRB|LSB|RSB)-")
_BLOB = re.compile(r"[A-Za-z0-9+/_=-]{80,}")
_HEX = re.compile(r"(?:[0-9a-f]{40,}|[0-9A-F]{40,})", re.ASCII)
_ADDRESS = re.compile(
    r"(?:[a-z][a-z0-9+.-]*://|www\.)\S+|[\w.+-]+@[\w-]+\.[\w.]+|(?:/|[A-Za-z]:\\)[\w.%+-]+(?:[/\\][\w.%+-]+)+"
)
_CODE = re.compile(r"(?=[\w-]*\d)[0-9A-Za-z]+(?:[-_][0-9A-Za-z]+)+|(?=[0-9a-fA-F]*\d)[0-9a-fA-F]{8,}")
_PADDING = re.compile(r"[ \u00a0]{24,}|(?:\.\s?){24,}|_{24,}|-{24,}|={24,}")
_LETTER = re.compile(r"[^\W\d_]")


def is_mojibake(text: str) -> bool:
    r"""Text that was UTF-8 and was read as latin-1 or Windows-1252.

    >>> is_mojibake("caf\u00c3\u00a9"), is_mojibake("caf\u00e9")
    (True, False)
    """
    return not text.isascii() and _MOJIBAKE.search(text) is not None


def has_replacement(text: str) -> bool:
    """U+FFFD, which a decoder leaves where it found bytes that are no text."""
    return "\ufffd" in text


def has_control(text: str) -> bool:
    """NUL and other control characters; tab, line ends and form feed are none of them."""
    return _CONTROL.search(text) is not None


def has_invisible(text: str) -> bool:
    """A byte order mark, zero-width characters, soft hyphens, and private ones, which mean what a font says."""
    return not text.isascii() and _INVISIBLE.search(text) is not None


def has_markup(text: str) -> bool:
    """HTML tags or entities."""
    return ("<" in text or "&" in text) and _HTML.search(text) is not None


def has_special_tokens(text: str) -> bool:
    """[MASK], <s>, <|endoftext|> and the like, written out."""
    return ("[" in text or "<" in text) and _SPECIAL.search(text) is not None


def is_in_pieces(text: str) -> bool:
    """Text that a tokenizer has cut already: "token ##ized", "tok@@ ens", "▁tokens", "-LRB-"."""
    head = text[:2000]
    return (
        any(mark in head for mark in ("##", "@@", "Ġ", "▁", "-LRB-", "-RRB-", "-LSB-"))
        and len(_PIECES.findall(head)) >= 2
    )


def is_spaced_out(text: str) -> bool:
    """A blank between every two characters."""
    words = text[:2000].split()
    return len(words) >= 12 and sum(len(word) == 1 for word in words) >= 0.8 * len(words)


def has_blob(text: str) -> bool:
    """A run of base64 or hexadecimal digits."""
    if max(map(len, text.split()), default=0) < 40:  # most texts are done here
        return False
    for match in _BLOB.finditer(text):
        run = match[0]
        mixed = bool(re.search("[a-z]", run)) and bool(re.search("[A-Z]", run)) and len(re.findall(r"\d", run)) >= 3
        if mixed and len(set(run)) > 16:
            return True
    return any(re.search(r"\d", m[0]) and re.search("[a-fA-F]", m[0]) for m in _HEX.finditer(text))


def is_address(text: str) -> bool:
    """Nothing but a URL, a mail address, a path, a hash or a number such as a product has."""
    text = text.strip()
    return (
        len(text) <= 2000
        and not any(c.isspace() for c in text)
        and bool(_ADDRESS.fullmatch(text) or _CODE.fullmatch(text))
    )


def is_numbers(text: str) -> bool:
    """Digits and signs without a letter."""
    return _LETTER.search(text) is None and any(c.isdigit() for c in text)


def is_shouting(text: str) -> bool:
    """Words in capital letters only."""
    head = text[:2000]
    return head.count(" ") >= 4 and head.upper() == head and head.lower() != head and len(_LETTER.findall(head)) >= 30


def is_record(text: str) -> bool:
    """A JSON object, an array, or rows of many tab-separated fields where text should be; tabs may indent code."""
    head = text[:2000].strip()
    if head[:2] in ('{"', "[{", '["', "{'") and ('":' in head or "':" in head or '",' in head):
        return True
    if head.count("\t") < 4:
        return False
    lines = [line.strip() for line in head.splitlines() if line.strip()]
    return 2 * sum(len(re.findall(r"\t+", line)) >= 4 for line in lines) >= len(lines)


def has_padding(text: str) -> bool:
    """Long runs of blanks, dots, dashes or underscores: padding, forms, tables of contents."""
    marks = (
        "    ",
        "\u00a0\u00a0",
        "....",
        ". . . .",
        "____",
        "----",
        "====",
    )  # to find these first takes a tenth of the time
    return any(mark in text for mark in marks) and _PADDING.search(text) is not None


def repeats_itself(text: str) -> bool:
    """A text that a compressor shrinks to a tenth: the same line or word over and over."""
    if len(text) < 300:
        return False
    content = text.encode("utf-8", "replace")
    return len(zlib.compress(content, 1)) * 10 < len(content)


def has_no_blanks(text: str) -> bool:
    """A long run of Latin letters and no blank, where words should be."""
    head = text[:2000]
    return (
        len(head) >= 60
        and head.isascii()
        and not any(c.isspace() for c in head)
        and sum(map(str.isalpha, head)) > 0.9 * len(head)
    )


@dataclass(frozen=True)
class TextFault:
    """A fault that a document has or has not. `thresholds`: shares of documents from which it is yellow, and red."""

    check: str
    title: str
    holds: Callable[[str], bool]
    thresholds: tuple[float, float | None]
    why: str
    remedy: str
    of_sequences: bool = True  # whether it can be told of DNA and proteins as well


TEXT_FAULTS: tuple[TextFault, ...] = (
    TextFault(
        "mojibake", "UTF-8 was read as another encoding", is_mojibake, SURE,
        "the vocabulary fills with pairs of signs that stand for one letter, and accented words are split",
        "decode the source as UTF-8 where it was exported, or repair it with ftfy",
    ),
    TextFault(
        "replacement-characters", "Characters were lost", has_replacement, SURE,
        "U+FFFD stands where a decoder gave up; what was there is gone, and the model learns to predict the hole",
        "export again with the right encoding, or drop these documents",
    ),
    TextFault(
        "control-characters", "Control characters", has_control, SURE,
        "NUL and its like are no text; they come from binary files, terminals or fixed-width records",
        "strip them, or leave the files that hold them out",
    ),
    TextFault(
        "invisible-characters", "Invisible characters", has_invisible, (0.005, None),
        "a byte order mark or a zero-width character splits words into pieces that look the same and are not",
        "remove U+FEFF, U+200B, U+00AD and private characters",
    ),
    TextFault(
        "html", "HTML is left in the text", has_markup, SUSPICIOUS,
        "tags and entities repeat so often that the model spends its targets on them",
        "extract the text (trafilatura, BeautifulSoup) and unescape entities",
    ),
    TextFault(
        "special-tokens-in-text", "Special tokens are written in the text", has_special_tokens, (0.001, 0.1),
        "they are what another pipeline left; here they are read as plain characters, never as special tokens",
        "remove them, and let the tokenizer put special tokens where they belong",
    ),
    TextFault(
        "pre-tokenized", "The text was cut into pieces already", is_in_pieces, (0.002, 0.05),
        "the tokenizer cuts the pieces once more, marks and all",
        "give the text before it was tokenized, or join its pieces",
    ),
    TextFault(
        "spaced-letters", "A blank stands between all letters", is_spaced_out, (0.002, 0.2),
        "every letter becomes a word, and pieces hold a tenth of what they could",
        "remove the blanks; the tokenizer kinds amino-acids, kmer and characters need none", of_sequences=False,
    ),
    TextFault(
        "blobs", "Encoded binary data", has_blob, (0.002, 0.05),
        "base64 and hexadecimal digits cannot be predicted; they take targets and give back nothing",
        "drop these documents or cut the runs out", of_sequences=False,
    ),
    TextFault(
        "addresses", "Documents are addresses, paths or codes", is_address, SUSPICIOUS,
        "a column of links or identifiers was taken for the text, or stands among it",
        "name the right column with --column, or drop these documents", of_sequences=False,
    ),
    TextFault(
        "numbers", "Documents are numbers only", is_numbers, SUSPICIOUS,
        "digits follow no grammar: nothing about language is learned from them",
        "name the right column with --column, or drop these documents",
    ),
    TextFault(
        "capitals", "Documents in capital letters", is_shouting, (0.005, 0.5),
        "a word in capitals shares no tokens with the same word elsewhere",
        "lower-case these documents, or drop them", of_sequences=False,
    ),
    TextFault(
        "records", "Documents are records, not text", is_record, SUSPICIOUS,
        "field names and separators repeat in each document and are learned first",
        "read the field that holds the text: write JSON lines or CSV and name it with --column",
    ),
    TextFault(
        "padding", "Runs of blanks, dots or dashes", has_padding, (0.005, None),
        "padding and tables of contents fill pieces and are trivial to predict",
        "collapse such runs to one character, unless they mean something, as blanks before code do",
    ),
    TextFault(
        "self-repetition", "Documents repeat themselves", repeats_itself, (0.005, 0.2),
        "a masked word can be copied from the next line: the loss falls and nothing is learned",
        "remove repeated lines within documents",
    ),
    TextFault(
        "no-blanks", "Documents without blanks", has_no_blanks, (0.005, None),
        "the blanks were lost, or these are sequences among text: whole words cannot be masked in them",
        "restore the blanks, or train sequences apart from text", of_sequences=False,
    ),
)  # fmt: skip


def check_texts(texts: Sequence[str], *, sequences: bool = False) -> list[Finding]:
    """A finding for each fault of the table: green where it is in fewer documents than its threshold.

    sequences: whether the texts are DNA or proteins, of which some faults cannot be told.
    """
    shown = [
        text if len(text) <= LOOKED_AT else text[: LOOKED_AT // 2] + "\n" + text[-LOOKED_AT // 2 :] for text in texts
    ]
    return [_counted(fault, shown) for fault in TEXT_FAULTS if fault.of_sequences or not sequences]


def _counted(fault: TextFault, texts: Sequence[str]) -> Finding:
    found = [text for text in texts if fault.holds(text)]
    share = len(found) / max(1, len(texts))
    level = level_of(share, *fault.thresholds) if found and (len(texts) >= FEWEST or share > 0.5) else "green"
    if level == "green":
        return Finding(
            fault.check, "green", f"not seen: {fault.title.lower()}", f"in {share:.2%} of documents", value=share
        )
    return Finding(
        fault.check,
        level,
        fault.title,
        f"in {share:.1%} of {len(texts):,} documents",
        fault.why,
        fault.remedy,
        share,
        tuple(shortened(text, _first(fault.check, text)) for text in found[:3]),
    )


_WHERE = {
    "mojibake": _MOJIBAKE,
    "replacement-characters": re.compile("\ufffd"),
    "control-characters": _CONTROL,
    "invisible-characters": _INVISIBLE,
    "html": _HTML,
    "special-tokens-in-text": _SPECIAL,
    "pre-tokenized": _PIECES,
    "blobs": _BLOB,
    "padding": _PADDING,
}


def _first(check: str, text: str) -> int:
    """Where an example should be shown from."""
    match = _WHERE[check].search(text) if check in _WHERE else None
    return match.start() if match else 0
