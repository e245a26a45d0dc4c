"""Scores: unique, reproducible, uniform, and independent of each thing that they should be independent of."""

import math

import pytest
import torch

from mlm_pytorch.masking import draw_scores, flat_scores, hash_rates, hash_scores, millionths
from mlm_pytorch.masking.scores import MAX_POSITIONS, mix64, remix

U64 = (1 << 64) - 1


def splitmix_reference(seed: int, visit: int, piece: int, position: int) -> int:
    """The documented hash in plain integers: SplitMix64's finalizer thrice (once short of its last step)."""

    def most(x: int) -> int:
        x = ((x ^ x >> 30) * 0xBF58476D1CE4E5B9) & U64
        return ((x ^ x >> 27) * 0x94D049BB133111EB) & U64

    def mix(x: int) -> int:
        return most(x) ^ most(x) >> 31

    step = 0x9E3779B97F4A7C15
    stream = mix((mix((piece * step + mix(seed & U64)) & U64) + (visit + 1) * step) & U64)
    return most((stream + (position + 1) * step) & U64) >> 32 << 20 | position


def chi_square(counts: torch.Tensor) -> float:
    """Standard deviations from what equally likely cells give."""
    expected = counts.sum().item() / counts.numel()
    statistic = ((counts - expected) ** 2 / expected).sum().item()
    freedom = counts.numel() - 1
    return (statistic - freedom) / math.sqrt(2 * freedom)


def bits_of(scores: torch.Tensor) -> torch.Tensor:
    return scores >> 20


def test_hash_equals_plain_integers():
    torch.manual_seed(0)
    for seed in (0, 1, -5, 2**63, 2**70 + 3):
        visits, pieces = torch.randint(0, 1000, (50,)), torch.randint(0, 2**45, (50,))
        positions = torch.randint(0, MAX_POSITIONS, (50,))
        expected = [
            splitmix_reference(seed, *row)
            for row in zip(visits.tolist(), pieces.tolist(), positions.tolist(), strict=True)
        ]
        assert hash_scores(seed, visits, pieces, positions).tolist() == expected


def test_hash_broadcasts_and_a_pack_agrees_with_it():
    visits, pieces, lengths = torch.tensor([0, 3, 1]), torch.tensor([7, 2**40, 9]), torch.tensor([4, 0, 6])
    rows = hash_scores(5, visits[:, None], pieces[:, None], torch.arange(6))
    cu_seqlens = torch.tensor([0, 4, 4, 10], dtype=torch.int32)
    expected = torch.cat([row[:length] for row, length in zip(rows, lengths.tolist(), strict=True)])
    assert flat_scores(5, visits, pieces, cu_seqlens).equal(expected)
    assert hash_scores(5, visits[:, None], pieces[:, None], torch.arange(0)).shape == (3, 0)
    assert flat_scores(5, visits, pieces, torch.zeros(4, dtype=torch.int64)).shape == (0,)
    assert flat_scores(5, visits, pieces, cu_seqlens, num_tokens=10).equal(expected)


def test_scores_are_unique_and_in_range():
    scores = hash_scores(0, torch.tensor(0), torch.tensor(0), torch.arange(MAX_POSITIONS))
    assert scores.unique().numel() == MAX_POSITIONS
    assert scores.min() >= 0 and scores.max() < 1 << 52
    assert (scores & (MAX_POSITIONS - 1)).equal(torch.arange(MAX_POSITIONS))


def test_drawn_scores_follow_the_generator():
    like = torch.zeros(3, 5)
    torch.manual_seed(1)
    first = draw_scores(like)
    torch.manual_seed(1)
    assert draw_scores(like).equal(first)
    assert not draw_scores(like).equal(first)
    own = [draw_scores(like, torch.Generator().manual_seed(2)) for _ in range(2)]
    assert own[0].equal(own[1]) and own[0].dtype == torch.int64
    assert (first & (MAX_POSITIONS - 1)).equal(torch.arange(5).expand(3, 5))
    assert draw_scores(torch.zeros(4)).shape == (4,)


