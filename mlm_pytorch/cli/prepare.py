"""`mlm prepare`, and what preparing a corpus says on the console."""

import json
from collections.abc import Callable, Iterable
from dataclasses import asdict, replace
from itertools import chain
from pathlib import Path

from mlm_pytorch.cli.options import PrepareConfig
from mlm_pytorch.data.corpus import Corpus
from mlm_pytorch.data.mixture import Mixture, parse_mix
from mlm_pytorch.data.options import CorpusOptions
from mlm_pytorch.data.overlaps import each_file_in_one_place
from mlm_pytorch.data.prepare import PrepareProgress, PrepareReport, prepare
from mlm_pytorch.data.tokenizer import Tokenizer, load_tokenizer, parse_kind, tokenizer_for_ids
from mlm_pytorch.data.tokenizer.alphabets import check_largest_id
from mlm_pytorch.training.metrics import Display, clock


def prepare_command(config: PrepareConfig) -> None:
    """`mlm prepare`."""
    if config.verify is not None:
        from mlm_pytorch.data.verify import verify_store

        report = verify_store(config.verify)
        print(
            json.dumps(asdict(report), default=str)
            if config.json
            else f"{config.verify}: as written ({report.shards:,} shards of {report.bytes / 1e6:,.1f} MB, "
            f"{report.documents:,} documents, {report.pieces:,} pieces, {report.tokens:,} tokens)"
        )
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
        open_corpus(options, paths, num_tokens=loaded.special.num_tokens if loaded else None),
        out,
        tokenizer=loaded,
        tokenizer_kind=kind,
        vocab_size=options.vocab_size,
        seq_len=seq_len,
        valid=options.valid_files or None,
        valid_share=0.0 if options.holds_nothing_out else None,
        long_documents=options.long_documents,
        overlap=options.overlap,
        drop_duplicates=options.drop_duplicates,
        engine=options.engine,
        workers=options.workers,
        progress=show_preparing(display),
        notice=display.say,
    )


def open_corpus(options: CorpusOptions, paths: tuple[str, ...], num_tokens: int | None = None) -> Corpus | Mixture:
    """The documents that the options name: of a mixture, or of files.

    Raises:
        ValueError: both are named, or neither.
    """
    reading = {"column": options.column, "split_text": options.split_text, "encoding_errors": options.encoding_errors}
    if options.mix and paths:
        raise ValueError(f"--mix and the corpus {paths[0]} are both given; name every part with --mix FILE=WEIGHT")
    if options.mix:
        return Mixture([parse_mix(part) for part in options.mix], num_tokens=num_tokens, **reading)
    if not paths:
        raise ValueError("no corpus is named; give files, globs, folders, or - for standard input")
    return Corpus(paths, num_tokens=num_tokens, **reading)


def open_corpora(
    options: CorpusOptions, paths: tuple[str, ...], num_tokens: int | None = None
) -> dict[str, Corpus | Mixture]:
    """What a preparation reads for each split: every file once, and for "train" none that is held out.

    Raises:
        ValueError: as `open_corpus`; a part of a mixture that is held out.
    """
    corpora = {"train": open_corpus(options, paths, num_tokens)}
    if options.valid_files:
        corpora["valid"] = open_corpus(replace(options, mix=()), options.valid_files, num_tokens)
    return each_file_in_one_place(corpora)


def _tokenizer(
    options: CorpusOptions, paths: tuple[str, ...], default: Path | None
) -> tuple[Tokenizer | None, str | None]:
    """The tokenizer to use, or the kind to train; neither where the corpus shall decide."""
    for_ids = ("num_tokens", "mask_token_id", "pad_token_id", "special_ids", "add_special_tokens")
    given = [f"--{name.replace('_', '-')}" for name in for_ids if getattr(options, name) not in (None, False, ())]
    if given and options.tokenizer:
        raise ValueError(f"{given[0]} describes ids without a tokenizer, but --tokenizer is given; leave out one")
    if given:
        num_tokens = options.num_tokens or _largest_id(open_corpora(options, paths).values()) + 1
        made = tokenizer_for_ids(
            num_tokens,
            mask_token_id=options.mask_token_id,
            pad_token_id=options.pad_token_id,
            special_ids=options.special_ids,
            add_special_tokens=options.add_special_tokens,
        )
        return made, None
    if options.tokenizer is None:
        return (load_tokenizer(default) if default else None), None
    if Path(options.tokenizer).is_dir():
        return load_tokenizer(options.tokenizer), None
    parse_kind(options.tokenizer)  # fails early
    return None, options.tokenizer


