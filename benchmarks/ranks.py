"""Two processes of one thread against one process of two threads: tokens per second on the same two cores.

Trains the `mini` preset on the mix10m corpus with its 16k tokenizer, both ways on the same batches, some steps at a
time in turns, so that what else the machine does strikes both. The store is prepared once. Bar: two processes reach 90%
of one process's throughput.

    python benchmarks/ranks.py                      # needs the folder `shared` beside the checkout
    python benchmarks/ranks.py --steps 40 --rounds 5 --parallel fsdp
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from statistics import median

from machine import versions, write_result

SHARED = Path(__file__).parents[2] / "shared"
BAR = 0.9


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=60, help="of one measurement; the first third is not counted")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--packs-per-step", type=int, default=2)
    parser.add_argument("--parallel", default="auto")
    parser.add_argument("--model", default="mini")
    arguments, more = parser.parse_known_args()
    corpus = SHARED / "data" / "mix10m"
    if not corpus.is_dir():
        raise SystemExit(f"{corpus} is missing; this benchmark needs that corpus")
    with tempfile.TemporaryDirectory() as scratch:
        store = Path(scratch) / "store"
        prepare = ["prepare", str(corpus / "train.jsonl.gz"), "--out", str(store), "--seq-len", "256"]
        prepare += ["--tokenizer", str(corpus / "tokenizer-16k")]
        subprocess.run([sys.executable, "-m", "mlm_pytorch", *prepare], check=True)
        train = ["train", str(store), "--model", arguments.model, "--budget", f"{arguments.steps}steps"]
        train += ["--packs-per-step", str(arguments.packs_per_step), "--evaluations", "0"]
        train += ["--checkpoint-every", "1h", *more]
        one, two = [], []
        for number in range(arguments.rounds):
            run = Path(scratch) / f"one-{number}"
            one.append(measured([sys.executable, "-m", "mlm_pytorch", *train, "--out", str(run)], run, threads=2))
            run = Path(scratch) / f"two-{number}"
            torchrun = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2", "-m", "mlm_pytorch"]
            spread = ["--parallel", arguments.parallel, "--out", str(run)]
            two.append(measured([*torchrun, *train, *spread], run, threads=1))
            print(f"one process {one[-1]:,.0f} tokens/s, two {two[-1]:,.0f}: {two[-1] / one[-1]:.3f}", flush=True)
    shares = [b / a for a, b in zip(one, two, strict=True)]
    result = {
        "command": "mlm " + " ".join(word.replace(str(store), "STORE") for word in train),
        "parallel": arguments.parallel,
        "one_process_two_threads_tokens_per_second": [round(rate) for rate in one],
        "two_processes_tokens_per_second": [round(rate) for rate in two],
        "shares": [round(share, 4) for share in shares],
        "share_median": round(median(shares), 4),
        "bar": BAR,
        "versions": versions("torch"),
    }
    print(json.dumps(result, indent=2))
    write_result("ranks", result)
    raise SystemExit(median(shares) < BAR)


def measured(command: list[str], run: Path, threads: int) -> float:
    """Tokens per second of a run's last two thirds, by the clock of its own metrics."""
    subprocess.run(command, check=True, env=os.environ | {"OMP_NUM_THREADS": str(threads)}, capture_output=True)
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    steps = [line for line in lines if "loss" in line]
    first, last = steps[len(steps) // 3], steps[-1]
    return (last["tokens"] - first["tokens"]) / (last["seconds"] - first["seconds"])


if __name__ == "__main__":
    main()
