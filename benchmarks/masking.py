"""Masking against the seed's package and transformers' collator: words, defects, speed.

    python benchmarks/masking.py                      # all of it; writes benchmarks/results/masking.json
    python benchmarks/masking.py words defects        # some of it
    python benchmarks/masking.py speed --repeats 3 --json speed.json

words:   whole-word boundaries from ids against the tokenizers' own `word_ids()`. Bar: 99.9% equal for each family.
defects: what the seed's class and transformers' whole-word masking get wrong, shown on them, and what ours gives.
speed:   whole-word collation and token masking, side by side. Bars: 20 and 50 times transformers'; as fast as both.
step:    what masking a pack takes of a training step, both measured here. Bar: 2%.

The corpus (a folder with `train.jsonl.gz`, `valid.jsonl.gz` and `tokenizer-16k/`) is given by --data; without one, the
tests' multilingual text serves. The seed's package has our import name, so it lives in a folder of its own.
"""

import argparse
import json
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from itertools import pairwise
from pathlib import Path
from statistics import median
from types import ModuleType
from typing import Any

import numpy as np
import torch
from masking_subjects import (
    ROOT,
    SPECIALS,
    all_families,
    families,
    fast_tokenizer,
    features,
    hf_collator,
    multilingual,
    scrambled,
    seed_package,
    seed_shows,
    texts,
)
from tokenizers import Tokenizer

sys.path.insert(0, str(ROOT))

from machine import machine, versions, write_result
from masking_defects import defects, write_table

from mlm_pytorch import masking
from mlm_pytorch.data.packing import Pack
from mlm_pytorch.encoder import Encoder, preset
from mlm_pytorch.huggingface import MLMCollator
from mlm_pytorch.objective import find_head
from mlm_pytorch.objective.packs import MaskedPack, PackMasker, pack_loss
from mlm_pytorch.tokens import SpecialTokens
from mlm_pytorch.training.optimizer import build_optimizers

RUNS = 5


# --- words -----------------------------------------------------------------------------------------------------------


def words(args: argparse.Namespace) -> dict[str, Any]:
    samples = {
        "corpus": texts(args.data, "valid", args.documents),
        "forty scripts": multilingual(),
        "scripts run together": scrambled(multilingual(), 2000),
    }
    rows = []
    print(f"\n{'tokenizer':40}" + "".join(f"{name:>24}" for name in samples) + "   remaining kinds")
    for family, tokenizer in all_families(args.data, args.vocab_size):
        start = time.perf_counter()
        table = masking.derive_words(tokenizer)
        row: dict[str, Any] = {"tokenizer": family, "derived_in_seconds": time.perf_counter() - start}
        kinds: Counter[tuple[str, ...]] = Counter()
        for name, sample in samples.items():
            wrong, total = boundaries(tokenizer, table, sample, kinds)
            row[name] = {"boundaries": total, "wrong": wrong, "equal": 1 - wrong / total}
        row["remaining"] = [[*kind, count] for kind, count in kinds.most_common(5)]
        rows.append(row)
        cells = "".join(f"{row[name]['equal']:>15.4%} {row[name]['boundaries']:>8}" for name in samples)
        print(f"{family:40}{cells}   {' '.join('|'.join(kind) for kind, _ in kinds.most_common(2))}")
    met = all(row[name]["equal"] >= 0.999 for row in rows for name in ("corpus", "forty scripts"))
    return {"rows": rows, "bar": 0.999, "met": met}


def boundaries(tokenizer: Tokenizer, table: Any, sample: list[str], kinds: Counter) -> tuple[int, int]:
    """(boundaries between neighbouring tokens that differ from word_ids(), all of them)."""
    wrong = total = 0
    for encoding in tokenizer.encode_batch(sample, add_special_tokens=False):
        if len(encoding.ids) < 2:
            continue
        found = table.starts_word(torch.tensor(encoding.ids))[1:].tolist()
        truth = [left != right for left, right in pairwise(encoding.word_ids)]
        total += len(truth)
        for i, (ours, own) in enumerate(zip(found, truth, strict=True)):
            if ours != own:
                wrong += 1
                kinds[tuple(encoding.tokens[i : i + 2])] += 1
    return wrong, total


