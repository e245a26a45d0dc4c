"""Whether a tokenizer fits the text: what it does not know, into how much it cuts a word, its kind, its case."""

import json
import re
from collections.abc import Sequence

import numpy as np

from mlm_pytorch.data.tokenizer import Tokenizer
from mlm_pytorch.data.tokenizer.content import fits_alphabet, kind_of_content
from mlm_pytorch.doctor.findings import Finding, level_of, shortened
from mlm_pytorch.doctor.tokens import SEQUENCES, TOKENIZED_DOCUMENT, Encoded

# Words are cut into 1.2 to 1.6 tokens where tokenizer and text fit, punctuation included (measured on English text with
# vocabularies of 16k to 50k entries).
FEW_ENTRIES = 300  # with fewer, a tokenizer is meant to cut text into letters or bytes
USUAL_TOKENS_PER_WORD, MANY_TOKENS_PER_WORD = 1.6, 4.0
# What a tokenizer has to cut where blanks do not (rows, code, Chinese): runs of letters and the signs that combine with
# them, marks, and each character of a script that puts no blanks between words.
_ALONE = "\u0e00-\u0fff\u1000-\u109f\u1780-\u17ff\u3040-\u30ff\u3400-\u9fff\uf900-\ufaff\U00020000-\U0003ffff"
_SIGNS = "\u0300-\u036f\u0591-\u05bd\u0610-\u061a\u064b-\u065f\u0900-\u0dff\u200c\u200d"
_PARTS = re.compile(rf"[{_ALONE}]|(?:[^\W{_ALONE}]|[{_SIGNS}])+|[^\w\s]")
FEW_PARTS = 1.5  # for each word between blanks: prose has 1.1 to 1.4 (punctuation)


def check_text_fit(tokenizer: Tokenizer, encoded: Encoded) -> list[Finding]:
    """All that a tokenizer's ids tell of the text; nothing for a corpus of ids."""
    if not encoded.texts:
        return []
    return [
        check_unknown(tokenizer, encoded),
        check_fit(tokenizer, encoded),
        check_outliers(encoded),
        check_kind(tokenizer, encoded.texts),
        check_case(tokenizer, encoded.texts),
        check_round_trip(tokenizer, encoded),
    ]


def check_unknown(tokenizer: Tokenizer, encoded: Encoded) -> Finding:
    """What the vocabulary has no tokens for."""
    if tokenizer.unknown_id is None:
        return Finding("unknown", "green", "nothing is unknown to the tokenizer", "it has no token for unknown words")
    counts = np.array([int((row == tokenizer.unknown_id).sum()) for row in encoded.ids])
    lengths = np.array([max(1, len(row)) for row in encoded.ids])
    share = float(counts.sum() / lengths.sum())
    spoilt = counts / lengths >= 0.2
    value = max(share, float(spoilt.mean()))
    seen = f"{share:.2%} of tokens; {spoilt.mean():.1%} of documents are a fifth or more unknown"
    level = level_of(value, 0.005, 0.05)
    if level == "green":
        return Finding("unknown", "green", "few tokens are unknown", seen, value=value)
    worst = np.flatnonzero(spoilt if spoilt.any() else counts > 0)[:3]
    return Finding(
        "unknown",
        level,
        "Text is unknown to the tokenizer",
        seen,
        "an unknown token says nothing, and the model learns to predict it",
        "choose a tokenizer of the corpus's language and kind, or leave --tokenizer out to train one",
        value,
        tuple(shortened(encoded.documents[i].text) for i in worst),
    )


def check_fit(tokenizer: Tokenizer, encoded: Encoded) -> Finding:
    """Into how many tokens a word is cut, against what is usual; where blanks do not part words, a word or a mark."""
    rows = [
        (d.text[:TOKENIZED_DOCUMENT], row)
        for d, row in zip(encoded.documents, encoded.ids, strict=True)
        if d.ids is None
    ]
    words = sum(len(text.split()) for text, _ in rows)
    parts = sum(len(_PARTS.findall(text)) for text, _ in rows)
    by_part = parts > FEW_PARTS * words
    words = parts if by_part else words
    tokens = sum(len(row) for _, row in rows)
    characters = sum(len(text) for text, _ in rows)
    per_word, per_token = tokens / max(1, words), characters / max(1, tokens)
    what = "tokens a word or mark" if by_part else f"tokens a word (usual: 1.2 to {USUAL_TOKENS_PER_WORD})"
    seen = f"{per_word:.2f} {what}, {per_token:.2f} characters a token"
    by_letter = tokenizer.special.num_tokens <= FEW_ENTRIES
    by_letter |= (tokenizer.kind or "").partition(":")[0] in (*SEQUENCES, "characters", "bytes")
    if by_letter or characters / max(1, words) > 30:  # sequences, or writing without blanks
        return Finding("fit", "green", "words do not count here", f"{per_token:.2f} characters a token", value=per_word)
    level = level_of(per_word, 2.2, MANY_TOKENS_PER_WORD)
    if level == "green":
        return Finding("fit", "green", "the tokenizer fits the text", seen, value=per_word)
    return Finding(
        "fit",
        level,
        "The tokenizer does not fit the text",
        seen,
        "words fall into crumbs: pieces hold less text, and each token is easier to guess from its neighbours",
        "train a tokenizer on this corpus (leave --tokenizer out, or raise --vocab-size)",
        per_word,
    )


