"""What the page says of a run, in words and figures: plain records that the template lays out."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from mlm_pytorch.data.tokenizer import Tokenizer, TokenizerReport
from mlm_pytorch.report.curves import Buckets, Curves
from mlm_pytorch.report.facts import RunFacts, changed, flat, number
from mlm_pytorch.report.learned import Learned
from mlm_pytorch.training.metrics import clock

Format = Literal["plain", "percent", "scientific", "count", "bytes"]
TABLE_ROWS = 12


@dataclass(frozen=True)
class Chart:
    """One chart: which fields it draws, and how their values are written.

    Attributes:
        id, title, unit: of the chart.
        training, held_out: fields of metrics.jsonl.
        format: of the values.
        is_noisy: draws a smoothed line over the values themselves.
        is_wide: takes the whole width.
    """

    id: str
    title: str
    unit: str
    training: tuple[str, ...]
    held_out: tuple[str, ...] = ()
    format: Format = "plain"
    is_noisy: bool = False
    is_wide: bool = False

    def is_drawn(self, curves: Sequence[Curves]) -> bool:
        """Whether any run has something to draw; skipped steps are drawn only where steps were skipped."""
        if self.id == "skipped_steps":
            return any(c.training.last.get("skipped_steps", 0) > 0 for c in curves)
        return any(any(map(c.training.has, self.training)) or any(map(c.held_out.has, self.held_out)) for c in curves)


CHARTS = (
    Chart(
        "loss",
        "Loss",
        "nats per predicted token",
        ("loss",),
        ("valid_loss", "ema_valid_loss", "keep_loss"),
        is_noisy=True,
        is_wide=True,
    ),
    Chart(
        "accuracy",
        "Accuracy",
        "of predicted tokens",
        ("accuracy",),
        ("valid_accuracy", "ema_valid_accuracy"),
        "percent",
        is_noisy=True,
    ),
    Chart("lr", "Learning rate", "", ("lr",), format="scientific"),
    Chart("mask_prob", "Masking rate", "of tokens predicted", ("mask_prob",), format="percent"),
    Chart("tokens_per_second", "Throughput", "tokens per second", ("tokens_per_second",), (), "count", is_noisy=True),
    Chart("peak_share", "Share of peak", "of the matrix-product peak", ("peak_share",), (), "percent", is_noisy=True),
    Chart("grad_norm", "Gradient norm", "before clipping", ("grad_norm",), is_noisy=True),
    Chart("fill", "Fill", "of packs that is no padding", ("fill",), format="percent", is_noisy=True),
    Chart("memory_bytes", "Memory", "at its peak", ("memory_bytes",), format="bytes"),
    Chart("skipped_steps", "Skipped steps", "since the start", ("skipped_steps",), format="count"),
)

LABELS = {
    "loss": "training",
    "accuracy": "training",
    "valid_loss": "held out",
    "valid_accuracy": "held out",
    "ema_valid_loss": "held out, averaged weights",
    "ema_valid_accuracy": "held out, averaged weights",
    "keep_loss": "general text",
}


@dataclass(frozen=True)
class Tile:
    """One figure, with what it is and what else there is to say of it."""

    label: str
    value: str
    note: str = ""


@dataclass(frozen=True)
class Table:
    """A table in text."""

    caption: str
    header: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]


# -- figures in words --------------------------------------------------------------------------------------------------


def short(value: float) -> str:
    """A large number with three digits and a letter.

    >>> short(1234567), short(950), short(2.5e9)
    ('1.23M', '950', '2.5B')
    """
    for limit, letter in ((1e12, "T"), (1e9, "B"), (1e6, "M"), (1e4, "k")):
        if abs(value) >= limit:
            return f"{value / (1e3 if letter == 'k' else limit):.3g}{letter}"
    return f"{value:,.0f}"


def written(value: float, format: Format) -> str:
    """A value of a chart."""
    match format:
        case "percent":
            return f"{100 * value:.3g}%"
        case "scientific":
            return f"{value:.3g}"
        case "count":
            return short(value)
        case "bytes":
            return f"{value / 2**30:.3g} GiB"
        case "plain":
            return f"{value:.4g}"


def chart_tables(chart: Chart, names: Sequence[str], curves: Sequence[Curves]) -> list[Table]:
    """The values of a chart at some points, for who cannot or will not see it."""
    tables = []
    for name, run in zip(names, curves, strict=True):
        for buckets, fields, what in ((run.training, chart.training, "steps"), (run.held_out, chart.held_out, "")):
            known = [field for field in fields if buckets.has(field)]
            if known:
                tables.append(_table(buckets, known, chart, f"{name}, {what or 'held out'}"))
    return tables


def _table(buckets: Buckets, fields: Sequence[str], chart: Chart, caption: str) -> Table:
    where = np.unique(np.linspace(0, len(buckets) - 1, min(TABLE_ROWS, len(buckets))).astype(int)).tolist()
    columns: list[tuple[str, list[str]]] = []
    for axis, write in (("step", short), ("tokens", short), ("seconds", clock)):
        if buckets.has(axis):
            columns.append(("time" if axis == "seconds" else axis, _cells(buckets.mean(axis), where, write)))
    for field in fields:
        label = LABELS.get(field, chart.title.lower())
        columns.append((label, _cells(buckets.mean(field), where, lambda value: written(value, chart.format))))
        if buckets.width > 1:
            for name in ("low", "high"):
                values = getattr(buckets, name)(field)
                columns.append((f"{name}est", _cells(values, where, lambda value: written(value, chart.format))))
    header, cells = zip(*columns, strict=True)
    if buckets.width > 1:
        caption += f" (means over {buckets.width:,} each)"
    return Table(caption, tuple(header), tuple(zip(*cells, strict=True)))


def _cells(values: np.ndarray, where: Sequence[int], write: Any) -> list[str]:
    return [write(values[i]) if np.isfinite(values[i]) else "–" for i in where]


# -- a run -------------------------------------------------------------------------------------------------------------


def tiles(facts: RunFacts, curves: Curves) -> list[Tile]:
    """The figures that one looks for first."""
    last, score = curves.training.last, curves.held_out.last
    found: list[Tile] = []
    loss, accuracy, averaged = kept_score(score)
    whose = "of the averaged weights, which the model holds; " if averaged else ""
    if loss is not None:
        note = f"{whose}nats per predicted token"
        if curves.best and curves.best[0] < loss:
            where = "" if curves.best[1] is None else f" at step {curves.best[1]:,}"
            note = f"{whose}nats per token; lowest {curves.best[0]:.3f}{where}"
        found.append(Tile("Held-out loss", f"{loss:.3f}", note))
    if accuracy is not None:
        found.append(Tile("Held-out accuracy", f"{accuracy:.1%}", f"{whose}of predicted tokens"))
    if averaged and "valid_loss" in score:
        found.append(Tile("Last weights", f"{score['valid_loss']:.3f}", "held-out loss of what the averages are of"))
    recent = curves.training.recent("loss")
    if recent is not None:
        found.append(Tile("Training loss", f"{recent:.3f}", "over the last 2% of the steps"))
    if last.get("rollbacks"):
        found.append(Tile("Rollbacks", f"{last['rollbacks']:,.0f}", "after too many steps that were not finite"))
    if "tokens" in last:
        found.append(Tile("Tokens read", short(last["tokens"]), _epochs(facts, last["tokens"])))
    if "seconds" in last:
        found.append(Tile("Training time", clock(last["seconds"]), _steps(last)))
    elif "step" in last:
        found.append(Tile("Steps", f"{last['step']:,.0f}", _steps(last)))
    speed = typical(curves.training, "tokens_per_second")
    if speed is not None:
        peak = typical(curves.training, "peak_share")
        note = "median" if peak is None else f"median; {peak:.0%} of the device's peak"
        found.append(Tile("Tokens per second", short(speed), note))
    if facts.num_parameters:
        found.append(Tile("Parameters", short(facts.num_parameters), str(facts.config.get("model", ""))))
    if curves.training.has("memory_bytes"):
        most = float(np.nanmax(curves.training.high("memory_bytes"), initial=0.0))
        found.append(Tile("Memory", written(most, "bytes"), "at its peak"))
    return found


def kept_score(score: dict[str, float]) -> tuple[float | None, float | None, bool]:
    """Held-out loss and accuracy of the weights that a run leaves, and whether these are averaged ones."""
    averaged = "ema_valid_loss" in score
    prefix = "ema_" if averaged else ""
    return score.get(f"{prefix}valid_loss"), score.get(f"{prefix}valid_accuracy"), averaged


def typical(buckets: Buckets, field: str) -> float | None:
    """The median of a field over the buckets; None where no line holds it."""
    values = buckets.mean(field)
    return float(np.nanmedian(values)) if np.isfinite(values).any() else None


def _steps(last: dict[str, float]) -> str:
    if "step" not in last:
        return ""
    total = last.get("total_steps", 0)
    return f"step {last['step']:,.0f}" + (f" of {total:,.0f}" if total > last["step"] else "")


def _epochs(facts: RunFacts, tokens: float) -> str:
    if facts.manifest is None or "train" not in facts.manifest.splits:
        return ""
    split, special = facts.manifest.splits["train"], facts.manifest.special
    whole = split.tokens + split.pieces * (len(special.prefix) + len(special.suffix))
    if not whole:
        return ""
    return f"{tokens / whole:,.0f} epochs" if tokens >= 10 * whole else f"{tokens / whole:.2g} epochs"


def value_text(value: object) -> str:
    """An option's value, or a shape's."""
    if isinstance(value, list):
        return ", ".join(map(str, value)) or "–"
    if isinstance(value, int | float):
        return number(value)
    return "–" if value is None else str(value)


def recipe(facts: RunFacts) -> list[tuple[str, str, bool]]:
    """Each option, its value, and whether it was chosen for this run rather than left at its default."""
    chosen = changed(facts.config)
    rows = [(name.replace("_", " "), value_text(value), name in chosen) for name, value in facts.config.items()]
    return sorted(rows, key=lambda row: not row[2])


def shape(facts: RunFacts) -> list[tuple[str, str]]:
    """The model's architecture, as its export says."""
    names = {
        "model_type": "architecture",
        "num_hidden_layers": "layers",
        "hidden_size": "width",
        "num_attention_heads": "attention heads",
        "intermediate_size": "width between",
        "max_position_embeddings": "longest input",
        "vocab_size": "vocabulary",
        "local_attention": "local attention",
        "global_attn_every_n_layers": "global attention every",
    }
    rows = [
        (label, value_text(facts.model[name])) for name, label in names.items() if facts.model.get(name) is not None
    ]
    return rows + ([("parameters", f"{facts.num_parameters:,}")] if facts.num_parameters else [])


