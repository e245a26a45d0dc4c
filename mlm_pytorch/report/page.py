"""The page: one HTML file that needs nothing but itself.

Its policy (CSP) lets nothing be fetched and runs no script but its own, which it names by hash. All text from outside
passes the template's escaping; there is no way around it but for this room's own style and script.
"""

import base64
import datetime
import hashlib
import json
import os
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from functools import cache
from importlib import resources
from pathlib import Path
from typing import Any

import jinja2
import numpy as np
import torch
from torch import nn

from mlm_pytorch.cli.factory import built_folder
from mlm_pytorch.cli.models import open_model
from mlm_pytorch.data.store import TokenStore
from mlm_pytorch.data.tokenizer import TokenCounter, Tokenizer, TokenizerReport, count_words, load_tokenizer
from mlm_pytorch.masking.words import derive_words
from mlm_pytorch.report import views
from mlm_pytorch.report.comparison import comparison, differences, why_not_comparable
from mlm_pytorch.report.curves import HELD_OUT, TRAINING, Curves, axis_and_values
from mlm_pytorch.report.facts import RunFacts, budgets, command, read_run, version
from mlm_pytorch.report.learned import Learned, count_sample, look
from mlm_pytorch.tokens import WordTable
from mlm_pytorch.training.device import native_precision

HELD_OUT_TOKENS = 1 << 16  # predicted from by default: about ten thousand targets
SAMPLES = 6
WORDS_COUNTED = 64  # pieces decoded to count words in
MOST_NAMES = 4  # in the title
LEVELS = (0.01, 0.1, 0.5, 0.9)  # probabilities at which a masked word's colour changes


@dataclass(frozen=True)
class _Corpus:
    """What is known of a run's corpus and tokenizer; it does not change while a run goes on."""

    held_out: TokenStore | None
    tokenizer: Tokenizer | None
    words: WordTable | None
    occurrences: np.ndarray | None
    counted: TokenizerReport | None
    notes: tuple[str, ...]


class ReportWriter:
    """Writes the page about runs, again and again while they go on: what is read once is not read again.

    Args:
        runs: run folders. The first one's model may be handed over by who trains it.
        out: the file. By default `report.html` in the first run.

    Raises:
        ValueError: no run, or a folder that holds none.

    Example:
        >>> writer = ReportWriter([Path("runs/mine")])
        >>> writer.write(model=encoder, num_tokens=0, num_samples=3)  # at each evaluation: about 0.3 s
    """

    def __init__(self, runs: Sequence[Path], out: Path | None = None):
        if not runs:
            raise ValueError("no run is named; give folders that mlm train made")
        for run in runs:
            read_run(run)
        self.runs, self.out = list(runs), out or runs[0] / "report.html"
        if self.out.is_dir():
            raise ValueError(f"--out {self.out} is a folder; name a file, such as {self.out / 'report.html'}")
        if not self.out.resolve().parent.is_dir():
            raise ValueError(f"--out {self.out} lies in no folder that there is; make {self.out.parent} first")
        self._curves = [Curves(run / "metrics.jsonl") for run in runs]
        self._corpora: dict[Path, _Corpus] = {}

    def write(
        self,
        model: nn.Module | None = None,
        *,
        num_tokens: int = HELD_OUT_TOKENS,
        num_samples: int = SAMPLES,
        progress: Callable[[str, int], None] | None = None,
    ) -> Path:
        """Write the page aside and put it in its place.

        Args:
            model: the first run's, as it is now; it takes flat packs. By default each run's newest is opened.
            num_tokens: held-out tokens to measure accuracy by kind of token on; 0 for none.
            num_samples: held-out pieces to show with their masks; 0 for none.
            progress: called with a run's name and the held-out tokens read.

        Returns:
            The file.
        """
        facts = [read_run(run) for run in self.runs]
        names = _names(facts)
        for curves in self._curves:
            curves.update()
        learned, notes = [], []
        for index, fact in enumerate(facts):
            corpus = self._corpus(fact)
            found, trouble = _learned(
                fact,
                corpus,
                model if index == 0 else None,
                num_tokens,
                num_samples,
                (lambda done, name=names[index]: progress(name, done)) if progress is not None else None,
            )
            learned.append(found)
            damaged = self._curves[index].damaged
            lines = [f"{damaged:,} lines of metrics.jsonl are damaged and left out."] if damaged else []
            notes.append([*fact.notes, *corpus.notes, *lines, *trouble])
        corpora = [self._corpora[fact.folder] for fact in facts]
        html = _render(names, facts, self._curves, corpora, learned, notes)
        _replace(self.out, html)
        return self.out

    def _corpus(self, facts: RunFacts) -> _Corpus:
        known = self._corpora.get(facts.folder)
        if known is None:
            known = self._corpora[facts.folder] = _read_corpus(facts)
        return known