# --- speed -----------------------------------------------------------------------------------------------------------


def measured(sides: dict[str, Callable[[], Any]], repeats: int) -> dict[str, float]:
    """Milliseconds of processor time of each side, which other processes on the machine bear on less than on wall time.

    The sides take turns of `repeats` calls; the median of each turn, then of the turns.

    Turns, and not single calls one after the other: a loader's worker makes the same call again and again, and one side
    should not meet the caches as the other, which moves a hundred times more memory, has left them.
    """
    for call in sides.values():
        call()
    turns: dict[str, list[float]] = {name: [] for name in sides}
    for _ in range(RUNS):
        for name, call in sides.items():
            times = []
            for _ in range(repeats):
                start = time.process_time()
                call()
                times.append(time.process_time() - start)
            turns[name].append(median(times) * 1e3)
    return {name: median(values) for name, values in turns.items()}


def compared(what: str, sides: dict[str, Callable[[], Any]], bars: dict[str, float], repeats: int) -> dict[str, Any]:
    """A row per comparison: milliseconds, and ours against each of the others."""
    times = measured(sides, repeats)
    ratios = {name: times[name] / times["ours"] for name in sides if name != "ours"}
    figures = "  ".join(f"{name} {value:.2f} ms" for name, value in times.items())
    against = "  ".join(
        f"{ratio:.1f}x {name}" + (f" (bar {bars[name]}x)" if name in bars else "") for name, ratio in ratios.items()
    )
    print(f"{what:52}{figures}\n{'':52}{against}")
    met = all(ratios[name] >= bar for name, bar in bars.items())
    return {"what": what, "milliseconds": times, "ratios": ratios, "bars": bars, "met": met}


