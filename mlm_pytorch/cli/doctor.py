"""`mlm doctor`: what was found, worst first; or one JSON object. Exit code 1 where anything is red."""

import json
import math
from dataclasses import asdict
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from mlm_pytorch.cli.memory import keep_few_shapes
from mlm_pytorch.cli.options import DoctorConfig
from mlm_pytorch.cli.terminal import printable
from mlm_pytorch.doctor.examination import Report, examine
from mlm_pytorch.doctor.findings import Finding
from mlm_pytorch.doctor.masks import MaskedSample
from mlm_pytorch.doctor.ranks import RankPlan
from mlm_pytorch.training.metrics import Display, clock

_STYLE = {"green": "green", "yellow": "yellow", "red": "bold red"}
_SIGN = {"green": "✓", "yellow": "!", "red": "✗"}


def doctor_command(config: DoctorConfig) -> None:
    """`mlm doctor`.

    Raises:
        ValueError: nothing to look at.
        SystemExit: 1, where anything is red.
    """
    keep_few_shapes(64)  # a trial of seconds has few, and the doctor promises to stay small
    with Display() as display:
        report = examine(config, display.say if not config.json else lambda _: None)
    if config.json:
        print(json.dumps(as_json(report)))
    else:
        show(report, Console(highlight=False, markup=False))
    if report.level == "red":
        raise SystemExit(1)


def as_json(report: Report) -> dict[str, Any]:
    """The report as JSON holds it: no NaN, and the overall level beside its fields."""
    plans = [asdict(plan) | {"total": plan.total} for plan in report.plans]
    return _finite(asdict(report) | {"level": report.level, "plans": plans})


