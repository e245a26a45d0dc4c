"""Selections against slow, obvious references in plain Python, as laws over random documents."""

import math
from fractions import Fraction

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from mlm_pytorch.masking import (
    GPT_BERT_LENGTHS,
    NGRAM_LENGTHS,
    SPANBERT_LENGTHS,
    SpanLengths,
    draw_scores,
    flat_scores,
    hash_scores,
    max_selected,
    select_balanced,
    select_ngrams,
    select_spans,
    select_tokens,
    select_words,
)
from mlm_pytorch.masking import layout as layout_module
from mlm_pytorch.tokens import WordTable

VOCABULARY, NUM_SPECIAL = 40, 5
# ids below 5 are specials, the next 20 begin words, the last 15 continue them
WORDS = WordTable.from_classes(
    right=torch.tensor([0] * NUM_SPECIAL + [2] * 35),
    left=torch.tensor([0] * NUM_SPECIAL + [2] * 20 + [1] * 15),
    parted=torch.ones(3, 3, dtype=torch.bool),
)

# every selection under one signature
SELECTIONS = {
    "tokens": lambda *a, visits=0, **k: select_tokens(*a, **k),
    "balanced": lambda *a, visits=0, **k: select_balanced(*a, visits=visits, **k),
    "words": lambda *a, visits=0, **k: select_words(*a, words=WORDS, **k),
    "spans": lambda *a, visits=0, **k: select_spans(*a, **k),
    "short spans": lambda *a, visits=0, **k: select_spans(*a, lengths=GPT_BERT_LENGTHS, **k),
    "word spans": lambda *a, visits=0, **k: select_spans(*a, words=WORDS, **k),
    "ngrams": lambda *a, visits=0, **k: select_ngrams(*a, words=WORDS, **k),
}
PER_TOKEN = ("tokens", "balanced")


# --- references ------------------------------------------------------------------------------------------------------


def ceil_share(millionths: int, n: int) -> int:
    return math.ceil(Fraction(millionths, 1_000_000) * n)


def reference_words(ids: list[int]) -> list[list[int]]:
    """Positions of each word; a special is one of its own."""
    units: list[list[int]] = []
    for i, token in enumerate(ids):
        if i and token >= 25 and ids[i - 1] >= NUM_SPECIAL:
            units[-1].append(i)
        else:
            units.append([i])
    return units


def reference_joined(units, scores, maskable, lengths) -> list[list[int]]:
    """Units joined to spans: walk along, ending a span when its drawn number of units is full or something unmaskable
    comes."""
    live = [unit for unit in units if any(maskable[i] for i in unit)]
    drawn = lengths.draw(torch.tensor(scores, dtype=torch.int64)).tolist()
    plan = [drawn[unit[0]] for unit in live]  # the j-th span's length comes from the j-th live unit
    spans, number, left = [], 0, 0
    current: list[int] | None = None
    for unit in units:
        if not any(maskable[i] for i in unit):
            current = None
            continue
        if left == 0:
            left, number, current = plan[number], number + 1, None
        if current is None:
            current = []
            spans.append(current)
        current.extend(unit)
        left -= 1
    return spans


def reference_units(units, scores, maskable, millionths) -> list[bool]:
    units = [unit for unit in units if any(maskable[i] for i in unit)]
    wanted, taken, count = ceil_share(millionths, sum(maskable)), set(), 0
    for rank, unit in enumerate(sorted(units, key=lambda unit: scores[unit[0]])):
        size = sum(maskable[i] for i in unit)
        if wanted == 0 or (rank and count + size > wanted):
            break
        taken.update(i for i in unit if maskable[i])
        count += size
        if count > wanted:
            break
    return [i in taken for i in range(len(scores))]


