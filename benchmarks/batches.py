"""Reading a store in training order: speed with packing and masking, fill, resuming in a huge store, shuffle quality.

    python benchmarks/batches.py                       # prepares mix10m first: half a minute
    python benchmarks/batches.py --store STORE --pack-tokens 8192

The huge store holds 10^10 tokens in 10^8 documents: one shard of 2^24 tokens under 597 names, so that it takes 35 MB of
disk while its offsets, its manifest and its mappings are real. It is opened and resumed in a fresh process.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterable
from dataclasses import replace
from pathlib import Path
from statistics import median
from typing import Protocol

import numpy as np
import torch
from machine import write_result

sys.path.insert(0, str(Path(__file__).parents[1]))

from mlm_pytorch.data.batches import FLAT, PADDED, Reader
from mlm_pytorch.data.order import Order
from mlm_pytorch.data.prefetch import prefetch
from mlm_pytorch.data.store import Manifest, SplitInfo, SplitWriter, TokenStore
from mlm_pytorch.masking import millionths
from mlm_pytorch.objective.packs import PackMasker
from mlm_pytorch.objective.padded import mask_padded
from mlm_pytorch.tokens import SpecialTokens

DATA = Path(__file__).parents[2] / "shared/data/mix10m"
BARS = {
    "tokens_per_second": 5e6,
    "fill_flat": 0.995,
    "fill_padded": 0.95,
    "open_seconds": 1.0,
    "open_megabytes": 200.0,
    "standard_errors": 3.0,
}
SOURCE_WINDOW = 256


class HasTokens(Protocol):
    """A batch, masked or not."""

    @property
    def num_tokens(self) -> int:
        """Tokens of pieces."""
        ...


def prepared(folder: Path, seq_len: int) -> TokenStore:
    from mlm_pytorch.data.prepare import prepare
    from mlm_pytorch.data.tokenizer import load_tokenizer

    tokenizer = load_tokenizer(DATA / "tokenizer-16k")
    prepare([DATA / "train.jsonl.gz"], folder, tokenizer=tokenizer, seq_len=seq_len)
    return TokenStore.open(folder)


def reader(store: TokenStore, pack_tokens: int, layout=FLAT) -> Reader:
    return Reader(store, pack_tokens, seed=0, longest=store.seq_len, layout=layout)


def rate_of(make: Callable[[int], Iterable[HasTokens]], packs: int, repeats: int) -> dict[str, int]:
    """Median over `repeats` runs of `packs` batches each; tokens of pieces, padding not counted.

    By the clock, and by the time that the process had a core to itself: they agree where nothing else runs.
    """
    rates: dict[str, list[float]] = {"tokens_per_second": [], "tokens_per_cpu_second": []}
    for _ in range(repeats):
        start, cpu = time.perf_counter(), time.process_time()
        tokens = sum(pack.num_tokens for pack in make(packs))
        rates["tokens_per_second"].append(tokens / (time.perf_counter() - start))
        rates["tokens_per_cpu_second"].append(tokens / (time.process_time() - cpu))
    return {name: round(median(values)) for name, values in rates.items()}


def speed(store: TokenStore, pack_tokens: int, packs: int, repeats: int) -> dict:
    """One core, one process: reading alone, and reading with masking."""
    masker, rate = PackMasker(store.special, seed=0), millionths(0.15)
    flat, padded = reader(store, pack_tokens), reader(store, pack_tokens, PADDED)
    list(flat.take(64)), list(padded.take(64))  # page cache, and the first queues
    return {
        "flat, masked": rate_of(lambda n: (masker(pack, rate) for pack in flat.take(n)), packs, repeats),
        "flat, read only": rate_of(flat.take, packs, repeats),
        "padded, masked": rate_of(
            lambda n: (mask_padded(masker, rows, rate) for rows in padded.take(n)), packs, repeats
        ),
        "padded, read only": rate_of(padded.take, packs, repeats),
    }


def multiply(number: int) -> None:
    """A consumer that computes: one large operation after another, none of which holds the interpreter's lock."""
    x = torch.ones(256, 256)
    for _ in range(number):
        x @ x


def launch(number: int) -> None:
    """A consumer that launches: many operations that take no longer than calling them, as for a fast GPU."""
    x = torch.ones(1)
    for _ in range(number):
        x + x


def interference(store: TokenStore, pack_tokens: int, step: float = 0.02, steps: int = 60, repeats: int = 5) -> dict:
    """What making batches costs a consumer that is busy for about `step` seconds with each: its time a step, as a
    multiple of what it takes alone, without prefetching and with one and two threads that build.
    """
    masker, rate = PackMasker(store.special, seed=0), millionths(0.15)
    found: dict[str, dict[str, float]] = {}
    for consume in (multiply, launch):
        start = time.perf_counter()
        consume(2000)
        number = int(2000 * step / (time.perf_counter() - start))
        ratios: dict[str, list[float]] = {}
        for _ in range(repeats):
            start = time.perf_counter()
            for _ in range(steps):
                consume(number)
            alone = time.perf_counter() - start
            for workers in (0, 1, 2):
                flat = reader(store, pack_tokens)
                plan = flat.choose(steps + 8)

                def build(chosen, flat=flat):
                    return masker(flat.build(chosen), rate)

                batches = prefetch(plan, build, workers=workers) if workers else map(build, plan)
                next(batches)
                start = time.perf_counter()
                for _ in range(steps):
                    consume(number)
                    next(batches)
                name = f"{workers} threads" if workers else "no prefetching"
                ratios.setdefault(name, []).append((time.perf_counter() - start) / alone)
        found[consume.__name__] = {name: round(median(values), 3) for name, values in ratios.items()}
    return found


