"""What the masked loss of each model is measured on, settled before any of them is: for all the same text, in pieces
of the same length.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from mlm_pytorch.cli.models import ModelFacts
from mlm_pytorch.cli.options import EvaluateConfig
from mlm_pytorch.cli.store import held_out
from mlm_pytorch.data.corpus import Corpus, CorpusFile
from mlm_pytorch.data.store import MANIFEST, TokenStore
from mlm_pytorch.training.config import TrainConfig
from mlm_pytorch.training.run import CONFIG, STORE

EVALUATION_PACK = 4096  # tokens computed at a time


@dataclass(frozen=True)
class Ruler:
    """What one model is measured on.

    Attributes:
        seq_len: longest piece in tokens, framing included.
        store: the split of a store; None for files.
    """

    seq_len: int
    store: TokenStore | None = None

    @property
    def capacity(self) -> int:
        """Tokens of a pack."""
        return max(EVALUATION_PACK, self.seq_len)


def settle_rulers(config: EvaluateConfig, models: Sequence[ModelFacts]) -> tuple[list[Ruler], list[str]]:
    """A ruler for each model, and what is to be said of them.

    Raises:
        ValueError: a length or a store that one of the models does not take.
    """
    stores = [_store(facts, config) for facts in models]
    if None in stores:  # then all of them are
        return _of_files(config, models)
    rulers = []
    for facts, store in zip(models, stores, strict=True):
        assert store is not None
        if store.seq_len > facts.max_seq_len:
            raise ValueError(
                f"the pieces of {store.folder} have up to {store.seq_len} tokens, more than the {facts.max_seq_len} of "
                f"{facts.folder}; prepare them shorter"
            )
        rulers.append(Ruler(store.seq_len, store))
    return rulers, _said_of_named(rulers[0]) if config.data else _said_of_own(models, rulers)


def _of_files(config: EvaluateConfig, models: Sequence[ModelFacts]) -> tuple[list[Ruler], list[str]]:
    said = []
    seq_len = config.seq_len
    if seq_len is None:
        shortest = min(models, key=lambda facts: facts.seq_len)
        seq_len = shortest.seq_len
        if any(facts.seq_len != seq_len for facts in models):
            said.append(f"pieces have at most {seq_len:,} tokens for all models, which is what {shortest.folder} takes")
    for facts in models:
        if seq_len > facts.max_seq_len:
            raise ValueError(f"--seq-len {seq_len} exceeds the {facts.max_seq_len} tokens of {facts.folder}; lower it")
    return [Ruler(seq_len)] * len(models), said


def _said_of_named(ruler: Ruler) -> list[str]:
    """Which part of a store is measured, where that is not all of it."""
    store = ruler.store
    assert store is not None
    splits = store.manifest.splits
    if len(splits) == 1:
        return []
    name = {"train": "training", "valid": "held-out"}[store.split]
    whole = sum(info.documents for info in splits.values())
    return [
        f"measuring the {name} split of {store.folder}: {splits[store.split].documents:,} of {whole:,} documents; name "
        "files for all of them"
    ]


def _said_of_own(models: Sequence[ModelFacts], rulers: Sequence[Ruler]) -> list[str]:
    """What runs held out is cut as each of them was trained; where that differs, so does what is asked of them."""
    first, cut = models[0], _cut(rulers[0].store)
    for facts, ruler in zip(models, rulers, strict=True):
        if _cut(ruler.store) != cut:
            return [
                f"{first.folder} and {facts.folder} cut what they held out differently, into pieces of at most "
                f"{rulers[0].seq_len:,} and {ruler.seq_len:,} tokens, so other tokens are masked and their losses "
                "compare only roughly; name the text with --data to measure all on the same pieces"
            ]
    return []


def _cut(store: TokenStore | None) -> tuple[int, str, int]:
    assert store is not None
    return store.seq_len, store.manifest.long_documents, store.manifest.overlap


# -- files and stores --------------------------------------------------------------------------------------------------


def open_files(config: EvaluateConfig) -> Corpus:
    """The files to measure on, each once, however often it is named."""
    corpus = Corpus(config.data, column=config.column)
    once: dict[object, CorpusFile] = {}
    for number, file in enumerate(corpus.files):
        once.setdefault(file.place or number, file)
    return corpus.of_files(list(once.values()))


def store_folder(folder: Path, data: Sequence[str]) -> Path | None:
    """Where the store lies that is named, or that a run was trained on; None where files are named.

    Raises:
        ValueError: no store is named, and the model is of no run, or of one whose store is gone.
    """
    if data:
        return Path(data[0]) if len(data) == 1 and (Path(data[0]) / MANIFEST).is_file() else None
    if not (folder / CONFIG).is_file():
        raise ValueError(f"{folder} is not a run, so it has no held-out data of its own; name a corpus with --data")
    if (folder / STORE).is_dir():
        return folder / STORE
    config = TrainConfig.from_yaml((folder / CONFIG).read_text(encoding="utf-8"))
    named = Path(config.corpus[0]) if len(config.corpus) == 1 else None
    if named is None or not (named / MANIFEST).is_file():
        raise ValueError(
            f"the store that {folder} was trained on is gone, and with it what was held out; name a corpus with --data"
        )
    return named


def _store(facts: ModelFacts, config: EvaluateConfig) -> TokenStore | None:
    """The store to measure on: one that is named, or the run's own; None where files are named."""
    folder = store_folder(facts.folder, config.data)
    if folder is None:
        return None
    store = (held_out(folder) or TokenStore.open(folder)) if config.data else _own(facts.folder)
    if store.tokenizer_fingerprint != facts.tokenizer.fingerprint:
        raise ValueError(f"the store {folder} was made with another tokenizer than {facts.folder} has; name text files")
    return store


def _own(folder: Path) -> TokenStore:
    """What a run held out."""
    place = store_folder(folder, ())
    assert place is not None
    store = held_out(place)
    if store is None:
        raise ValueError(f"{folder} held nothing out; name a corpus with --data")
    return store


def check_held_out(runs: Sequence[Path]) -> None:
    """Raise ValueError for runs that did not hold out the same text: one table would measure them with two rulers."""
    first, *others = map(_own, runs)
    for run, other in zip(runs[1:], others, strict=True):
        if not _same_text(first, other):
            raise ValueError(f"{runs[0]} and {run} held out different texts; name one with --data")


def _same_text(one: TokenStore, other: TokenStore) -> bool:
    """Whether two splits hold the same text: piece by piece where they were cut alike.

    Other tokenizers and lengths cut other pieces of the same documents, so there the hash of the text tells, and the
    counts where a store is too old to have one.
    """
    if one.folder.resolve() == other.folder.resolve():
        return True
    same_tokens = one.tokenizer_fingerprint == other.tokenizer_fingerprint
    if same_tokens and _cut(one) == _cut(other):
        return len(one) == len(other) and all(np.array_equal(one.piece(i), other.piece(i)) for i in range(len(one)))
    info, info_other = (s.manifest.splits[s.split] for s in (one, other))
    if info.dropped_tokens or info_other.dropped_tokens:  # each ends its documents where it likes
        return False
    compares_ids = same_tokens or not info.bytes
    return info.may_be_text_of(info_other) and (not compares_ids or info.text_tokens == info_other.text_tokens)