def _finite(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def show(report: Report, console: Console) -> None:
    """Everything, for a person. Text of the corpus is printed as it is, never interpreted."""
    _show_read(report, console)
    for finding in report.findings:
        if finding.level != "green":
            _show_finding(finding, console)
    good = [finding for finding in report.findings if finding.level == "green"]
    if good:
        console.print(Text(f"✓ {len(good)} checks are green", style="green"))
        for finding in good:
            console.print(Text(f"  {finding.title}: {printable(finding.seen)}", style="dim"), soft_wrap=True)
    if report.samples:
        console.print(Text("\npieces as training sees them, what is to be predicted in [brackets]", style="bold"))
    for sample in report.samples:
        _show_sample(sample, console)
    _show_forecast(report, console)
    if report.plans:
        _show_plans(report.plans, console)
    counts = {level: sum(finding.level == level for finding in report.findings) for level in _STYLE}
    summary = f"\n{counts['red']} red, {counts['yellow']} yellow, {counts['green']} green, in {report.seconds:.0f} s"
    console.print(Text(summary, style=_STYLE[report.level]))


def _show_read(report: Report, console: Console) -> None:
    read = report.read
    if "store" in read:
        text = f"looked at {read['pieces_looked_at']:,} of {read['pieces']:,} pieces of the store {read['store']}"
    elif read:
        total = read["bytes_total"]
        of = f" of {total / 1e6:,.1f} MB" if total is not None else ""
        place = "spread over all of it" if total is not None else "from its beginning on"
        text = (
            f"read {read['bytes_read'] / 1e6:,.1f} MB{of} in {read['files_read']:,} of {read['files']:,} files: "
            f"{read['documents_read']:,} documents, {read['characters_read'] / 1e6:,.1f}M characters"
            + ("" if read["whole"] else f", {place}")
            + f"; looked closely at {read['documents_looked_at']:,}"
        )
        if "documents_read_for_repeats" in read:
            text += f"; for repeats, read {read['documents_read_for_repeats']:,} from the beginning on"
    else:
        return
    console.print(Text(printable(text)), soft_wrap=True)
    if report.tokenizer:
        console.print(Text(f"tokenizer: {printable(report.tokenizer)}\n"), soft_wrap=True)


def _show_finding(finding: Finding, console: Console) -> None:
    console.print(Text(f"{_SIGN[finding.level]} {finding.title}", style=_STYLE[finding.level]), soft_wrap=True)
    console.print(Text(f"  seen:   {printable(finding.seen)}"), soft_wrap=True)
    console.print(Text(f"  why:    {printable(finding.why)}"), soft_wrap=True)
    console.print(Text(f"  remedy: {printable(finding.remedy)}"), soft_wrap=True)
    for example in finding.examples:
        console.print(Text(f"  | {printable(example)}", style="dim"), soft_wrap=True)
    console.print()


def _show_sample(sample: MaskedSample, console: Console) -> None:
    line = Text()
    line.append(f"\n{sample.length} tokens, {sample.share:.0%} predicted: ", style="dim")
    brings_blanks = sample.with_blanks or any(token.text.startswith(" ") for token in sample.tokens)
    in_pieces = any(token.text.startswith("##") for token in sample.tokens)  # a letter alone is then a word
    for token in sample.tokens:
        text = printable(token.text)
        stripped = text.strip().removeprefix("##") or text
        glued = brings_blanks or text.startswith("##") or (len(text) == 1 and not (in_pieces and text.isalnum()))
        line.append(" " if (text.startswith(" ") and text.strip()) or not glued else "")
        if not token.selected:
            line.append(stripped)
        elif token.shown is None:
            line.append(f"[{stripped} as it is]", style="bold magenta")
        elif token.shown in ("[MASK]", "<mask>"):
            line.append(f"[{stripped}]", style="bold magenta")
        else:
            line.append(f"[{stripped} as {printable(token.shown).strip()}]", style="bold magenta")
    console.print(line, soft_wrap=True)


def _show_forecast(report: Report, console: Console) -> None:
    trial, expected = report.trial, report.forecast
    if trial is None or expected is None:
        return
    if trial.steps:
        how = f"{trial.steps} steps of {trial.pack_tokens:,} tokens in {trial.seconds:.1f} s"
        how += f" on {trial.device}, {trial.precision}"
    else:
        how = "nothing was run"
    least, most = ("at least", "at most ") if expected.at_least else ("about", "")
    rows = {
        "measured": how + (f" ({trial.note})" if trial.note else ""),
        "speed": f"{trial.tokens_per_second:,.0f} tokens/s, {trial.step_seconds:.3g} s a step",
        "prepare": f"{clock(expected.prepare_seconds)}, {expected.store_bytes / 1e6:,.0f} MB store",
        "one pass": f"{clock(expected.epoch_seconds)} for {least} {expected.tokens:,} tokens",
        "budget": f"{expected.steps:,} steps, {clock(expected.budget_seconds)}, {most}{expected.epochs:.2f} passes",
        "memory": f"{expected.memory_bytes / 1e6:,.0f} MB, {trial.state_bytes / 1e6:,.0f} of it weights, gradients and "
        "optimizer state",
        "disk": f"{(expected.store_bytes + expected.checkpoint_bytes) / 1e6:,.0f} MB with checkpoints",
    }
    console.print(Text("\nforecast", style="bold"))
    for name, value in rows.items():
        console.print(Text(f"  {name:<9} {value}"), soft_wrap=True)


def _show_plans(plans: list[RankPlan], console: Console) -> None:
    table = Table(
        box=None, padding=(0, 1), title="per rank, reckoned (docs/guides/doctor.md says how)", title_justify="left"
    )
    heads = ("ranks", "layout", "weights", "gradients", "optimizer", "activations", "total GB")
    for head in (*heads, "sends inside GB", "between nodes GB", "compute ms", "send ms"):
        table.add_column(head, justify="left" if head == "layout" else "right")
    for plan in plans:
        sizes = (plan.weights, plan.gradients, plan.optimizer, plan.activations, plan.total)
        sent = (plan.sent_inside, plan.sent_between)
        table.add_row(
            str(plan.ranks),
            plan.layout,
            *(f"{size / 1e9:.2f}" for size in (*sizes, *sent)),
            *(f"{1e3 * seconds:.1f}" for seconds in (plan.compute_seconds, plan.communication_seconds)),
        )
    console.print()
    console.print(table)