def fill(store: TokenStore, pack_tokens: int) -> dict:
    """An epoch's worth of batches: the share of their area that is tokens of pieces; shapes; how long pieces wait."""
    framing = len(store.special.prefix) + len(store.special.suffix)
    packs = (store.num_tokens + framing * len(store)) // pack_tokens
    flat = [pack.num_tokens / pack_tokens for pack in reader(store, pack_tokens).take(packs)]
    read = reader(store, pack_tokens, PADDED)
    tokens = area = 0
    shapes = set()
    for rows in read.take(packs):
        tokens, area = tokens + rows.num_tokens, area + rows.input_ids.size
        shapes.add(rows.input_ids.shape)
    return {
        "packs": packs,
        "flat": round(float(np.mean(flat)), 5),
        "padded": round(tokens / area, 5),
        "padded_of_the_budget": round(tokens / (packs * pack_tokens), 5),
        "padded_shapes": len(shapes),
        "padded_waiting_pieces": sum(len(cursor.waiting) for cursor in read.position.cursors),
        "padded_longest_wait_in_draws": read.patience,
    }


def huge_store(folder: Path, tokens: int = 10**10, mean_length: int = 100) -> None:
    special = SpecialTokens(16_384, mask_token_id=4, pad_token_id=0, ids=(0, 2, 3, 4), prefix=(2,), suffix=(3,))
    writer = SplitWriter(folder, "train", special.num_tokens, max_piece=254, shard_tokens=1 << 25)
    lengths = np.random.default_rng(0).integers(1, 2 * mean_length, (1 << 24) // mean_length)
    writer.add(np.full(lengths.sum(), 7, np.uint16), lengths)
    (shard,) = writer.finish().shards
    shards = [replace(shard, file=f"train-{number:05d}.arrow") for number in range(-(-tokens // shard.tokens))]
    for other in shards[1:]:
        os.link(folder / shard.file, folder / other.file)
    pieces, tokens = shard.pieces * len(shards), shard.tokens * len(shards)
    split = SplitInfo(pieces, pieces, tokens, pieces, pieces, tuple(shards))
    Manifest("uint16", 256, special, "none", {"train": split}).write(folder)


def middle(store: TokenStore, pack_tokens: int, layout) -> dict:
    """A position such as a run leaves that has read half of the store: the first batches' queues, moved there."""
    read = reader(store, pack_tokens, layout)
    list(read.choose(200))
    saved, order = read.position.to_json(), read.order
    ahead = len(store) // 2 // order.num_streams
    saved["next_pack"] += order.num_streams * (ahead // order.block)
    saved["drawn"] = [drawn + ahead for drawn in saved["drawn"]]
    saved["waiting"] = [[serial + ahead for serial in serials] for serials in saved["waiting"]]
    framing = len(store.special.prefix) + len(store.special.suffix)
    pieces = [order.serve(stream, np.array(serials, int))[0] for stream, serials in enumerate(saved["waiting"])]
    saved["lengths"] = [(store.lengths(some) + framing).tolist() for some in pieces]
    return saved


def memory(*names: str) -> list[float]:
    """Megabytes, as the kernel counts them: RssAnon is the process's own, RssFile can be dropped at any time."""
    lines = dict(line.split(":") for line in Path("/proc/self/status").read_text().splitlines() if ":" in line)
    return [int(lines[name].split()[0]) / 1024 for name in names]


def open_and_resume(folder: Path, position: Path, pack_tokens: int, layout) -> dict:
    """In a process of its own, after the imports."""
    base, anonymous = memory("VmRSS", "RssAnon")
    start = time.perf_counter()
    store = TokenStore.open(folder)
    read = reader(store, pack_tokens, layout)
    read.restore(json.loads(position.read_text()))
    seconds, peak = time.perf_counter() - start, memory("VmHWM")[0] - base
    next(read.take(1))
    first = time.perf_counter() - start
    return {
        "tokens": store.num_tokens,
        "pieces": len(store),
        "seconds": round(seconds, 4),
        "peak_megabytes_above_imports": round(peak, 1),
        "seconds_to_the_first_batch": round(first, 4),
        "own_megabytes_at_the_first_batch": round(memory("RssAnon")[0] - anonymous, 1),
        "mapped_megabytes_at_the_first_batch": round(memory("RssFile")[0], 1),
    }


def huge(pack_tokens: int, temporary: Path) -> dict:
    folder = temporary / "huge"
    folder.mkdir()
    huge_store(folder)
    found = {}
    for name, layout in (("flat", FLAT), ("padded", PADDED)):
        position = temporary / f"{name}.json"
        position.write_text(json.dumps(middle(TokenStore.open(folder), pack_tokens, layout)))
        command = [sys.executable, __file__, "--open", str(folder), str(position), name]
        command += ["--pack-tokens", str(pack_tokens)]
        run = subprocess.run(command, capture_output=True, text=True, check=True)
        found[name] = json.loads(run.stdout) | {"position_bytes": position.stat().st_size}
    return found


def sources(store: TokenStore) -> np.ndarray:
    """(pieces,) int64: a number for each piece's source."""
    names: dict[str | None, int] = {}
    return np.array([names.setdefault(store.source(piece), len(names)) for piece in range(len(store))])


def same_in_windows(source: np.ndarray) -> int:
    """Pairs of pieces of one source within windows of `SOURCE_WINDOW`, one window after another."""
    rows = source[: len(source) // SOURCE_WINDOW * SOURCE_WINDOW].reshape(-1, SOURCE_WINDOW)
    counts = [np.bincount(row) for row in rows]
    return int(sum((count * (count - 1) // 2).sum() for count in counts))


def shuffle(store: TokenStore, seeds: int = 40) -> dict:
    """Against as many uniform permutations: means over seeds, their distance in standard errors of these."""
    number = len(store)
    storage, source = np.arange(number), sources(store)
    # a document's pieces and its neighbours' are alike: a finer label than the corpus's own few sources
    document = storage // 20
    statistics: dict[str, Callable[[np.ndarray], float]] = {
        "rank correlation of storage and reading order": lambda order: float(np.corrcoef(storage, order)[0, 1]),
        "rank correlation of successive pieces": lambda order: float(np.corrcoef(order[:-1], order[1:])[0, 1]),
        f"pairs of one source in windows of {SOURCE_WINDOW}": lambda order: same_in_windows(source[order]),
        f"pairs of neighbours in windows of {SOURCE_WINDOW}": lambda order: same_in_windows(document[order]),
    }
    generator = np.random.default_rng(0)
    found = {}
    orders = [Order(number, seed, 1).serve(0, storage)[0] for seed in range(seeds)]
    uniform = [generator.permutation(number) for _ in range(seeds)]
    for name, statistic in statistics.items():
        ours, theirs = ([statistic(order) for order in several] for several in (orders, uniform))
        error = float(np.hypot(np.std(ours), np.std(theirs))) / seeds**0.5
        found[name] = {
            "ours": float(np.mean(ours)),
            "uniform": float(np.mean(theirs)),
            "standard_errors": round(abs(float(np.mean(ours) - np.mean(theirs))) / error, 2),
        }
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--store", type=Path, help="a store of mix10m; by default it is prepared")
    parser.add_argument("--seq-len", type=int, default=1024, help="of the store that is prepared")
    parser.add_argument("--pack-tokens", type=int, default=8192)
    parser.add_argument("--packs", type=int, default=300, help="packs of one timing")
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--open", nargs=3, metavar=("STORE", "POSITION", "LAYOUT"), help=argparse.SUPPRESS)
    options = parser.parse_args()
    torch.set_num_threads(1)
    if options.open:
        folder, position, layout = options.open
        layout = {"flat": FLAT, "padded": PADDED}[layout]
        print(json.dumps(open_and_resume(Path(folder), Path(position), options.pack_tokens, layout)))
        return
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        store = TokenStore.open(options.store) if options.store else prepared(folder / "mix10m", options.seq_len)
        result = {
            "setting": f"mix10m, seq_len {store.seq_len}, packs of {options.pack_tokens} tokens, one core",
            "fill": fill(store, options.pack_tokens),
            "speed": speed(store, options.pack_tokens, options.packs, options.repeats),
            "time_of_a_consumer_against_alone": interference(store, options.pack_tokens),
            "huge_store": huge(options.pack_tokens, folder),
            "shuffle": shuffle(store),
        }
    checks = {
        "tokens_per_second": result["speed"]["flat, masked"]["tokens_per_second"] >= BARS["tokens_per_second"],
        "fill_flat": result["fill"]["flat"] >= BARS["fill_flat"],
        "fill_padded": result["fill"]["padded"] >= BARS["fill_padded"],
        "open_seconds": all(x["seconds"] <= BARS["open_seconds"] for x in result["huge_store"].values()),
        "open_megabytes": all(
            x["peak_megabytes_above_imports"] <= BARS["open_megabytes"] for x in result["huge_store"].values()
        ),
        "standard_errors": all(x["standard_errors"] <= BARS["standard_errors"] for x in result["shuffle"].values()),
    }
    result |= {"bars": BARS, "met": checks}
    print(json.dumps(result, indent=2))
    write_result("batches", result)
    if not all(checks.values()):
        sys.exit(1)


if __name__ == "__main__":
    main()
