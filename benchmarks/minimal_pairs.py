"""Minimal pairs: how many pairs a second, beside `minicons` at its best batch size, and the whole of BLiMP's dev half.

Both score the same random model (4 layers of width 256, 16k vocabulary; speed does not depend on what it has learned),
exported as a Hugging Face folder, in float32 on the same threads, by the same pseudo-log-likelihood; the sums must
agree to 1e-3. `minicons` needs transformers 4, so it runs in an environment of its own:

    python -m venv /somewhere && /somewhere/bin/pip install minicons "transformers<5"
    python benchmarks/minimal_pairs.py --minicons /somewhere/bin/python       # needs the folder `shared`

Samples are interleaved: theirs at each batch size, ours, theirs again, and so on. Bars: 10 minutes for all 33,500 pairs
on 2 CPU cores, and 5 times the pairs a second of minicons (on all pairs, or with --skip-all on the sample).
"""

import argparse
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from statistics import median

import torch
from machine import versions, write_result

from mlm_pytorch.data.tokenizer import load_tokenizer
from mlm_pytorch.encoder import Encoder, preset
from mlm_pytorch.evaluation import minimal_pairs, pseudo_log_likelihood
from mlm_pytorch.evaluation.minimal_pairs import read_minimal_pairs
from mlm_pytorch.huggingface import export_encoder

DATA = Path(__file__).parents[2] / "shared" / "data"
BAR_MINUTES, BAR_RATIO = 10, 5
BATCH_SIZES = (1, 4, 16, 64)  # sentences; minicons puts all masked rows of a batch into one forward pass

THEIRS = """
import importlib.metadata, json, sys, time, torch
from minicons import scorer
folder, threads = sys.argv[1], int(sys.argv[2])
torch.set_num_threads(threads)
model = scorer.MaskedLMScorer(folder, "cpu")
print(json.dumps({n: importlib.metadata.version(n) for n in ("minicons", "transformers", "torch")}), flush=True)
for line in sys.stdin:
    job = json.loads(line)
    texts, size, scores = job["texts"], job["batch_size"], []
    start = time.perf_counter()
    for i in range(0, len(texts), size):
        scores += model.sequence_score(texts[i : i + size], reduction=lambda x: x.sum().item(), PLL_metric="original")
    print(json.dumps({"seconds": time.perf_counter() - start, "scores": scores}), flush=True)
"""


class Minicons:
    """The scorer in its own environment: one process, asked again and again."""

    def __init__(self, python: Path, folder: Path, threads: int):
        command = [str(python), "-W", "ignore", "-c", THEIRS, str(folder), str(threads)]
        self._process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        self.versions = self._answer()

    def _answer(self) -> dict:
        assert self._process.stdout is not None
        return json.loads(self._process.stdout.readline())

    def score(self, texts: list[str], batch_size: int) -> tuple[float, list[float]]:
        """Seconds taken, and the sum of each text."""
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps({"texts": texts, "batch_size": batch_size}) + "\n")
        self._process.stdin.flush()
        answer = self._answer()
        return answer["seconds"], answer["scores"]

    def close(self) -> None:
        """End the process."""
        assert self._process.stdin is not None
        self._process.stdin.close()
        self._process.wait()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minicons", type=Path, required=True, help="Python of the environment that has minicons")
    parser.add_argument("--sample", type=int, default=100, help="pairs compared, spread over all paradigms")
    parser.add_argument("--repeats", type=int, default=2)
    parser.add_argument("--vocab-size", type=int, help="of the model; by default the tokenizer's 16,384")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--skip-all", action="store_true", help="only the comparison")
    arguments = parser.parse_args()
    if not DATA.is_dir():
        raise SystemExit(f"{DATA} is missing; this benchmark needs its corpus and pairs")
    torch.set_num_threads(arguments.threads)
    torch.manual_seed(0)
    tokenizer = load_tokenizer(DATA / "mix10m" / "tokenizer-16k")
    encoder = Encoder(preset("mini", vocab_size=arguments.vocab_size or tokenizer.special.num_tokens))
    pairs = read_minimal_pairs(DATA / "blimp" / "blimp_dev.jsonl.gz")
    sample = pairs[:: len(pairs) // arguments.sample][: arguments.sample]
    texts = [text for pair in sample for text in (pair.good, pair.bad)]
    theirs: dict[int, list[float]] = {size: [] for size in BATCH_SIZES}
    ours: list[float] = []
    with tempfile.TemporaryDirectory() as scratch:
        export_encoder(encoder, tokenizer.special, Path(scratch), tokenizer.save)
        declared = Path(scratch) / "tokenizer_config.json"  # may name a class that only transformers 5 has
        declared.write_text(
            json.dumps(json.loads(declared.read_text()) | {"tokenizer_class": "PreTrainedTokenizerFast"})
        )
        minicons = Minicons(arguments.minicons, Path(scratch), arguments.threads)
        minicons.score(texts[:4], 2)
        pseudo_log_likelihood(encoder, tokenizer, texts[:4])
        largest = 0.0
        for _ in range(arguments.repeats):
            for size in BATCH_SIZES:
                seconds, scores = minicons.score(texts, size)
                theirs[size].append(len(sample) / seconds)
                start = time.perf_counter()
                mine = pseudo_log_likelihood(encoder, tokenizer, texts)
                ours.append(len(sample) / (time.perf_counter() - start))
                largest = max(largest, *(abs(a.sum - b) for a, b in zip(mine, scores, strict=True)))
                print(f"minicons, batches of {size}: {theirs[size][-1]:.2f} pairs/s; ours {ours[-1]:.2f}", flush=True)
        minicons.close()
    best = max(BATCH_SIZES, key=lambda size: median(theirs[size]))
    result: dict = {
        "model": f"mini: 4 layers, width 256, {encoder.config.vocab_size:,} tokens, random weights, float32",
        "threads": arguments.threads,
        "sample_pairs": len(sample),
        "largest_difference_of_a_sum": largest,
        "minicons_pairs_per_second": {size: round(median(rates), 2) for size, rates in theirs.items()},
        "minicons_best_batch_size": best,
        "pairs_per_second": round(median(ours), 2),
        "ratio": round(median(ours) / median(theirs[best]), 2),
        "bar_ratio": BAR_RATIO,
        "bar_minutes": BAR_MINUTES,
        "versions": versions("torch", "tokenizers"),
        "minicons_versions": minicons.versions,
    }
    if not arguments.skip_all:
        start = time.perf_counter()
        minimal_pairs(encoder, tokenizer, pairs)
        seconds = time.perf_counter() - start
        rate = len(pairs) / seconds  # more sentences of each length than in a sample, so that batches are full
        result |= {
            "all_pairs": len(pairs),
            "all_minutes": round(seconds / 60, 2),
            "all_pairs_per_second": round(rate, 2),
        }
        result["ratio_of_all"] = round(rate / median(theirs[best]), 2)
    print(json.dumps(result, indent=2))
    write_result(f"minimal_pairs_{encoder.config.vocab_size // 1000}k", result)
    missed = result.get("ratio_of_all", result["ratio"]) < BAR_RATIO or result.get("all_minutes", 0) > BAR_MINUTES
    sys.exit(bool(missed or largest > 1e-3))


if __name__ == "__main__":
    main()
