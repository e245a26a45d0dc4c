"""How fast is `mlm prepare`, against tokenizing alone and against Hugging Face's usual preparation?

    prepare    mix10m's files to a finished store (read, tokenized, held out, hashed, written, synced), tokenizer given
    bare       `encode_batch_fast` of the `tokenizers` library over the same texts, in memory, on all cores
    datasets   `load_dataset("json")`, `map(tokenizer)`, then `map(group_texts)` as transformers' run_mlm.py does

Each runs in a process of its own, interleaved, and medians of tokens per second are compared. `bare` is given all texts
in one call, which is its fastest way, and neither reads a file nor hands a single id over. Also measured: the peak
memory of `prepare`. Bars: 90% of bare, 1.5 times datasets.

    python benchmarks/prepare.py                    # needs the folder `shared` beside the checkout
    python benchmarks/prepare.py --repeats 3 --workers 2
"""

import argparse
import gzip
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from statistics import median

CORPUS = Path(__file__).parents[2] / "shared" / "data" / "mix10m"
BAR_BARE, BAR_DATASETS = 0.9, 1.5
SEQ_LEN = 512


def run_prepare(corpus: Path, tokenizer: Path, scratch: Path, workers: int) -> dict:
    from mlm_pytorch.data.prepare import prepare
    from mlm_pytorch.data.tokenizer import load_tokenizer

    loaded = load_tokenizer(tokenizer)
    before = time.perf_counter()
    report = prepare([corpus], scratch / "store", tokenizer=loaded, seq_len=SEQ_LEN, workers=workers)
    return {"tokens": report.tokens, "seconds": time.perf_counter() - before}


def run_bare(corpus: Path, tokenizer: Path, scratch: Path, workers: int) -> dict:  # noqa: ARG001 - as the others
    import tokenizers

    loaded = tokenizers.Tokenizer.from_file(str(tokenizer / "tokenizer.json"))
    with gzip.open(corpus, "rt", encoding="utf-8") as lines:
        texts = [json.loads(line)["text"] for line in lines]
    before = time.perf_counter()
    encodings = loaded.encode_batch_fast(texts, add_special_tokens=False)
    seconds = time.perf_counter() - before
    return {"tokens": sum(map(len, encodings)), "seconds": seconds}


def run_datasets(corpus: Path, tokenizer: Path, scratch: Path, workers: int) -> dict:
    from datasets import disable_progress_bars, load_dataset
    from transformers import AutoTokenizer

    disable_progress_bars()
    loaded = AutoTokenizer.from_pretrained(str(tokenizer))
    before = time.perf_counter()
    dataset = load_dataset("json", data_files=str(corpus), split="train", cache_dir=str(scratch / "cache"))

    def tokenize(batch: dict) -> dict:
        return loaded(batch["text"], return_special_tokens_mask=True)

    def group_texts(batch: dict) -> dict:
        joined = {key: [item for row in batch[key] for item in row] for key in batch}
        total = len(joined["input_ids"]) // SEQ_LEN * SEQ_LEN
        return {key: [row[i : i + SEQ_LEN] for i in range(0, total, SEQ_LEN)] for key, row in joined.items()}

    # With one process the tokenizer's own threads take all cores; with more, each process has one.
    tokenized = dataset.map(tokenize, batched=True, remove_columns=dataset.column_names)
    grouped = tokenized.map(group_texts, batched=True, num_proc=workers)
    seconds = time.perf_counter() - before
    return {"tokens": len(grouped) * SEQ_LEN, "seconds": seconds}


RUNS = {"prepare": run_prepare, "bare": run_bare, "datasets": run_datasets}


def in_a_process(name: str, corpus: Path, tokenizer: Path, workers: int) -> dict:
    with tempfile.TemporaryDirectory() as scratch:
        command = [sys.executable, __file__, "--run", name, str(corpus), str(tokenizer), scratch, str(workers)]
        environment = {key: value for key, value in os.environ.items() if key != "TOKENIZERS_PARALLELISM"}
        done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True, env=environment)
    return json.loads(done.stdout.splitlines()[-1])


def main() -> None:
    from machine import versions, write_result

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--workers", type=int, default=2)
    arguments = parser.parse_args()
    if not CORPUS.is_dir():
        raise SystemExit(f"{CORPUS} is missing; this benchmark needs that corpus")
    found: dict[str, list[dict]] = {name: [] for name in RUNS}
    for _ in range(arguments.repeats):
        for name in RUNS:
            run = in_a_process(name, CORPUS / "train.jsonl.gz", CORPUS / "tokenizer-16k", arguments.workers)
            found[name].append(run)
            print(f"{name:10s} {run['tokens'] / run['seconds']:12,.0f} tokens/s", flush=True)
    speed = {name: median(run["tokens"] / run["seconds"] for run in runs) for name, runs in found.items()}
    ratios = {f"prepare_to_{name}": round(speed["prepare"] / speed[name], 3) for name in ("bare", "datasets")}
    result = {
        "corpus": "mix10m/train.jsonl.gz",
        "workers": arguments.workers,
        "repeats": arguments.repeats,
        "tokens_per_second": {name: round(value) for name, value in speed.items()},
        "cpu_seconds": {name: round(median(run["cpu_seconds"] for run in runs), 2) for name, runs in found.items()},
        **ratios,
        "bar_prepare_to_bare": BAR_BARE,
        "bar_prepare_to_datasets": BAR_DATASETS,
        "prepare_peak_memory_mb": round(median(run["peak_mb"] for run in found["prepare"])),
        "versions": versions("tokenizers", "datasets", "transformers", "pyarrow", "numpy"),
    }
    print(json.dumps(result, indent=2))
    write_result("prepare", result)
    raise SystemExit(ratios["prepare_to_bare"] < BAR_BARE or ratios["prepare_to_datasets"] < BAR_DATASETS)


if __name__ == "__main__":
    if sys.argv[1:2] == ["--run"]:
        name, corpus, tokenizer, scratch, workers = sys.argv[2:]
        result = RUNS[name](Path(corpus), Path(tokenizer), Path(scratch), int(workers))
        usage = resource.getrusage(resource.RUSAGE_SELF)
        children = resource.getrusage(resource.RUSAGE_CHILDREN)
        result["peak_mb"] = usage.ru_maxrss / 1024
        result["cpu_seconds"] = sum(part.ru_utime + part.ru_stime for part in (usage, children))
        print(json.dumps(result))
    else:
        main()
