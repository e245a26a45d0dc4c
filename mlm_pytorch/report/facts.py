"""What a run's folder says of itself, as far as it goes: nothing here needs a run to be whole, or of this version."""

import dataclasses
import itertools
import json
import math
import re
import shlex
import struct
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

import yaml

from mlm_pytorch.data.manifest import Manifest
from mlm_pytorch.data.remote import shown_url
from mlm_pytorch.training.config import TrainConfig
from mlm_pytorch.training.run import CONFIG, STORE

RUN_FACTS = "run.json"
_LARGEST = 1 << 22  # bytes of a small file that is read whole
_PROGRAM = re.compile(r"^\S*[/\\](mlm|__main__\.py) ")  # however the program was started
_HIDDEN = re.compile(r"token$|secret|password|api.?key", re.IGNORECASE)  # of an environment, should one be recorded


@dataclass(frozen=True)
class RunFacts:
    """A run's folder, read.

    Attributes:
        folder: as it was named.
        config: the fields of `config.yaml`, addresses without what may be a secret: pages and cards are passed on.
        recorded: `run.json`: versions, machine, command line; empty for runs that recorded none.
        manifest: the store's, or None.
        store: where the store lies.
        model: the newest export's `config.json`; empty before the first checkpoint.
        num_parameters: of the newest export, tied ones once, or None.
        notes: what could not be read, and why, a sentence each.
    """

    folder: Path
    config: dict[str, Any]
    recorded: dict[str, Any]
    manifest: Manifest | None
    store: Path
    model: dict[str, Any]
    num_parameters: int | None
    notes: tuple[str, ...]

    @property
    def name(self) -> str:
        """The folder's own name."""
        return self.folder.resolve().name or str(self.folder)


def listed(value: object) -> list[Any]:
    """A list as it is; none of anything else."""
    return value if isinstance(value, list) else []


def version() -> str:
    """This program's version; a checkout that is not installed has none to tell."""
    try:
        return metadata.version("mlm-pytorch")
    except metadata.PackageNotFoundError:
        return "(a checkout)"


def read_run(folder: Path, export: Path | None = None) -> RunFacts:
    """Read what a run's folder says of itself; small files only.

    Args:
        folder: the run's.
        export: the model's folder. By default the run's newest.

    Raises:
        ValueError: no such folder, or one that holds no run.
    """
    if not folder.is_dir():
        raise ValueError(f"{folder} is no folder; name a run that mlm train made")
    if not (folder / CONFIG).is_file():
        raise ValueError(f"{folder} is not a run (it has no {CONFIG}); name a folder that mlm train made")
    notes: list[str] = []
    config = _config(folder / CONFIG, notes)
    store = folder / STORE
    corpus = config.get("corpus")
    if not store.is_dir() and isinstance(corpus, list) and corpus:
        store = Path(str(corpus[0]))
    manifest = None
    try:
        manifest = Manifest.read(store)
    except (ValueError, OSError) as error:
        notes.append(f"The corpus's facts are left out: {error}.")
    export = export or folder / "model"
    return RunFacts(
        folder,
        config,
        _json_object(folder / RUN_FACTS, notes),
        manifest,
        store,
        _json_object(export / "config.json", notes),
        count_parameters(export / "model.safetensors"),
        tuple(notes),
    )


def _config(path: Path, notes: list[str]) -> dict[str, Any]:
    try:
        values = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (ValueError, OSError, yaml.YAMLError, RecursionError) as error:
        notes.append(f"{CONFIG} cannot be read ({' '.join(str(error).split())}).")
        return {}
    if not isinstance(values, dict):
        notes.append(f"{CONFIG} holds no fields.")
        return {}
    return {str(key): _without_secrets(value, is_mix=key == "mix") for key, value in values.items()}


def _without_secrets(value: Any, *, is_mix: bool) -> Any:
    """An option whose addresses give no password or signature away; `is_mix`: a weight follows each."""
    if isinstance(value, list):
        return [_without_secrets(item, is_mix=is_mix) for item in value]
    if not isinstance(value, str) or "://" not in value:
        return value
    address, equals, weight = value.rpartition("=") if is_mix else (value, "", "")
    try:
        return shown_url(address) + equals + weight
    except ValueError:
        return "(no address)"


def _json_object(path: Path, notes: list[str]) -> dict[str, Any]:
    """A small JSON file's object; empty where there is no file, and with a note where it cannot be read."""
    try:
        if path.stat().st_size > _LARGEST:
            notes.append(f"{path.name} is too large to be what it should be, and is left out.")
            return {}
        value = json.loads(path.read_bytes())
    except (FileNotFoundError, NotADirectoryError):
        return {}
    except (ValueError, OSError, RecursionError) as error:
        notes.append(f"{path.name} cannot be read ({error}).")
        return {}
    if not isinstance(value, dict):
        notes.append(f"{path.name} holds no fields.")
        return {}
    return value


def count_parameters(weights: Path) -> int | None:
    """Parameters in a safetensors file, by its header alone; None where there is none."""
    try:
        with weights.open("rb") as file:
            (length,) = struct.unpack("<Q", file.read(8))
            header = json.loads(file.read(length)) if length < _LARGEST else {}
        return sum(math.prod(entry["shape"]) for name, entry in header.items() if name != "__metadata__") or None
    except (OSError, ValueError, struct.error, KeyError, TypeError, AttributeError):
        return None


