"""`mlm evaluate`: one ruler for all models, one table, or one JSON object a model."""

import json
import sys
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rich.console import Console
from rich.table import Table
from rich.text import Text

from mlm_pytorch.cli.memory import keep_few_shapes
from mlm_pytorch.cli.models import OpenedModel, open_model, printable
from mlm_pytorch.cli.options import EvaluateConfig
from mlm_pytorch.cli.store import held_out
from mlm_pytorch.data.corpus import Corpus
from mlm_pytorch.data.packing import Pack, sequential_packs
from mlm_pytorch.data.store import MANIFEST, TokenStore
from mlm_pytorch.evaluation import Breakdown, PieceStream, bits_per_byte, masked_loss, minimal_pairs
from mlm_pytorch.evaluation.minimal_pairs import MinimalPair, read_minimal_pairs
from mlm_pytorch.evaluation.probe import Task, probe, read_task
from mlm_pytorch.masking.words import derive_words
from mlm_pytorch.tokens import WordTable
from mlm_pytorch.training.config import TrainConfig
from mlm_pytorch.training.device import native_precision
from mlm_pytorch.training.metrics import Display
from mlm_pytorch.training.run import CONFIG, STORE

EVALUATION_PACK = 4096  # tokens computed at a time


def evaluate_command(config: EvaluateConfig) -> None:
    """`mlm evaluate`."""
    _check(config)
    pairs = read_minimal_pairs(config.minimal_pairs) if config.minimal_pairs else None
    task = read_task(config.probe_train, config.probe_test) if config.probe_train and config.probe_test else None
    keep_few_shapes(16)  # the least growth over a corpus, and a corpus is read once
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    reports = []
    for folder in config.models:
        opened = open_model(folder, config.factory)
        opened.model.to(device)
        with Display() as display:
            report = _measure(opened, config, pairs, task, display)
        if config.json:
            print(json.dumps(report), flush=True)
        reports.append(report)
    if not config.json:
        _show(reports, Console(highlight=False, markup=False))


def _check(config: EvaluateConfig) -> None:
    """Find what contradicts itself, or would change nothing, before a model is opened.

    Raises:
        ValueError: options that exclude each other or that nothing would look at, or runs without a common ruler.
    """
    if not config.models:
        raise ValueError("no model is named; give run folders or Hugging Face folders")
    if "-" in config.data and len(config.models) > 1:
        raise ValueError("standard input can be read for one model only; name a file to compare several")
    if (config.probe_train is None) != (config.probe_test is None):
        raise ValueError("--probe-train and --probe-test go together; name a file for each")
    untouched = EvaluateConfig(models=())

    def given(*names: str) -> str | None:
        """The first of these options that is not as it is by default, as it is typed."""
        named = next((name for name in names if getattr(config, name) != getattr(untouched, name)), None)
        return None if named is None else f"--{named.replace('_', '-')}"

    if config.probe_train is None and (option := given("probe_finetune", "probe_seeds")):
        raise ValueError(f"{option} needs a task; name --probe-train and --probe-test")
    if config.minimal_pairs is None and (option := given("pll", "pair_score")):
        raise ValueError(f"{option} is of minimal pairs, and none are named; name --minimal-pairs, or leave it out")
    if not _measures_loss(config):
        if option := given("breakdown", "mask_prob", "seq_len", "column"):
            asked = "--minimal-pairs" if config.minimal_pairs else "--probe-train"
            raise ValueError(
                f"{option} is of the masked loss, which {asked} without --data does not measure; name held-out text "
                "with --data, or leave it out"
            )
        return
    if option := given("seq_len", "column"):
        store = next(filter(None, (_store_folder(folder, config.data) for folder in config.models)), None)
        if store is not None:
            raise ValueError(f"{option} is settled by the store {store}; leave it out, or name files with --data")
    if not config.data and len(config.models) > 1:
        _check_held_out(config.models)


def _measures_loss(config: EvaluateConfig) -> bool:
    """Whether the masked loss is asked for: by what to measure it on, or by nothing else."""
    return bool(config.data) or (config.minimal_pairs is None and config.probe_train is None)


def _measure(
    opened: OpenedModel,
    config: EvaluateConfig,
    pairs: list[MinimalPair] | None,
    task: Task | None,
    display: Display,
) -> dict[str, Any]:
    """All that is asked for, of one model."""
    report: dict[str, Any] = {"model": str(opened.folder)}
    if _measures_loss(config):
        report |= _masked(opened, config, display)
    if pairs is not None:

        def show(done: int) -> None:
            display.show("minimal pairs", done / (2 * len(pairs)), f"{done:,} of {2 * len(pairs):,} sentences")

        result = minimal_pairs(
            opened.model,
            opened.tokenizer,
            pairs,
            variant=config.pll,
            score=config.pair_score,
            max_seq_len=opened.max_seq_len,
            progress=show,
        )
        report["minimal_pairs"] = {"pll": config.pll, "score": config.pair_score} | asdict(result)
    if task is not None:
        kinds = ("frozen", "finetuned") if config.probe_finetune else ("frozen",)
        report["probe"] = {
            kind: asdict(
                probe(
                    opened.model,
                    opened.tokenizer,
                    task,
                    kind=kind,
                    seeds=config.probe_seeds,
                    max_seq_len=opened.max_seq_len,
                    progress=lambda share, what: display.show("probing", share, what),
                )
            )
            for kind in kinds
        }
    return report


