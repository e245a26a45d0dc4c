"""`mlm prepare`, and what preparing a corpus says on the console."""

import json
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path

from mlm_pytorch.cli.options import PrepareConfig
from mlm_pytorch.data.corpus import Corpus
from mlm_pytorch.data.mixture import Mixture, parse_mix
from mlm_pytorch.data.options import CorpusOptions
from mlm_pytorch.data.prepare import PrepareProgress, PrepareReport, prepare
from mlm_pytorch.data.tokenizer import TOKENIZER_KINDS, Tokenizer, load_tokenizer, tokenizer_for_ids
from mlm_pytorch.training.metrics import Display


def prepare_command(config: PrepareConfig) -> None:
    """`mlm prepare`."""
    if config.verify is not None:
        from mlm_pytorch.data.verify import verify_store

        report = verify_store(config.verify)
        print(json.dumps(asdict(report), default=str) if config.json else f"{config.verify}: {report}")
        return
    if config.out is None:
        raise ValueError("no place for the store is named; give a folder with --out")
    with Display() as display:
        report = prepare_corpus(config, config.corpus, config.out, config.seq_len, display)
        if not config.json:
            display.say(described(report))
    if config.json:
        print(json.dumps(asdict(report), default=str))


def prepare_corpus(
    options: CorpusOptions,
    paths: tuple[str, ...],
    out: Path,
    seq_len: int,
    display: Display,
    tokenizer: Path | None = None,
) -> PrepareReport:
    """Prepare a corpus as the options say, with the progress on the display.

    Args:
        options: what `mlm prepare` and `mlm train` share.
        paths: the corpus; empty where `options.mix` names it.
        out: the store's folder.
        seq_len: longest piece, framing counted.
        display: the console.
        tokenizer: folder of the tokenizer where the options name none; None trains one.

    Raises:
        ValueError: options that contradict each other, and all that is wrong with the corpus.
    """
    loaded, kind = _tokenizer(options, paths, tokenizer)
    return prepare(
        _corpus(options, paths, num_tokens=loaded.special.num_tokens if loaded else None),
        out,
        tokenizer=loaded,
        tokenizer_kind=kind,
        vocab_size=options.vocab_size,
        seq_len=seq_len,
        valid=options.valid or None,
        long_documents=options.long_documents,
        overlap=options.overlap,
        drop_duplicates=options.drop_duplicates,
        engine=options.engine,
        workers=options.workers,
        progress=show_preparing(display),
        notice=display.say,
    )


def _corpus(options: CorpusOptions, paths: tuple[str, ...], num_tokens: int | None = None) -> Corpus | Mixture:
    reading = {"column": options.column, "split_text": options.split_text, "encoding_errors": options.encoding_errors}
    if options.mix and paths:
        raise ValueError(f"--mix and the corpus {paths[0]} are both given; name every part with --mix FILE=WEIGHT")
    if options.mix:
        return Mixture([parse_mix(part) for part in options.mix], num_tokens=num_tokens, **reading)
    if not paths:
        raise ValueError("no corpus is named; give files, globs, folders, or - for standard input")
    return Corpus(paths, num_tokens=num_tokens, **reading)


def _tokenizer(
    options: CorpusOptions, paths: tuple[str, ...], default: Path | None
) -> tuple[Tokenizer | None, str | None]:
    """The tokenizer to use, or the kind to train; neither where the corpus shall decide."""
    for_ids = {
        name: getattr(options, name) for name in ("num_tokens", "mask_token_id", "pad_token_id", "add_special_tokens")
    }
    given = [f"--{name.replace('_', '-')}" for name, value in for_ids.items() if value not in (None, False)]
    if given and options.tokenizer:
        raise ValueError(f"{given[0]} describes ids without a tokenizer, but --tokenizer is given; leave out one")
    if given:
        num_tokens = options.num_tokens or _largest_id(_corpus(options, paths)) + 1
        return tokenizer_for_ids(**for_ids | {"num_tokens": num_tokens}), None
    if options.tokenizer is None:
        return (load_tokenizer(default) if default else None), None
    if options.tokenizer.partition(":")[0] in TOKENIZER_KINDS:
        return None, options.tokenizer
    return load_tokenizer(options.tokenizer), None


def _largest_id(corpus: Corpus | Mixture) -> int:
    """Read a corpus of ids for the largest of them."""
    if any(file.is_stream for file in corpus.files):
        raise ValueError("standard input is read once, which leaves the largest id unknown; pass --num-tokens")
    largest = max((int(document.ids.max()) for document in corpus if document.ids is not None), default=-1)
    if largest < 0:
        raise ValueError(
            "the corpus holds no token ids; leave out --add-special-tokens, --mask-token-id and --pad-token-id"
        )
    return largest


def show_preparing(display: Display) -> Callable[[PrepareProgress], None]:
    """A callback for `prepare` that moves the display's bar."""

    def progress(state: PrepareProgress) -> None:
        share = state.bytes_done / state.bytes_total if state.bytes_total else 0.0
        reading = {
            "tokenizer": "reading for the tokenizer",
            "duplicates": "looking for duplicates",
            "store": "tokenizing",
        }[state.stage]
        display.show(reading, share, f"{state.documents:,} documents, {state.tokens:,} tokens")

    return progress


def described(report: PrepareReport) -> str:
    """What a preparation made, in one line."""
    parts = [
        f"{report.documents:,} documents, {report.tokens:,} tokens in {report.pieces:,} pieces",
        f"{report.split_documents:,} documents split",
        f"{report.valid_documents:,} held out",
        f"{report.characters_per_token:.2f} characters a token",
    ]
    if report.empty_documents:
        parts.append(f"{report.empty_documents:,} empty ones skipped")
    if report.unknown_tokens:
        parts.append(f"{100 * report.unknown_rate:.2f}% of tokens unknown to the tokenizer")
    if report.skipped_files:
        parts.append(f"{len(report.skipped_files):,} files skipped, of unknown kinds")
    return f"{report.out}: " + "; ".join(parts)