def reference(name: str, ids, scores, maskable, millionths, visit) -> list[bool]:
    places = sorted((i for i in range(len(ids)) if maskable[i]), key=lambda i: scores[i])
    if name in PER_TOKEN:
        k, n = ceil_share(millionths, len(places)), len(places)
        begin = visit * k if name == "balanced" else 0
        taken = {places[(begin + j) % n] for j in range(k)}
        return [i in taken for i in range(len(ids))]
    words = reference_words(ids)
    single = [[i] for i in range(len(ids))]
    units = {
        "words": lambda: words,
        "spans": lambda: reference_joined(single, scores, maskable, SPANBERT_LENGTHS),
        "short spans": lambda: reference_joined(single, scores, maskable, GPT_BERT_LENGTHS),
        "word spans": lambda: reference_joined(words, scores, maskable, SPANBERT_LENGTHS),
        "ngrams": lambda: reference_joined(words, scores, maskable, NGRAM_LENGTHS),
    }[name]()
    return reference_units(units, scores, maskable, millionths)


# --- laws ------------------------------------------------------------------------------------------------------------

document = st.lists(st.one_of(st.integers(0, VOCABULARY - 1), st.integers(NUM_SPECIAL, VOCABULARY - 1)), max_size=30)
rate = st.one_of(st.sampled_from([0, 1, 150_000, 500_000, 999_999, 1_000_000]), st.integers(0, 1_000_000))


@pytest.mark.parametrize("name", SELECTIONS)
@settings(deadline=None, max_examples=120)
@given(documents=st.lists(document, min_size=1, max_size=6), data=st.data())
def test_equal_to_the_reference_alone_padded_and_packed(name, documents, data):
    """One document alone, right- and left-padded rows, and a flat pack: all give what plain Python gives."""
    rates = [data.draw(rate) for _ in documents]
    visits = torch.tensor([data.draw(st.integers(0, 50)) for _ in documents])
    pieces = torch.arange(len(documents)) + data.draw(st.integers(0, 2**40))
    lengths = torch.tensor([len(ids) for ids in documents])
    cu_seqlens = torch.nn.functional.pad(lengths.cumsum(0), (1, 0))
    select = SELECTIONS[name]

    flat_ids = torch.tensor([i for ids in documents for i in ids], dtype=torch.int64)
    flat = flat_scores(0, torch.zeros_like(pieces), pieces, cu_seqlens)
    # some tokens of content are not to be masked either: excluded ids, say
    maskable = (flat_ids >= NUM_SPECIAL) & (flat_ids % 7 != 0)
    bounds = list(zip(cu_seqlens.tolist(), cu_seqlens[1:].tolist(), strict=False))
    expected = [
        reference(name, ids, flat[a:b].tolist(), maskable[a:b].tolist(), rates[d], int(visits[d]))
        for d, (ids, (a, b)) in enumerate(zip(documents, bounds, strict=True))
    ]

    tensor_rates = torch.tensor(rates)
    packed = select(flat, flat_ids, maskable, tensor_rates, cu_seqlens=cu_seqlens, visits=visits)
    assert packed.tolist() == [flag for flags in expected for flag in flags]

    width = max(len(ids) for ids in documents) + data.draw(st.integers(0, 3))
    for side in ("right", "left"):
        ids, scores = (torch.zeros(len(documents), width, dtype=torch.int64) for _ in range(2))
        may = torch.zeros(len(documents), width, dtype=torch.bool)
        scores += hash_scores(9, torch.tensor(0), pieces[:, None], torch.arange(width))  # what padding has is no matter
        spots = []
        for d, (a, b) in enumerate(bounds):
            spots.append(slice(0, b - a) if side == "right" else slice(width - (b - a), width))
            ids[d, spots[d]], scores[d, spots[d]], may[d, spots[d]] = flat_ids[a:b], flat[a:b], maskable[a:b]
        padded = select(scores, ids, may, tensor_rates, visits=visits)
        for d, spot in enumerate(spots):
            assert padded[d, spot].tolist() == expected[d]
        assert not (padded & ~may).any()

    for d, (a, b) in enumerate(bounds):
        alone = select(flat[None, a:b], flat_ids[None, a:b], maskable[None, a:b], rates[d], visits=int(visits[d]))
        assert alone[0].tolist() == expected[d]


