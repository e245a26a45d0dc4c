"""The model card: the README.md of an exported model, in the Hub's format, written from what the run knows of itself.

Cheap enough to be written with every checkpoint: small files, the header of the weights, the end of metrics.jsonl.
"""

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from mlm_pytorch.data.files import FORMAT_OF_SUFFIX, suffixes
from mlm_pytorch.data.manifest import SplitInfo
from mlm_pytorch.encoder import PRESETS
from mlm_pytorch.report.curves import AXES, HELD_OUT, TRAINING, parsed
from mlm_pytorch.report.facts import read_run, version
from mlm_pytorch.report.views import short
from mlm_pytorch.training.metrics import clock

_TAIL = 1 << 18  # bytes from the end of metrics.jsonl in which the newest results are looked for
_HUB = re.compile(r"hf://(?:datasets/)?([\w.-]+/[\w.-]+)")
_LARGEST_TOKENIZER = 1 << 24  # bytes
_NOT_TEXT = re.compile(r"^(kmer|amino-acids)")
_SEQUENCES = ("FASTA", "FASTQ", "NPY")


@dataclass(frozen=True)
class CardFacts:
    """All that the card says, as plain facts; what is unknown is None or empty, and is not spoken of.

    Attributes:
        name: of the model.
        model: what the run was told to train: a preset, or a folder's name.
        config: the run's options.
        shape: the export's `config.json`.
        num_parameters: of the model, tied ones once.
        corpus: file names, without their folders.
        datasets: Hub datasets among them, `owner/name`.
        splits: "train" and "valid", as the store's manifest has them.
        seq_len: longest piece in tokens.
        results: the newest value of each field of metrics.jsonl.
        mask_token: as the tokenizer writes it.
        words_bring_blanks: whether a blank before a mask would be encoded twice: words bring their own, and the mask
            token does not swallow it.
        is_text: whether the corpus is language, as far as options and file names tell.
    """

    name: str
    model: str = ""
    config: Mapping[str, Any] = field(default_factory=dict)
    shape: Mapping[str, Any] = field(default_factory=dict)
    num_parameters: int | None = None
    corpus: tuple[str, ...] = ()
    datasets: tuple[str, ...] = ()
    splits: Mapping[str, SplitInfo] = field(default_factory=dict)
    seq_len: int | None = None
    results: Mapping[str, float] = field(default_factory=dict)
    mask_token: str = "[MASK]"  # noqa: S105 -- no password
    words_bring_blanks: bool = False
    is_text: bool = True


def model_card(run: Path, export: Path | None = None) -> str:
    """The card of a run's model, for the `README.md` beside its weights.

    Args:
        run: the run's folder.
        export: the folder that holds the weights, when it is not yet the run's newest: while a checkpoint is written.

    Raises:
        ValueError: a folder that holds no run.

    Example:
        >>> (export / "README.md").write_text(model_card(run, export), encoding="utf-8")
    """
    return card_text(card_facts(run, export))


def card_facts(run: Path, export: Path | None = None) -> CardFacts:
    """What a run and its export say of themselves; no absolute path is among it."""
    facts = read_run(run, export)
    config = facts.config
    entries = [str(entry) for key in ("corpus", "mix") for entry in _listed(config.get(key))]
    datasets = tuple(dict.fromkeys(match[1] for entry in entries if (match := _HUB.match(entry))))
    model = str(config.get("model", ""))
    kind = str(config.get("tokenizer") or "")
    return CardFacts(
        name=facts.name,
        model=Path(model).name,
        config=config,
        shape=facts.model,
        num_parameters=facts.num_parameters,
        corpus=tuple(dict.fromkeys(_file_name(entry) for entry in entries)),
        datasets=datasets,
        splits=facts.manifest.splits if facts.manifest else {},
        seq_len=facts.manifest.seq_len if facts.manifest else None,
        results=newest(run / "metrics.jsonl"),
        mask_token=_mask_token(export or run / "model"),
        words_bring_blanks=_words_bring_blanks(export or run / "model"),
        is_text=not (_NOT_TEXT.match(kind) or _is_sequences(entries) or config.get("num_tokens")),
    )


def newest(metrics: Path) -> dict[str, float]:
    """The newest value of each known field in the last 256 KB of a metrics.jsonl."""
    if not metrics.is_file():
        return {}
    with metrics.open("rb") as file:
        file.seek(max(0, metrics.stat().st_size - _TAIL))
        lines, _ = parsed([line for line in file.read().split(b"\n") if line.strip()])
    known = (*AXES, *TRAINING, *HELD_OUT)
    return {
        name: value
        for line in lines
        for name, value in line.items()
        if name in known and isinstance(value, int | float) and not isinstance(value, bool)
    }


def _listed(value: object) -> list[Any]:
    return value if isinstance(value, list) else []


def _file_name(entry: str) -> str:
    """The last part of a path or an address, without the weight of a mixture."""
    if entry == "-":
        return "standard input"
    return re.sub(r"=[\d.]+$", "", entry).rstrip("/\\").replace("\\", "/").rpartition("/")[2] or entry


