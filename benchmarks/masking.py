"""Masking against the seed's package and transformers' collator: words, defects, speed.

    python benchmarks/masking.py                      # all of it; writes benchmarks/results/masking.json
    python benchmarks/masking.py words defects        # some of it
    python benchmarks/masking.py speed --repeats 3 --json /tmp/speed.json

words:   whole-word boundaries from ids against the tokenizers' own `word_ids()`. Bar: 99.9% equal for each family.
defects: what the seed's class and transformers' whole-word masking get wrong, shown on them, and what ours gives.
speed:   whole-word collation and token masking, side by side; and what masking costs a step of 8,192 tokens.

The corpus (a folder with `train.jsonl.gz`, `valid.jsonl.gz` and `tokenizer-16k/`) is given by --data; without one, the
tests' multilingual text serves. The seed's package has our import name, so it lives in a folder of its own.
"""

import argparse
import gzip
import importlib.util
import json
import math
import random
import subprocess
import sys
import time
import warnings
from collections import Counter
from collections.abc import Callable, Iterator
from itertools import islice, pairwise
from pathlib import Path
from statistics import median
from types import ModuleType
from typing import Any

import torch
from tokenizers import Regex, Tokenizer, models, normalizers, trainers
from tokenizers import pre_tokenizers as cuts

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE.parent))

from machine import machine, versions, write_result  # noqa: E402

from mlm_pytorch import MLM, masking  # noqa: E402
from mlm_pytorch.huggingface import MLMCollator  # noqa: E402

SEED = "mlm-pytorch==0.1.0"
SPECIALS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
GPT4 = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+"
)
RUNS = 3


# --- what is measured on ---------------------------------------------------------------------------------------------


def multilingual() -> list[str]:
    text = (HERE.parent / "tests" / "masking" / "multilingual.txt").read_text(encoding="utf-8")
    return [line for line in text.splitlines() if line]


def scrambled(lines: list[str], count: int) -> list[str]:
    """Snippets of all scripts in random order, with and without blanks: more kinds of neighbours than any text has."""
    dice = random.Random(0)
    snippets = [snippet for line in lines for snippet in line.split(" ")]
    gaps = [" "] * 6 + ["", "", "\n", "  ", ", ", "'s "]
    return ["".join(dice.choice(snippets) + dice.choice(gaps) for _ in range(12)) for _ in range(count)]


def texts(data: Path, split: str, count: int | None) -> list[str]:
    path = data / f"{split}.jsonl.gz"
    if not path.exists():
        return multilingual() * 20
    with gzip.open(path, "rt", encoding="utf-8") as lines:
        return [json.loads(line)["text"] for line in islice(lines, count)]