def test_exactly_the_ceiling_for_every_length_and_percent():
    """ceil(p * n) for n = 0..8192 and p = 0..100%, and at a float's breaking points, all in integers."""
    wanted_of = layout_module.wanted_counts
    n = torch.arange(8193)

    class Counted:
        num_documents = n.numel()

        def count(self, flags):
            return n

    for percent in range(101):
        wanted = wanted_of(Counted(), n, percent * 10_000)
        # the smallest k with k / n >= p: both inequalities in integers
        assert (wanted * 100 >= percent * n).all() and ((wanted - 1) * 100 < percent * n).all()
    by_float = torch.tensor([math.ceil(0.07 * x) for x in range(8193)])
    assert not wanted_of(Counted(), n, 70_000).equal(by_float)  # floats do round: 0.07 * 100 > 7


@pytest.mark.parametrize("millionths", [10_000, 70_000, 150_000, 290_000, 500_000, 990_000, 1_000_000])
def test_counts_of_real_selections(millionths):
    lengths = torch.cat([torch.arange(1, 130), torch.tensor([1000, 4095, 8192])])
    cu_seqlens = torch.nn.functional.pad(lengths.cumsum(0), (1, 0))
    ids = torch.full((int(cu_seqlens[-1]),), 5)
    scores = flat_scores(0, torch.zeros_like(lengths), torch.arange(lengths.numel()), cu_seqlens)
    selected = select_tokens(scores, ids, ids > 0, millionths, cu_seqlens=cu_seqlens)
    counts = torch.nn.functional.pad(selected.cumsum(0), (1, 0))[cu_seqlens].diff()
    assert counts.tolist() == [ceil_share(millionths, int(n)) for n in lengths]
    assert max_selected(lengths.tolist(), millionths) == counts.sum()


@pytest.mark.parametrize("name", SELECTIONS)
def test_nothing_at_rate_zero_and_everything_at_one(name):
    ids = torch.randint(0, VOCABULARY, (6, 40))
    ids[3] = 0
    maskable, scores = ids >= NUM_SPECIAL, draw_scores(ids)
    assert not SELECTIONS[name](scores, ids, maskable, 0).any()
    assert SELECTIONS[name](scores, ids, maskable, 1_000_000).equal(maskable)


@pytest.mark.parametrize("name", SELECTIONS)
def test_rows_of_padding_one_token_and_no_tokens(name):
    select = SELECTIONS[name]
    ids = torch.tensor([[0, 0, 0], [0, 7, 0], [0, 0, 9]])
    assert select(draw_scores(ids), ids, ids > 0, 10_000).tolist() == (ids > 0).tolist()
    for shape in ((0, 4), (2, 0)):
        none = torch.zeros(shape, dtype=torch.int64)
        for rates in (150_000, torch.zeros(shape[0], dtype=torch.int64)):
            assert select(none, none, none.bool(), rates).shape == shape
    none = torch.zeros(0, dtype=torch.int64)
    assert select(none, none, none.bool(), 150_000, cu_seqlens=torch.tensor([0, 0])).shape == (0,)


def test_spans_stay_below_the_host_bound():
    ids = torch.randint(NUM_SPECIAL, VOCABULARY, (500, 40))
    for lengths, longest in ((SPANBERT_LENGTHS, 10), (GPT_BERT_LENGTHS, 3)):
        counts = select_spans(draw_scores(ids), ids, ids > 0, 150_000, lengths=lengths).sum(-1)
        assert counts.min() >= 1 and counts.max() == max_selected([40], 150_000, longest_unit=longest)
    assert max_selected([40, 3], 0, longest_unit=3) == 0
    assert max_selected([40, 3], 150_000, longest_unit=10) == 13


def test_more_documents_than_fit_above_a_score():
    """Beyond 2,047 documents a pack is ranked another way; the selection stays."""
    lengths = torch.randint(0, 5, (3000,))
    cu_seqlens = torch.nn.functional.pad(lengths.cumsum(0), (1, 0))
    ids = torch.randint(0, VOCABULARY, (int(cu_seqlens[-1]),))
    pieces = torch.arange(lengths.numel())
    scores = flat_scores(0, pieces, pieces, cu_seqlens)
    half = int(cu_seqlens[1500])
    for select in SELECTIONS.values():
        whole = select(scores, ids, ids >= NUM_SPECIAL, 400_000, cu_seqlens=cu_seqlens)
        parts = [
            select(scores[:half], ids[:half], ids[:half] >= NUM_SPECIAL, 400_000, cu_seqlens=cu_seqlens[:1501]),
            select(scores[half:], ids[half:], ids[half:] >= NUM_SPECIAL, 400_000, cu_seqlens=cu_seqlens[1500:] - half),
        ]
        assert whole.equal(torch.cat(parts))


