"""Which device a run is on, what it multiplies natively, and how much memory is free there."""

import os
from pathlib import Path

import torch

_CGROUPS = (  # (limit, used) of a container, of both versions
    ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory.current"),
    ("/sys/fs/cgroup/memory/memory.limit_in_bytes", "/sys/fs/cgroup/memory/memory.usage_in_bytes"),
)


def find_device(name: str = "auto") -> torch.device:
    """The device of a name: auto (CUDA where there is one, else the CPU), cpu, cuda, cuda:1, mps.

    Raises:
        ValueError: no such kind of device, or none of it here.

    >>> find_device("cpu")
    device(type='cpu')
    """
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    kind, _, number = name.partition(":")
    if kind not in ("cpu", "cuda", "mps") or (number and not (kind == "cuda" and number.isdecimal())):
        raise ValueError(f"--device {name!r} is unknown; choose auto, cpu, cuda, cuda:0, cuda:1, … or mps")
    there = {"cpu": 1, "cuda": torch.cuda.device_count(), "mps": int(torch.backends.mps.is_available())}[kind]
    if int(number or 0) >= there:
        others = [f"cuda:{i}" for i in range(torch.cuda.device_count())]
        others += ["mps"] * torch.backends.mps.is_available()
        raise ValueError(f"--device {name} is not there; this machine has {', '.join(['cpu', *others])}")
    return torch.device(name)


def native_precision(device: torch.device) -> torch.dtype | None:
    """bfloat16 where the hardware multiplies it natively, None (float32) elsewhere."""
    if device.type == "cuda":
        return torch.bfloat16 if torch.cuda.get_device_capability(device) >= (8, 0) else None
    if device.type == "cpu":
        checks = ("_is_avx512_bf16_supported", "_is_amx_tile_supported")
        return torch.bfloat16 if any(getattr(torch.cpu, name, lambda: False)() for name in checks) else None
    return None


def why_not_compiled(device: torch.device) -> str | None:
    """Why `torch.compile` makes no kernels for a device, in one line; None where it does, which takes some seconds."""
    try:
        torch.compile(lambda x: (x + 1).sin().sum())(torch.ones(64, device=device))
    except (RuntimeError, ImportError, OSError) as error:  # torch's own are RuntimeErrors
        return str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
    return None


def free_memory(device: torch.device) -> int | None:
    """Bytes that a process can still take on a device; None where nothing tells."""
    if device.type == "cuda":
        reserved = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
        return torch.cuda.mem_get_info(device)[0] + reserved
    if device.type == "mps":
        return torch.mps.recommended_max_memory() - torch.mps.current_allocated_memory()
    found = [_free_of_machine(), *(_free_of_group(*map(Path, paths)) for paths in _CGROUPS)]
    known = [free for free in found if free is not None]
    return min(known, default=None)


def _free_of_machine() -> int | None:
    meminfo = Path("/proc/meminfo")
    if meminfo.is_file():
        for line in meminfo.read_text().splitlines():
            if line.startswith("MemAvailable:"):
                return int(line.split()[1]) * 1024
    if "SC_PHYS_PAGES" in os.sysconf_names:  # elsewhere: all that there is, which is an upper bound
        return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    return None


def _free_of_group(limit: Path, used: Path) -> int | None:
    """What is left to a container; file caches count as used there, though they would be given up."""
    if not limit.is_file() or not used.is_file():
        return None
    text = limit.read_text().strip()
    if text == "max":
        return None
    statistics = used.with_name("memory.stat")
    caches = 0
    if statistics.is_file():
        for line in statistics.read_text().splitlines():
            name, _, value = line.partition(" ")
            if name in ("inactive_file", "total_inactive_file"):
                caches = int(value)
    return max(0, int(text) - int(used.read_text()) + caches)