def write_report(
    runs: Sequence[Path],
    out: Path | None = None,
    *,
    model: nn.Module | None = None,
    num_tokens: int = HELD_OUT_TOKENS,
    num_samples: int = SAMPLES,
) -> Path:
    """Write the page about runs, once; see `ReportWriter`, which is quicker where it is written again and again."""
    return ReportWriter(runs, out).write(model, num_tokens=num_tokens, num_samples=num_samples)


# -- corpus and model --------------------------------------------------------------------------------------------------


def _read_corpus(facts: RunFacts) -> _Corpus:
    if facts.manifest is None:
        return _Corpus(None, None, None, None, None, ())
    tokenizer = words = occurrences = counted = held_out = None
    notes = []
    try:
        tokenizer = load_tokenizer(facts.store / "tokenizer")
        if "train" in facts.manifest.splits:
            occurrences, counted = _counted(TokenStore.open(facts.store), tokenizer)
        if "valid" in facts.manifest.splits:
            held_out = TokenStore.open(facts.store, "valid")
        else:
            notes.append("This run held nothing out, so there is no held-out loss and there are no samples.")
    except (ValueError, OSError) as error:
        notes.append(f"The corpus cannot be read: {error}.")
    if tokenizer is not None and held_out is not None:
        with suppress(ValueError):  # this tokenizer's ids do not show words: that part of the breakdown is left out
            words = derive_words(tokenizer.backend)
    return _Corpus(held_out, tokenizer, words, occurrences, counted, tuple(notes))