# --- statistics ------------------------------------------------------------------------------------------------------


def deviation(counts: torch.Tensor, share: float, draws: int) -> float:
    """The largest distance from `share` among counts, in standard deviations."""
    return ((counts - share * draws).abs().max() / math.sqrt(draws * share * (1 - share))).item()


@pytest.mark.parametrize("source", ["generator", "hash"])
def test_every_set_of_positions_is_equally_likely(source):
    """Chi-square over all 20 sets of 3 out of 6 maskable positions, and over positions."""
    draws = 40_000
    ids = torch.tensor([0, 7, 7, 0, 7, 7, 7, 7, 0]).expand(draws, 9)
    if source == "hash":
        scores = hash_scores(1, torch.arange(draws)[:, None], torch.tensor(3), torch.arange(9))
    else:
        scores = draw_scores(ids, torch.Generator().manual_seed(0))
    selected = select_tokens(scores, ids, ids > 0, 500_000)
    sets = torch.bincount((selected * (1 << torch.arange(9))).sum(-1), minlength=512)
    sets = sets[sets > 0].double()
    assert sets.numel() == 20
    statistic = ((sets - draws / 20) ** 2 / (draws / 20)).sum().item()
    assert abs(statistic - 19) < 5 * math.sqrt(38)
    assert deviation(selected.sum(0)[ids[0] > 0], 0.5, draws) < 5


@pytest.mark.parametrize("varied", ["piece", "visit", "seed", "position"])
def test_selections_are_independent(varied):
    """The overlap of two documents', visits', seeds' or shifted positions' selections is what chance gives."""
    rows, length = 2000, 64
    index, zero, positions = torch.arange(rows)[:, None], torch.tensor(0), torch.arange(length)
    ids = torch.full((rows, length), 7)

    def selected(seed, visits, pieces):
        return select_tokens(hash_scores(seed, visits, pieces, positions), ids, ids > 0, 250_000)

    one = selected(0, zero, index)
    other = {
        "piece": lambda: one.roll(1, 0),
        "visit": lambda: selected(0, zero + 1, index),
        "seed": lambda: selected(1, zero, index),
        "position": lambda: one.roll(1, 1),
    }[varied]()
    overlap = (one & other).sum().item()
    # a hypergeometric overlap per row: mean 16 * 16 / 64, variance mean * 3/4 * 48/63
    mean, variance = 4.0, 4.0 * 0.75 * 48 / 63
    if varied == "position":  # a row without itself: 64 pairs of positions, 16 * 15 / 63 in expectation
        mean = 16 * 15 / 63
    assert abs(overlap - rows * mean) < 5 * math.sqrt(rows * variance)


def test_balanced_visits_every_position_equally_often():
    ids = torch.randint(0, VOCABULARY, (5, 33))
    maskable = ids >= NUM_SPECIAL
    scores = draw_scores(ids)
    visited = torch.zeros_like(ids)
    for visit in range(100):
        selected = select_balanced(scores, ids, maskable, 150_000, visits=visit)
        assert selected.sum(-1).tolist() == [ceil_share(150_000, int(n)) for n in maskable.sum(-1)]
        visited += selected
        for row, may in zip(visited, maskable, strict=True):
            assert row[may].max() - row[may].min() <= 1
    assert (visited[~maskable] == 0).all()
    one_for_all = select_balanced(scores, ids, maskable, 150_000, visits=torch.tensor(99))
    assert one_for_all.equal(selected)


