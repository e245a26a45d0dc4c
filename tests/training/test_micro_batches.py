"""However a step is dealt to forwards, it learns the same; and it goes on when memory runs out."""

import itertools

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from list_store import SPECIAL, ListStore
from torch import nn

from mlm_pytorch.data.packing import build_pack, join_packs
from mlm_pytorch.data.padding import build_padded
from mlm_pytorch.encoder import Encoder, EncoderConfig
from mlm_pytorch.objective.head import find_head
from mlm_pytorch.objective.packs import PackMasker, pack_loss
from mlm_pytorch.objective.padded import RowsInterface, mask_padded, padded_loss
from mlm_pytorch.training import micro_batches
from mlm_pytorch.training.distributed import Agreement, World
from mlm_pytorch.training.micro_batches import MicroBatches, halve, is_out_of_memory
from mlm_pytorch.training.optimizer import build_optimizers
from mlm_pytorch.training.parallel import Parallel
from mlm_pytorch.training.step import TrainingStep

MASKER = PackMasker(SPECIAL, seed=3)
LENGTHS = st.lists(st.integers(1, 14), min_size=1, max_size=6)


def packs(lengths: list[list[int]], capacity: int = 120):
    """A pack of each list of lengths."""
    store = ListStore([n for each in lengths for n in each])
    made, start = [], 0
    for each in lengths:
        pieces = np.arange(start, start + len(each))
        made.append(build_pack(store, pieces, np.zeros(len(each), np.int64), capacity))
        start += len(each)
    return made


def encoder() -> Encoder:
    torch.manual_seed(1)
    return Encoder(EncoderConfig(64, 32, 48, 2, 2, max_position_embeddings=256, global_attn_every_n_layers=1))


def step_of(model: nn.Module, loss, **sizes) -> TrainingStep:
    optimizers = build_optimizers(model, "adamw", 1e-3, 0.0)
    return TrainingStep(Parallel(model, "auto", World()), loss, optimizers, autocast=None, clip=1.0, **sizes)


def agreed(micro_batches) -> Agreement:
    """What a process that trains alone knows of a step."""
    counts = (sum(getattr(one, name) for one in micro_batches) for name in ("num_targets", "num_tokens"))
    return World().agree(*counts, stop=bool, seconds=float)


def gradients(model: nn.Module) -> list[torch.Tensor]:
    return [torch.zeros_like(p) if p.grad is None else p.grad.clone() for p in model.parameters()]


@given(st.lists(LENGTHS, min_size=2, max_size=5))
def test_joined_masked_packs_are_the_masked_joined_packs(lengths):
    made = packs(lengths)
    joined, expected = micro_batches.join_packs([MASKER(p, 300_000) for p in made]), MASKER(join_packs(made), 300_000)
    for name in ("input_ids", "cu_seqlens", "positions", "labels"):
        assert torch.equal(getattr(joined, name), getattr(expected, name)), name
    assert joined.max_seqlen == expected.max_seqlen and joined.num_tokens == expected.num_tokens


@given(LENGTHS)
def test_the_halves_of_a_pack_are_its_pieces(lengths):
    (pack,) = packs([lengths])
    whole = MASKER(pack, 300_000)
    halves = halve(whole)
    assert all(int(half.cu_seqlens[0]) == 0 and int(half.cu_seqlens[-1]) == len(half.input_ids) for half in halves)
    assert all(half.max_seqlen == int(half.cu_seqlens.diff().max()) for half in halves)
    again = micro_batches.join_packs(halves)
    for name in ("input_ids", "cu_seqlens", "positions", "labels"):
        assert torch.equal(getattr(again, name), getattr(whole, name)), name
    assert again.num_tokens == whole.num_tokens and all(half.num_tokens >= 0 for half in halves)


def test_a_pack_that_is_one_piece_has_no_halves():
    with pytest.raises(ValueError, match="a pack of one piece of 6 tokens cannot be cut; lower --seq-len"):
        halve(MASKER(packs([[4]], capacity=6)[0], 300_000))


@given(st.lists(st.integers(1, 30), min_size=2, max_size=9))
def test_the_halves_of_rows_are_its_rows(lengths):
    store = ListStore(lengths)
    where = np.arange(len(lengths))
    whole = mask_padded(MASKER, build_padded(store, where, np.zeros_like(where), 4096), 300_000)
    halves = halve(whole)
    originals = []
    for part in (whole, *halves):
        ids = part.input_ids.clone()
        ids.view(-1)[part.positions] = part.labels
        originals.append([row[keep].tolist() for row, keep in zip(ids, part.attention_mask, strict=True)])
    assert originals[0] == originals[1] + originals[2]
    assert sum(half.num_targets for half in halves) == whole.num_targets
    assert sum(half.num_tokens for half in halves) == whole.num_tokens
    with pytest.raises(ValueError, match="cannot be cut"):
        halve(halve(halve(mask_padded(MASKER, build_padded(store, where[:2], where[:2] * 0, 4096), 300_000))[0])[0])


