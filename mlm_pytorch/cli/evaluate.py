"""`mlm evaluate`: one ruler for all models, one table, or one JSON object a model."""

import json
import sys
from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

import torch
from rich.console import Console
from rich.table import Table
from rich.text import Text

from mlm_pytorch.cli.memory import keep_few_shapes
from mlm_pytorch.cli.models import OpenedModel, look_at_model, open_model
from mlm_pytorch.cli.options import EvaluateConfig
from mlm_pytorch.cli.rulers import Ruler, check_held_out, open_files, settle_rulers, store_folder
from mlm_pytorch.cli.terminal import printable
from mlm_pytorch.data.packing import sequential_packs
from mlm_pytorch.evaluation import Breakdown, PieceStream, bits_per_byte, masked_loss, minimal_pairs
from mlm_pytorch.evaluation.minimal_pairs import MinimalPair, read_minimal_pairs
from mlm_pytorch.evaluation.probe import Task, probe, read_task
from mlm_pytorch.masking.words import derive_words
from mlm_pytorch.tokens import WordTable
from mlm_pytorch.training.device import native_precision
from mlm_pytorch.training.metrics import Display


def evaluate_command(config: EvaluateConfig) -> None:
    """`mlm evaluate`."""
    _check(config)
    pairs = read_minimal_pairs(config.minimal_pairs) if config.minimal_pairs else None
    task = read_task(config.probe_train, config.probe_test) if config.probe_train and config.probe_test else None
    keep_few_shapes(16)  # the least growth over a corpus, and a corpus is read once
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    models = [look_at_model(folder, config.factory) for folder in config.models]  # before hours are spent on the first
    rulers: Sequence[Ruler | None] = [None] * len(models)
    if _measures_loss(config):
        rulers, said = settle_rulers(config, models)
        for line in said:
            Display().say(line)
    reports: list[dict[str, Any]] = []
    try:
        for folder, ruler in zip(config.models, rulers, strict=True):
            opened = open_model(folder, config.factory)
            opened.model.to(device)
            with Display() as display:
                report = _measure(opened, ruler, config, pairs, task, display)
            if config.json:
                print(json.dumps(report), flush=True)
            reports.append(report)
    finally:  # what is measured is shown, whatever happens to the next model
        if reports and not config.json:
            _show(reports, Console(highlight=False, markup=False))


def _check(config: EvaluateConfig) -> None:
    """Find what contradicts itself, or would change nothing, before a model is opened.

    Raises:
        ValueError: options that exclude each other or that nothing would look at, or runs without a common ruler.
    """
    if not config.models:
        raise ValueError("no model is named; give run folders or Hugging Face folders")
    if len(config.models) > 1 and config.data and store_folder(config.models[0], config.data) is None:
        pipe = next((file.label for file in open_files(config).files if file.is_stream), None)
        if pipe is not None:
            raise ValueError(f"{pipe} can be read for one model only; name a file to compare several")
    if (config.probe_train is None) != (config.probe_test is None):
        raise ValueError("--probe-train and --probe-test go together; name a file for each")
    if config.seq_len is not None and config.seq_len < 1:
        raise ValueError(f"--seq-len {config.seq_len} is too small; give at least 3, for a token beside another")
    if not 0 < config.mask_prob <= 1:
        raise ValueError(f"--mask-prob {config.mask_prob} is outside (0, 1]; 0.15 is usual")
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
        store = next(filter(None, (store_folder(folder, config.data) for folder in config.models)), None)
        if store is not None:
            raise ValueError(f"{option} is settled by the store {store}; leave it out, or name files with --data")
    if not config.data and len(config.models) > 1:
        check_held_out(config.models)


def _measures_loss(config: EvaluateConfig) -> bool:
    """Whether the masked loss is asked for: by what to measure it on, or by nothing else."""
    return bool(config.data) or (config.minimal_pairs is None and config.probe_train is None)


def _measure(
    opened: OpenedModel,
    ruler: Ruler | None,
    config: EvaluateConfig,
    pairs: list[MinimalPair] | None,
    task: Task | None,
    display: Display,
) -> dict[str, Any]:
    """All that is asked for, of one model."""
    report: dict[str, Any] = {"model": str(opened.folder)}
    if ruler is not None:
        report |= _masked(opened, ruler, config, display)
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


def _masked(opened: OpenedModel, ruler: Ruler, config: EvaluateConfig, display: Display) -> dict[str, Any]:
    """Loss, accuracy, bits per byte and their breakdown, on files as they are or on a store."""
    store, special = ruler.store, opened.tokenizer.special
    words = _words(opened) if config.breakdown else None
    if store is None:
        corpus = open_files(config)
        stream = PieceStream(corpus, opened.tokenizer, ruler.seq_len, ruler.capacity)
        packs, source = iter(stream), stream.source

        def show(done: int) -> None:
            share = corpus.bytes_done / corpus.bytes_total if corpus.bytes_total else 0.0
            display.show("evaluating", min(1.0, share), f"{done:,} tokens")
    else:
        stream = None
        packs, source = sequential_packs(store, ruler.capacity), store.source

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
        split, documents, num_tokens, num_bytes = None, stream.num_documents, stream.num_tokens, stream.num_bytes
    else:
        assert store is not None
        info = store.manifest.splits[store.split]
        split, documents, num_tokens, num_bytes = store.split, info.documents, info.text_tokens, info.bytes
    report = asdict(result) | {"seq_len": ruler.seq_len, "split": split, "documents": documents}
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


# -- tables ------------------------------------------------------------------------------------------------------------


def _show(reports: list[dict[str, Any]], console: Console) -> None:
    names = [report["model"] for report in reports]
    columns: dict[str, list[str]] = {"model": names}
    if "loss" in reports[0]:
        columns["nats per token"] = [f"{r['loss']:.4f}" for r in reports]
        columns["accuracy"] = [f"{r['accuracy']:.2%}" for r in reports]
        columns["bits per byte"] = [f"{b:.4f}" if (b := r["bits_per_byte"]) is not None else "–" for r in reports]
        columns["longest piece"] = [f"{r['seq_len']:,} tokens" for r in reports]
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