# -- masked loss -------------------------------------------------------------------------------------------------------


def _masked(opened: OpenedModel, config: EvaluateConfig, display: Display) -> dict[str, Any]:
    """Loss, accuracy, bits per byte and their breakdown, on files as they are or on a store."""
    store = _store(opened, config)
    special = opened.tokenizer.special
    words = _words(opened) if config.breakdown else None
    if store is None:
        seq_len = min(config.seq_len or opened.seq_len, opened.max_seq_len)
        corpus = Corpus(config.data, column=config.column)
        stream = PieceStream(corpus, opened.tokenizer, seq_len, max(EVALUATION_PACK, seq_len))
        packs, source = iter(stream), stream.source

        def show(done: int) -> None:
            share = corpus.bytes_done / corpus.bytes_total if corpus.bytes_total else 0.0
            display.show("evaluating", min(1.0, share), f"{done:,} tokens")
    else:
        stream = None
        packs = _store_packs(store, opened)
        source = store.source

        def show(done: int) -> None:
            display.show("evaluating", min(1.0, done / store.num_tokens), f"{done:,} tokens")

    breakdown = Breakdown(special, words, source) if config.breakdown else None
    result = masked_loss(
        opened.model,
        packs,
        special,
        mask_prob=config.mask_prob,
        autocast=native_precision(next(opened.model.parameters()).device),
        progress=show,
        breakdown=breakdown,
    )
    if stream is not None:
        num_tokens, num_bytes = stream.num_tokens, stream.num_bytes
    else:
        assert store is not None
        num_tokens, num_bytes = _text_tokens(store), store.manifest.splits[store.split].bytes
    report = asdict(result)
    report["bits_per_byte"] = bits_per_byte(result.loss, num_tokens, num_bytes) if num_bytes else None
    if breakdown is not None:
        groups = breakdown.groups()
        report["breakdown"] = {
            axis: {name: asdict(group) for name, group in found.items()} for axis, found in groups.items()
        }
    return report


def _words(opened: OpenedModel) -> WordTable | None:
    try:
        return derive_words(opened.tokenizer.backend)
    except ValueError:  # this tokenizer's ids do not show words: that part of the breakdown is left out
        return None


def _store_packs(store: TokenStore, opened: OpenedModel) -> Iterator[Pack]:
    if store.seq_len > opened.max_seq_len:
        raise ValueError(
            f"the pieces of {store.folder} have up to {store.seq_len} tokens, more than the {opened.max_seq_len} of "
            f"{opened.folder}; prepare them shorter"
        )
    return sequential_packs(store, max(EVALUATION_PACK, store.seq_len))


def _text_tokens(store: TokenStore) -> int:
    """Tokens of a split's documents, whose bytes are counted: with what was cut off, and nothing twice."""
    info = store.manifest.splits[store.split]
    return info.tokens + info.dropped_tokens - info.repeated_tokens


def _store(opened: OpenedModel, config: EvaluateConfig) -> TokenStore | None:
    """The store to measure on: one that is named, or the run's own; None where files are named."""
    store_folder = _store_folder(opened.folder, config.data)
    if store_folder is None:
        return None
    store = (held_out(store_folder) or TokenStore.open(store_folder)) if config.data else _own(opened.folder)
    if store.tokenizer_fingerprint != opened.tokenizer.fingerprint:
        raise ValueError(
            f"the store {store_folder} was made with another tokenizer than {opened.folder} has; name text files"
        )
    return store


def _store_folder(folder: Path, data: Sequence[str]) -> Path | None:
    """Where the store lies that is named, or that a run was trained on; None where files are named."""
    if data:
        return Path(data[0]) if len(data) == 1 and (Path(data[0]) / MANIFEST).is_file() else None
    if not (folder / CONFIG).is_file():
        raise ValueError(f"{folder} is not a run, so it has no held-out data of its own; name a corpus with --data")
    config = TrainConfig.from_yaml((folder / CONFIG).read_text(encoding="utf-8"))
    return folder / STORE if (folder / STORE).is_dir() else Path(config.corpus[0])


# -- what runs held out ------------------------------------------------------------------------------------------------