def _is_sequences(entries: list[str]) -> bool:
    return any(FORMAT_OF_SUFFIX.get(suffixes(_file_name(entry))[0]) in _SEQUENCES for entry in entries)


def _mask_token(export: Path) -> str:
    try:
        token = json.loads((export / "tokenizer_config.json").read_bytes()).get("mask_token")
    except (OSError, ValueError, AttributeError):
        return "[MASK]"
    token = token.get("content") if isinstance(token, dict) else token
    return token if isinstance(token, str) else "[MASK]"


def _words_bring_blanks(export: Path) -> bool:
    """Byte-level BPE has the blank in the word's token; so does the mask then have to, or the text to go without."""
    path = export / "tokenizer.json"
    try:
        content = json.loads(path.read_bytes()) if path.stat().st_size <= _LARGEST_TOKENIZER else {}
        lstrip = any(token["lstrip"] for token in content["added_tokens"] if token["content"] == _mask_token(export))
        return "ByteLevel" in json.dumps(content.get("pre_tokenizer")) and not lstrip
    except (OSError, ValueError, KeyError, TypeError):
        return False


# -- the text ----------------------------------------------------------------------------------------------------------


def card_text(facts: CardFacts) -> str:
    """The card in Markdown, its front matter in YAML.

    >>> print(card_text(CardFacts("mine")).splitlines()[1])
    library_name: transformers
    """
    sections = (
        ("", _introduction(facts)),
        ("How to use", _use(facts)),
        ("Data", _data(facts)),
        ("Recipe", _recipe(facts)),
        ("Results", _results(facts)),
        ("Limits", _limits(facts)),
        ("Licence", _LICENCE),
    )
    body = "\n\n".join((f"## {title}\n\n" if title else "") + text for title, text in sections if text)
    return f"---\n{_front_matter(facts)}---\n\n# {_plain(facts.name)}\n\n{body}\n"


def _front_matter(facts: CardFacts) -> str:
    kind = str(facts.shape.get("model_type") or "")
    tags = ["masked-language-modeling", *([kind] if kind else []), "mlm-pytorch"]
    fields: dict[str, Any] = {"library_name": "transformers", "pipeline_tag": "fill-mask", "tags": tags}
    fields["mask_token"] = facts.mask_token
    if facts.datasets:
        fields["datasets"] = list(facts.datasets)
    licence = "# license: yours to fill in, such as mit or apache-2.0; nothing was chosen for you\n"
    return yaml.safe_dump(fields, sort_keys=False, allow_unicode=True) + licence


_LICENCE = (
    "Not stated: whoever publishes this model chooses one, in the `license` field at the top of this file. The licence "
    "of the texts that it was trained on may bear on that choice."
)


def _introduction(facts: CardFacts) -> str:
    size = f" of {short(facts.num_parameters)} parameters" if facts.num_parameters else ""
    family = f" ({_code(facts.shape['model_type'])} architecture)" if facts.shape.get("model_type") else ""
    unit = "text" if facts.is_text else "sequences"
    return (
        f"An encoder{size}{family}, pretrained on {unit} by masked language modelling with mlm-pytorch. It fills masks "
        "as it is; it is meant to be fine-tuned for classification, tagging, retrieval, or similar."
    )


def _use(facts: CardFacts) -> str:
    length = facts.seq_len or facts.shape.get("max_position_embeddings") or 512
    blank = "" if facts.words_bring_blanks else " "
    if facts.is_text:
        text = f'f"The cat sat on the{blank}{{tokenizer.mask_token}}."'
        note = "" if blank else "  # no blank before the mask: a word of this tokenizer brings its own"
    else:
        text, note = 'f"…{tokenizer.mask_token}…"', "  # a sequence of yours, with a mask in it"
    return f"""```python
import torch
from transformers import AutoModelForMaskedLM, AutoTokenizer

folder = "path/to/this/folder"  # or its name on the Hub
tokenizer = AutoTokenizer.from_pretrained(folder)
model = AutoModelForMaskedLM.from_pretrained(folder).eval()

text = {text}{note}
inputs = tokenizer(text, return_tensors="pt", truncation=True, max_length={int(length)})
with torch.no_grad():
    logits = model(**inputs).logits
masks = inputs.input_ids == tokenizer.mask_token_id
for row in logits[masks].softmax(-1):
    best = row.topk(5)
    print([(tokenizer.decode([i]), round(p, 3)) for p, i in zip(best.values.tolist(), best.indices.tolist())])
```

`AutoModel.from_pretrained(folder)` gives a vector for each token; `AutoModelForSequenceClassification` and its kin put
a new head on it, to be trained."""