# -- run.json ----------------------------------------------------------------------------------------------------------


def flat(values: Mapping[str, Any], above: str = "") -> Iterator[tuple[str, str]]:
    """Nested facts as pairs of a path and a text, for a table.

    Of a list of objects (sittings), the number is told where there are several, and the last. What looks like a
    credential is not told.

    >>> dict(flat({"versions": {"torch": "2.13.0"}, "cores": 2}))
    {'versions · torch': '2.13.0', 'cores': '2'}
    """
    for key, value in values.items():
        path = f"{above} · {key}" if above else str(key)
        label = path.replace("_", " ")
        if _HIDDEN.search(str(key)):
            continue
        if isinstance(value, dict):
            yield from flat(value, path)
        elif isinstance(value, list) and value and all(isinstance(item, dict) for item in value):
            if len(value) > 1:
                yield label, f"{len(value)}, of which this is the last:"
            yield from flat(value[-1], above)
        elif isinstance(value, list):
            yield label, ", ".join(map(str, value))
        elif value is not None:
            in_bytes = path.endswith("bytes") and isinstance(value, int)
            told = (
                f"{value / 2**30:,.1f} GiB" if in_bytes else number(value) if isinstance(value, int | float) else value
            )
            yield label.removesuffix(" bytes"), str(told)


def find(values: Any, *names: str) -> Any:
    """The first value under one of these names, however deep; of lists, the newest entry is looked at first."""
    if isinstance(values, dict):
        for name in names:
            if values.get(name) is not None:
                return values[name]
        values = list(values.values())
    elif isinstance(values, list):
        values = values[::-1]
    else:
        return None
    return next((found for value in values if (found := find(value, *names)) is not None), None)


def number(value: float) -> str:
    """A number as a person reads it.

    >>> number(1234567), number(0.0004), number(True)
    ('1,234,567', '0.0004', 'yes')
    """
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, int):
        return f"{value:,}"
    return f"{value:,.0f}" if abs(value) >= 1e4 and math.isfinite(value) else f"{value:.4g}"


# -- how to do it again ------------------------------------------------------------------------------------------------


def command(facts: RunFacts) -> str:
    """The command line of a run: as it was recorded, with what it left open and the run settled; else rebuilt from the
    options that differ from the defaults."""
    recorded = find(facts.recorded, "command", "command_line", "argv")
    if isinstance(recorded, list) and recorded:
        recorded = shlex.join(map(str, recorded))
    if not isinstance(recorded, str) or not recorded:
        return shlex.join(["mlm", "train", *_arguments(facts.config)])
    recorded = _PROGRAM.sub("mlm ", recorded)
    if "://" in recorded:
        recorded = shlex.join(_words_without_secrets(_words(recorded)))
    if not recorded.startswith("mlm train "):  # of a command that takes no such options
        return recorded
    given = set(_words(recorded))
    chosen = {name: facts.config.get(name) for name in map(str, listed(facts.config.get("chosen")))}
    settled = (word for name in chosen if _option(name) not in given for word in _written(name, chosen[name]))
    return " ".join([recorded, *map(shlex.quote, settled)])


def budgets(facts: RunFacts) -> list[str]:
    """The budgets of a run's sittings, each once, in their order: the budget may change where a run is continued."""
    found = []
    for sitting in listed(facts.recorded.get("sittings")):
        words = _words(str(sitting.get("command", ""))) if isinstance(sitting, dict) else []
        found += [after for word, after in itertools.pairwise(words) if word == "--budget"]
        found += [word.partition("=")[2] for word in words if word.startswith("--budget=")]
    return list(dict.fromkeys(found))


def _words(command: str) -> list[str]:
    try:
        return shlex.split(command)
    except ValueError:  # no command line
        return []


def _words_without_secrets(words: list[str]) -> Iterator[str]:
    for before, word in itertools.pairwise(["", *words]):
        option, equals, value = word.partition("=") if word.startswith("--") else ("", "", word)
        yield option + equals + _without_secrets(value, is_mix="--mix" in (before, option))


def _option(name: str) -> str:
    return f"--{name.replace('_', '-')}"


def _arguments(config: Mapping[str, Any]) -> Iterator[str]:
    corpus = config.get("corpus")
    yield from map(str, corpus if isinstance(corpus, list) else [])
    for name, value in changed(config).items():
        yield from _written(name, value)


def _written(name: str, value: object) -> Iterator[str]:
    """An option as it is typed."""
    for item in value if isinstance(value, list) else [value]:
        if item is True:
            yield _option(name)
        elif item is not None and item is not False:
            yield from (_option(name), str(item))


def changed(config: Mapping[str, Any]) -> dict[str, Any]:
    """The options that differ from this version's defaults, those that it does not know among them."""
    defaults = {field.name: field.default for field in dataclasses.fields(TrainConfig)}
    return {
        name: value
        for name, value in config.items()
        if name not in ("corpus", "chosen")
        and (tuple(value) if isinstance(value, list) else value) != defaults.get(name, ...)
    }