def families(data: Path, vocab_size: int) -> Iterator[tuple[str, Tokenizer]]:
    """Small tokenizers of each family, trained on part of the corpus and the multilingual lines."""
    corpus = texts(data, "train", 3000) + multilingual()
    ready = data / "tokenizer-16k" / "tokenizer.json"
    if ready.exists():
        yield "byte-level BPE, the corpus's own", Tokenizer.from_file(str(ready))
    common: dict[str, Any] = {"vocab_size": vocab_size, "special_tokens": SPECIALS, "show_progress": False}

    def trained(model: Any, cut: Any, trainer: Any, normalizer: Any = None) -> Tokenizer:
        tokenizer = Tokenizer(model)
        tokenizer.pre_tokenizer = cut
        if normalizer is not None:
            tokenizer.normalizer = normalizer
        tokenizer.train_from_iterator(corpus, trainer)
        return tokenizer

    wordpiece = models.WordPiece(unk_token="[UNK]"), cuts.BertPreTokenizer(), trainers.WordPieceTrainer(**common)
    yield "WordPiece", trained(*wordpiece, normalizers.BertNormalizer())
    digits = cuts.Digits(individual_digits=True)
    gpt4 = cuts.Split(Regex(GPT4), "isolated")
    for name, cut in {
        "byte-level BPE": cuts.ByteLevel(add_prefix_space=False),
        "byte-level BPE, prefix space": cuts.ByteLevel(add_prefix_space=True),
        "byte-level BPE, single digits": cuts.Sequence([digits, cuts.ByteLevel(add_prefix_space=False)]),
        "byte-level BPE, GPT-4's cuts": cuts.Sequence([gpt4, cuts.ByteLevel(add_prefix_space=False, use_regex=False)]),
    }.items():
        yield (
            name,
            trained(models.BPE(), cut, trainers.BpeTrainer(**common, initial_alphabet=cuts.ByteLevel.alphabet())),
        )
    for name, cut in {
        "Unigram": cuts.Metaspace(),
        "Unigram, no prefix space": cuts.Metaspace(prepend_scheme="never"),
        "Unigram, blanks first": cuts.Sequence([cuts.WhitespaceSplit(), cuts.Metaspace()]),
        "Unigram, punctuation and digits apart": cuts.Sequence([cuts.Metaspace(), cuts.Punctuation(), digits]),
    }.items():
        yield name, trained(models.Unigram(), cut, trainers.UnigramTrainer(**common, unk_token="[UNK]"))
    yield "BPE, Metaspace", trained(models.BPE(unk_token="[UNK]"), cuts.Metaspace(), trainers.BpeTrainer(**common))
    suffix = {"end_of_word_suffix": "</w>"}
    bpe = models.BPE(unk_token="[UNK]", **suffix)
    yield "BPE, word suffix", trained(bpe, cuts.BertPreTokenizer(), trainers.BpeTrainer(**common, **suffix))


# --- words -----------------------------------------------------------------------------------------------------------


def words(args: argparse.Namespace) -> dict[str, Any]:
    samples = {
        "corpus": texts(args.data, "valid", args.documents),
        "forty scripts": multilingual(),
        "scripts run together": scrambled(multilingual(), 2000),
    }
    rows = []
    print(f"\n{'tokenizer':40}" + "".join(f"{name:>24}" for name in samples) + "   remaining kinds")
    for family, tokenizer in families(args.data, args.vocab_size):
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


# --- defects ---------------------------------------------------------------------------------------------------------


def seed_package(folder: Path) -> ModuleType:
    """The seed's published module under a name of its own."""
    file = folder / "mlm_pytorch" / "mlm_pytorch.py"
    if not file.exists():
        command = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--target", str(folder), SEED]
        subprocess.run(command, check=True)
    spec = importlib.util.spec_from_file_location("seed_mlm", file)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


class Seen(Exception):
    """Carries what the transformer was shown, so that the seed's forward ends where its masking does."""


def seed_shows(seed: ModuleType, ids: torch.Tensor, **settings: Any) -> torch.Tensor:
    def transformer(shown: torch.Tensor) -> torch.Tensor:
        raise Seen(shown)

    try:
        seed.MLM(transformer, **settings)(ids)
    except Seen as seen:
        return seen.args[0]
    raise AssertionError("the seed's class did not call its transformer")


def ours_shows(
    ids: torch.Tensor, specials: list[int], *, mask_prob: float, random_token_prob: float = 0.0, num_tokens: int = 1000
) -> masking.Corrupted:
    maskable = ~torch.isin(ids, torch.tensor(specials))
    scores = masking.draw_scores(ids)
    selected = masking.select_tokens(scores, ids, maskable, masking.millionths(mask_prob))
    drawable = torch.tensor([i for i in range(num_tokens) if i not in specials])
    return masking.corrupt(
        ids, selected, scores, mask_token_id=4, replace_prob=0.9, random_token_prob=random_token_prob,
        drawable_ids=drawable,
    )  # fmt: skip


def defects(args: argparse.Namespace) -> dict[str, Any]:
    rows = [*seed_defects(seed_package(args.seed)), *transformers_defects(args)]
    print(f"\n{'what should hold':66}{'theirs':>22}{'ours':>22}")
    for row in rows:
        print(f"{row['law']:66}{row['theirs']!s:>22}{row['ours']!s:>22}")
    return {"rows": rows, "met": all(row["ours_right"] and row["theirs_wrong"] for row in rows)}


