"""How soon does a long run go on? Resume after 10^6 steps' worth of data, to the end of the first new step.

Takes a short real run, and moves its checkpoint on: the reader's streams to where 10^6 steps would have left them, and
metrics.jsonl to 10^6 lines. Then the same command is given again in a new process, which says how long it took from
the end of its imports to the end of its first step. Bar: 5 s.

    python benchmarks/resume.py                     # needs the folder `shared` beside the checkout
    python benchmarks/resume.py --corpus my.jsonl.gz --model tiny
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
import zlib
from pathlib import Path

SHARED = Path(__file__).parents[2] / "shared" / "data" / "mix10m"
STEPS = 1_000_000
BAR_SECONDS = 5.0

# Runs the command in a process whose imports are over when the clock starts; the first new line of metrics stops it.
TIMED = """
import sys, time
from mlm_pytorch.cli import main
import mlm_pytorch.cli.train, transformers
from mlm_pytorch.training.reporting import Reporter
start = time.perf_counter()
told = Reporter.step
def step(self, values, *rest, **named):
    told(self, values, *rest, **named)
    if values["step"] == FIRST:
        print("seconds", time.perf_counter() - start, flush=True)
Reporter.step = step
main(sys.argv[1:])
"""


def move_on(run: Path) -> None:
    """Make the newest checkpoint that of step STEPS: reader, metrics, name, manifest."""
    (checkpoint,) = (run / "checkpoints").glob("step-*")
    state = json.loads((checkpoint / "state.json").read_text())
    reader, step = state["reader"], state["progress"]["step"]
    served = STEPS * (sum(reader["drawn"]) - sum(map(len, reader["waiting"]))) // step  # pieces, at the pace so far
    streams = len(reader["drawn"])
    reader["drawn"] = [drawn + served // streams for drawn in reader["drawn"]]
    reader["next_pack"] += STEPS // streams * streams
    reader |= {"waiting": [[]] * streams, "lengths": [[]] * streams}
    state["progress"] |= {"step": STEPS, "total_steps": 2 * STEPS}
    line = (run / "metrics.jsonl").read_text().splitlines()[0]
    with (run / "metrics.jsonl").open("w") as file:
        for number in range(1, STEPS + 1):
            file.write(line.replace('"step": 1,', f'"step": {number},', 1) + "\n")
    state["metrics_bytes"] = (run / "metrics.jsonl").stat().st_size
    text = json.dumps(state).encode()
    (checkpoint / "state.json").write_bytes(text)
    manifest = json.loads((checkpoint / "manifest.json").read_text())
    manifest["files"]["state.json"] = {"bytes": len(text), "crc32": zlib.crc32(text)}
    (checkpoint / "manifest.json").write_text(json.dumps(manifest))
    checkpoint.rename(checkpoint.with_name(f"step-{STEPS}"))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--corpus", type=Path, default=SHARED / "train.jsonl.gz")
    parser.add_argument("--tokenizer", type=Path, default=SHARED / "tokenizer-16k")
    parser.add_argument("--model", default="mini")
    parser.add_argument("--no-record", action="store_true")
    options = parser.parse_args()
    if not options.corpus.is_file():
        raise SystemExit(f"{options.corpus} is missing; name a corpus with --corpus")
    with tempfile.TemporaryDirectory() as scratch:
        run = Path(scratch) / "run"
        train = ["train", str(options.corpus), "--out", str(run), "--model", options.model, "--evaluations", "0"]
        train += ["--tokenizer", str(options.tokenizer)] if options.tokenizer.is_dir() else []
        began = [*train, "--budget", "8steps"]
        subprocess.run([sys.executable, "-m", "mlm_pytorch", *began], check=True)
        move_on(run)
        code = TIMED.replace("FIRST", str(STEPS + 1))
        again = [*train, "--budget", f"{STEPS + 2}steps"]
        start = time.perf_counter()
        done = subprocess.run([sys.executable, "-c", code, *again], check=True, capture_output=True, text=True)
        whole = time.perf_counter() - start
        metrics = [line for line in (run / "metrics.jsonl").read_text().splitlines() if '"lr"' in line]
    assert [json.loads(line)["step"] for line in metrics[-2:]] == [STEPS + 1, STEPS + 2]
    assert len(metrics) == STEPS + 2
    seconds = next(float(line.split()[1]) for line in done.stdout.splitlines() if line.startswith("seconds"))
    result = {
        "seconds_to_first_step": round(seconds, 2),
        "process_seconds": round(whole, 2),
        "bar_seconds": BAR_SECONDS,
    }
    result |= {"model": options.model, "steps_behind": STEPS, "metrics_lines": STEPS, "load": os.getloadavg()[0]}
    print(json.dumps(result))
    if not options.no_record:
        from machine import write_result

        write_result("resume", result)
    raise SystemExit(seconds > BAR_SECONDS)


if __name__ == "__main__":
    main()