@settings(max_examples=15)
@given(st.lists(LENGTHS, min_size=1, max_size=4), st.sampled_from([1, 2, 3, 4]), st.sampled_from([0, 1, 2]))
def test_any_dealing_gives_the_same_gradient(lengths, together, halvings):
    masked = [MASKER(pack, 300_000) for pack in packs(lengths)]
    model = encoder()
    head = find_head(model)
    sizes = MicroBatches(together)
    sizes.halvings = halvings
    step = step_of(model, lambda model, pack: pack_loss(model, head, pack), sizes=sizes)
    loss_sum, count = step.backward(masked, agreed(masked))
    got = gradients(model)
    step.forget_gradients()
    step.sizes = MicroBatches()
    expected_sum, expected_count = step.backward(masked, agreed(masked))
    assert count == expected_count
    torch.testing.assert_close(loss_sum, expected_sum, atol=1e-3, rtol=1e-5)
    for a, b in zip(got, gradients(model), strict=True):
        torch.testing.assert_close(a, b, atol=2e-5, rtol=1e-3)


class Small(nn.Module):
    """Has memory for so many tokens in a forward."""

    def __init__(self, inner: nn.Module, limit: int, error: type[Exception] | Exception):
        super().__init__()
        self.inner, self.limit, self.error = inner, limit, error
        self.sizes: list[int] = []

    def forward(self, input_ids, *args, **kwargs):
        if input_ids.numel() > self.limit:
            raise self.error
        self.sizes.append(input_ids.numel())
        return self.inner(input_ids, *args, **kwargs)


ERRORS = [
    torch.OutOfMemoryError("CUDA out of memory"),
    MemoryError(),
    RuntimeError("DefaultCPUAllocator: can't allocate memory"),
]


@pytest.mark.parametrize("error", ERRORS, ids=lambda error: type(error).__name__)
def test_out_of_memory_halves_the_micro_batch_and_redoes_the_step(error):
    masked = [MASKER(pack, 300_000) for pack in packs([[14, 9, 8], [14, 14], [5, 5, 5], [20]], capacity=48)]
    small, said = Small(encoder(), 34, error), []
    head = find_head(small.inner)
    step = step_of(small, lambda model, pack: pack_loss(model, head, pack), sizes=MicroBatches(4, said.append))
    result = step(masked, 1e-3, agreed(masked))
    assert said == [
        "out of memory: going on with 2 at a time, 2 forwards a step, on the same batch and data",
        "out of memory: going on with 1 at a time, 4 forwards a step, on the same batch and data",
        "out of memory: going on with each cut into 2 parts, 8 forwards a step, on the same batch and data",
    ]
    plain = encoder()
    expected = step_of(plain, lambda model, pack: pack_loss(model, find_head(model), pack))(
        masked, 1e-3, agreed(masked)
    )
    torch.testing.assert_close(result.loss_sum, expected.loss_sum)
    assert (result.num_targets, result.num_tokens) == (expected.num_targets, expected.num_tokens)
    for a, b in zip(small.parameters(), plain.parameters(), strict=True):
        torch.testing.assert_close(a, b, atol=1e-4, rtol=1e-4)
    said.clear()
    step(masked, 1e-3, agreed(masked))
    assert not said and max(small.sizes) <= 34


def test_what_was_added_up_before_memory_ran_out_is_not_added_twice():
    masked = [MASKER(pack, 300_000) for pack in packs([[14, 5], [9, 8], [12]], capacity=24)]
    results, calls = [], itertools.count()
    for fails_at in (None, 1):

        def loss(model, pack, fails_at=fails_at):
            if fails_at is not None and next(calls) == fails_at:
                raise MemoryError
            return pack_loss(model, find_head(model), pack)

        results.append(step_of(encoder(), loss, sizes=MicroBatches(2))(masked, 1e-3, agreed(masked)))
    assert next(calls) == 5, "two forwards, and then three"
    torch.testing.assert_close(results[1].grad_norm, results[0].grad_norm)
    torch.testing.assert_close(results[1].loss_sum, results[0].loss_sum)


def test_a_piece_that_does_not_fit_alone_is_named():
    masked = [MASKER(pack, 300_000) for pack in packs([[40, 5]], capacity=49)]
    step = step_of(Small(encoder(), 10, MemoryError()), lambda model, pack: pack_loss(model, None, pack))
    with pytest.raises(ValueError, match="a single piece of 42 tokens does not fit beside the model; lower --seq-len"):
        step(masked, 1e-3, agreed(masked))


def test_other_errors_are_not_taken_for_a_lack_of_memory():
    def broken(model, pack):
        raise RuntimeError("mat1 and mat2 shapes cannot be multiplied")

    masked = [MASKER(packs([[4]])[0], 300_000)]
    with pytest.raises(RuntimeError, match="cannot be multiplied"):
        step_of(encoder(), broken)(masked, 1e-3, agreed(masked))
    assert not is_out_of_memory(ValueError("out of memory"))


def test_rows_are_halved_too():
    store = ListStore([12, 11, 10, 9])
    where = np.arange(4)
    rows = mask_padded(MASKER, build_padded(store, where, where * 0, 64), 300_000)
    small, said = Small(encoder(), 30, MemoryError()), []
    interface = RowsInterface(None, "attention_mask")
    losses = []
    for model in (small.inner, small):
        sizes = MicroBatches(1, said.append)
        losses.append(
            step_of(model, lambda model, rows: padded_loss(model, interface, rows), sizes=sizes).backward(
                [rows], agreed([rows])
            )[0]
        )
    torch.testing.assert_close(losses[0], losses[1])
    assert len(said) == 1