def row_of(whose: str, law: str, theirs: Any, ours: Any, right: Callable[[Any], bool]) -> dict[str, Any]:
    return {
        "whose": whose, "law": law, "theirs": theirs, "ours": ours,
        "theirs_wrong": not right(theirs), "ours_right": right(ours),
    }  # fmt: skip


def seed_defects(seed: ModuleType) -> Iterator[dict[str, Any]]:
    torch.manual_seed(0)
    specials = [0, 2, 3, 4]
    settings = {"mask_token_id": 4, "pad_token_id": 0, "mask_ignore_token_ids": [2, 3], "num_tokens": 1000}
    ids = torch.randint(5, 1000, (64, 256))
    ids[:, 0], ids[:, 200], ids[:, 201:] = 2, 3, 0

    theirs = seed_shows(seed, ids, mask_prob=0.15, random_token_prob=0.1, **settings)
    ours = ours_shows(ids, specials, mask_prob=0.15, random_token_prob=0.1)
    special = torch.isin(ids, torch.tensor(specials))
    law = "[PAD], [CLS], [SEP] overwritten with random_token_prob=0.1"
    counts = [int((shown != ids)[special].sum()) for shown in (theirs, ours.input_ids)]
    yield row_of("seed", law, *counts, right=lambda n: n == 0)
    law = "share of all positions that a random token replaced (0.1 * 0.15)"
    content = ~special
    shares = [
        round(((shown != ids) & (shown != 4) & content).sum().item() / content.sum().item(), 4)
        for shown in (theirs, ours.input_ids)
    ]
    yield row_of("seed", law, *shares, right=lambda share: abs(share - 0.015) < 0.005)

    padding = torch.zeros(2, 8, dtype=torch.int64)
    law = "loss of a batch of padding is a number"
    model = torch.nn.Sequential(torch.nn.Embedding(1000, 8), torch.nn.Linear(8, 1000))
    losses = [mlm(model, mask_prob=0.15, **settings)(padding).item() for mlm in (seed.MLM, MLM)]
    yield row_of("seed", law, *losses, right=math.isfinite)

    left = torch.zeros(500, 100, dtype=torch.int64)
    left[:, 90:] = 7
    law = "masks in a row of 90 [PAD] and 10 tokens at 0.15 (ceil: 2)"
    theirs = seed_shows(seed, left, mask_prob=0.15, replace_prob=1.0, **settings)
    found = sorted(set((theirs == 4).sum(-1).tolist())), sorted(set(selected_counts(left, specials)))
    yield row_of("seed", law, *found, right=lambda counts: counts == [2])

    first = torch.full((500, 101), 7)
    first[:, 0] = 2
    law = "masks in a row of [CLS] and 100 tokens at 0.15 (15)"
    theirs = seed_shows(seed, first, mask_prob=0.15, replace_prob=1.0, **settings)
    found = sorted(set((theirs == 4).sum(-1).tolist())), sorted(set(selected_counts(first, specials)))
    yield row_of("seed", law, *found, right=lambda counts: counts == [15])


def selected_counts(ids: torch.Tensor, specials: list[int]) -> list[int]:
    return ours_shows(ids, specials, mask_prob=0.15).selected.sum(-1).tolist()


def transformers_defects(args: argparse.Namespace) -> Iterator[dict[str, Any]]:
    """Ten words with punctuation: how many words each side sees."""
    sentence = "The cook's old knife, sharpened yesterday, cut seven ripe tomatoes."
    for family, tokenizer in families(args.data, args.vocab_size):
        if family not in ("WordPiece", "byte-level BPE", "Unigram"):
            continue
        wrapped, _ = fast_tokenizer(tokenizer)
        collator = hf_collator(wrapped, whole_word_mask=True)
        encoding = wrapped(sentence, return_offsets_mapping=True, return_special_tokens_mask=True, return_tensors="np")
        word_ids, _ = collator._calc_word_ids_and_prob_mask(encoding["offset_mapping"], encoding["special_tokens_mask"])
        truth = len({word for word in tokenizer.encode(sentence).word_ids if word is not None})
        starts = masking.derive_words(tokenizer).starts_word(torch.tensor(encoding["input_ids"]))
        ours = int((starts & (torch.tensor(encoding["special_tokens_mask"]) == 0)).sum())
        law = f"words of a sentence, {family} (its own word_ids(): {truth})"
        yield row_of("transformers", law, int(word_ids.max()), ours, right=lambda n, truth=truth: n == truth)
    yield random_with_whole_words(tokenizer, args.data)