def _own(folder: Path) -> TokenStore:
    """What a run held out."""
    store_folder = _store_folder(folder, ())
    assert store_folder is not None
    store = held_out(store_folder)
    if store is None:
        raise ValueError(f"{folder} held nothing out; name a corpus with --data")
    return store


def _check_held_out(runs: Sequence[Path]) -> None:
    """Raise ValueError for runs that did not hold out the same text: one table would measure them with two rulers."""
    first, *others = map(_own, runs)
    for run, other in zip(runs[1:], others, strict=True):
        if not _same_text(first, other):
            raise ValueError(f"{runs[0]} and {run} held out different texts; name one with --data")


def _same_text(one: TokenStore, other: TokenStore) -> bool:
    """Whether two splits hold the same text: piece by piece where they were cut alike.

    Other tokenizers and lengths cut other pieces of the same documents, so there the counts have to tell.
    """
    if one.folder.resolve() == other.folder.resolve():
        return True
    same_tokens = one.tokenizer_fingerprint == other.tokenizer_fingerprint
    cut, cut_other = ((s.seq_len, s.manifest.long_documents, s.manifest.overlap) for s in (one, other))
    if same_tokens and cut == cut_other:
        return len(one) == len(other) and all(np.array_equal(one.piece(i), other.piece(i)) for i in range(len(one)))
    info, info_other = (s.manifest.splits[s.split] for s in (one, other))
    if info.dropped_tokens or info_other.dropped_tokens:  # each ends its documents where it likes
        return False
    facts, facts_other = ((i.documents, i.characters, i.bytes) for i in (info, info_other))
    compares_ids = same_tokens or not info.bytes
    return facts == facts_other and (not compares_ids or _text_tokens(one) == _text_tokens(other))


# -- tables ------------------------------------------------------------------------------------------------------------


def _show(reports: list[dict[str, Any]], console: Console) -> None:
    names = [report["model"] for report in reports]
    columns: dict[str, list[str]] = {"model": names}
    if "loss" in reports[0]:
        columns["nats per token"] = [f"{r['loss']:.4f}" for r in reports]
        columns["accuracy"] = [f"{r['accuracy']:.2%}" for r in reports]
        columns["bits per byte"] = [f"{b:.4f}" if (b := r["bits_per_byte"]) is not None else "–" for r in reports]
        columns["predicted"] = [f"{r['num_targets']:,} of {r['num_tokens']:,}" for r in reports]
    if "minimal_pairs" in reports[0]:
        columns["minimal pairs"] = [_interval(r["minimal_pairs"]["overall"]) for r in reports]
    for kind in reports[0].get("probe", {}):
        columns[f"probe, {kind}"] = [_verdict(r["probe"][kind]) for r in reports]
    _table(columns, console)
    if "breakdown" in reports[0]:
        for axis in reports[0]["breakdown"]:
            found = [r["breakdown"].get(axis, {}) for r in reports]
            rows = list(dict.fromkeys(name for groups in found for name in groups))
            columns = {f"nats per token by {axis}": rows}
            for name, groups in zip(names, found, strict=True):
                columns[name] = [f"{groups[row]['loss']:.4f}" if row in groups else "–" for row in rows]
            _table(columns, console)
    if "minimal_pairs" in reports[0]:
        rows = list(reports[0]["minimal_pairs"]["phenomena"])
        columns = {"minimal pairs by phenomenon": rows}
        for name, report in zip(names, reports, strict=True):
            columns[name] = [_interval(report["minimal_pairs"]["phenomena"][row]) for row in rows]
        _table(columns, console)


def _interval(cell: dict[str, Any]) -> str:
    return f"{100 * cell['accuracy']:.1f}% ({100 * cell['low']:.1f}–{100 * cell['high']:.1f})"


def _verdict(result: dict[str, Any]) -> str:
    return (
        f"{100 * result['pretrained']:.1f}%, untrained {100 * result['untrained']:.1f}%: "
        f"{100 * result['difference']:+.1f} ± {100 * result['spread']:.1f}, pretraining {result['verdict']}"
    )


def _table(columns: dict[str, list[str]], console: Console) -> None:
    """A table with a column per entry: drawn on a terminal, aligned by blanks elsewhere."""
    columns = {printable(name): [printable(cell) for cell in cells] for name, cells in columns.items()}
    rows = list(zip(*columns.values(), strict=True))
    if console.is_terminal:
        table = Table()
        for index, name in enumerate(columns):
            table.add_column(Text(name), justify="right" if index else "left", overflow="fold")
        for row in rows:
            table.add_row(*map(Text, row))
        console.print(table)
        return
    widths = [max(map(len, (name, *cells))) for name, cells in columns.items()]
    for row in (tuple(columns), *rows):
        cells = [
            cell.rjust(width) if index else cell.ljust(width)
            for index, (cell, width) in enumerate(zip(row, widths, strict=True))
        ]
        print("  ".join(cells).rstrip(), file=sys.stdout)
    print()