def check_outliers(encoded: Encoded) -> Finding:
    """Documents that need many times the tokens of the others: another language or script, code, noise."""
    rows = [
        (d.text[:TOKENIZED_DOCUMENT], row)
        for d, row in zip(encoded.documents, encoded.ids, strict=True)
        if d.ids is None
    ]
    rates = np.array([len(row) / max(1, len(text)) for text, row in rows if len(text) >= 60])
    texts = [text for text, _ in rows if len(text) >= 60]
    if len(rates) < 20:
        return Finding("outliers", "green", "no document stands out", "too few documents to compare")
    usual = float(np.median(rates))
    far = rates > 2.2 * usual
    share = float(far.sum()) / len(rows)
    seen = f"{share:.1%} of documents take more than 2.2 times the usual {usual:.2f} tokens a character"
    if share < 0.004:
        return Finding("outliers", "green", "few documents stand out", seen, value=share)
    return Finding(
        "outliers",
        "yellow",
        "Documents that the tokenizer hardly knows",
        seen,
        "another language or script, code or noise: such text fills pieces with crumbs",
        "look at the examples, and filter what is not meant",
        share,
        tuple(shortened(texts[i]) for i in np.flatnonzero(far)[:3]),
    )


def check_kind(tokenizer: Tokenizer, texts: Sequence[str]) -> Finding:
    """A tokenizer of words for DNA or proteins, or one of sequences for text."""
    suited = kind_of_content(texts[:2000])
    kind = (tokenizer.kind or _kind_of(tokenizer)).partition(":")[0]
    if suited == "bpe" and kind in SEQUENCES and fits_alphabet(texts[:2000], kind):
        return Finding(
            "kind", "green", "tokenizer and content are of one kind", f"{kind}; nearly all letters are of its alphabet"
        )
    clash = (suited in SEQUENCES) != (kind in (*SEQUENCES, "characters", "bytes"))
    if suited in SEQUENCES and kind in ("characters", "bytes"):
        clash = False
    if suited == "bpe" and kind in ("characters", "bytes"):
        clash = False
    if suited in SEQUENCES and kind in SEQUENCES and suited != kind:
        clash = True
    if not clash:
        return Finding(
            "kind", "green", "tokenizer and content are of one kind", f"{kind}; the letters look like {suited}"
        )
    return Finding(
        "kind",
        "red",
        "The tokenizer is of another kind than the content",
        f"the letters look like {suited}, the tokenizer is {kind}",
        "words of arbitrary length are learned where there are none (or the other way round)",
        f"pass --tokenizer {suited}, or leave it out: the content then decides",
    )


def _kind_of(tokenizer: Tokenizer) -> str:
    """The kind of a tokenizer from elsewhere: by letters where hardly a token is longer than one."""
    tokens = tokenizer.backend.get_vocab(with_added_tokens=False)
    letters = set(map(str.upper, tokens))
    if len(tokens) < 100 and sum(len(token) == 1 for token in tokens) >= 20:
        return "amino-acids"
    if sum(set(token) <= set("ACGT") for token in letters) > 0.8 * len(letters):
        return "kmer"
    return "bpe"


def check_case(tokenizer: Tokenizer, texts: Sequence[str]) -> Finding:
    """Text in another case than the tokenizer was trained on."""
    chosen = [text[:2000] for text in texts[:: max(1, len(texts) // 200)]]
    upper = sum(sum(map(str.isupper, text)) for text in chosen)
    lower_case = [text.lower() for text in chosen]
    as_they_are, lowered = (sum(map(len, tokenizer.encode_batch(group))) for group in (chosen, lower_case))
    saved = 1 - lowered / max(1, as_they_are)
    if not upper or saved < 0.12:
        change = f"save {saved:.1%} of tokens" if saved >= 0 else f"take {-saved:.1%} more tokens"
        return Finding("case", "green", "the tokenizer knows the text's case", f"lower case would {change}")
    return Finding(
        "case",
        level_of(saved, 0.12, 0.35),
        "The tokenizer knows lower case only",
        f"in lower case the text would take {saved:.1%} fewer tokens",
        "every word with a capital falls into letters or becomes unknown",
        "lower-case the corpus, or use a tokenizer of cased text",
        saved,
    )


def check_round_trip(tokenizer: Tokenizer, encoded: Encoded) -> Finding:
    """What of a text is left after encoding and decoding: accents and case may be gone, or the blanks."""
    plain = tokenizer.kind is None or tokenizer.kind.partition(":")[0] not in SEQUENCES
    lost = looked = 0
    examples: list[str] = []
    for document, row in list(zip(encoded.documents, encoded.ids, strict=True))[:: max(1, len(encoded.ids) // 200)]:
        if document.ids is not None or not plain or (tokenizer.unknown_id is not None and tokenizer.unknown_id in row):
            continue
        back = tokenizer.backend.decode(row[:400].tolist(), skip_special_tokens=False)
        looked += 1
        before, after = ("".join(text.replace("##", "").split()) for text in (document.text, back))
        if after[:-4] not in before:
            lost += 1
            examples.append(shortened(back))
    share = lost / max(1, looked)
    seen = f"{share:.0%} of {looked} documents come back changed (blanks aside)"
    if share < 0.05:
        return Finding("round-trip", "green", "text survives the tokenizer", seen, value=share)
    normalizer = json.loads(tokenizer.backend.to_str()).get("normalizer") or {}
    return Finding(
        "round-trip",
        "yellow",
        "The tokenizer changes the text",
        f"{seen}; its normalizer is {normalizer.get('type', 'none')}",
        "case, accents or signs are gone, and the model can neither see nor write them",
        "this may be meant (an uncased model); else use a tokenizer without a normalizer",
        share,
        tuple(examples[:3]),
    )
