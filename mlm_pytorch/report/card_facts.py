"""What a model card is made of: facts of a run and of the weights that it left, no more than these.

Cheap enough to be gathered with every checkpoint: small files, the header of the weights, the end of metrics.jsonl, a
few pieces of the store.
"""

import dataclasses
import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO

from mlm_pytorch.cli.factory import is_factory_name
from mlm_pytorch.data.files import FORMAT_OF_SUFFIX, HUB, suffixes
from mlm_pytorch.data.manifest import SplitInfo
from mlm_pytorch.data.store import TokenStore
from mlm_pytorch.data.tokenizer import load_tokenizer
from mlm_pytorch.data.tokenizer.content import kind_of_content
from mlm_pytorch.encoder import PRESETS
from mlm_pytorch.report.curves import AXES, HELD_OUT, TRAINING, parsed
from mlm_pytorch.report.facts import RunFacts, listed, read_run
from mlm_pytorch.training.checkpoint import METRICS
from mlm_pytorch.training.config import FROM_SCRATCH, TrainConfig
from mlm_pytorch.training.run import STORE

_BLOCK = 1 << 18  # bytes of metrics.jsonl: the newest results stand in the last ones
_BLOCKS = 256  # in which the newest held-out loss is looked for; a long run measures it every ten thousands of steps
_MEASURED = b'"valid_loss"'
_LOOKED_AT = 16  # pieces, for whether they are language
_DATASET = re.compile(r"hf://datasets/(\w[\w.-]*/[\w.-]+)|hub:(\w[\w.-]*(?:/[\w.-]+)?)(?::|$)")
_LARGEST_TOKENIZER = 1 << 24  # bytes
_NOT_TEXT = re.compile(r"^(kmer|amino-acids)")
_SEQUENCES = ("FASTA", "FASTQ", "NPY")


@dataclass(frozen=True)
class CardFacts:
    """All that the card says, as plain facts; what is unknown is None or empty, and is not spoken of.

    Attributes:
        name: of the model.
        model: what the run was told to train: a preset, a folder's name, or a name of the Hub.
        is_continued: whether that was a trained model.
        base_on_hub: its name, where it is one of the Hub.
        config: the run's options, and what those came to that it left open.
        shape: the export's `config.json`.
        num_parameters: of the model, tied ones once.
        corpus: file names, without their folders.
        datasets: Hub datasets among them, `owner/name`.
        splits: "train" and "valid", as the store's manifest has them.
        own_store: whether the run prepared them, rather than another command a store that the run names.
        seq_len: longest piece in tokens.
        long_documents: what became of longer documents, as the store's manifest has it.
        results: the newest value of each field of metrics.jsonl up to these weights, and `valid_step`, at which they
            were measured on held-out text.
        mask_token: as the tokenizer writes it.
        words_bring_blanks: whether a blank before a mask would be encoded twice: words bring their own, and the mask
            token does not swallow it.
        is_text: whether the corpus is language, as far as options, file names and its letters tell.
    """

    name: str
    model: str = ""
    is_continued: bool = False
    base_on_hub: str | None = None
    config: Mapping[str, Any] = field(default_factory=dict)
    shape: Mapping[str, Any] = field(default_factory=dict)
    num_parameters: int | None = None
    corpus: tuple[str, ...] = ()
    datasets: tuple[str, ...] = ()
    splits: Mapping[str, SplitInfo] = field(default_factory=dict)
    own_store: bool = True
    seq_len: int | None = None
    long_documents: str = "split"
    results: Mapping[str, float] = field(default_factory=dict)
    mask_token: str = "[MASK]"  # noqa: S105 -- no password
    words_bring_blanks: bool = False
    is_text: bool = True


def card_facts(run: Path, export: Path | None = None) -> CardFacts:
    """What a run and its export say of themselves; no absolute path is among it."""
    export = export or run / "model"
    facts = read_run(run, export)
    config, manifest = facts.config, facts.manifest
    entries = [str(entry) for entry in listed(config.get("corpus"))]
    entries += [str(part).rpartition("=")[0] or str(part) for part in listed(config.get("mix"))]
    datasets = tuple(dict.fromkeys(name for entry in entries if (name := _dataset(entry)) is not None))
    model = str(config.get("model") or "")
    is_continued = bool(model) and model not in PRESETS and not is_factory_name(model)
    base_on_hub = model if is_continued and _is_of_the_hub(model) else None
    kind = str(config.get("tokenizer") or "")
    is_other = bool(_NOT_TEXT.match(kind)) or _is_sequences(entries) or bool(config.get("num_tokens"))
    return CardFacts(
        name=facts.name,
        model=base_on_hub or _folder_name(model),
        is_continued=is_continued,
        base_on_hub=base_on_hub,
        config=_with_defaults(config),
        shape=facts.model,
        num_parameters=facts.num_parameters,
        corpus=tuple(dict.fromkeys(file_name(entry) for entry in entries)),
        datasets=datasets,
        splits=manifest.splits if manifest else {},
        own_store=facts.store == run / STORE,
        seq_len=manifest.seq_len if manifest else None,
        long_documents=manifest.long_documents if manifest else "split",
        results=newest(run / METRICS, _metrics_bytes(export)),
        mask_token=_mask_token(export),
        words_bring_blanks=_words_bring_blanks(export),
        is_text=not is_other and _reads_as_text(facts, export),
    )


