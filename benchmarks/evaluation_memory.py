"""Peak memory of `mlm evaluate --data` on 1 MB and on 100 MB of text. Bar: 1.05 times.

Both runs are processes of their own, on made-up text of a thousand words, with a breakdown, by a small random model (so
that it takes minutes and not hours: what is measured is what grows with the corpus, and a model does not).

    python benchmarks/evaluation_memory.py
    python benchmarks/evaluation_memory.py --megabytes 1 10
"""

import argparse
import json
import random
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import torch
from machine import versions, write_result

from mlm_pytorch.data.tokenizer import train_tokenizer
from mlm_pytorch.encoder import Encoder, EncoderConfig
from mlm_pytorch.huggingface import export_encoder

BAR = 1.05
VOCABULARY = 1024
# Run in the child, so that its own peak is what is read.
CHILD = """
import resource, sys
from mlm_pytorch.cli import main
main(sys.argv[1:])
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024)
"""


def write_text(path: Path, megabytes: int) -> None:
    """Lines of 5 to 60 words, the first of them frequent."""
    draw = random.Random(0)
    words = ["".join(draw.choices("abcdefghijklmnopqrstuvwxyz", k=draw.randint(2, 9))) for _ in range(1000)]
    weights = [1 / (rank + 1) for rank in range(len(words))]
    written = 0
    with path.open("w", encoding="utf-8") as file:
        while written < megabytes * 10**6:
            line = json.dumps({"text": " ".join(draw.choices(words, weights, k=draw.randint(5, 60))), "source": "a"})
            written += file.write(line + "\n")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--megabytes", type=int, nargs=2, default=(1, 100))
    arguments = parser.parse_args()
    torch.manual_seed(0)
    result: dict = {"bar_ratio": BAR, "versions": versions("torch", "tokenizers"), "runs": []}
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        for megabytes in arguments.megabytes:
            write_text(folder / f"{megabytes}.jsonl", megabytes)
        lines = (folder / f"{arguments.megabytes[0]}.jsonl").read_text().splitlines()
        tokenizer = train_tokenizer([json.loads(line)["text"] for line in lines], VOCABULARY)
        model = Encoder(EncoderConfig(VOCABULARY, 32, 48, 1, 1, max_position_embeddings=128))
        export_encoder(model, tokenizer.special, folder / "model", tokenizer.save)
        for megabytes in arguments.megabytes:
            evaluate = ["evaluate", str(folder / "model"), "--data", str(folder / f"{megabytes}.jsonl")]
            start = time.perf_counter()
            command = [sys.executable, "-c", CHILD, *evaluate, "--seq-len", "128", "--breakdown", "--json"]
            done = subprocess.run(command, capture_output=True, text=True, check=True)
            report, peak = done.stdout.splitlines()
            run = {
                "megabytes": megabytes,
                "peak_mib": round(int(peak) / 2**20, 1),
                "tokens": json.loads(report)["num_tokens"],
                "seconds": round(time.perf_counter() - start, 1),
            }
            print(run, flush=True)
            result["runs"].append(run)
    small, large = (run["peak_mib"] for run in result["runs"])
    result["ratio"] = round(large / small, 3)
    print(json.dumps(result, indent=2))
    write_result("evaluation_memory", result)
    sys.exit(result["ratio"] > BAR)


if __name__ == "__main__":
    main()
