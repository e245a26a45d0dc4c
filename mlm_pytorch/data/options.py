"""What a user may say of a corpus on its way into a store: the options that `mlm prepare` and `mlm train` share.

Imports nothing heavy, so that `mlm --help` answers soon.
"""

from dataclasses import dataclass
from typing import Literal

NOTHING = "none"  # among `valid`


@dataclass(frozen=True, kw_only=True)
class CorpusOptions:
    """Which documents are read, and how they become pieces. Each field's text is its help on the command line."""

    mix: tuple[str, ...] = ()
    """Instead of CORPUS: one part of a mixture as FILE=WEIGHT, repeated. Shares are counted in documents."""
    valid: tuple[str, ...] = ()
    """Held-out files, or none to hold nothing out. By default a share of the corpus is held out."""
    column: str | None = None
    """Field or column that holds the text or the ids. By default found."""
    split_text: Literal["line", "paragraph", "file"] | None = None
    """What a document is in text files. By default a line in .txt files, the file in source code."""
    encoding_errors: Literal["strict", "replace"] = "strict"
    """What to do with bytes that are not UTF-8: stop, or read them as U+FFFD."""
    long_documents: Literal["split", "windows", "truncate"] = "split"
    """What to do with documents longer than a piece: cut them into pieces, into windows that overlap, or at the end."""
    overlap: int = 0
    """Tokens that a window shares with the one before it, with --long-documents windows."""
    drop_duplicates: bool = False
    """Keep only the first of documents that are equal. They are counted either way."""

    tokenizer: str | None = None
    """Folder of a Hugging Face tokenizer, or the kind to train: bpe, wordpiece, unigram, characters, bytes, kmer,
    kmer:K or amino-acids. By default one is trained whose kind fits the corpus."""
    vocab_size: int | None = None
    """Entries of the tokenizer that is trained. By default chosen by the size of the corpus."""
    num_tokens: int | None = None
    """For a corpus of token ids without a tokenizer: the size of the vocabulary. By default the largest id and one."""
    mask_token_id: int | None = None
    """For a corpus of token ids: which of them is the mask."""
    pad_token_id: int | None = None
    """For a corpus of token ids: which of them is padding."""
    special_ids: tuple[int, ...] = ()
    """For a corpus of token ids: one more that masking leaves alone, such as a separator; repeated."""
    add_special_tokens: bool = False
    """For a corpus of token ids: append a mask and a padding token to the vocabulary."""

    engine: Literal["threads", "ray"] = "threads"
    """Where tokenizing runs: on this machine, or on a Ray cluster."""
    workers: int | None = None
    """Threads that tokenize. By default one per core."""

    @property
    def valid_files(self) -> tuple[str, ...]:
        """Those of `valid`, without the word none. Raises ValueError where it stands beside files."""
        if NOTHING not in self.valid:
            return self.valid
        if len(self.valid) > 1:
            raise ValueError(
                f"--valid {NOTHING} holds nothing out, but files are named as well; leave out either (a "
                f"file of that name is ./{NOTHING})"
            )
        return ()

    @property
    def holds_nothing_out(self) -> bool:
        """Whether no share of the corpus shall be held out either."""
        return bool(self.valid) and not self.valid_files