def speed(args: argparse.Namespace) -> dict[str, Any]:
    torch.manual_seed(0)
    tokenizer = next(families(args.data, args.vocab_size))[1]
    wrapped, num_tokens = fast_tokenizer(tokenizer)
    seed = seed_package(args.seed)
    print(f"\n{torch.get_num_threads()} threads, medians of {RUNS} turns of {args.repeats}")
    rows = [
        *whole_words(wrapped, features(tokenizer, args.data, 32, 512), 20, args.repeats),
        *whole_words(wrapped, features(tokenizer, args.data, 16, 4096), 50, max(1, args.repeats // 10)),
        token_masking(wrapped, num_tokens, seed, features(tokenizer, args.data, 32, 512), args.repeats),
    ]
    return {"rows": rows, "met": all(row["met"] for row in rows)}


def whole_words(wrapped: Any, rows: list[dict[str, Any]], bar: float, repeats: int) -> Iterator[dict[str, Any]]:
    shape = f"{len(rows)}x{len(rows[0]['input_ids'])}"
    theirs = hf_collator(wrapped, whole_word_mask=True)
    ours = MLMCollator(wrapped, mlm_probability=0.15, selection="words")
    lean = [{"input_ids": row["input_ids"]} for row in rows]  # each side gets the fields that it needs
    fresh = Fresh(rows), Fresh(lean)
    sides = {"ours": lambda: ours(fresh[1]()), "transformers": lambda: theirs(fresh[0]())}
    yield compared(f"whole-word collation, lists in, {shape}", sides, {"transformers": bar}, repeats)

    ids, words_of = torch.tensor([row["input_ids"] for row in rows]), masking.derive_words(wrapped)
    special = torch.zeros_like(ids)
    offsets = torch.tensor([row["offset_mapping"] for row in rows]).numpy()
    drawable = torch.arange(len(SPECIALS), len(wrapped))

    def our_masking() -> None:
        scores = masking.draw_scores(ids)
        selected = masking.select_words(scores, ids, ids >= len(SPECIALS), 150_000, words=words_of)
        masking.corrupt(ids, selected, scores, mask_token_id=4, random_token_prob=0.1, drawable_ids=drawable)

    def their_masking() -> None:
        theirs.torch_mask_tokens(ids.clone(), special_tokens_mask=special, offset_mapping=offsets)

    sides = {"ours": our_masking, "transformers": their_masking}
    yield compared(f"whole-word masking alone, tensors in, {shape}", sides, {}, repeats)


class Fresh:
    """The same features each time, as new dicts: collators may take fields out of those that they get."""

    def __init__(self, rows: list[dict[str, Any]]) -> None:
        self.rows = rows

    def __call__(self) -> list[dict[str, Any]]:
        """The features, fresh."""
        return [dict(row) for row in self.rows]


def token_masking(
    wrapped: Any, num_tokens: int, seed: ModuleType, rows: list[dict[str, Any]], repeats: int
) -> dict[str, Any]:
    """80/10/10 on both; the seed's up to where its transformer is called."""
    ids = torch.tensor([row["input_ids"] for row in rows])
    special = torch.zeros_like(ids)
    collator = hf_collator(wrapped)
    specials = set(range(len(SPECIALS)))
    maskable = special == 0  # transformers gets this too
    drawable = torch.arange(len(SPECIALS), num_tokens)
    settings = {"mask_token_id": 4, "pad_token_id": 0, "mask_ignore_token_ids": [*specials], "num_tokens": num_tokens}

    def ours() -> None:
        scores = masking.draw_scores(ids)
        selected = masking.select_tokens(scores, ids, maskable, 150_000)
        masking.corrupt(ids, selected, scores, mask_token_id=4, random_token_prob=0.1, drawable_ids=drawable)

    sides = {
        "ours": ours,
        "transformers": lambda: collator.torch_mask_tokens(ids.clone(), special_tokens_mask=special),
        "seed": lambda: seed_shows(seed, ids, mask_prob=0.15, random_token_prob=0.1, **settings),
    }
    return compared("token masking 80/10/10, 32x512", sides, {"transformers": 1, "seed": 1}, repeats)


# --- step ------------------------------------------------------------------------------------------------------------


def step(args: argparse.Namespace) -> dict[str, Any]:
    """What masking a pack of 8,192 tokens takes of a training step of the `mini` preset; both in this run."""
    tokenizer = next(families(args.data, args.vocab_size))[1]
    special = masking_specials(tokenizer)
    pack = text_pack(tokenizer, args.data, special, num_tokens=8192)
    lengths = torch.from_numpy(pack.lengths)
    visits, pieces = torch.from_numpy(pack.visits), torch.from_numpy(pack.pieces)
    cu_seqlens, ids = torch.from_numpy(pack.cu_seqlens), torch.from_numpy(pack.input_ids)
    maskable, table = ~special.is_special()[ids], masking.derive_words(tokenizer)
    masker = PackMasker(special, seed=0, replace_prob=0.9, random_token_prob=0.1)
    drawable = special.drawable_ids()

    def masked(select: Callable[..., torch.Tensor], **more: Any) -> Callable[[], None]:
        def call() -> None:
            scores = masking.flat_scores(0, visits, pieces, cu_seqlens, num_tokens=len(ids))
            selected = select(scores, ids, maskable, 150_000, cu_seqlens=cu_seqlens, **more)
            masking.corrupt(ids, selected, scores, mask_token_id=4, random_token_prob=0.1, drawable_ids=drawable)

        return call

    sides = {
        "PackMasker, as in training": lambda: masker(pack, 150_000),
        "tokens": masked(masking.select_tokens),
        "balanced": masked(masking.select_balanced, visits=visits),
        "words": masked(masking.select_words, words=table),
        "spans": masked(masking.select_spans),
        "n-grams": masked(masking.select_ngrams, words=table),
    }
    train = training_step(special.num_tokens)
    steps: list[float] = []
    turns: dict[str, list[float]] = {name: [] for name in sides}
    train(masker(pack, 150_000))
    for _ in range(5):
        torch.set_num_threads(args.step_threads)
        start = time.perf_counter()
        train(masker(pack, 150_000))
        steps.append(time.perf_counter() - start)
        torch.set_num_threads(args.threads)
        for name, value in measured(sides, 3).items():
            turns[name].append(value)
    step_ms, times = median(steps) * 1e3, {name: median(values) for name, values in turns.items()}
    print(f"\na training step of mini, {len(ids)} tokens in {len(lengths)} pieces: {step_ms:.0f} ms")
    shares = {name: value / step_ms for name, value in times.items()}
    for name, value in times.items():
        print(f"{name:52}{value:.2f} ms  {len(ids) / value / 1e3:.1f}M tokens/s  {shares[name]:.2%} of a step")
    return {
        "what": f"a pack of {len(ids)} tokens in {len(lengths)} pieces; a step of mini in bf16, optimizer included",
        "step_milliseconds": step_ms,
        "step_threads": args.step_threads,
        "masking_milliseconds": times,
        "shares": shares,
        "bar": 0.02,
        "met": all(share <= 0.02 for share in shares.values()),
    }


def masking_specials(tokenizer: Tokenizer) -> SpecialTokens:
    ids = {name: tokenizer.token_to_id(name) for name in SPECIALS}
    return SpecialTokens(
        tokenizer.get_vocab_size(),
        mask_token_id=ids["[MASK]"],
        pad_token_id=ids["[PAD]"],
        ids=tuple(sorted(ids.values())),
        prefix=(ids["[CLS]"],),
        suffix=(ids["[SEP]"],),
    )


def text_pack(tokenizer: Tokenizer, data: Path, special: SpecialTokens, num_tokens: int) -> Pack:
    """Documents, cut at 254 tokens and framed, end to end."""
    ids: list[int] = []
    lengths: list[int] = []
    for encoding in tokenizer.encode_batch(texts(data, "valid", 1000), add_special_tokens=False):
        piece = [*special.prefix, *encoding.ids[:254], *special.suffix][: num_tokens - len(ids)]
        if not piece:
            break
        ids += piece
        lengths.append(len(piece))
    visits = np.zeros(len(lengths), np.int64)
    return Pack(np.array(ids), np.array(lengths), np.arange(len(lengths)), visits)


def training_step(num_tokens: int) -> Callable[[MaskedPack], None]:
    torch.manual_seed(0)
    encoder = Encoder(preset("mini", vocab_size=num_tokens)).train()
    head, optimizers = find_head(encoder), build_optimizers(encoder, "muon", lr=1e-3, weight_decay=0.1)

    def train(pack: MaskedPack) -> None:
        with torch.autocast("cpu", torch.bfloat16):
            loss_sum, _ = pack_loss(encoder, head, pack)
        (loss_sum / pack.num_targets).backward()
        for optimizer in optimizers:
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)

    return train


PARTS = {"words": words, "defects": defects, "speed": speed, "step": step}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("parts", nargs="*", help=f"any of {', '.join(PARTS)}; all by default")
    parser.add_argument("--data", type=Path, default=ROOT.parent / "shared" / "data" / "mix10m")
    parser.add_argument(
        "--seed", type=Path, default=ROOT / "benchmarks" / ".packages" / "seed", help="where the seed's package lives"
    )
    parser.add_argument("--documents", type=int, default=None, help="of the held-out split, for words; all by default")
    parser.add_argument("--vocab-size", type=int, default=8000)
    parser.add_argument("--repeats", type=int, default=50)
    parser.add_argument("--threads", type=int, default=1, help="of masking; 1 by default, as in a loader's worker")
    parser.add_argument("--step-threads", type=int, default=torch.get_num_threads(), help="of the training step")
    parser.add_argument("--json", type=Path, default=None, help="write there instead of to results/")
    args = parser.parse_args()
    if unknown := set(args.parts) - set(PARTS):
        parser.error(f"unknown parts {sorted(unknown)}; choose from {', '.join(PARTS)}")
    torch.set_num_threads(args.threads)
    result: dict[str, Any] = {
        "versions": versions("torch", "transformers", "tokenizers"),
        "threads": torch.get_num_threads(),
    }
    for part in args.parts or PARTS:
        result[part] = PARTS[part](args)
    if args.json is not None:
        args.json.write_text(json.dumps(result | {"machine": machine()}, indent=2, ensure_ascii=False) + "\n")
    else:
        write_result("masking", result)
        if "defects" in result:
            write_table(result["defects"]["rows"])
    missed = [part for part in args.parts or PARTS if not result[part]["met"]]
    if missed:
        sys.exit(f"bars missed in {', '.join(missed)}")


if __name__ == "__main__":
    main()
