"""What the model sees: exact proportions, nothing touched that is not selected, nothing drawn that is special."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from mlm_pytorch.masking import corrupt, draw_scores, hash_scores, millionths, select_tokens
from mlm_pytorch.tokens import IGNORE_INDEX, SpecialTokens

U64 = (1 << 64) - 1
SPECIAL = SpecialTokens(50, mask_token_id=4, pad_token_id=0, ids=(0, 1, 2, 3, 4))
DRAWABLE = SPECIAL.drawable_ids()


def test_a_small_case():
    ids = torch.tensor([[5, 6, 7]])
    chosen = torch.tensor([[False, True, False]])
    out = corrupt(ids, chosen, torch.zeros_like(ids), mask_token_id=4, replace_prob=1.0)
    assert out.input_ids.tolist() == [[5, 4, 7]]
    assert out.labels.tolist() == [[IGNORE_INDEX, 6, IGNORE_INDEX]]
    assert out.selected.equal(chosen) and ids.tolist() == [[5, 6, 7]]


@settings(deadline=None, max_examples=60)
@given(
    rows=st.lists(st.lists(st.integers(0, 49), min_size=9, max_size=9), min_size=1, max_size=5),
    replace=st.sampled_from([0.0, 0.1, 0.5, 0.9, 1.0]),
    random_share=st.sampled_from([0.0, 0.1, 0.5, 1.0]),
    seed=st.integers(0, 2**32),
)
def test_laws(rows, replace, random_share, seed):
    """Against the definition, token by token, in plain Python integers."""
    ids = torch.tensor(rows)
    scores = draw_scores(ids, torch.Generator().manual_seed(seed))
    selected = select_tokens(scores, ids, ~SPECIAL.is_special()[ids], millionths(0.5))
    random_prob = round(replace * random_share, 6)
    out = corrupt(
        ids,
        selected,
        scores,
        mask_token_id=4,
        replace_prob=replace,
        random_token_prob=random_prob,
        drawable_ids=DRAWABLE,
    )
    seen_ids = zip(ids.flatten(), selected.flatten(), out.input_ids.flatten(), out.labels.flatten(), strict=True)
    for original, chosen, seen, label in seen_ids:
        assert label == (original if chosen else IGNORE_INDEX)
        if not chosen or replace == 0:
            assert seen == original
        elif random_prob == 0:
            assert seen in (original, 4) if replace < 1 else seen == 4
        else:
            assert seen == 4 or not SPECIAL.is_special()[seen]


def draws_of(score: int) -> tuple[int, int]:
    """The documented bits of one score in plain integers: its place among a million, and 32 bits for which token."""

    def mix(x: int) -> int:
        x = ((x ^ x >> 30) * 0xBF58476D1CE4E5B9) & U64
        x = ((x ^ x >> 27) * 0x94D049BB133111EB) & U64
        return x ^ x >> 31

    bits = mix(score ^ mix(int.from_bytes(b"corrupt", "big")))
    return (bits >> 32) * 1_000_000 >> 32, bits & 0xFFFFFFFF


def test_equals_plain_integers_on_both_sides_of_every_threshold():
    """So a score means the same token in every version: evaluations under fixed masks can be compared."""
    for score in draw_scores(torch.zeros(60)).tolist():
        place, which = draws_of(score)
        drawn = int(DRAWABLE[which * len(DRAWABLE) >> 32])
        for replace, random_prob, expected in (
            (place, 0, 3),
            (place + 1, 0, 4),
            (place, place, 3),
            (place + 1, place, 4),
            (place + 1, place + 1, drawn),
        ):
            out = corrupt(
                torch.tensor([3]),
                torch.tensor([True]),
                torch.tensor([score]),
                mask_token_id=4,
                replace_prob=replace / 1_000_000,
                random_token_prob=random_prob / 1_000_000,
                drawable_ids=DRAWABLE,
            )
            assert out.input_ids.tolist() == [expected] and out.labels.tolist() == [3]


@pytest.mark.parametrize(("replace", "random_prob"), [(0.9, 0.1), (0.9, 0.0), (1.0, 1.0), (0.5, 0.25), (1.0, 0.0)])
def test_proportions_among_the_selected(replace, random_prob):
    """Within 5 standard deviations of 160,000 draws; the originals are not drawable, so kinds can be told apart."""
    count = 160_000
    ids = torch.full((1, count), 3)
    every = torch.ones_like(ids, dtype=torch.bool)
    scores = hash_scores(11, torch.tensor(0), torch.tensor(0), torch.arange(count)).view(1, -1)
    seen = corrupt(
        ids, every, scores, mask_token_id=4, replace_prob=replace, random_token_prob=random_prob, drawable_ids=DRAWABLE
    ).input_ids
    for share, found in ((replace - random_prob, seen == 4), (random_prob, seen > 4), (1 - replace, seen == 3)):
        assert abs(found.sum().item() - share * count) <= 5 * math.sqrt(count * share * (1 - share) + 1e-9) + 1e-6
    drawn = torch.bincount(seen[seen > 4], minlength=50)[5:]
    if random_prob:
        expected = random_prob * count / 45
        assert (drawn - expected).abs().max() < 5 * math.sqrt(expected)


def test_decisions_do_not_follow_the_order_of_selection():
    """The lowest tenth of the scores is masked as often as the rest."""
    count = 200_000
    ids = torch.full((count,), 3)
    scores = hash_scores(0, torch.tensor(0), torch.arange(count), torch.tensor(0))
    for quantile in range(10):
        low, high = quantile * (1 << 52) // 10, (quantile + 1) * (1 << 52) // 10
        selected = (scores >= low) & (scores < high)
        masked = (corrupt(ids, selected, scores, mask_token_id=4, replace_prob=0.5).input_ids == 4).sum().item()
        assert abs(masked - selected.sum().item() / 2) < 5 * math.sqrt(count / 10) / 2


def test_decisions_do_not_depend_on_what_else_is_selected():
    ids = torch.randint(5, 50, (4, 64), generator=torch.Generator().manual_seed(0))
    scores = draw_scores(ids, torch.Generator().manual_seed(1))
    few, many = (select_tokens(scores, ids, ids > 4, millionths(p)) for p in (0.1, 0.8))
    settings_ = {"mask_token_id": 4, "replace_prob": 0.6, "random_token_prob": 0.2, "drawable_ids": DRAWABLE}
    assert (few & ~many).sum() == 0
    assert (
        corrupt(ids, few, scores, **settings_)
        .input_ids[few]
        .equal(corrupt(ids, many, scores, **settings_).input_ids[few])
    )


def test_the_seeds_rule_would_fail_here():
    """Overwriting a share of *all* positions (the 0.1.0 rule) touches specials and tokens outside the loss."""
    torch.manual_seed(0)
    ids = torch.randint(5, 50, (8, 128))
    ids[:, 0], ids[:, 100:] = 2, 0
    maskable = ~SPECIAL.is_special()[ids]
    scores = draw_scores(ids)
    selected = select_tokens(scores, ids, maskable, millionths(0.15))
    out = corrupt(ids, selected, scores, mask_token_id=4, random_token_prob=0.1, drawable_ids=DRAWABLE)

    def untouched_outside_the_loss(seen):
        return bool((seen[~selected] == ids[~selected]).all())

    def specials_intact(seen):
        return bool((seen[~maskable] == ids[~maskable]).all())

    overwritten = torch.where(torch.rand(ids.shape) < 0.1, torch.randint(0, 50, ids.shape), ids)
    assert untouched_outside_the_loss(out.input_ids) and specials_intact(out.input_ids)
    assert not untouched_outside_the_loss(overwritten) and not specials_intact(overwritten)


def test_random_tokens_come_from_the_whole_vocabulary():
    """ModernBERT's packed path draws below the batch's largest id only."""
    ids = torch.full((4, 500), 5)
    every = torch.ones_like(ids, dtype=torch.bool)
    scores = draw_scores(ids)
    out = corrupt(ids, every, scores, mask_token_id=4, replace_prob=1.0, random_token_prob=1.0, drawable_ids=DRAWABLE)

    def reaches_all(seen):
        return set(seen.unique().tolist()) == set(DRAWABLE.tolist())

    assert reaches_all(out.input_ids)
    assert not reaches_all(torch.randint(0, int(ids.max()) + 1, ids.shape))


def test_ids_of_large_vocabularies_stay_whole():
    """gpt-bert keeps ids in 16 bits with a sign, which ends a vocabulary at 32,767."""
    drawable = torch.tensor([70_001, 250_000])
    ids = torch.tensor([[32_768, 65_536, 250_001] * 40])
    scores = draw_scores(ids)
    selected = select_tokens(scores, ids, ids > 0, millionths(0.5))
    out = corrupt(
        ids, selected, scores, mask_token_id=250_002, replace_prob=0.9, random_token_prob=0.5, drawable_ids=drawable
    )
    assert set(out.input_ids.unique().tolist()) <= {32_768, 65_536, 70_001, 250_000, 250_001, 250_002}
    assert out.labels[selected].equal(ids[selected])
    assert not ids.to(torch.int16).long().equal(ids)


def test_compiles_whole():
    ids = torch.randint(5, 50, (2, 16), generator=torch.Generator().manual_seed(0))
    scores = draw_scores(ids, torch.Generator().manual_seed(1))

    def step(ids, scores):
        selected = select_tokens(scores, ids, ids > 4, 300_000)
        out = corrupt(ids, selected, scores, mask_token_id=4, random_token_prob=0.1, drawable_ids=DRAWABLE)
        return out.input_ids, out.labels, out.selected

    compiled = torch.compile(step, fullgraph=True, backend="eager")(ids, scores)
    assert all(one.equal(other) for one, other in zip(compiled, step(ids, scores), strict=True))


def test_bad_corruptions():
    ids = torch.zeros(2, 3, dtype=torch.int64)
    flags, scores = ids.bool(), ids
    with pytest.raises(ValueError, match=r"selected \(2,\) and scores \(2, 3\) differ in shape"):
        corrupt(ids, flags[:, 0], scores, mask_token_id=4)
    with pytest.raises(ValueError, match="selected is torch.int64"):
        corrupt(ids, ids, scores, mask_token_id=4)
    for name in ("replace_prob", "random_token_prob"):
        with pytest.raises(ValueError, match=r"probability 1.5 is outside \[0, 1\]"):
            corrupt(ids, flags, scores, mask_token_id=4, **{name: 1.5})
    with pytest.raises(ValueError, match="random_token_prob 0.5 exceeds replace_prob 0.2"):
        corrupt(ids, flags, scores, mask_token_id=4, replace_prob=0.2, random_token_prob=0.5, drawable_ids=DRAWABLE)
    for nothing in (None, torch.empty(0, dtype=torch.int64)):
        with pytest.raises(ValueError, match="needs drawable_ids"):
            corrupt(ids, flags, scores, mask_token_id=4, random_token_prob=0.1, drawable_ids=nothing)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_cuda_corrupts_alike():
    ids = torch.randint(5, 50, (16, 512))
    scores = draw_scores(ids)
    flags = select_tokens(scores, ids, ids > 4, 300_000)
    settings_ = {"mask_token_id": 4, "replace_prob": 0.6, "random_token_prob": 0.2}
    here = corrupt(ids, flags, scores, drawable_ids=DRAWABLE, **settings_)
    there = corrupt(ids.cuda(), flags.cuda(), scores.cuda(), drawable_ids=DRAWABLE.cuda(), **settings_)
    assert there.input_ids.cpu().equal(here.input_ids) and there.labels.cpu().equal(here.labels)
