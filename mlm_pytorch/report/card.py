"""The model card: the README.md of an exported model, in the Hub's format, written from what a run says of itself."""

import re
from pathlib import Path
from typing import Any

import yaml

from mlm_pytorch.report.card_facts import CardFacts, card_facts, file_name
from mlm_pytorch.report.facts import listed, version
from mlm_pytorch.report.views import short
from mlm_pytorch.training.metrics import clock


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
    if facts.base_on_hub:
        fields["base_model"] = facts.base_on_hub
    if facts.datasets:
        fields["datasets"] = list(facts.datasets)
    licence = "# license: yours to fill in, such as mit or apache-2.0; nothing was chosen for you\n"
    unknown = facts.is_continued and not facts.base_on_hub
    base = f"# base_model: the name on the Hub of {_code(facts.model)}, where it has one\n" if unknown else ""
    return yaml.safe_dump(fields, sort_keys=False, allow_unicode=True) + base + licence


_LICENCE = (
    "Not stated: whoever publishes this model chooses one, in the `license` field at the top of this file. The licence "
    "of the texts that it was trained on may bear on that choice."
)


def _introduction(facts: CardFacts) -> str:
    size = f" of {short(facts.num_parameters)} parameters" if facts.num_parameters else ""
    family = f" ({_code(facts.shape['model_type'])} architecture)" if facts.shape.get("model_type") else ""
    unit = "text" if facts.is_text else "sequences"
    how = f"continued from {_code(facts.model)}" if facts.is_continued else "pretrained"
    return (
        f"An encoder{size}{family}, {how} on {unit} by masked language modelling with mlm-pytorch. It fills masks "
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
            names = ", ".join(_code(file_name(str(path))) for path in listed(facts.config["valid"]))
            lines.append(f"Held out: {names}.")
        elif facts.own_store:
            lines.append("The held-out documents were taken from the same corpus and not trained on.")
        else:
            lines.append("The held-out documents are those that the store holds out; they were not trained on.")
    elif facts.splits:
        lines.append("Nothing was held out.")
    if facts.seq_len:
        train = facts.splits.get("train")
        how = {"split": "cut into several", "windows": "cut into windows that overlap", "truncate": "cut off there"}
        kind = how.get(facts.long_documents, "cut")
        cut = f" {train.cut_documents:,} longer documents were {kind}." if train and train.cut_documents else ""
        if train and train.dropped_tokens:
            cut += f" The {train.dropped_tokens:,} tokens behind that are of the text, but were not trained on."
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
    if facts.is_continued:
        rows.append(("weights at the start", _code(facts.model)))
    elif facts.model:
        # A run that does not say how its embeddings began is from before they began in any other way.
        counted = facts.config.get("first_embeddings") == "corpus"
        embeddings = "; embeddings from which tokens stand beside each other in the corpus" if counted else ""
        rows.append(("weights at the start", f"random, preset {_code(facts.model)}{embeddings}"))
    for name, label in _RECIPE:
        value = facts.config.get(name)
        if value is not None and not isinstance(value, dict | list):
            rows.append((label, _code(str(value))))
    rows.append(("mlm-pytorch", version()))
    return _table(("option", "value"), rows)


def _results(facts: CardFacts) -> str:
    found = facts.results
    averaged = "ema_valid_loss" in found
    when = ""
    if "step" in found and found.get("valid_step", found["step"]) != found["step"]:
        when = f" at step {found['valid_step']:,.0f}"
    last = " of the last weights, not in this folder" if averaged else ""
    measures = [("keep_loss", "loss on general text", last)]
    measures = [("valid_loss", "held-out masked loss", last), ("valid_accuracy", "held-out accuracy", last), *measures]
    if averaged:  # these weights are what the folder holds
        measures = [(f"ema_{name}", label, "") for name, label, _ in measures[:2]] + measures
    rows = []
    for name, label, whose in measures:
        if name in found:
            is_loss = name.endswith("loss")
            unit = "nats per predicted token" if is_loss else "share of predicted tokens"
            rows.append((f"{label}{when}{whose}, {unit}", f"{found[name]:{'.4f' if is_loss else '.2%'}}"))
    if "step" in found:
        rows.append(("optimizer steps", f"{found['step']:,.0f}"))
    if "tokens" in found:
        rows.append(("tokens read", f"{found['tokens']:,.0f}"))
    if "seconds" in found:
        rows.append(("training time", clock(found["seconds"])))
    if not rows:
        return ""
    text = _table(("measure", "value"), rows)
    if averaged:
        text += "\n\nThis folder holds an exponential mean of the weights over the training, not the last ones."
    if "valid_loss" in found:
        text += (
            "\n\nMeasured during training, on the first part of the held-out documents at fixed positions, each shown "
            "as the mask token. Losses of models with different tokenizers do not compare."
        )
    return text


def _limits(facts: CardFacts) -> str:
    limits = []
    if facts.seq_len:
        seen = f"this training had none longer, and what {_code(facts.model)} had is not known here"
        seen = seen if facts.is_continued else "longer inputs were never seen"
        limits.append(f"Trained on pieces of at most {facts.seq_len:,} tokens; {seen}.")
    limits += [
        "It repeats the prejudices, errors and gaps of its corpus, and was neither filtered nor examined for them.",
        "The held-out loss says how well it predicts what is like its corpus. How it does elsewhere, or on a task, has "
        "to be measured.",
        "It predicts masked tokens from both sides: it does not write text, and what it finds likely need not be true.",
    ]
    if facts.is_text:
        known = f"of {_code(facts.model)}, as far as this training left them, and those of its own corpus"
        known = known if facts.is_continued else "of its corpus, and no others"
        limits.insert(1, f"It knows the languages and subjects {known}.")
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