def random_with_whole_words(tokenizer: Tokenizer, data: Path) -> dict[str, Any]:
    """The share of selected tokens that show a random one, where 80/10/10 was asked for."""
    wrapped, _ = fast_tokenizer(tokenizer)
    rows = features(tokenizer, data, 16, 512)
    ids = torch.tensor([row["input_ids"] for row in rows])
    asked = {"mlm_probability": 0.15, "mask_replace_prob": 0.8, "random_replace_prob": 0.1}
    shares = []
    for collator, names in (
        (hf_collator(wrapped, whole_word_mask=True, **asked), ("input_ids", "special_tokens_mask", "offset_mapping")),
        (MLMCollator(wrapped, selection="words", **asked), ("input_ids",)),
    ):
        batch = collator([{name: row[name] for name in names} for row in rows])
        selected = batch["labels"] != -100
        random_ones = selected & (batch["input_ids"] != ids) & (batch["input_ids"] != wrapped.mask_token_id)
        shares.append(round(random_ones.sum().item() / selected.sum().item(), 3))
    law = "share of random tokens with whole words, asked for 0.1"
    return row_of("transformers", law, *shares, right=lambda share: abs(share - 0.1) < 0.03)


# --- speed -----------------------------------------------------------------------------------------------------------


def fast_tokenizer(tokenizer: Tokenizer) -> tuple[Any, int]:
    from transformers import PreTrainedTokenizerFast

    named = dict(zip(("pad_token", "unk_token", "cls_token", "sep_token", "mask_token"), SPECIALS, strict=True))
    wrapped = PreTrainedTokenizerFast(tokenizer_object=tokenizer, **named)
    return wrapped, len(wrapped)


def hf_collator(tokenizer: Any, **settings: Any) -> Any:
    from transformers import DataCollatorForLanguageModeling

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that it turns random replacement off is a row of its own above
        return DataCollatorForLanguageModeling(tokenizer, **({"mlm_probability": 0.15} | settings))


