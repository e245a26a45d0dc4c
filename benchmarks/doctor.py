"""`mlm doctor` on a corpus of a gigabyte: bar 30 s (its ten-second trial included) and 1 GB of memory.

The corpus repeats the documents of mix10m with one word of each replaced by a number, so that none is equal to another;
one document in a hundred is made a copy of an earlier one, one in a hundred has a fault. The command runs as a process
of its own, and its peak memory is read there.

    python benchmarks/doctor.py ../shared/data/mix10m/train.jsonl.gz
    python benchmarks/doctor.py ../shared/data/mix10m/train.jsonl.gz --megabytes 100
"""

import argparse
import gzip
import json
import os
import random
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from machine import versions, write_result

BAR_SECONDS, BAR_GB = 30, 1.0
# Run in the child, so that its own peak is what is read.
CHILD = """
import json, resource, sys
from mlm_pytorch.cli import main
code = 0
try:
    main(sys.argv[1:])
except SystemExit as stop:
    code = stop.code
used = resource.getrusage(resource.RUSAGE_SELF)
print(json.dumps([code, used.ru_maxrss * 1024, used.ru_utime + used.ru_stime]))
"""


def write_corpus(path: Path, source: Path, megabytes: int) -> None:
    """Variations of the source's documents until the file has its size."""
    with gzip.open(source, "rt", encoding="utf-8") as file:
        texts = [json.loads(line)["text"] for line in file]
    draw = random.Random(0)
    copied = "This very sentence stands in many documents of the corpus, word for word."
    written = number = 0
    with path.open("w", encoding="utf-8") as file:
        while written < megabytes * 10**6:
            text = texts[number % len(texts)]
            if number % 100 == 37:
                text = text.replace("e", "\u00c3\u00a9")
            elif number % 100 == 73:
                text = copied
            else:
                words = text.split(" ")
                words[draw.randrange(len(words))] = str(draw.randrange(10**9))
                text = " ".join(words)
            written += file.write(json.dumps({"text": text}, ensure_ascii=False) + "\n")
            number += 1


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("source", type=Path)
    parser.add_argument("--megabytes", type=int, default=1000)
    parser.add_argument("--repeats", type=int, default=3)
    arguments = parser.parse_args()
    result: dict = {
        "bar_seconds": BAR_SECONDS,
        "bar_gb": BAR_GB,
        "megabytes": arguments.megabytes,
        "versions": versions("torch", "tokenizers"),
        "runs": [],
    }
    with tempfile.TemporaryDirectory() as scratch:
        corpus = Path(scratch) / "corpus.jsonl"
        write_corpus(corpus, arguments.source, arguments.megabytes)
        for _ in range(arguments.repeats):
            load, start = os.getloadavg()[0], time.perf_counter()
            command = [sys.executable, "-c", CHILD, "doctor", str(corpus), "--json"]
            done = subprocess.run(command, capture_output=True, text=True, check=True)
            seconds = time.perf_counter() - start
            shown, (code, peak, cpu_seconds) = (json.loads(line) for line in done.stdout.splitlines())
            run = {
                "seconds": round(seconds, 1),
                "cpu_seconds": round(cpu_seconds, 1),
                "peak_gb": round(peak / 1e9, 3),
                "exit_code": code,
                "load_before": round(load, 1),
                "read": shown["read"],
                "found": {f["check"]: f["level"] for f in shown["findings"] if f["level"] != "green"},
                "trial": {name: shown["trial"][name] for name in ("steps", "seconds", "tokens_per_second", "note")},
            }
            print(json.dumps(run), flush=True)
            result["runs"].append(run)
    result["seconds"] = sorted(run["seconds"] for run in result["runs"])[len(result["runs"]) // 2]
    result["peak_gb"] = max(run["peak_gb"] for run in result["runs"])
    write_result("doctor", result)
    sys.exit(result["seconds"] > BAR_SECONDS or result["peak_gb"] > BAR_GB)


if __name__ == "__main__":
    main()