def corpus(facts: RunFacts) -> list[tuple[str, str]]:
    """What the run read."""
    rows = []
    files = [*_listed(facts.config.get("corpus")), *_listed(facts.config.get("mix"))]
    if files:
        rows.append(("corpus", ", ".join(files)))
    if _listed(facts.config.get("valid")):
        rows.append(("held-out files", ", ".join(_listed(facts.config.get("valid")))))
    if facts.manifest is None:
        return rows
    for name, label in (("train", "training"), ("valid", "held out")):
        split = facts.manifest.splits.get(name)
        if split is None:
            rows.append((label, "none"))
            continue
        text = f"{split.documents:,} documents, {split.pieces:,} pieces, {split.tokens:,} tokens"
        rows.append((label, text + (f", {split.bytes / 1e6:,.1f} MB of text" if split.bytes else "")))
        if split.cut_documents:
            how = {"split": "cut into pieces", "windows": "cut into windows", "truncate": "cut off at the end"}
            rows.append((f"{label}: too long", f"{split.cut_documents:,} {how[facts.manifest.long_documents]}"))
        if split.dropped_tokens:
            rows.append((f"{label}: dropped", f"{split.dropped_tokens:,} tokens at the ends of long documents"))
        if split.repeated_tokens:
            rows.append((f"{label}: repeated", f"{split.repeated_tokens:,} tokens where windows overlap"))
    rows.append(("longest piece", f"{facts.manifest.seq_len:,} tokens"))
    return rows


