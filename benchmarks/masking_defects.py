"""What the seed's class and transformers' whole-word masking get wrong, shown on them, and what ours gives.

A part of `masking.py`, which runs it and writes its table into the documentation.
"""

import argparse
import math
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from masking_subjects import ROOT, all_families, fast_tokenizer, features, hf_collator, seed_package, seed_shows
from tokenizers import Tokenizer

from mlm_pytorch import MLM, masking
from mlm_pytorch.huggingface import MLMCollator

TABLE_BEGINS, TABLE_ENDS = "<!-- written by benchmarks/masking.py defects -->", "<!-- end of what it writes -->"


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
    page = ROOT / "docs" / "how" / "masking.md"
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