def features(tokenizer: Tokenizer, data: Path, rows: int, length: int) -> list[dict[str, Any]]:
    """Rows of one length, with what transformers' whole-word masking needs beside the ids."""
    ids: list[int] = []
    offsets: list[tuple[int, int]] = []
    base = 0
    for encoding in tokenizer.encode_batch(texts(data, "valid", 4000), add_special_tokens=False):
        ids += encoding.ids
        offsets += [(base + start, base + end) for start, end in encoding.offsets]
        base = offsets[-1][1] + 1 if offsets else 0
        if len(ids) >= rows * length:
            break
    repeats = -(-rows * length // len(ids))
    ids, offsets = (ids * repeats)[: rows * length], (offsets * repeats)[: rows * length]
    return [
        {
            "input_ids": ids[at : at + length],
            "offset_mapping": offsets[at : at + length],
            "special_tokens_mask": [0] * length,
        }
        for at in range(0, rows * length, length)
    ]


def measured(sides: dict[str, Callable[[], Any]], repeats: int) -> dict[str, float]:
    """Milliseconds of each side: the sides take turns, the median of each run, the median of three runs."""
    for call in sides.values():
        call()
    runs: dict[str, list[float]] = {name: [] for name in sides}
    for _ in range(RUNS):
        times: dict[str, list[float]] = {name: [] for name in sides}
        for _ in range(repeats):
            for name, call in sides.items():
                start = time.perf_counter()
                call()
                times[name].append(time.perf_counter() - start)
        for name in sides:
            runs[name].append(median(times[name]) * 1e3)
    return {name: median(values) for name, values in runs.items()}


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
    print(f"\n{torch.get_num_threads()} threads, medians of {RUNS} runs of {args.repeats}")
    rows = [
        *whole_words(wrapped, features(tokenizer, args.data, 32, 512), 20, args.repeats),
        *whole_words(wrapped, features(tokenizer, args.data, 16, 4096), 50, max(1, args.repeats // 10)),
        token_masking(wrapped, num_tokens, seed, features(tokenizer, args.data, 32, 512), args.repeats),
        packs(tokenizer, args),
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


def packs(
    tokenizer: Tokenizer, args: argparse.Namespace, num_tokens: int = 8192, step_ms: float = 500.0
) -> dict[str, Any]:
    """Hash, select and corrupt a pack of documents: milliseconds, and the share of a step of half a second."""
    ids: list[int] = []
    bounds = [0]
    for encoding in tokenizer.encode_batch(texts(args.data, "valid", 4000), add_special_tokens=False):
        ids += encoding.ids[: num_tokens - len(ids)]
        bounds.append(len(ids))
        if len(ids) == num_tokens:
            break
    pack, cu_seqlens = torch.tensor(ids), torch.tensor(bounds)
    visits, pieces = torch.zeros(len(bounds) - 1, dtype=torch.int64), torch.arange(len(bounds) - 1)
    maskable, table = pack >= len(SPECIALS), masking.derive_words(tokenizer)
    rate, drawable = 150_000, torch.arange(len(SPECIALS), tokenizer.get_vocab_size())

    def masked(select: Callable[..., torch.Tensor], **more: Any) -> Callable[[], None]:
        def call() -> None:
            scores = masking.flat_scores(0, visits, pieces, cu_seqlens, num_tokens=len(ids))
            selected = select(scores, pack, maskable, rate, cu_seqlens=cu_seqlens, **more)
            masking.corrupt(pack, selected, scores, mask_token_id=4, random_token_prob=0.1, drawable_ids=drawable)

        return call

    times = measured(
        {
            "tokens": masked(masking.select_tokens),
            "balanced": masked(masking.select_balanced, visits=visits),
            "words": masked(masking.select_words, words=table),
            "spans": masked(masking.select_spans),
            "n-grams": masked(masking.select_ngrams, words=table),
        },
        args.repeats,
    )
    for name, value in times.items():
        share, rate_ = value / step_ms, len(ids) / value * 1e3
        print(f"{f'a pack of {len(ids)}, {name}':52}{value:.2f} ms  {rate_ / 1e6:.1f}M tokens/s  {share:.2%} of a step")
    met = all(value / step_ms <= 0.02 for value in times.values())
    return {"what": f"a pack of {len(ids)} tokens in {len(pieces)} documents", "milliseconds": times, "met": met,
            "bars": {"share of a 500 ms step": 0.02}}  # fmt: skip


PARTS = {"words": words, "defects": defects, "speed": speed}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("parts", nargs="*", help=f"any of {', '.join(PARTS)}; all by default")
    parser.add_argument("--data", type=Path, default=HERE.parents[1] / "shared" / "data" / "mix10m")
    parser.add_argument("--seed", type=Path, default=HERE / ".packages" / "seed", help="where the seed's package lives")
    parser.add_argument("--documents", type=int, default=None, help="of the held-out split, for words; all by default")
    parser.add_argument("--vocab-size", type=int, default=8000)
    parser.add_argument("--repeats", type=int, default=50)
    parser.add_argument("--threads", type=int, default=None)
    parser.add_argument("--json", type=Path, default=None, help="write there instead of to results/")
    args = parser.parse_args()
    if unknown := set(args.parts) - set(PARTS):
        parser.error(f"unknown parts {sorted(unknown)}; choose from {', '.join(PARTS)}")
    if args.threads:
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
    missed = [part for part in args.parts or PARTS if not result[part]["met"]]
    if missed:
        sys.exit(f"bars missed in {', '.join(missed)}")


if __name__ == "__main__":
    main()