def newest(metrics: Path, length: int | None = None) -> dict[str, float]:
    """The newest value of each known field in the last 256 KB of a metrics.jsonl, or of its first `length` bytes.

    Of held-out text, the newest in the last 64 MB; `valid_step` is the step of it.
    """
    if not metrics.is_file():
        return {}
    with metrics.open("rb") as file:
        blocks = _blocks(file, metrics.stat().st_size if length is None else length)
        newest_lines = next(blocks, [])
        if not any(_MEASURED in line for line in newest_lines):
            measured = ([line for line in block if _MEASURED in line][-1:] for block in blocks)
            newest_lines = next(filter(None, measured), []) + newest_lines
    lines, _ = parsed([line for line in newest_lines if line.strip()])
    known = (*AXES, *TRAINING, *HELD_OUT)
    found: dict[str, float] = {}
    for line in lines:
        values = {
            name: value
            for name, value in line.items()
            if name in known and isinstance(value, int | float) and not isinstance(value, bool)
        }
        found |= values
        if "valid_loss" in values and "step" in values:
            found["valid_step"] = values["step"]
    return found


def _blocks(file: BinaryIO, end: int) -> Iterator[list[bytes]]:
    """The lines of a file's first `end` bytes, block by block from the end; a line that begins before a block is in the
    next one."""
    rest = b""
    for _ in range(_BLOCKS):
        if end <= 0:
            return
        begin = max(0, end - _BLOCK)
        file.seek(begin)
        rest, *lines = (file.read(end - begin) + rest).split(b"\n")
        yield [rest, *lines] if begin == 0 else lines
        end = begin


def _metrics_bytes(export: Path) -> int | None:
    """How long metrics.jsonl was when the checkpoint was taken that holds these weights; None where none says so.

    The training goes on while a checkpoint is written, and other checkpoints follow.
    """
    try:
        length = json.loads((export.resolve().parent / "state.json").read_bytes())["metrics_bytes"]
    except (OSError, ValueError, KeyError, TypeError):
        return None
    return length if isinstance(length, int) and length >= 0 else None


def _with_defaults(config: Mapping[str, Any]) -> dict[str, Any]:
    """The options with what those came to that were left open, where neither the run nor `gentle_values` chose it."""
    known = {field.name for field in dataclasses.fields(TrainConfig)}
    read = {name: value for name, value in config.items() if name in known and name not in ("corpus", "out")}
    options = TrainConfig(corpus=(), out=Path(), **read)
    meant: dict[str, Any] = {}
    try:
        if options.mask_schedule != "constant":
            meant["mask_prob_end"] = options.rate(1.0) / 1e6
        if options.model in PRESETS:
            meant |= {"optimizer": FROM_SCRATCH["optimizer"], "warmup": options.warmup_share}
            meant |= {"decay": options.decay_share} if options.schedule == "wsd" else {}
    except (ValueError, TypeError):  # values that no run has
        return dict(config)
    return dict(config) | {name: value for name, value in meant.items() if config.get(name, ...) is None}


def _is_of_the_hub(model: str) -> bool:
    """Whether a model is one of the Hub: it was fetched from there, and no folder is called so."""
    from huggingface_hub import try_to_load_from_cache
    from huggingface_hub.errors import HFValidationError

    if Path(model).is_dir():
        return False
    try:
        return isinstance(try_to_load_from_cache(model, "config.json"), str)
    except HFValidationError:  # no name that the Hub would have
        return False


def _folder_name(model: str) -> str:
    """A folder's own name, and a run's where the model is in it."""
    path = Path(model)
    return path.parent.name or path.name if path.name == "model" else path.name


def _reads_as_text(facts: RunFacts, export: Path) -> bool:
    """Whether the pieces of the store look like language, decoded; so they do where there is none to look at."""
    split = facts.manifest.splits.get("train") if facts.manifest else None
    if split is None:
        return True
    if not split.bytes:  # they came as ids
        return False
    try:
        store = TokenStore.open(facts.store)
        backend = load_tokenizer(export).backend
        pieces = (store.piece(index).tolist() for index in range(min(_LOOKED_AT, len(store))))
        return kind_of_content([backend.decode(ids) for ids in pieces]) == "bpe"
    except (ValueError, OSError):
        return True


def file_name(entry: str) -> str:
    """The last part of a path or an address; of a data set of the Hub its name, configuration and split."""
    if entry == "-":
        return "standard input"
    if entry.startswith(HUB) and _dataset(entry) is not None:
        return entry.removeprefix(HUB)
    return entry.rstrip("/\\").replace("\\", "/").rpartition("/")[2] or entry


def _dataset(entry: str) -> str | None:
    """The name of a data set of the Hub; after hub: may stand a folder of this machine as well."""
    found = _DATASET.match(entry)
    if found is None or (found[2] and Path(found[2]).exists()):
        return None
    return found[1] or found[2]


def _is_sequences(entries: list[str]) -> bool:
    return any(FORMAT_OF_SUFFIX.get(suffixes(file_name(entry))[0]) in _SEQUENCES for entry in entries)


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