@pytest.mark.parametrize("varied", ["seed", "visit", "piece", "position"])
def test_bits_are_uniform_in_each_argument(varied):
    """Chi-square of the 8 highest, the 8 lowest, and of pairs of neighbours' 4 highest bits."""
    count = 1 << 16
    along, zero = torch.arange(count), torch.zeros(1, dtype=torch.int64)
    if varied == "seed":
        scores = torch.cat([hash_scores(seed, zero, zero, torch.arange(64)) for seed in range(count // 64)])
    else:
        arguments = {name: along if name == varied else zero for name in ("visit", "piece", "position")}
        scores = hash_scores(3, arguments["visit"], arguments["piece"], arguments["position"])
    bits = bits_of(scores)
    neighbours = (bits[:-1] >> 28) << 4 | bits[1:] >> 28
    for cells in (bits >> 24, bits & 255, neighbours):
        assert abs(chi_square(torch.bincount(cells, minlength=256).double())) < 5


def test_every_input_bit_moves_half_of_the_output_bits():
    torch.manual_seed(0)
    pieces = torch.randint(0, 2**40, (4000,))
    zero = torch.zeros(1, dtype=torch.int64)
    base = bits_of(hash_scores(0, zero, pieces, zero))
    for name, flips in (("piece", range(40)), ("visit", range(12)), ("position", range(19))):
        for bit in flips:
            flip = torch.tensor(1 << bit)
            other = hash_scores(
                0,
                flip if name == "visit" else zero,
                pieces ^ flip if name == "piece" else pieces,
                flip if name == "position" else zero,
            )
            moved = base ^ bits_of(other)
            share = torch.stack([((moved >> b) & 1).double().mean() for b in range(32)])
            assert (share - 0.5).abs().max() < 5 * 0.5 / math.sqrt(4000), (name, bit)


def test_salts_give_independent_bits():
    scores = hash_scores(0, torch.tensor(0), torch.arange(1 << 16), torch.tensor(0))
    order, one, two = scores >> 48, remix(scores, 1) >> 60 & 15, remix(scores, 2) >> 60 & 15
    for left, right in ((order, one), (order, two), (one, two)):
        assert abs(chi_square(torch.bincount(left << 4 | right, minlength=256).double())) < 5


def test_mix64_is_a_bijection_where_it_can_be_seen():
    assert mix64(torch.arange(-(1 << 15), 1 << 15) << 40).unique().numel() == 1 << 16


def test_rates_are_uniform_and_bounded():
    rates = hash_rates(1, torch.zeros(1, dtype=torch.int64), torch.arange(60_000), 100_000, 100_005)
    counts = torch.bincount(rates - 100_000, minlength=6)
    assert counts.numel() == 6 and abs(chi_square(counts.double())) < 5
    assert hash_rates(1, torch.tensor(0), torch.arange(9), 0, 1_000_000).max() <= 1_000_000


@pytest.mark.parametrize(("prob", "expected"), [(0, 0), (0.15, 150_000), (1, 1_000_000), (0.29, 290_000), (1e-6, 1)])
def test_millionths(prob, expected):
    assert millionths(prob) == expected and isinstance(millionths(prob), int)


def test_every_percent_is_exact():
    assert [millionths(percent / 100) for percent in range(101)] == [percent * 10_000 for percent in range(101)]


@pytest.mark.parametrize("prob", [-0.01, 1.01, float("nan"), float("inf"), 15])
def test_probabilities_outside_are_refused(prob):
    with pytest.raises(ValueError, match=r"is outside \[0, 1\]"):
        millionths(prob)


def test_bad_scores():
    zero = torch.tensor(0)
    with pytest.raises(ValueError, match="is not one number"):
        millionths(torch.tensor([0.1, 0.2]))
    with pytest.raises(ValueError, match=r"positions 0..1048576 leave"):
        hash_scores(0, zero, zero, torch.tensor([0, MAX_POSITIONS]))
    with pytest.raises(ValueError, match=r"positions -1..-1 leave"):
        hash_scores(0, zero, zero, torch.tensor([-1]))
    with pytest.raises(ValueError, match=r"positions 0..1048576 leave"):
        flat_scores(0, torch.zeros(1), torch.zeros(1), torch.tensor([0, MAX_POSITIONS + 1]))
    with pytest.raises(ValueError, match="exceeds 1048576 positions"):
        draw_scores(torch.empty(1, MAX_POSITIONS + 1, device="meta"))
    with pytest.raises(ValueError, match="do not fit 2 documents"):
        flat_scores(0, torch.zeros(1), torch.zeros(2), torch.tensor([0, 1, 2]))
    for low, high in ((-1, 5), (5, 4), (0, 1_000_001)):
        with pytest.raises(ValueError, match="millionths with low <= high"):
            hash_rates(0, zero, zero, low, high)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_cuda_hashes_alike():
    visits, pieces = torch.randint(0, 99, (64, 1)), torch.randint(0, 2**45, (64, 1))
    positions = torch.arange(4096)
    on_cpu = hash_scores(7, visits, pieces, positions)
    assert hash_scores(7, visits.cuda(), pieces.cuda(), positions.cuda()).cpu().equal(on_cpu)
    assert remix(on_cpu.cuda(), 5).cpu().equal(remix(on_cpu, 5))


@pytest.mark.parametrize("whole", [3, 6, 7, 9, 11, 13, 30, 7919])
def test_shares_of_a_whole_are_exact(whole):
    """A sixth of six is one: where millionths cannot say a share, rounding up would make it two."""
    for part in range(whole + 1):
        assert -(-millionths(part / whole) * whole // 1_000_000) == part


@pytest.mark.parametrize("number", range(0, 1_000_001, 4999))
def test_what_millionths_can_say_is_said(number):
    assert millionths(number / 1_000_000) == number
    assert millionths(torch.tensor(number // 10 / 100_000)) == number // 10 * 10, "in 32 bits"