def _largest_id(corpora: Iterable[Corpus | Mixture]) -> int:
    """Read corpora of ids for the largest of them."""
    corpora = list(corpora)
    if any(file.is_stream for corpus in corpora for file in corpus.files):
        raise ValueError("standard input is read once, which leaves the largest id unknown; pass --num-tokens")
    largest = -1
    for number, document in enumerate(chain.from_iterable(corpora), 1):
        if document.ids is not None:
            largest = max(largest, int(document.ids.max()))
            check_largest_id(largest, f"{document.source} (document {number:,} of the corpus)")
    if largest < 0:
        raise ValueError(
            "the corpus holds no token ids; leave out --add-special-tokens, --mask-token-id and --pad-token-id"
        )
    return largest


def show_preparing(display: Display) -> Callable[[PrepareProgress], None]:
    """A callback for `prepare` that moves the display's bar."""

    doing = {
        "tokenizer": "reading for the tokenizer",
        "training": "training the tokenizer",
        "duplicates": "looking for duplicates",
        "store": "tokenizing",
    }

    def progress(state: PrepareProgress) -> None:
        share = state.bytes_done / state.bytes_total if state.bytes_total else 0.0
        left = state.seconds_left_estimate
        status = "" if left is None else f"{clock(left)} left, "
        status += f"{state.documents:,} documents"
        if state.stage == "store":
            status += f", {state.tokens:,} tokens"
        if state.bytes_out_estimate is not None:
            status += f", {state.bytes_out_estimate / 1e6:,.0f} MB in all"
        display.show(doing[state.stage], share, status)

    return progress


def described(report: PrepareReport) -> str:
    """What a preparation made, in one line."""
    made = report.tokenizer
    parts = [
        f"{report.documents:,} documents, {report.tokens:,} tokens in {report.pieces:,} pieces",
        f"{report.valid_documents:,} held out",
        f"longest {max(made.longest_documents, default=0):,} tokens, {_cut(report)}",
    ]
    about = [f"{report.num_tokens:,} entries, {made.used_share:.0%} used"]
    if report.tokenizer_kind:
        about.insert(0, report.tokenizer_kind)
    if made.characters_per_token:
        about.append(f"{made.characters_per_token:.2f} characters a token")
    if made.tokens_per_word and made.tokens_per_word < 100:  # sequences without white space have no words
        about.append(f"{made.tokens_per_word:.2f} tokens a word")
    if made.unknown_tokens:
        about.append(f"{made.unknown_rate:.2%} of tokens unknown to it")
    parts.append(f"tokenizer: {', '.join(about)}")
    if report.duplicate_documents:
        parts.append(f"{report.duplicate_documents:,} duplicates {'dropped' if report.duplicates_dropped else 'kept'}")
    repeated = {name: times for name, times in report.repeats.items() if times}
    if repeated:
        parts.append("begun again: " + ", ".join(f"{name} {times:,} times" for name, times in repeated.items()))
    if report.empty_documents:
        parts.append(f"{report.empty_documents:,} empty ones skipped")
    if report.skipped_files:
        parts.append(f"{len(report.skipped_files):,} files skipped, of unknown kinds")
    return f"{report.out}: " + "; ".join(parts)


def _cut(report: PrepareReport) -> str:
    if report.dropped_tokens:
        return f"{report.split_documents:,} documents truncated ({report.dropped_tokens:,} tokens dropped)"
    if report.repeated_tokens:
        return f"{report.split_documents:,} in windows ({report.repeated_tokens:,} tokens repeated)"
    return f"{report.split_documents:,} documents split"
