"""Can a kill lose work? SIGKILL of `mlm train` at random moments, until it ends; then compared with a run in one piece.

Each child is a process of its own, started by the same command. Some are killed at any moment of preparing or training,
some while a checkpoint is being written, some right after one. When a run has come to its end, its weights, its
optimizer's state and the lines of its metrics (but for times) must be those of the uninterrupted run; then the next run
begins, until there were enough kills. Bar: 50 kills, all equal, bit for bit.

    python benchmarks/kill.py
    python benchmarks/kill.py --kills 5 --no-record          # as the tests do
"""

import argparse
import json
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path

TIMES = {"seconds", "tokens_per_second", "peak_share", "memory_bytes", "valid_seconds"}  # what may differ
WORDS = "the cat sat on a mat and dog ran to its own red house by old river under tall green trees"


def write_corpus(path: Path) -> None:
    draw = random.Random(0)
    lines = [" ".join(draw.choices(WORDS.split(), k=draw.randint(4, 30))) + "." for _ in range(600)]
    path.write_text("\n".join(lines), encoding="utf-8")


def command(corpus: Path, out: Path, steps: int, every: int) -> list[str]:
    arguments = [str(corpus), "--out", str(out), "--budget", f"{steps}steps", "--checkpoint-every", f"{every}steps"]
    arguments += ["--model", "tiny", "--seq-len", "48", "--pack-tokens", "512", "--vocab-size", "384", "--threads", "1"]
    return [sys.executable, "-m", "mlm_pytorch", "train", *arguments]


def lines(run: Path) -> list[dict]:
    """What the metrics say, apart from times; raises where a line is half-written."""
    text = (run / "metrics.jsonl").read_text(encoding="utf-8")
    return [{k: v for k, v in json.loads(line).items() if k not in TIMES} for line in text.splitlines()]


def compare(run: Path, whole: Path, steps: int) -> None:
    assert [line["step"] for line in lines(run) if "lr" in line] == list(range(1, steps + 1)), "a gap or a double line"
    assert lines(run) == lines(whole), "other metrics"
    for name in ("model/model.safetensors", "optimizer.safetensors"):
        ours, theirs = (folder / f"checkpoints/step-{steps}" / name for folder in (run, whole))
        assert ours.read_bytes() == theirs.read_bytes(), f"{name} differs"
    assert (run / "model").resolve() == (run / f"checkpoints/step-{steps}/model").resolve(), "the link is behind"


def saving(run: Path) -> bool:
    return any((run / "checkpoints").glob(".step-*.partial"))


def wait_for(condition, child: subprocess.Popen) -> None:
    while not condition() and child.poll() is None:
        time.sleep(0.001)


def kill_once(arguments: list[str], run: Path, draw: random.Random, seconds: float) -> str | None:
    """Start the command and kill it at a random moment; what it was doing then, None where it ended before."""
    said = run.with_suffix(".stderr")
    how = draw.choices(["any", "saving", "saved"], [5, 4, 1])[0] if run.exists() else "any"
    with said.open("wb") as stderr:
        child = subprocess.Popen(arguments, stderr=stderr)
        if how == "any":
            if run.exists() or draw.random() < 0.7:  # else while it still prepares
                wait_for(lambda: b"budget" in said.read_bytes(), child)
            time.sleep(draw.uniform(0, seconds))
        else:
            before = {path.name for path in (run / "checkpoints").glob("step-*")}
            wait_for(lambda: saving(run), child)
            if how == "saved":
                wait_for(lambda: {path.name for path in (run / "checkpoints").glob("step-*")} - before, child)
            time.sleep(draw.uniform(0, 0.05))
        child.send_signal(signal.SIGKILL)
        returned = child.wait()
    if returned == 0:
        return None
    assert returned == -signal.SIGKILL, f"the run ended with {returned}: {said.read_text(errors='replace')}"
    if saving(run):
        return "while a checkpoint was written"
    return "between checkpoints" if (run / "config.yaml").exists() else "before the first step"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=50)
    parser.add_argument("--steps", type=int, default=90)
    parser.add_argument("--every", type=int, default=4, help="steps from checkpoint to checkpoint")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--no-record", action="store_true")
    options = parser.parse_args()
    draw = random.Random(options.seed)
    os.environ["OMP_NUM_THREADS"] = "1"
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        write_corpus(folder / "corpus.txt")
        whole = folder / "whole"
        subprocess.run(command(folder / "corpus.txt", whole, options.steps, options.every), check=True, stderr=-3)
        last = json.loads((whole / "metrics.jsonl").read_text().splitlines()[-1])
        kills: Counter[str] = Counter()
        runs = 0
        while sum(kills.values()) < options.kills:
            run = folder / f"run-{runs}"
            arguments = command(folder / "corpus.txt", run, options.steps, options.every)
            ended = False
            while not ended and sum(kills.values()) < options.kills:
                doing = kill_once(arguments, run, draw, min(5.0, last["seconds"] / 3))
                ended = doing is None
                if doing is not None:
                    kills[doing] += 1
                    print(f"kill {sum(kills.values())}: {doing}", flush=True)
            if not ended:
                subprocess.run(arguments, check=True, stderr=-3)
            compare(run, whole, options.steps)
            runs += 1
            print(f"run {runs} equals the uninterrupted one", flush=True)
    result = {"kills": dict(kills), "total": sum(kills.values()), "runs": runs, "steps": options.steps}
    result |= {"checkpoint_every": options.every, "all_equal": True, "bar": "50 kills, bit-identical"}
    print(json.dumps(result))
    if not options.no_record:
        from machine import write_result

        write_result("kill", result)


if __name__ == "__main__":
    main()