def _data(facts: CardFacts) -> str:
    lines = []
    if facts.corpus:
        lines.append("Trained on " + ", ".join(map(_code, facts.corpus)) + ".")
    rows = [
        (name, f"{split.documents:,}", f"{split.pieces:,}", f"{split.tokens:,}", f"{split.bytes / 1e6:,.1f} MB")
        for name, split in (("training", facts.splits.get("train")), ("held out", facts.splits.get("valid")))
        if split is not None
    ]
    if rows:
        lines.append(_table(("split", "documents", "pieces", "tokens", "text"), rows))
    if "valid" in facts.splits:
        if facts.config.get("valid"):
            names = ", ".join(_code(_file_name(str(path))) for path in _listed(facts.config["valid"]))
            lines.append(f"Held out: {names}.")
        else:
            lines.append("The held-out documents were taken from the same corpus and not trained on.")
    elif facts.splits:
        lines.append("Nothing was held out.")
    if facts.seq_len:
        train = facts.splits.get("train")
        how = {"split": "cut into several", "windows": "cut into windows that overlap", "truncate": "cut off there"}
        kind = how.get(str(facts.config.get("long_documents", "split")), "cut")
        cut = f" {train.cut_documents:,} longer documents were {kind}." if train and train.cut_documents else ""
        lines.append(f"A piece has at most {facts.seq_len:,} tokens, special tokens included.{cut}")
    if facts.config.get("drop_duplicates"):
        lines.append("Of equal documents only the first was kept.")
    return "\n\n".join(lines)


_RECIPE = (
    ("budget", "budget"),
    ("selection", "what is masked together"),
    ("mask_prob", "masking rate at the start"),
    ("mask_prob_end", "masking rate at the end"),
    ("replace_prob", "of these, not shown as they are"),
    ("random_token_prob", "of these, shown as a random token"),
    ("optimizer", "optimizer"),
    ("lr", "peak learning rate"),
    ("weight_decay", "weight decay"),
    ("warmup", "share of the budget that warms up"),
    ("decay", "share of the budget that decays"),
    ("clip", "gradient norm clipped at"),
    ("pack_tokens", "tokens a pack"),
    ("packs_per_step", "packs a step"),
    ("precision", "precision"),
    ("seed", "seed"),
)


def _recipe(facts: CardFacts) -> str:
    rows = []
    if facts.model:
        rows.append(("weights at the start", f"random, preset {_code(facts.model)}"))
        if facts.model not in PRESETS:
            rows = [("weights at the start", _code(facts.model))]
    for name, label in _RECIPE:
        value = facts.config.get(name)
        if value is not None and not isinstance(value, dict | list):
            rows.append((label, _code(str(value))))
    if facts.config and facts.config.get("lr") is None:
        rows.append(("peak learning rate", "the optimizer's default"))
    rows.append(("mlm-pytorch", version()))
    return _table(("option", "value"), rows)


def _results(facts: CardFacts) -> str:
    found = facts.results
    rows = []
    if "valid_loss" in found:
        rows.append(("held-out masked loss, nats per predicted token", f"{found['valid_loss']:.4f}"))
    if "valid_accuracy" in found:
        rows.append(("held-out accuracy, share of predicted tokens", f"{found['valid_accuracy']:.2%}"))
    if "ema_valid_loss" in found:
        rows.append(("the same with averaged weights", f"{found['ema_valid_loss']:.4f}"))
    if "keep_loss" in found:
        rows.append(("loss on general text, nats per predicted token", f"{found['keep_loss']:.4f}"))
    if "step" in found:
        rows.append(("optimizer steps", f"{found['step']:,.0f}"))
    if "tokens" in found:
        rows.append(("tokens read", f"{found['tokens']:,.0f}"))
    if "seconds" in found:
        rows.append(("training time", clock(found["seconds"])))
    if not rows:
        return ""
    text = _table(("measure", "value"), rows)
    if "valid_loss" in found:
        text += (
            "\n\nMeasured during training, on the first part of the held-out documents at fixed positions, each shown "
            "as the mask token. Losses of models with different tokenizers do not compare."
        )
    return text


def _limits(facts: CardFacts) -> str:
    limits = []
    if facts.seq_len:
        limits.append(f"Trained on pieces of at most {facts.seq_len:,} tokens; longer inputs were never seen.")
    limits += [
        "It repeats the prejudices, errors and gaps of its corpus, and was neither filtered nor examined for them.",
        "The held-out loss says how well it predicts what is like its corpus. How it does elsewhere, or on a task, has "
        "to be measured.",
        "It predicts masked tokens from both sides: it does not write text, and what it finds likely need not be true.",
    ]
    if facts.is_text:
        limits.insert(1, "It knows the languages and subjects of its corpus, and no others.")
    return "\n".join(f"- {limit}" for limit in limits)


def _table(header: tuple[str, ...], rows: list[tuple[str, ...]]) -> str:
    lines = [header, tuple("---" for _ in header), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def _code(text: str) -> str:
    """A name from outside as code, so that nothing in it is Markdown or HTML, and no table ends at it."""
    return f"`{' '.join(text.split()).replace('`', chr(39)).replace('|', '¦')}`"


def _plain(text: str) -> str:
    """A name from outside in a heading: every sign that Markdown or HTML could take for its own is escaped."""
    return re.sub(r"([\\`*_{}\[\]<>()#+!|~&])", r"\\\1", " ".join(text.split()))
