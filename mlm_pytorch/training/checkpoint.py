"""Checkpoints: complete or absent, checked before use, the export inside.

checkpoints/step-500/
    model/                  the weights, in Hugging Face format
    optimizer.safetensors   the optimizers' state, and that of torch's generators; of a model in parts a folder
                            optimizer/, with a file of each process
    state.json              step, tokens, seconds, the reader's position, the length of metrics.jsonl
    manifest.json           size and checksum of each of these files
model -> checkpoints/step-500/model
"""

import errno
import json
import os
import re
import shutil
import zlib
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import Tensor, nn

from mlm_pytorch.training.parallel import OPTIMIZER_FILE, OPTIMIZER_FOLDER, load_optimizer

MANIFEST, METRICS = "manifest.json", "metrics.jsonl"
_RANDOM = "random//"  # how names of generators' states begin
_NAME = re.compile(r"step-\d+")  # a copy that somebody keeps, step-500-good, is none of ours
_DELETING = "manifest.json.deleting"  # a manifest of this name lists what is being deleted


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
    optimizer: Mapping[str, Tensor],
    state: dict[str, Any],
    keep: int,
    keep_every: int = 0,
    write_parts: Callable[[Path], None] | None = None,
) -> Path:
    """Write `checkpoints/step-N` beside the others, make it complete at once, point `model` to it, drop the oldest.

    What `state` says of `metrics.jsonl` is brought to disk first. Checkpoints of later steps, which a run leaves behind
    that continues from an older one, are dropped as well.

    Args:
        run: the run's folder.
        step: N.
        export: writes the model in Hugging Face format into a folder, and checks it there.
        optimizer: state by name.
        state: plain data for JSON.
        keep: newest checkpoints to keep.
        keep_every: M, to keep the first checkpoint at or after each multiple of M steps as well; 0 for none.
        write_parts: writes the optimizers' state into a folder, in place of `optimizer`, together with other processes.

    Returns:
        The checkpoint's folder.

    Raises:
        OSError: a full disk, say. The checkpoints there were are untouched, and nothing half-written is left.
        ValueError: an export that `export` finds fault with; likewise.
    """
    final = run / "checkpoints" / f"step-{step}"
    partial = partial_folder(run, step)
    _clear_what_a_kill_left(final.parent)
    try:
        partial.mkdir(parents=True)
        if (run / METRICS).exists():
            _sync(run / METRICS)
        if write_parts is not None:
            write_parts(partial / OPTIMIZER_FOLDER)
        _write(partial, export, optimizer if write_parts is None else None, state)
        if final.exists():  # a damaged one that was passed over
            _remove(final)
            _put_aside(final)
        partial.rename(final)
        _sync(final.parent)
    except (OSError, ValueError):
        shutil.rmtree(partial, ignore_errors=True)
        raise
    point_to(final)
    for old in _superseded(checkpoints(run), step, keep, keep_every):
        _remove(old)
    return final


def partial_folder(run: Path, step: int) -> Path:
    """Where a checkpoint is written before it is complete."""
    return run / "checkpoints" / f".step-{step}.partial"


def _write(
    folder: Path, export: Callable[[Path], None], optimizer: Mapping[str, Tensor] | None, state: dict[str, Any]
) -> None:
    """The files of a checkpoint, brought to disk: the state first, to which `export` may refer, the manifest last."""
    (folder / "state.json").write_text(json.dumps(state), encoding="utf-8")
    try:
        export(folder / "model")
        if optimizer is not None:
            save_file({name: value.contiguous() for name, value in optimizer.items()}, folder / OPTIMIZER_FILE)
    except SafetensorError as error:  # how that library reports a full disk
        number = re.search(r"(?:os error|code:) (\d+)", str(error))
        raise OSError(int(number[1]) if number else errno.EIO, str(error)) from None
    listed = {str(f.relative_to(folder)): {"bytes": f.stat().st_size, "crc32": _checksum(f)} for f in _files(folder)}
    (folder / MANIFEST).write_text(json.dumps({"files": listed}, indent=1), encoding="utf-8")
    for path in [*_files(folder), folder / MANIFEST, folder / "model", folder]:
        _sync(path)


def _superseded(found: list[Path], step: int, keep: int, keep_every: int) -> list[Path]:
    """Which checkpoints go, once the one of `step` is complete."""
    before = [path for path in found if step_of(path) <= step]
    kept = set(before[-keep:])
    reached: set[int] = set()
    for path in before:
        multiple = step_of(path) // keep_every if keep_every else 0
        if multiple and multiple not in reached:
            reached.add(multiple)
            kept.add(path)
    return [path for path in found if path not in kept]


