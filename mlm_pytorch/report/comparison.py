"""Several runs beside each other: their figures, where their configurations differ, whether their losses compare."""

from collections.abc import Sequence

from mlm_pytorch.data.manifest import Manifest
from mlm_pytorch.report.curves import Curves
from mlm_pytorch.report.facts import RunFacts
from mlm_pytorch.report.views import Table, kept_score, short, typical, value_text
from mlm_pytorch.training.metrics import clock


def comparison(names: Sequence[str], facts: Sequence[RunFacts], curves: Sequence[Curves]) -> Table:
    """Several runs beside each other."""
    rows = []
    for name, fact, curve in zip(names, facts, curves, strict=True):
        last, score = curve.training.last, curve.held_out.last
        loss, accuracy, _ = kept_score(score)
        speed, recent = typical(curve.training, "tokens_per_second"), curve.training.recent("loss")
        rows.append(
            (
                name,
                f"{loss:.3f}" if loss is not None else "–",
                f"{curve.best[0]:.3f}" if curve.best else "–",
                f"{accuracy:.1%}" if accuracy is not None else "–",
                f"{recent:.3f}" if recent is not None else "–",
                short(last["tokens"]) if "tokens" in last else "–",
                clock(last["seconds"]) if "seconds" in last else "–",
                short(speed) if speed is not None else "–",
                short(fact.num_parameters) if fact.num_parameters else "–",
            )
        )
    header = ("run", "held-out loss", "lowest", "accuracy", "training loss", "tokens", "time", "tokens/s", "parameters")
    return Table("Runs", header, tuple(rows))


def why_not_comparable(names: Sequence[str], facts: Sequence[RunFacts]) -> list[str]:
    """Why the losses of these runs do not compare, a sentence each; nothing where they do, as far as is known."""
    known = [(name, fact.manifest) for name, fact in zip(names, facts, strict=True) if fact.manifest is not None]
    said = []
    for name, manifest in known[1:]:
        first, other = known[0][1], manifest
        apart = []
        if first.tokenizer_fingerprint != other.tokenizer_fingerprint:
            apart.append("have different tokenizers")
        held_out, others = first.splits.get("valid"), other.splits.get("valid")
        if held_out and others and not held_out.may_be_text_of(others):
            apart.append("held out different texts")
        elif first.seq_len != other.seq_len:
            apart.append(f"cut it into pieces of other lengths ({first.seq_len:,} and {other.seq_len:,} tokens)")
        elif _cut(first) != _cut(other) and any(split and split.cut_documents for split in (held_out, others)):
            apart.append(f"cut long documents in other ways ({_cut(first)} and {_cut(other)})")
        if apart:
            said.append(f"{known[0][0]} and {name} {' and '.join(apart)}: their losses do not compare.")
    return said


def _cut(manifest: Manifest) -> str:
    overlap = f" that share {manifest.overlap:,} tokens" if manifest.overlap else ""
    return f"{manifest.long_documents}{overlap}"


def differences(names: Sequence[str], facts: Sequence[RunFacts]) -> Table | None:
    """The options in which runs differ; None where they do not."""
    options = list(dict.fromkeys(name for fact in facts for name in fact.config if name != "out"))
    rows = [
        (option.replace("_", " "), *(value_text(fact.config.get(option)) for fact in facts))
        for option in options
        if len({value_text(fact.config.get(option)) for fact in facts}) > 1
    ]
    return Table("Where their configurations differ", ("option", *names), tuple(rows)) if rows else None