def test_span_lengths_have_the_published_shapes():
    total = sum(SPANBERT_LENGTHS.weights)
    mean = sum(weight * (i + 1) for i, weight in enumerate(SPANBERT_LENGTHS.weights)) / total
    assert math.isclose(mean, 3.797, abs_tol=1e-3)  # the paper's 3.8
    assert SPANBERT_LENGTHS.weights[1] * 5 == SPANBERT_LENGTHS.weights[0] * 4 and len(SPANBERT_LENGTHS.weights) == 10
    assert GPT_BERT_LENGTHS.weights == (1, 1, 1) and NGRAM_LENGTHS.weights == (6, 3, 2)
    draws = 100_000
    scores = hash_scores(0, torch.tensor(0), torch.arange(draws), torch.tensor(0))
    for lengths in (SPANBERT_LENGTHS, GPT_BERT_LENGTHS, NGRAM_LENGTHS, SpanLengths((0, 1)), SpanLengths((1,))):
        found = torch.bincount(lengths.draw(scores), minlength=len(lengths.weights) + 1)[1:]
        for count, weight in zip(found.tolist(), lengths.weights, strict=True):
            share = weight / sum(lengths.weights)
            assert abs(count - share * draws) <= 5 * math.sqrt(draws * share * (1 - share))


def test_spans_are_drawn_with_these_lengths_and_reach_every_position():
    """At rate 1/2 over long rows, selected runs of the first span hold whole spans; positions are covered evenly."""
    rows, length = 4000, 50
    ids = torch.full((rows, length), 7)
    scores = hash_scores(0, torch.tensor(0), torch.arange(rows)[:, None], torch.arange(length))
    selected = select_spans(scores, ids, ids > 0, 300_000)
    assert 0.2 < selected.double().mean() <= 0.3
    share = selected.double().mean(0)[5:-10]
    assert share.max() - share.min() < 0.06


def test_the_seeds_rule_would_fail_here():
    """The 0.1.0 rules: ceil(p * L) for left-padded rows, and one too many after an ignored first token."""
    ids = torch.tensor([[0] * 90 + [7] * 10, [2] + [7] * 99])
    maskable = ids == 7

    def seeds_rule(maskable, prob):
        excess = maskable.cumsum(-1) > (maskable.sum(-1, keepdim=True) * prob).ceil()
        room = math.ceil(prob * maskable.shape[1])
        best = torch.rand(maskable.shape).masked_fill(~maskable, -1e9).topk(room).indices + 1
        chosen = torch.zeros(maskable.shape[0], maskable.shape[1] + 1)
        return chosen.scatter(-1, best.masked_fill(excess[:, :room], 0), 1)[:, 1:].bool()

    def exact(selected):
        return selected.sum(-1).tolist() == [2, 15] and not (selected & ~maskable).any()

    assert exact(select_tokens(draw_scores(ids), ids, maskable, 150_000))
    assert not exact(seeds_rule(maskable, 0.15))


# --- compilation, devices, errors ------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", SELECTIONS)
@pytest.mark.parametrize("layout", ["padded", "flat"])
def test_compiles_whole(name, layout):
    ids = torch.randint(0, VOCABULARY, (4, 32))
    more = {}
    if layout == "flat":
        ids, more = ids.flatten(), {"cu_seqlens": torch.tensor([0, 10, 60, 128])}
    scores, maskable, rates = draw_scores(ids), ids >= NUM_SPECIAL, torch.tensor(200_000)
    torch.compiler.reset()  # one function serves all selections here, which is more variants than dynamo keeps
    for mask_prob in (200_000, rates):

        def select(scores, ids, maskable, mask_prob=mask_prob):
            return SELECTIONS[name](scores, ids, maskable, mask_prob, **more)

        compiled = torch.compile(select, fullgraph=True, backend="eager")
        assert compiled(scores, ids, maskable).equal(select(scores, ids, maskable))


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("name", SELECTIONS)
def test_cuda_selects_alike_and_is_not_waited_for(name, monkeypatch):
    ids = torch.randint(0, VOCABULARY, (16, 512))
    scores, maskable, rates = draw_scores(ids), ids >= NUM_SPECIAL, torch.randint(0, 1_000_001, (16,))
    here = SELECTIONS[name](scores, ids, maskable, rates, visits=3)
    one_rate = SELECTIONS[name](scores, ids, maskable, 150_000, visits=3)
    there, bounds = [x.cuda() for x in (scores, ids, maskable, rates)], (torch.arange(17) * 512).cuda()
    monkeypatch.setitem(globals(), "WORDS", WORDS.to("cuda"))
    torch.cuda.synchronize()
    torch.cuda.set_sync_debug_mode("error")
    try:
        rows = SELECTIONS[name](*there, visits=3)
        one_rate_rows = SELECTIONS[name](*there[:3], 150_000, visits=3)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    flat = SELECTIONS[name](*(x.flatten() for x in there), cu_seqlens=bounds, visits=3)
    assert rows.cpu().equal(here) and flat.cpu().view(16, 512).equal(here)
    assert one_rate_rows.cpu().equal(one_rate)


