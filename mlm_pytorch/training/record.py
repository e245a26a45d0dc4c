"""`run.json`: on what, with what and by which command a run was trained, one entry per sitting."""

import json
import os
import platform
import shlex
import sys
from collections.abc import Callable
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path
from typing import Any

import torch

RECORD = "run.json"
_PACKAGES = ("mlm-pytorch", "torch", "numpy", "tokenizers", "transformers", "safetensors", "pyarrow")


def _installed() -> dict[str, str]:
    found = {"python": platform.python_version()}
    for package in _PACKAGES:
        try:
            found[package] = metadata.version(package)
        except metadata.PackageNotFoundError:  # run from a checkout, say
            continue
    return found


def _machine(device: torch.device) -> dict[str, Any]:
    facts = {
        "host": platform.node(),
        "system": f"{platform.system()} {platform.release()} {platform.machine()}",
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "memory_bytes": os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"),
        "device": str(device),
    }
    if device.type == "cuda":
        properties = torch.cuda.get_device_properties(device)
        facts |= {"device_name": properties.name, "device_memory_bytes": properties.total_memory}
    return facts


def begin_sitting(folder: Path, device: torch.device, facts: dict[str, Any], say: Callable[[str], None]) -> None:
    """Add an entry for this process: when, by which command, with which versions, on which machine, and `facts`."""
    sittings = read_sittings(folder, say)
    sitting = {
        "started": _now(),
        "command": shlex.join(sys.argv),
        "versions": _installed(),
        "machine": _machine(device),
    }
    _write(folder, [*sittings, sitting | facts])


def end_sitting(folder: Path, facts: dict[str, Any]) -> None:
    """Complete the last entry: when, and `facts`. The entry of a sitting that was killed is never completed."""
    sittings = read_sittings(folder, lambda _: None)
    _write(folder, [*sittings[:-1], sittings[-1] | {"ended": _now()} | facts])


def read_sittings(folder: Path, say: Callable[[str], None]) -> list[dict[str, Any]]:
    """The entries there are; none, which is said, where the file cannot be read."""
    path = folder / RECORD
    if not path.is_file():
        return []
    try:
        return list(json.loads(path.read_text(encoding="utf-8"))["sittings"])
    except (ValueError, KeyError, TypeError) as error:
        say(f"{path} cannot be read ({error}); it is begun anew")
        return []


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")


def _write(folder: Path, sittings: list[dict[str, Any]]) -> None:
    fresh = folder / f".{RECORD}.partial"
    fresh.write_text(json.dumps({"sittings": sittings}, indent=1) + "\n", encoding="utf-8")
    fresh.replace(folder / RECORD)
