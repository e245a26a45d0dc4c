"""Which cross entropy: ours, plain, or torch's fused linear cross entropy; from hidden states to gradients.

Each case runs in a process of its own. Memory is what a case adds to its inputs at its peak: resident memory on a CPU,
allocated memory on CUDA.

    python benchmarks/objective.py               # writes benchmarks/results/objective.json
    python benchmarks/objective.py --sizes 600x256x30000 --repeats 3
"""

import argparse
import json
import resource
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

sys.path.insert(0, str(Path(__file__).parents[1]))

SIZES = ("600x256x30000", "1250x512x20000", "2400x384x50000", "5000x768x50000")  # selected x width x vocabulary


def ours(hidden: Tensor, weight: Tensor, labels: Tensor) -> Tensor:
    from mlm_pytorch.objective import cross_entropy

    return cross_entropy(F.linear(hidden, weight), labels)[0]


def plain(hidden: Tensor, weight: Tensor, labels: Tensor) -> Tensor:
    return F.cross_entropy(F.linear(hidden, weight).float(), labels, reduction="sum")


def torch_linear(hidden: Tensor, weight: Tensor, labels: Tensor) -> Tensor:
    options = torch.nn.LinearCrossEntropyOptions()
    return F.linear_cross_entropy(hidden, weight, labels, reduction="sum", options=options)


VARIANTS: dict[str, Callable[[Tensor, Tensor, Tensor], Tensor]] = {"ours": ours, "plain": plain}
if hasattr(F, "linear_cross_entropy"):  # torch 2.13
    VARIANTS["torch linear_cross_entropy"] = torch_linear


def measure(variant: str, size: str, dtype: str, repeats: int) -> dict[str, Any]:
    device = "cuda" if torch.cuda.is_available() else "cpu"
    selected, width, vocabulary = map(int, size.split("x"))
    torch.manual_seed(0)
    make = {"device": device, "dtype": getattr(torch, dtype)}
    hidden = torch.randn(selected, width, **make).requires_grad_()
    weight = (torch.randn(vocabulary, width, **make) / width**0.5).requires_grad_()
    labels = torch.randint(0, vocabulary, (selected,), device=device)
    before = _memory(device)
    seconds = []
    for _ in range(repeats + 1):
        hidden.grad = weight.grad = None
        start = time.perf_counter()
        loss = VARIANTS[variant](hidden, weight, labels)
        (loss / selected).backward()
        if device == "cuda":
            torch.cuda.synchronize()
        seconds.append(time.perf_counter() - start)
    milliseconds = round(1000 * median(seconds[1:]), 3)
    return {
        "device": device,
        "variant": variant,
        "size": size,
        "dtype": dtype,
        "milliseconds": milliseconds,
        "peak_memory_mib": round(_memory(device) - before, 1),
        "loss": loss.item() / selected,
    }


def _memory(device: str) -> float:
    if device == "cuda":
        return torch.cuda.max_memory_allocated() / 2**20
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (2**20 if sys.platform == "darwin" else 1024)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sizes", nargs="*", default=SIZES)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--case", nargs=3, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.case:
        print(json.dumps(measure(*args.case, args.repeats)))
        return
    rows = []
    for size in args.sizes:
        for dtype in ("float32", "bfloat16"):
            for variant in VARIANTS:
                command = [sys.executable, "-W", "ignore", __file__, "--repeats", str(args.repeats), "--case"]
                case = [*command, variant, size, dtype]
                done = subprocess.run(case, stdout=subprocess.PIPE, text=True, check=True)
                rows.append(json.loads(done.stdout.splitlines()[-1]))
                print(rows[-1], flush=True)
    if tuple(args.sizes) == SIZES:
        from machine import write_result

        write_result("objective", {"repeats": args.repeats, "cases": rows})


if __name__ == "__main__":
    main()
