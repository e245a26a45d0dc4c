"""A sample as token ids: lengths, special ids, words, how much of the vocabulary is used.

D documents, P pieces
"""

import time
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch

from mlm_pytorch.data.tokenizer import Tokenizer
from mlm_pytorch.doctor.findings import Finding, level_of
from mlm_pytorch.doctor.sample import Sampled
from mlm_pytorch.tokens import WordTable

TOKENIZED_CHARACTERS = 1 << 21
TOKENIZED_DOCUMENT = 1 << 15  # characters of one document
BATCH_CHARACTERS = 1 << 18  # an encoding takes about a hundred times the memory of its text
SEQUENCES = ("kmer", "amino-acids")


@dataclass(frozen=True)
class Encoded:
    """Documents of a sample as ids.

    documents: those encoded; ids: (length,) int64 each, of the text's first `TOKENIZED_DOCUMENT` characters.
    lengths: (D,) float64, tokens of the whole documents, extrapolated where they were cut.
    seconds, characters: what encoding took, and of how much text.
    """

    documents: list[Sampled]
    ids: list[np.ndarray]
    lengths: np.ndarray
    seconds: float
    characters: int

    @property
    def tokens_per_character(self) -> float:
        """Tokens that a character of text becomes; 1 for ids."""
        return float(self.lengths.sum() / max(1, sum(document.characters for document in self.documents)))

    @property
    def texts(self) -> list[str]:
        """Of documents that are text, as far as they were encoded."""
        return [document.text[:TOKENIZED_DOCUMENT] for document in self.documents if document.ids is None]


