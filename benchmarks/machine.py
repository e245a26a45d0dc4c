"""What machine a figure was measured on: `machine()` describes it, `write_result()` stores a result beside it."""

import datetime
import json
import os
import platform
import subprocess
import time
from importlib import metadata
from pathlib import Path
from statistics import median

import torch

from mlm_pytorch.training.device import native_precision

RESULTS = Path(__file__).parent / "results"

# The instruction sets that decide how fast a CPU multiplies matrices, as Linux names them (x86 and Arm).
TELLING_FLAGS = ("avx2", "avx512f", "avx512_bf16", "avx512_vnni", "amx_tile", "amx_bf16", "asimd", "bf16", "i8mm")


def machine(matmul_size: int = 2048) -> dict:
    """Describe this machine, with its measured peak in square matrix products (GFLOP/s; about a second's work).

    bfloat16 is measured where the CPU multiplies it; elsewhere it is emulated, at a minute a product.
    Times depend on all of it. Figures from two machines compare only as ratios to something measured on each.
    """
    description = processor() | {
        "threads": torch.get_num_threads(),
        "ram_gib": round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30, 1),
        "os": f"{platform.system()} {platform.release()} {platform.machine()}",
        "python": platform.python_version(),
        "torch": torch.__version__,
        "matmul_float32_gflops": matmul_gflops(matmul_size, torch.float32, "cpu"),
    }
    if native_precision(torch.device("cpu")) is torch.bfloat16:
        description["matmul_bfloat16_gflops"] = matmul_gflops(matmul_size, torch.bfloat16, "cpu")
    if torch.cuda.is_available():
        properties = torch.cuda.get_device_properties(0)
        description |= {
            "gpu": properties.name,
            "gpu_count": torch.cuda.device_count(),
            "gpu_memory_gib": round(properties.total_memory / 2**30, 1),
            "gpu_matmul_bfloat16_gflops": matmul_gflops(4 * matmul_size, torch.bfloat16, "cuda"),
        }
    return description


def processor() -> dict:
    """What of it decides a figure that is no time: for each row of a result that grows over days and machines."""
    flags = [flag for flag in TELLING_FLAGS if flag in _cpu_flags()]
    return {"cpu": _cpu_model(), "cores": os.cpu_count(), "flags": flags}


def versions(*packages: str) -> dict[str, str]:
    """The installed versions of what a benchmark compares with."""
    return {package: metadata.version(package) for package in packages}


def write_result(name: str, result: dict) -> Path:
    """Write `results/NAME.json`: the result, with the machine, the date and the commit; print and return where."""
    RESULTS.mkdir(exist_ok=True)
    path = RESULTS / f"{name}.json"
    stamp = {"date": datetime.datetime.now(datetime.UTC).date().isoformat(), "commit": _commit()}
    path.write_text(json.dumps(result | stamp | {"machine": machine()}, indent=2, ensure_ascii=False) + "\n")
    print(f"written to {path.relative_to(Path.cwd()) if path.is_relative_to(Path.cwd()) else path}")
    return path


def matmul_gflops(size: int, dtype: torch.dtype, device: str, repeats: int = 5) -> float:
    """Billions of floating-point operations per second of a product of square matrices, the median of some."""
    a, b = (torch.randn(size, size, device=device).to(dtype) for _ in range(2))
    seconds = []
    for _ in range(repeats + 1):  # the first one sets kernels up and is not counted
        start = time.perf_counter()
        a @ b
        if device == "cuda":
            torch.cuda.synchronize()
        seconds.append(time.perf_counter() - start)
    return round(2 * size**3 / median(seconds[1:]) / 1e9, 1)


def _cpu_model() -> str:
    if platform.system() == "Darwin":
        return _output("sysctl", "-n", "machdep.cpu.brand_string")
    for line in _cpuinfo():
        if line.startswith("model name"):
            return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


def _cpu_flags() -> set[str]:
    for line in _cpuinfo():
        if line.startswith(("flags", "Features")):
            return set(line.partition(":")[2].split())
    return set()


def _cpuinfo() -> list[str]:
    path = Path("/proc/cpuinfo")
    return path.read_text().splitlines() if path.exists() else []


def _commit() -> str | None:
    return _output("git", "-C", str(Path(__file__).parent), "rev-parse", "--short", "HEAD") or None


def _output(*command: str) -> str:
    try:
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return ""


if __name__ == "__main__":
    print(json.dumps(machine(), indent=2))
