"""What `from mlm_pytorch import MLM` costs beyond `import torch`. Bar: 0.15 s.

Each of five fresh interpreters imports torch, then the package, and times the second step: the difference within one
process, since torch's own second varies by more than what is measured here.
"""

import subprocess
import sys
from pathlib import Path
from statistics import median

from machine import write_result

BAR_SECONDS = 0.15
REPEATS = 5
PROBE = """
import time
start = time.perf_counter()
import torch
middle = time.perf_counter()
from mlm_pytorch import MLM
print(middle - start, time.perf_counter() - middle)
"""


def main() -> int:
    root = Path(__file__).parents[1]
    torch_seconds, own_seconds = [], []
    for _ in range(REPEATS + 1):
        run = subprocess.run([sys.executable, "-c", PROBE], cwd=root, capture_output=True, text=True, check=True)
        for seconds, value in zip((torch_seconds, own_seconds), run.stdout.split(), strict=True):
            seconds.append(float(value))
    result = {
        "bar_seconds": BAR_SECONDS,
        "import_mlm_pytorch_seconds": median(own_seconds[1:]),  # the first one fills the disk cache
        "import_torch_seconds": median(torch_seconds[1:]),
        "runs_seconds": own_seconds[1:],
    }
    print(f"import torch {result['import_torch_seconds']:.2f} s, then mlm_pytorch", end=" ")
    print(f"{result['import_mlm_pytorch_seconds']:.3f} s (bar {BAR_SECONDS} s)")
    write_result("import_time", result)
    return int(result["import_mlm_pytorch_seconds"] > BAR_SECONDS)


if __name__ == "__main__":
    sys.exit(main())
