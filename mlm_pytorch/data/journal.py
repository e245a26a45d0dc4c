"""How far a preparation has come, kept in its folder, so that the same command goes on after a kill.

    write_journal: identity, state -> journal.npz     atomic, synced, without pickle
    read_journal:  journal.npz -> state               or the reason why there is nothing to go on from

What lies beside the shards, such as a trained tokenizer, is compared with what it was: going on would end in the same
error again and again.

The identity is everything that decides about a store: the files with their sizes and times, the options, the
tokenizer. A preparation with another one starts over.
"""

import hashlib
import json
import os
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

JOURNAL, WRITING = "journal.npz", "journal.npz.writing"
FACTS = "facts"
TOKENIZER, DUPLICATES = "tokenizer", "duplicates"  # folders beside the shards


@dataclass(frozen=True)
class State:
    """Facts that JSON holds, and arrays, each by name."""

    facts: dict[str, Any] = field(default_factory=dict)
    arrays: dict[str, np.ndarray] = field(default_factory=dict)

    def with_part(self, name: str, part: "State") -> "State":
        """This state with another as a part of it, in the place of an earlier one of that name."""
        arrays = {key: array for key, array in self.arrays.items() if not key.startswith(f"{name}.")}
        added = {f"{name}.{key}": array for key, array in part.arrays.items()}
        return State({**self.facts, name: part.facts}, {**arrays, **added})

    def __contains__(self, name: str) -> bool:
        return name in self.facts

    def part(self, name: str) -> "State":
        """The state that was given to `with_part`."""
        prefix = f"{name}."
        arrays = {key.removeprefix(prefix): array for key, array in self.arrays.items() if key.startswith(prefix)}
        return State(self.facts[name], arrays)


def write_journal(folder: Path, identity: Mapping[str, Any], state: State, shards: Mapping[str, int]) -> None:
    """Replace the journal. `shards`: the complete files that belong to it, with their sizes."""
    facts = json.dumps({"identity": identity, "shards": shards, "beside": _beside(folder), "state": state.facts})
    with (folder / WRITING).open("wb") as file:
        np.savez(file, allow_pickle=False, **{FACTS: np.frombuffer(facts.encode(), np.uint8)}, **state.arrays)
        file.flush()
        os.fsync(file.fileno())
    (folder / WRITING).replace(folder / JOURNAL)


def read_journal(folder: Path, identity: Mapping[str, Any] | None) -> tuple[State | None, frozenset[str] | None, str]:
    """The state to go on from and the names of its shards; or None, and what speaks against going on ("" where there
    is no journal). `identity` None: the input cannot be read a second time.
    """
    if not (folder / JOURNAL).exists():
        return None, None, ""
    try:
        # A file of our own: np.load leaves the one that it opens to the garbage collector when it is damaged.
        with (folder / JOURNAL).open("rb") as file, np.load(file, allow_pickle=False) as stored:
            arrays = dict(stored)
        content = json.loads(arrays.pop(FACTS).tobytes())
        before, shards, facts = content["identity"], content["shards"], content["state"]
        complete = all((folder / name).stat().st_size == size for name, size in shards.items())
        beside, found = content.get("beside", {}), _beside(folder)
        changed = [name for name, what in beside.items() if not _is_still(what, found.get(name))]
    except (ValueError, KeyError, TypeError, EOFError, OSError, zipfile.BadZipFile) as error:
        return None, None, f"what it left is damaged ({' '.join(str(error).split())})"
    if not complete:
        return None, None, "what it left is damaged (a shard is incomplete)"
    if changed:
        return None, None, f"what it left is damaged ({changed[0]} is missing or another)"
    if identity is None:
        return None, None, "standard input and other pipes cannot be read from the middle"
    now = json.loads(json.dumps(identity))  # tuples are lists there
    differing = [key for key in {**before, **now} if before.get(key) != now.get(key)]
    if differing:
        return None, None, f"it was of another {' and another '.join(differing)}"
    return State(facts, arrays), frozenset(shards), ""


def _beside(folder: Path) -> dict[str, str | int]:
    """What a journal counts on beside its shards: the digests of a tokenizer's files, the sizes of logs, which grow."""
    digests = {path: hashlib.sha256(path.read_bytes()).hexdigest() for path in folder.glob(f"{TOKENIZER}/*")}
    sizes = {path: path.stat().st_size for path in folder.glob(f"{DUPLICATES}/*.bin")}
    return {str(path.relative_to(folder)): what for path, what in {**digests, **sizes}.items()}


def _is_still(before: str | int, now: str | int | None) -> bool:
    return now >= before if isinstance(before, int) and isinstance(now, int) else now == before