def _clear_what_a_kill_left(folder: Path) -> None:
    for partial in folder.glob(".step-*.partial"):
        shutil.rmtree(partial)
    for manifest in folder.glob(f"step-*/{_DELETING}"):
        _remove(manifest.parent)


def step_of(checkpoint: Path) -> int:
    """The step after which a checkpoint was taken."""
    return int(checkpoint.name.removeprefix("step-"))


def point_to(checkpoint: Path) -> None:
    """Let the run's `model` be that of a checkpoint."""
    _point(checkpoint.parents[1] / "model", checkpoint / "model")


def _point(link: Path, target: Path) -> None:
    """Swap a symbolic link in one step, so that no reader ever finds it missing."""
    fresh = link.with_name(f".{link.name}.partial")
    fresh.unlink(missing_ok=True)
    fresh.symlink_to(os.path.relpath(target, link.parent))
    fresh.replace(link)


def _remove(folder: Path) -> None:
    """Delete what the manifest lists, and the folders that this leaves empty; anything else is not ours.

    The manifest goes aside first: what a kill leaves of the rest is no checkpoint, and the next save deletes it.
    """
    manifest = folder / _DELETING
    if (folder / MANIFEST).is_file():
        (folder / MANIFEST).replace(manifest)
    try:
        listed = [folder / name for name in json.loads(manifest.read_text(encoding="utf-8"))["files"]]
    except (FileNotFoundError, ValueError, KeyError, TypeError):
        listed = []  # damaged: what it listed is not known, so it stays
    for path in listed:
        path.unlink(missing_ok=True)
    manifest.unlink(missing_ok=True)
    for path in sorted((p for p in folder.rglob("*") if p.is_dir()), reverse=True):
        if not any(path.iterdir()):
            path.rmdir()
    if not any(folder.iterdir()):
        folder.rmdir()


def _put_aside(folder: Path) -> None:
    """Make room for a checkpoint of the same step, where files that no manifest lists are left of an older one."""
    number = 0
    while folder.exists():
        aside = folder.with_name(f"left-of-{folder.name}-{number}")
        if not aside.exists():
            folder.rename(aside)
        number += 1


def checkpoints(run: Path) -> list[Path]:
    """Complete checkpoints of a run, oldest first."""
    named = [path for path in (run / "checkpoints").glob("step-*") if _NAME.fullmatch(path.name)]
    return sorted((path for path in named if (path / MANIFEST).is_file()), key=step_of)


def damage(checkpoint: Path) -> str | None:
    """What is wrong with a checkpoint's files, or None: every listed file is there, with its size and checksum."""
    try:
        listed = json.loads((checkpoint / MANIFEST).read_text(encoding="utf-8"))["files"]
        expected = {checkpoint / name: (facts["bytes"], facts["crc32"]) for name, facts in listed.items()}
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        return f"{MANIFEST} cannot be read ({error})"
    for path, facts in expected.items():
        if not path.is_file():
            return f"{path.relative_to(checkpoint)} is missing"
        if (path.stat().st_size, _checksum(path)) != facts:
            return f"{path.relative_to(checkpoint)} is damaged"
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


def load_checkpoint(checkpoint: Path, model: nn.Module) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """State and optimizer tensors of a checkpoint, laid out as the model is; its weights are read from `model/`."""
    state = json.loads((checkpoint / "state.json").read_text(encoding="utf-8"))
    return state, load_optimizer(checkpoint, model)


def random_states(device: torch.device) -> dict[str, Tensor]:
    """The states of the generators that a model's dropout draws from, to be saved beside the optimizer's."""
    states = {f"{_RANDOM}cpu": torch.get_rng_state()}
    if device.type == "cuda":
        states[f"{_RANDOM}cuda"] = torch.cuda.get_rng_state(device)
    return states


def restore_random(tensors: dict[str, Tensor], device: torch.device) -> None:
    """Take the generators' states out of a checkpoint's tensors, and go on from them where they are there."""
    states = {name: tensors.pop(name) for name in list(tensors) if name.startswith(_RANDOM)}
    if f"{_RANDOM}cpu" in states:
        torch.set_rng_state(states[f"{_RANDOM}cpu"])
    if device.type == "cuda" and f"{_RANDOM}cuda" in states:
        torch.cuda.set_rng_state(states[f"{_RANDOM}cuda"], device)


def about_full_disk(error: OSError, run: Path) -> OSError:
    """The error that tells what a full disk means for a run, where that is what `error` is; else `error` itself."""
    if error.errno not in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
        return error
    saved = [path.name for path in checkpoints(run)]
    onward = f"goes on after {saved[-1]}" if saved else "begins again"
    return OSError(
        error.errno, f"the disk of {run} is full; free some space and give the same command again, which {onward}"
    )