def encode_sample(tokenizer: Tokenizer, documents: Sequence[Sampled]) -> Encoded:
    """Encode an even choice of documents, `TOKENIZED_CHARACTERS` of them at most."""
    total = sum(min(document.characters, TOKENIZED_DOCUMENT) for document in documents)
    step = max(1, -(-total // TOKENIZED_CHARACTERS))
    chosen = list(documents[::step])
    started = time.monotonic()
    texts = [document.text[:TOKENIZED_DOCUMENT] for document in chosen if document.ids is None]
    encoded = iter(_in_batches(tokenizer, texts))
    seconds = time.monotonic() - started
    ids = [
        np.array(next(encoded), np.int64)
        if document.ids is None
        else tokenizer.special.content(np.asarray(document.ids, np.int64))
        for document in chosen
    ]
    lengths = np.array(
        [
            len(row) * max(1.0, document.characters / max(1, len(document.text[:TOKENIZED_DOCUMENT])))
            if document.ids is None
            else document.characters - (len(document.ids) - len(row))
            for row, document in zip(ids, chosen, strict=True)
        ],
        np.float64,
    )
    return Encoded(chosen, ids, lengths, seconds, sum(map(len, texts)))


def _in_batches(tokenizer: Tokenizer, texts: Sequence[str]) -> list[np.ndarray]:
    rows: list[np.ndarray] = []
    batch: list[str] = []
    size = 0
    for number, text in enumerate(texts, 1):
        batch.append(text)
        size += len(text)
        if size >= BATCH_CHARACTERS or number == len(texts):
            flat, lengths = tokenizer.encode_arrays(batch)
            rows += np.split(flat, lengths.cumsum()[:-1])
            batch, size = [], 0
    return rows


def check_tokens(tokenizer: Tokenizer, encoded: Encoded, *, seq_len: int, long_documents: str) -> list[Finding]:
    """What the ids of a sample tell, whatever they stand for; of text see `fit`."""
    findings = [check_range(tokenizer, encoded)]
    if findings[0].level == "red":
        return findings
    findings += [
        check_framing(tokenizer),
        check_reserved(tokenizer, encoded),
        check_short(encoded),
        check_long(tokenizer, encoded, seq_len, long_documents),
        check_vocabulary(tokenizer, encoded),
    ]
    return findings


def check_range(tokenizer: Tokenizer, encoded: Encoded) -> Finding:
    """Ids that the vocabulary has not."""
    size = tokenizer.special.num_tokens
    largest = max((int(row.max()) for row in encoded.ids if len(row)), default=-1)
    beyond = sum(bool((row >= size).any()) for row in encoded.ids)
    if not beyond:
        return Finding("ids", "green", "every id is in the vocabulary", f"ids up to {largest:,} of {size:,} entries")
    return Finding(
        "ids",
        "red",
        "Ids are outside the vocabulary",
        f"in {beyond:,} of {len(encoded.ids):,} documents, up to {largest:,} of {size:,} entries",
        "there is no embedding for them: preparation stops there",
        f"pass --num-tokens {largest + 1} or more, or the tokenizer that made the ids",
        beyond / len(encoded.ids),
    )


def check_framing(tokenizer: Tokenizer) -> Finding:
    """Whether the tokenizer puts something before and after a text."""
    special = tokenizer.special
    name = tokenizer.backend.id_to_token
    before, after = ([name(i) or str(i) for i in ids] for ids in (special.prefix, special.suffix))
    if before and after:
        return Finding("framing", "green", "pieces are framed", f"{' '.join(before)} … {' '.join(after)}")
    return Finding(
        "framing",
        "yellow",
        "Pieces are not framed",
        f"before: {' '.join(before) or 'nothing'}; after: {' '.join(after) or 'nothing'}",
        "classifiers read the vector of a first token such as [CLS], which is then a word like any other",
        "give the tokenizer a post-processor that adds [CLS] and [SEP]; for ids alone it may be meant",
    )


def check_reserved(tokenizer: Tokenizer, encoded: Encoded) -> Finding:
    """Special ids inside documents: a corpus of ids that is joined, padded in between or masked already."""
    special = np.array(tokenizer.special.ids)
    if tokenizer.unknown_id is not None:
        special = special[special != tokenizer.unknown_id]
    framing = {*tokenizer.special.prefix, *tokenizer.special.suffix}
    held = [bool(np.isin(row, special).any()) for row in encoded.ids]
    share = sum(held) / max(1, len(held))
    level = level_of(share, 0.0005, 0.005) if any(held) else "green"
    if level == "green":
        return Finding(
            "special-ids", "green", "special tokens are where they should be", "none inside documents", value=share
        )
    found = sorted({int(i) for row in encoded.ids for i in row[np.isin(row, special)].tolist()})
    names = [tokenizer.backend.id_to_token(i) or str(i) for i in found[:6]]
    twice = "pieces are framed again" if framing & set(found) else "these positions are never predicted"
    return Finding(
        "special-ids",
        level,
        "Documents hold special ids",
        f"{', '.join(names)} in {share:.1%} of documents",
        f"the documents were joined, padded in between or masked before; {twice}",
        "take them out of the ids, or name other ids with --mask-token-id and --pad-token-id",
        share,
    )


def check_short(encoded: Encoded) -> Finding:
    """Documents of which next to nothing is left to predict from."""
    share = float((encoded.lengths < 4).mean())
    seen = f"{share:.1%} have fewer than 4 tokens; the median has {np.median(encoded.lengths):,.0f}"
    level = level_of(share, 0.1, 0.5)
    if level == "green":
        return Finding("short-documents", "green", "few documents are tiny", seen, value=share)
    return Finding(
        "short-documents",
        level,
        "Documents are tiny",
        seen,
        "with one token masked, hardly any context is left to predict it from",
        "join what belongs together (--split-text paragraph or file), or name another column",
        share,
    )


def check_long(tokenizer: Tokenizer, encoded: Encoded, seq_len: int, long_documents: str) -> Finding:
    """How much of the corpus is cut, and what is lost by it."""
    room = max(1, seq_len - len(tokenizer.special.prefix) - len(tokenizer.special.suffix))
    lengths, total = encoded.lengths, max(1.0, float(encoded.lengths.sum()))
    split = float((lengths > room).mean())
    lost = float(np.maximum(lengths - room, 0).sum()) / total
    far = float(lengths[lengths > 8 * room].sum()) / total
    seen = (
        f"{split:.1%} of documents are longer than seq_len {seq_len} (median {np.median(lengths):,.0f}, 99 in 100 up "
        f"to {np.quantile(lengths, 0.99):,.0f}, longest {lengths.max():,.0f} tokens)"
    )
    if long_documents == "truncate" and lost >= 0.01:
        return Finding(
            "long-documents",
            level_of(lost, 0.01, 0.2),
            "Truncation loses text",
            f"{seen}; {lost:.1%} of all tokens are dropped",
            "what is behind a document's first piece is never trained on",
            "pass --long-documents split",
            lost,
        )
    if far >= 0.01:
        return Finding(
            "long-documents",
            "yellow",
            "Documents are far longer than a piece",
            f"{seen}; {far:.1%} of all tokens are in documents of more than 8 pieces",
            "they are cut (nothing is lost), but what lies further apart than a piece is never seen together",
            "raise --seq-len if long contexts matter to you",
            far,
        )
    kept = "cut into pieces, nothing is lost" if long_documents != "truncate" else f"{lost:.2%} of tokens are dropped"
    return Finding("long-documents", "green", "lengths fit", f"{seen}; {kept}", value=split)


def check_vocabulary(tokenizer: Tokenizer, encoded: Encoded) -> Finding:
    """How much of the vocabulary occurs at all, and whether the corpus is large enough to learn it."""
    special = tokenizer.special
    seen_ids = np.zeros(special.num_tokens, bool)
    for row in encoded.ids:
        seen_ids[row] = True
    seen_ids[list(special.ids)] = False
    entries = special.num_tokens - len(special.ids)
    tokens = int(sum(map(len, encoded.ids)))
    used = int(seen_ids.sum()) / max(1, entries)
    each = tokens / max(1, entries)
    seen = f"{used:.0%} of {entries:,} entries occur in {tokens:,} sampled tokens ({each:,.0f} per entry)"
    if used >= 0.5 or entries <= 4096 or tokens < 2 * entries:
        level = "green"
    else:
        level = level_of(1 - used, 0.5, 0.8 if tokens > 20 * entries else None)
    if level == "green":
        return Finding("vocabulary", "green", "the vocabulary is used", seen, value=used)
    return Finding(
        "vocabulary",
        level,
        "Most of the vocabulary does not occur",
        seen,
        "entries that do not occur take parameters, memory and time at every step, and are never learned",
        "number the ids that occur anew, without gaps; leave it if more of them are to come"
        if tokenizer.kind == "ids"
        else "train a tokenizer on this corpus (leave --tokenizer out), or a smaller one with --vocab-size",
        used,
    )


_SMALLER = {
    "kmer": "choose a smaller k, such as --tokenizer kmer:3, or find more sequences",
    "ids": "leave out or merge rare ids, or find more sequences",
}


def check_vocabulary_size(entries: int, tokens: float, kind: str | None = None) -> Finding:
    """Whether a corpus of so many tokens can teach a vocabulary of so many entries, of a tokenizer of a kind."""
    per_entry = tokens / max(1, entries)
    seen = f"about {tokens:,.0f} tokens for {entries:,} entries: {per_entry:,.0f} each"
    if per_entry >= 100 or (entries <= 512 and per_entry >= 3):
        return Finding("vocabulary-size", "green", "the corpus can teach the vocabulary", seen, value=per_entry)
    return Finding(
        "vocabulary-size",
        "red" if per_entry < 3 else "yellow",
        "The vocabulary is too large for the corpus",
        seen,
        "most entries are seen too rarely to be learned",
        _SMALLER.get((kind or "").partition(":")[0], "choose a smaller --vocab-size, or find more text"),
        per_entry,
    )


def check_words(words: WordTable | str, encoded: Encoded, selection: str) -> Finding:
    """Words per document as whole-word masking sees them. `words` is the table, or why there is none."""
    needed = selection in ("words", "ngrams")
    if isinstance(words, str):
        if not needed:
            return Finding("words", "green", "whole words are not asked for", words)
        return Finding(
            "words", "red", "Whole words cannot be told", words, "there is nothing to mask as a whole",
            "pass --selection tokens or spans",
        )  # fmt: skip
    rows = [torch.tensor(row[:512]) for row in encoded.ids[:2000] if len(row) >= 8]
    if not rows:
        return Finding("words", "green", "documents are too short to tell", "none of 8 tokens or more")
    counts = np.array([int(words.starts_word(row).sum()) for row in rows])
    lengths = np.array([len(row) for row in rows])
    share = float((counts <= 2).mean())
    seen = (
        f"{np.median(counts):,.0f} words a document (of its first 512 tokens), {lengths.sum() / counts.sum():.2f} "
        f"tokens a word; {share:.1%} of documents of 8 tokens or more are 1 or 2 words"
    )
    if share < 0.004 or not needed:
        return Finding("words", "green", "documents are made of words", seen, value=share)
    return Finding(
        "words",
        level_of(share, 0.004, 0.05),
        "Whole words are whole documents",
        seen,
        "masking one whole word then masks everything, or a single word is all that can be predicted",
        "pass --selection tokens or spans",
        share,
    )
