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
from functools import cache
from itertools import islice, pairwise
from pathlib import Path
from statistics import median
from types import ModuleType
from typing import Any

import numpy as np
import torch
from tokenizers import Regex, Tokenizer, models, normalizers, trainers
from tokenizers import pre_tokenizers as cuts

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE.parent))

from machine import machine, versions, write_result  # noqa: E402

from mlm_pytorch import MLM, masking  # noqa: E402
from mlm_pytorch.data.packing import Pack  # noqa: E402
from mlm_pytorch.encoder import Encoder, preset  # noqa: E402
from mlm_pytorch.huggingface import MLMCollator  # noqa: E402
from mlm_pytorch.objective import find_head  # noqa: E402
from mlm_pytorch.objective.packs import MaskedPack, PackMasker, pack_loss  # noqa: E402
from mlm_pytorch.tokens import SpecialTokens  # noqa: E402
from mlm_pytorch.training.optimizer import build_optimizers  # noqa: E402

SEED = "mlm-pytorch==0.1.0"
SPECIALS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
GPT4 = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+"
)
RUNS = 5
TABLE_BEGINS, TABLE_ENDS = "<!-- written by benchmarks/masking.py defects -->", "<!-- end of what it writes -->"


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


@cache
def all_families(data: Path, vocab_size: int) -> list[tuple[str, Tokenizer]]:
    """`families`, trained once for all parts."""
    return list(families(data, vocab_size))


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


def write_table(rows: list[dict[str, Any]]) -> None:
    """Put the table of defects where the documentation has its place for it."""
    lines = ["| what should hold | whose | theirs | ours |", "| --- | --- | --- | --- |"]
    lines += [f"| {row['law']} | {row['whose']} | {row['theirs']} | {row['ours']} |" for row in rows]
    page = HERE.parent / "docs" / "how" / "masking.md"
    before, rest = page.read_text().split(TABLE_BEGINS)
    page.write_text(before + TABLE_BEGINS + "\n\n" + "\n".join(lines) + "\n\n" + TABLE_ENDS + rest.split(TABLE_ENDS)[1])


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
    for family, tokenizer in all_families(args.data, args.vocab_size):
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
    parser.add_argument("--data", type=Path, default=HERE.parents[1] / "shared" / "data" / "mix10m")
    parser.add_argument("--seed", type=Path, default=HERE / ".packages" / "seed", help="where the seed's package lives")
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
