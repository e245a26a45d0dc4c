"""What `mlm train` looks at before it continues a model: the corpus through its tokenizer, and a text to keep."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import numpy as np

from mlm_pytorch.adaptation import Extension, FitReport, WordCounts, count_pieces, extend_vocabulary, tokenizer_fit
from mlm_pytorch.cli.prepare import open_corpora
from mlm_pytorch.data.corpus import Corpus, CorpusFile, Document
from mlm_pytorch.data.packing import Pack
from mlm_pytorch.data.store import TokenStore
from mlm_pytorch.data.tokenizer import Tokenizer
from mlm_pytorch.evaluation import PieceStream
from mlm_pytorch.training.config import TrainConfig

KEPT_TOKENS = 1 << 16  # of the text to keep, measured at every evaluation
_SAMPLED_PIECES = 2000  # of a store, for the report


@dataclass(frozen=True)
class Adaptation:
    """A corpus as a model's tokenizer cuts it.

    Attributes:
        tokenizer: the model's.
        counts: of the corpus.
        fit: how well the tokenizer fits it.
    """

    tokenizer: Tokenizer
    counts: WordCounts
    fit: FitReport

    def extend(self, num_tokens: int) -> Extension:
        """The tokenizer with the corpus' most useful tokens added."""
        return extend_vocabulary(self.tokenizer, self.counts, num_tokens)


def read_adaptation(config: TrainConfig, tokenizer: Tokenizer, store: TokenStore | None = None) -> Adaptation | None:
    """Look at a sample of the corpus, or of a store, and of the text to keep, through a model's tokenizer.

    None for a corpus that is ids, or standard input, which can be read only once.

    Raises:
        ValueError: a text to keep that holds no text.
    """
    if store is not None:
        chosen = np.linspace(0, len(store) - 1, min(len(store), _SAMPLED_PIECES)).astype(np.int64)
        texts: Iterator[str] = (tokenizer.backend.decode(store.piece(index).tolist()) for index in chosen.tolist())
    else:
        corpus = open_corpora(config, config.corpus, tokenizer.special.num_tokens)["train"]
        if any(file.is_stream for file in corpus.files):
            return None
        texts = _texts(corpus)
    counts = count_pieces(tokenizer, texts)
    if not counts.num_pieces:
        return None
    general = count_pieces(tokenizer, _texts(_kept(config.keep, config.column))) if config.keep else None
    if general is not None and not general.num_pieces:
        raise ValueError(f"--keep {config.keep[0]} holds no text; name a file of general text")
    return Adaptation(tokenizer, counts, tokenizer_fit(tokenizer, counts, general))


def kept_packs(
    files: tuple[str, ...], column: str | None, tokenizer: Tokenizer, seq_len: int, pack_tokens: int
) -> list[Pack]:
    """The first `KEPT_TOKENS` tokens of the text to keep, in packs; none where no files are named.

    `column` is the corpus's, and is read of the files that have it.
    """
    if not files:
        return []
    packs, tokens = [], 0
    for pack in PieceStream(_kept(files, column), tokenizer, seq_len, max(pack_tokens, seq_len)):
        packs.append(pack)
        tokens += pack.num_tokens
        if tokens >= KEPT_TOKENS:
            break
    if not packs or not tokens:
        raise ValueError(f"--keep {files[0]} holds no text; name a file of general text")
    return packs


def _kept(files: tuple[str, ...], column: str | None) -> Iterator[Document]:
    """The documents of the text to keep: of each file the corpus's column where it has that, else the one found."""
    for file in Corpus(files).files:
        yield from _one_kept(file, column)


def _one_kept(file: CorpusFile, column: str | None) -> Corpus:
    path = file.url or file.path or "-"
    named = Corpus([path], column=column)
    if column is None or file.is_stream:  # which is read once, so that nobody can look into it before
        return named
    try:
        next(iter(named), None)
    except ValueError:  # no such column; should it be something else, reading the file says so again
        return Corpus([path])
    return named


def _texts(documents: Iterable[Document]) -> Iterator[str]:
    return (document.text for document in documents if document.ids is None)