def arguments(**changes):
    ids = torch.tensor([[5, 6, 7], [8, 9, 0]])
    fields = {"scores": draw_scores(ids), "input_ids": ids, "maskable": ids > 0, "mask_prob": 150_000}
    return fields | changes


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"scores": torch.zeros(2, 2, dtype=torch.int64)}, r"scores \(2, 2\), input_ids \(2, 3\) .* differ in shape"),
        ({"maskable": torch.ones(2, 3)}, "maskable is torch.float32"),
        ({"scores": torch.rand(2, 3)}, "scores are torch.float32"),
        ({"scores": torch.full((2, 3), 1 << 52)}, r"leave \[0, 2\*\*52\), so positions reach 2\*\*20"),
        ({"scores": torch.full((2, 3), -1)}, r"scores -1..-1 leave"),
        ({"mask_prob": 0.15}, r"mask_prob 0.15 is not a whole number of millionths; pass millionths\(0.15\)"),
        ({"mask_prob": True}, "mask_prob True is not a whole number"),
        ({"mask_prob": -1}, r"mask_prob -1 is outside \[0, 1000000\]"),
        ({"mask_prob": 1_000_001}, "mask_prob 1000001 is outside"),
        ({"mask_prob": torch.tensor(0.15)}, "mask_prob is a torch.float32 tensor"),
        ({"mask_prob": torch.tensor([1, 2, 3])}, r"mask_prob \(3,\) does not fit 2 documents"),
        ({"mask_prob": torch.tensor([0, 1_000_001])}, r"mask_prob 0..1000001 leaves"),
        ({"cu_seqlens": torch.tensor([0, 3])}, r"input_ids \(2, 3\) have 2 dimensions"),
    ],
)
@pytest.mark.parametrize("name", SELECTIONS)
def test_bad_arguments(name, changes, message):
    given_ = arguments(**changes)
    with pytest.raises(ValueError, match=message):
        SELECTIONS[name](
            given_["scores"], given_["input_ids"], given_["maskable"], given_["mask_prob"],
            cu_seqlens=given_.get("cu_seqlens"),
        )  # fmt: skip


@pytest.mark.parametrize(
    ("cu_seqlens", "message"),
    [
        ([0], "bound no document"),
        ([[0, 4]], "bound no document"),
        ([1, 4], "run from 1 to 4 over 4 tokens"),
        ([0, 3], "run from 0 to 3 over 4 tokens"),
        ([0, 3, 2, 4], "must rise"),
    ],
)
def test_bad_bounds(cu_seqlens, message):
    ids = torch.tensor([5, 6, 7, 8])
    with pytest.raises(ValueError, match=message):
        select_tokens(draw_scores(ids), ids, ids > 0, 150_000, cu_seqlens=torch.tensor(cu_seqlens))


def test_flat_ids_need_bounds():
    ids = torch.tensor([5, 6])
    with pytest.raises(ValueError, match="together with cu_seqlens"):
        select_tokens(draw_scores(ids), ids, ids > 0, 150_000)


@pytest.mark.parametrize("select", [select_words, select_ngrams])
def test_words_need_a_table(select):
    with pytest.raises(ValueError, match=r"need a word table, got None; pass words=derive_words\(tokenizer\)"):
        select(**arguments(), words=None)


def test_bad_visits_and_lengths():
    with pytest.raises(ValueError, match=r"visits \(3,\) do not fit 2 documents"):
        select_balanced(**arguments(), visits=torch.zeros(3, dtype=torch.int64))
    for weights in ((), (0, 0), (1, -1)):
        with pytest.raises(ValueError, match="give no distribution"):
            SpanLengths(weights)
    for prob, longest in ((0, 3), (1, 3), (0.2, 0)):
        with pytest.raises(ValueError, match="is no distribution"):
            SpanLengths.geometric(prob, longest)
