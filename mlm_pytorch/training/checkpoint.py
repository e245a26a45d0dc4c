"""Checkpoints: complete or absent, checked before use, the export inside.

checkpoints/step-500/
    model/                  the weights, in Hugging Face format
    optimizer.safetensors   the optimizers' state
    state.json              step, tokens, seconds, the reader's position, the length of metrics.jsonl
    manifest.json           size and checksum of each of these files
model -> checkpoints/step-500/model
"""

import json
import os
import shutil
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

from safetensors.torch import load_file, save_file
from torch import Tensor

MANIFEST = "manifest.json"


def _checksum(path: Path) -> int:
    value = 0
    with path.open("rb") as file:
        while block := file.read(1 << 20):
            value = zlib.crc32(block, value)
    return value


def _sync(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _files(folder: Path) -> list[Path]:
    return sorted(path for path in folder.rglob("*") if path.is_file() and path.name != MANIFEST)


def save_checkpoint(
    run: Path,
    step: int,
    *,
    export: Callable[[Path], None],
    optimizer: dict[str, Tensor],
    state: dict[str, Any],
    keep: int,
) -> Path:
    """Write `checkpoints/step-N` beside the others, make it complete at once, point `model` to it, drop the oldest.

    Args:
        run: the run's folder.
        step: N.
        export: writes the model in Hugging Face format into a folder, and checks it there.
        optimizer: state by name.
        state: plain data for JSON.
        keep: newest checkpoints to keep.

    Returns:
        The checkpoint's folder.

    Raises:
        OSError: a full disk, say. The checkpoints there were are untouched, and nothing half-written is left.
        ValueError: what `export` refuses, likewise.
    """
    final = run / "checkpoints" / f"step-{step}"
    partial = final.with_name(f".step-{step}.partial")
    for left_by_a_kill in final.parent.glob(".step-*.partial"):
        shutil.rmtree(left_by_a_kill)
    try:
        partial.mkdir(parents=True)
        export(partial / "model")
        save_file({name: value.contiguous() for name, value in optimizer.items()}, partial / "optimizer.safetensors")
        (partial / "state.json").write_text(json.dumps(state), encoding="utf-8")
        listed = {
            str(f.relative_to(partial)): {"bytes": f.stat().st_size, "crc32": _checksum(f)} for f in _files(partial)
        }
        (partial / MANIFEST).write_text(json.dumps({"files": listed}, indent=1), encoding="utf-8")
        for file in [*_files(partial), partial / MANIFEST]:
            _sync(file)
        if final.exists():
            shutil.rmtree(final)
        partial.rename(final)
        _sync(final.parent)
    except (OSError, ValueError):
        shutil.rmtree(partial, ignore_errors=True)
        raise
    _point(run / "model", final / "model")
    for old in checkpoints(run)[:-keep]:
        _remove(old)
    return final


def _point(link: Path, target: Path) -> None:
    """Swap a symbolic link in one step, so that no reader ever finds it missing."""
    fresh = link.with_name(f".{link.name}.partial")
    fresh.unlink(missing_ok=True)
    fresh.symlink_to(os.path.relpath(target, link.parent))
    fresh.replace(link)


def _remove(folder: Path) -> None:
    """Delete what the manifest lists, and the folders that this leaves empty; anything else is not ours."""
    for name in json.loads((folder / MANIFEST).read_text(encoding="utf-8"))["files"]:
        (folder / name).unlink(missing_ok=True)
    (folder / MANIFEST).unlink()
    for path in sorted((p for p in folder.rglob("*") if p.is_dir()), reverse=True):
        if not any(path.iterdir()):
            path.rmdir()
    if not any(folder.iterdir()):
        folder.rmdir()


def checkpoints(run: Path) -> list[Path]:
    """Complete checkpoints of a run, oldest first."""
    found = [path for path in (run / "checkpoints").glob("step-*") if (path / MANIFEST).is_file()]
    return sorted(found, key=lambda path: int(path.name.removeprefix("step-")))


def damage(checkpoint: Path) -> str | None:
    """What is wrong with a checkpoint's files, or None: every listed file is there, with its size and checksum."""
    try:
        listed = json.loads((checkpoint / MANIFEST).read_text(encoding="utf-8"))["files"]
    except (OSError, ValueError, KeyError) as error:
        return f"{MANIFEST} cannot be read ({error})"
    for name, facts in listed.items():
        path = checkpoint / name
        if not path.is_file():
            return f"{name} is missing"
        if path.stat().st_size != facts["bytes"] or _checksum(path) != facts["crc32"]:
            return f"{name} is damaged"
    return None


def newest_checkpoint(run: Path, warn: Callable[[str], None]) -> Path | None:
    """The newest checkpoint whose files are whole; `warn` hears of each damaged one passed over.

    Raises:
        ValueError: checkpoints exist, and all of them are damaged.
    """
    found = checkpoints(run)
    for path in reversed(found):
        trouble = damage(path)
        if trouble is None:
            return path
        warn(f"checkpoint {path.name} is passed over: {trouble}")
    if found:
        raise ValueError(f"every checkpoint in {run / 'checkpoints'} is damaged; delete the folder to start anew")
    return None


def load_checkpoint(checkpoint: Path) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """State and optimizer tensors of a checkpoint; the model is read from its `model/`."""
    state = json.loads((checkpoint / "state.json").read_text(encoding="utf-8"))
    return state, load_file(checkpoint / "optimizer.safetensors")
