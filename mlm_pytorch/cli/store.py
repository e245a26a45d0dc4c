"""The store that a run trains on: the one that the command names, or the run's own, prepared when it begins."""

import dataclasses
import socket
import tempfile
from pathlib import Path

from mlm_pytorch.adaptation import Extension
from mlm_pytorch.cli.adapting import Adaptation, read_adaptation
from mlm_pytorch.cli.prepare import described, open_corpora, prepare_corpus
from mlm_pytorch.cli.starting import ModelStart, Start, check_lengths
from mlm_pytorch.cli.terminal import printable
from mlm_pytorch.data.options import CorpusOptions
from mlm_pytorch.data.store import MANIFEST, Manifest, TokenStore
from mlm_pytorch.data.tokenizer import load_tokenizer
from mlm_pytorch.masking import derive_words
from mlm_pytorch.training.config import TrainConfig
from mlm_pytorch.training.distributed import World
from mlm_pytorch.training.metrics import Display
from mlm_pytorch.training.run import CONFIG, STORE, store_to_prepare


def named_store(config: TrainConfig) -> Path | None:
    """The corpus, where it is one store."""
    named = Path(config.corpus[0]) if len(config.corpus) == 1 else None
    return named if named and (named / MANIFEST).is_file() else None


def find_corpus(config: TrainConfig, folder: Path) -> None:
    """Raise ValueError where a run that begins has no corpus: the likeliest mistake, before anything is measured."""
    if not (folder / CONFIG).is_file() and named_store(config) is None:
        open_corpora(config, config.corpus)


def held_out(store_folder: Path) -> TokenStore | None:
    """The held-out split of a store, where it has one."""
    return TokenStore.open(store_folder, "valid") if "valid" in Manifest.read(store_folder).splits else None


def open_store(
    config: TrainConfig, start: Start | None, folder: Path, display: Display, world: World
) -> tuple[TokenStore, Extension | None]:
    """The store to train on, prepared by the first process, and what its tokenizer was extended by."""
    extensions: list[Extension | None] = []

    def prepare() -> Path:
        path, extension = _store(config, start, folder, display)
        extensions.append(extension)
        return path

    path = world.from_main(prepare)
    if not (path / MANIFEST).is_file():
        raise ValueError(
            f"process {world.rank} on {socket.gethostname()} does not see {path}, which the first process prepared; "
            "put --out on a file system that all machines share"
        )
    store = TokenStore.open(path)
    extension = extensions[0] if extensions else _extension_again(config, start)
    if extension is not None and extension.tokenizer.fingerprint != store.tokenizer_fingerprint:
        raise ValueError(
            f"{path} was prepared from another text than the corpus now holds, to which --extend-vocabulary "
            f"{config.extend_vocabulary} would add other tokens; remove {folder}, or choose another --out"
        )
    return store, extension


def _store(config: TrainConfig, start: Start | None, folder: Path, display: Display) -> tuple[Path, Extension | None]:
    """The store to train on: the one named, the run's own, or one prepared now; and what its tokenizer was extended by.

    A model that is continued is told how well its tokenizer fits the corpus, while there is time to think again.
    """
    named = named_store(config)
    if named:
        untouched = CorpusOptions()
        for option in ("seq_len", *(field.name for field in dataclasses.fields(CorpusOptions)), "extend_vocabulary"):
            if getattr(config, option) != getattr(untouched, option, None):
                raise ValueError(
                    f"--{option.replace('_', '-')} is settled by the store {named}; "
                    "leave it out, or prepare another store"
                )
        if isinstance(start, ModelStart):
            start.check_store(TokenStore.open(named))
            _say_fit(read_adaptation(config, start.tokenizer, TokenStore.open(named)), display)
        return named, None
    if start is None:
        return folder / STORE, None
    own = store_to_prepare(folder, config)
    if own is None:  # ended before its first checkpoint
        return folder / STORE, _extension_again(config, start)
    trained_at = start.trained_at
    seq_len = config.seq_len or min(trained_at.seq_len, start.longest or trained_at.seq_len)
    check_lengths(seq_len, start.longest, config.pack_tokens or max(trained_at.pack_tokens, config.seq_len or 0))
    _check_words(config, start)
    if not isinstance(start, ModelStart):
        if config.extend_vocabulary:
            raise ValueError(
                f"--extend-vocabulary {config.extend_vocabulary} is for a model that is continued; --model "
                f"{config.model} is built for any vocabulary, so pass --vocab-size"
            )
        display.say(described(prepare_corpus(config, config.corpus, own, seq_len, display)))
        return own, None
    start.check_tokenizer(config.tokenizer)
    adaptation = read_adaptation(config, start.tokenizer)
    _say_fit(adaptation, display)
    extension = _extension(config, adaptation)
    with tempfile.TemporaryDirectory() as temporary:
        tokenizer = start.folder
        if extension is not None:
            tokenizer = Path(temporary)
            extension.tokenizer.save(tokenizer)
            after = read_adaptation(config, extension.tokenizer)
            assert adaptation is not None
            assert after is not None
            display.say(
                f"{len(extension.pieces):,} tokens added to the vocabulary, which then makes "
                f"{after.fit.pieces_per_word:.2f} pieces a word instead of {adaptation.fit.pieces_per_word:.2f}; their "
                "embeddings start at the means of their pieces'"
            )
        options = dataclasses.replace(config, tokenizer=None)
        display.say(described(prepare_corpus(options, config.corpus, own, seq_len, display, tokenizer)))
    return own, extension


def _check_words(config: TrainConfig, start: Start) -> None:
    """Refuse to select words by a tokenizer that knows none, before an hour is spent on tokenizing."""
    given = start.folder if isinstance(start, ModelStart) else config.tokenizer and Path(config.tokenizer)
    if config.selection in ("words", "ngrams") and given and given.is_dir():
        derive_words(load_tokenizer(given).backend)


def _extension(config: TrainConfig, adaptation: Adaptation | None) -> Extension | None:
    """What is added to the vocabulary. The same corpus gives the same."""
    if not config.extend_vocabulary:
        return None
    if adaptation is None:
        raise ValueError(
            f"--extend-vocabulary {config.extend_vocabulary} has to read the corpus as text, and more than once; name "
            "files of text"
        )
    return adaptation.extend(config.extend_vocabulary)


def _extension_again(config: TrainConfig, start: Start | None) -> Extension | None:
    """The same as when the store was prepared, in this process or in another one."""
    if not isinstance(start, ModelStart) or not config.extend_vocabulary:
        return None
    return _extension(config, read_adaptation(config, start.tokenizer))


def _say_fit(adaptation: Adaptation | None, display: Display) -> None:
    if adaptation is None:
        return
    display.say(adaptation.fit.describe())
    if adaptation.fit.fits_badly and adaptation.fit.costliest:
        words = (f"{printable(word)} ({pieces} pieces, {n:,} times)" for word, pieces, n in adaptation.fit.costliest)
        display.say(f"costliest words: {', '.join(words)}")
