"""`mlm prepare`, and what preparing a corpus says on the console."""

import json
from collections.abc import Callable
from dataclasses import asdict

from mlm_pytorch.cli.options import PrepareConfig
from mlm_pytorch.data.prepare import PrepareProgress, PrepareReport, prepare
from mlm_pytorch.data.tokenizer import load_tokenizer
from mlm_pytorch.training.metrics import Display


def prepare_command(config: PrepareConfig) -> None:
    """`mlm prepare`."""
    if not config.corpus:
        raise ValueError("no corpus is named; give files, globs, folders, or - for standard input")
    with Display() as display:
        report = prepare(
            config.corpus,
            config.out,
            tokenizer=load_tokenizer(config.tokenizer) if config.tokenizer else None,
            vocab_size=config.vocab_size,
            seq_len=config.seq_len,
            valid=config.valid or None,
            column=config.column,
            split_text=config.split_text,
            encoding_errors=config.encoding_errors,
            workers=config.workers,
            engine=config.engine,
            progress=show_preparing(display),
        )
        if not config.json:
            display.say(described(report))
    if config.json:
        print(json.dumps(asdict(report), default=str))


def show_preparing(display: Display) -> Callable[[PrepareProgress], None]:
    """A callback for `prepare` that moves the display's bar."""

    def progress(state: PrepareProgress) -> None:
        share = state.bytes_done / state.bytes_total if state.bytes_total else 0.0
        reading = {"tokenizer": "reading for the tokenizer", "store": "tokenizing"}[state.stage]
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