def _counted(store: TokenStore, tokenizer: Tokenizer) -> tuple[np.ndarray, TokenizerReport]:
    occurrences, pieces = count_sample(store)
    ids = np.repeat(np.arange(len(occurrences)), occurrences)
    some = pieces[:: max(1, len(pieces) // WORDS_COUNTED)][:WORDS_COUNTED].tolist()
    texts = [tokenizer.backend.decode(store.piece(index).tolist(), skip_special_tokens=False) for index in some]
    counter = TokenCounter(store.special, tokenizer.unknown_id)
    counter.add(ids, store.lengths(pieces), None, count_words(texts), int(store.lengths(some).sum()))
    return occurrences, counter.report()


def _learned(
    facts: RunFacts,
    corpus: _Corpus,
    model: nn.Module | None,
    num_tokens: int,
    num_samples: int,
    progress: Callable[[int], None] | None,
) -> tuple[Learned | None, list[str]]:
    """What the model does with held-out pieces; or a note why that cannot be said."""
    if corpus.held_out is None or corpus.tokenizer is None or not (num_tokens or num_samples):
        return None, []
    if model is None and built_folder(facts.folder) is not None:
        return None, [
            "The model is a module of your own; no code is run because a folder names it: its curves are shown, but "
            "nothing of what it has learned."
        ]
    if model is None and not (facts.folder / "model" / "config.json").is_file():
        return None, ["There is no checkpoint yet, so nothing can be said of what the model has learned."]
    try:
        if model is None:
            opened = open_model(facts.folder)
            if opened.tokenizer.fingerprint != corpus.held_out.tokenizer_fingerprint:
                return None, ["The model and the store have different tokenizers, so there are no samples."]
            model = opened.model.to("cuda" if torch.cuda.is_available() else "cpu")
        assert model is not None
        found = look(
            model,
            corpus.tokenizer,
            corpus.held_out,
            words=corpus.words,
            occurrences=corpus.occurrences,
            num_tokens=num_tokens,
            num_samples=num_samples,
            autocast=native_precision(next(model.parameters()).device),
            progress=progress,
        )
    except (ValueError, OSError) as error:
        return None, [f"The model cannot be looked at: {error}."]
    return found, []


# -- the file ----------------------------------------------------------------------------------------------------------


def _names(facts: Sequence[RunFacts]) -> list[str]:
    """Folder names, with as much of the path before them as tells them apart."""
    parts = [fact.folder.resolve().parts for fact in facts]
    depth = 1
    while depth < max(map(len, parts)) and len({part[-depth:] for part in parts}) < len(set(parts)):
        depth += 1
    return ["/".join(part[-depth:]) for part in parts]


def _render(
    names: Sequence[str],
    facts: Sequence[RunFacts],
    curves: Sequence[Curves],
    corpora: Sequence[_Corpus],
    learned: Sequence[Learned | None],
    notes: Sequence[Sequence[str]],
) -> str:
    style, script = _asset("page.css"), _asset("page.js")
    charts = [chart for chart in views.CHARTS if chart.is_drawn(curves)]
    data = {
        "runs": [
            {
                "name": name,
                "training": axis_and_values(run.training, TRAINING),
                "held_out": axis_and_values(run.held_out, HELD_OUT),
            }
            for name, run in zip(names, curves, strict=True)
        ],
        "charts": [asdict(chart) for chart in charts],
        "labels": views.LABELS,
    }
    runs = [
        {
            "name": name,
            "folder": str(fact.folder),
            "command": command(fact),
            "budgets": budgets(fact),
            "recipe": views.recipe(fact),
            "shape": views.shape(fact),
            "corpus": views.corpus(fact),
            "tokenizer": views.tokenizer(fact, corpus.tokenizer, corpus.counted),
            "machine": views.machine(fact),
            "learned": seen,
            "notes": said,
        }
        for name, fact, corpus, seen, said in zip(names, facts, corpora, learned, notes, strict=True)
    ]
    several = len(facts) > 1
    return _template().render(
        policy=(
            f"default-src 'none'; script-src {_hash(script)}; style-src {_hash(style)}; img-src data:; "
            "base-uri 'none'; form-action 'none'"
        ),
        title=" · ".join(names) if len(names) <= MOST_NAMES else f"{len(names)} runs",
        style=style,
        script=script,
        data=_json(data),
        charts=[(chart, views.chart_tables(chart, names, curves)) for chart in charts],
        tiles=[] if several else views.tiles(facts[0], curves[0]),
        comparison=comparison(names, facts, curves) if several else None,
        not_comparable=why_not_comparable(names, facts),
        differences=differences(names, facts) if several else None,
        axes=views.axes(learned),
        runs=runs,
        names=names,
        written=datetime.datetime.now(datetime.UTC).strftime("%Y-%m-%d %H:%M UTC"),
        version=version(),
    )


@cache
def _template() -> jinja2.Template:
    """The page, compiled once: a run writes it at each evaluation, and compiling is most of that."""
    environment = jinja2.Environment(
        autoescape=True, trim_blocks=True, lstrip_blocks=True, undefined=jinja2.StrictUndefined
    )
    environment.filters["level"] = lambda probability: sum(probability >= edge for edge in LEVELS)
    environment.filters["percent"] = _percent
    return environment.from_string(_asset("page.html"))


def _percent(share: float) -> str:
    """A probability; small ones are told apart from none.

    >>> _percent(0.512), _percent(0.0123), _percent(0.00001)
    ('51%', '1.2%', '<0.1%')
    """
    return f"{100 * share:.0f}%" if share >= 0.1 else f"{100 * share:.1f}%" if share >= 0.001 else "<0.1%"


def _asset(name: str) -> str:
    return resources.files("mlm_pytorch.report").joinpath(name).read_text(encoding="utf-8")


def _hash(text: str) -> str:
    return f"'sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}'"


def _json(value: Any) -> str:
    """JSON that can stand in a script element: nothing in it ends the element or opens a comment."""
    text = json.dumps(value, separators=(",", ":"), allow_nan=False)
    return text.replace("&", "\\u0026").replace("<", "\\u003c").replace(">", "\\u003e")


def _replace(out: Path, html: str) -> None:
    """Write aside, then rename: a reader finds the old page or the new one. Surrogates, as odd file names hold, are
    written as signs that say so."""
    partial = out.with_name(f".{out.name}.partial")
    try:
        with partial.open("w", encoding="utf-8", errors="backslashreplace") as file:
            file.write(html)
            file.flush()
            os.fsync(file.fileno())
        partial.replace(out)
    except OSError:
        partial.unlink(missing_ok=True)
        raise