def _listed(value: object) -> list[str]:
    return [str(item) for item in value] if isinstance(value, list) else []


def tokenizer(facts: RunFacts, found: Tokenizer | None, counted: TokenizerReport | None) -> list[tuple[str, str]]:
    """What is known of the tokenizer, and what it makes of this corpus."""
    rows = []
    if found is not None:
        special = found.special
        rows += [("kind", found.kind or found.backend.model.__class__.__name__)]
        rows += [("vocabulary", f"{special.num_tokens:,} tokens, {len(special.ids)} of them special")]
        names = [found.backend.id_to_token(i) or str(i) for i in special.ids]
        rows += [("special tokens", " ".join(names[:16]) + (" …" if len(names) > 16 else ""))]
    split = facts.manifest.splits.get("train") if facts.manifest is not None else None
    if split is not None and split.characters and split.text_tokens:
        rows.append(("characters per token", f"{split.characters / split.text_tokens:.2f}"))
    if counted is not None:
        if counted.tokens_per_word is not None:
            rows.append(("tokens per word", f"{counted.tokens_per_word:.2f}"))
        rows.append(("unknown tokens", f"{counted.unknown_rate:.2%}"))
        where = f"in {short(counted.tokens)} tokens"
        rows.append(("vocabulary in use", f"{counted.used_share:.1%} {where}"))
    if facts.manifest is not None:
        rows.append(("fingerprint", facts.manifest.tokenizer_fingerprint[:16]))
    return rows


def machine(facts: RunFacts) -> list[tuple[str, str]]:
    """Versions, machine, device: what the run recorded of where it ran, a line each; its command line stands apart."""
    hidden = ("command", "argv")
    return [(label, value) for label, value in flat(facts.recorded) if not any(word in label for word in hidden)]


AXES = {
    "frequency": "How frequent the token is in the training corpus",
    "word": "Where in its word the token stands",
    "length": "How long the piece is",
    "source": "Where the piece comes from",
}


@dataclass(frozen=True)
class Axis:
    """Accuracy by one kind of group: for each, a cell (accuracy, loss, targets) per run, None where it has none."""

    title: str
    rows: tuple[tuple[str, tuple[tuple[float, float, int] | None, ...]], ...]


def axes(learned: Sequence[Learned | None]) -> list[Axis]:
    """The breakdowns of all runs, group by group."""
    found = []
    for name, title in AXES.items():
        groups = [run.groups.get(name, {}) if run is not None else {} for run in learned]
        labels = list(dict.fromkeys(label for run in groups for label in run))
        if labels and not (name == "source" and len(labels) < 2):
            rows = []
            for label in labels:
                cells = (run.get(label) for run in groups)
                rows.append((label, tuple(cell and (cell.accuracy, cell.loss, cell.num_targets) for cell in cells)))
            found.append(Axis(title, tuple(rows)))
    return found
