"""What a step is dealt to is chosen by memory, and what cannot fit is said with what would."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from list_store import SPECIAL, ListStore

from mlm_pytorch.cli.train import _compiles
from mlm_pytorch.data.packing import build_pack
from mlm_pytorch.encoder import Encoder, EncoderConfig
from mlm_pytorch.objective.head import find_head
from mlm_pytorch.objective.packs import PackMasker, pack_loss
from mlm_pytorch.training import sizes
from mlm_pytorch.training.device import find_device, free_memory, why_not_compiled
from mlm_pytorch.training.sizes import activation_bytes, plan


def parts(pieces: int = 8):
    torch.manual_seed(0)
    model = Encoder(EncoderConfig(64, 32, 48, 2, 2, max_position_embeddings=64, global_attn_every_n_layers=1))
    head = find_head(model)
    store = ListStore([30] * pieces)
    where = np.arange(pieces)
    batch = PackMasker(SPECIAL, 0)(build_pack(store, where, where * 0), 300_000)
    return model, lambda model, pack: pack_loss(model, head, pack), batch


def planned(monkeypatch, free: int | None, num_batches: int = 8, most: int = 0):
    model, loss, batch = parts()
    monkeypatch.setattr(sizes, "free_memory", lambda device: free)
    monkeypatch.setattr(sizes, "MOST_TOKENS", {"cpu": most})
    facts = {"num_batches": num_batches, "longest": 32, "autocast": None, "notice": lambda _: None}
    return plan(model, loss, batch, **facts), model


def test_activations_grow_with_the_tokens_and_leave_nothing_behind():
    model, loss, batch = parts()
    state = torch.get_rng_state()
    small, tokens = activation_bytes(model, loss, parts(4)[2], None)
    large, twice = activation_bytes(model, loss, batch, None)
    assert (tokens, twice) == (128, 256) and large == pytest.approx(2 * small, rel=0.05)
    # by hand: each layer keeps more than ten times the width of each token, and less than a hundred times
    assert 2 * 10 * 32 * 4 < large / twice < 2 * 100 * 32 * 4
    assert all(p.grad is None for p in model.parameters()) and torch.equal(state, torch.get_rng_state())


def test_statistics_that_a_model_keeps_in_training_stay_as_they_were():
    """A run that is continued is looked at once more, and must end as one in one piece."""
    _, _, batch = parts()
    model = torch.nn.Sequential(torch.nn.Embedding(64, 8), torch.nn.BatchNorm1d(8), torch.nn.Linear(8, 64))
    model.register_buffer("view", torch.zeros(1).expand(3))  # cannot be written to
    before = {name: value.clone() for name, value in model.state_dict().items()}
    activation_bytes(model, lambda model, pack: (model(pack.input_ids).sum(), None), batch, None)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def test_what_is_computed_again_is_not_counted_as_kept():
    model, loss, batch = parts()
    kept, tokens = activation_bytes(model, loss, batch, None)
    model.model.recompute = True
    less, same = activation_bytes(model, loss, batch, None)
    assert model.model.recompute
    # by hand: the two layers' inputs, and one of the layers, are still there
    assert same == tokens
    assert kept / 2 < less < kept - 2 * tokens * 32 * 4


def test_as_many_packs_at_a_time_as_fit(monkeypatch):
    plenty, model = planned(monkeypatch, 1 << 40, most=1 << 30)
    assert plenty.sizes.together == 8 and "8 at a time, 1 forward a step, about" in plenty.describe(8)
    assert planned(monkeypatch, 1 << 40, most=600)[0].sizes.together == 2
    assert planned(monkeypatch, 1 << 40)[0].sizes.together == 1, "a CPU takes one at a time"
    model, loss, batch = parts()
    kept, _ = activation_bytes(model, loss, batch, None)
    fixed = 12 * sum(p.numel() for p in model.parameters())
    for share, expected in ((4.1, (4, 0)), (2.1, (2, 0)), (1.1, (1, 0)), (0.6, (1, 1)), (0.3, (1, 2))):
        free = int((fixed + share * 1.5 * kept) / 0.9)
        chosen = planned(monkeypatch, free, most=1 << 30)[0]
        assert (chosen.sizes.together, chosen.sizes.halvings) == expected, share
        assert chosen.needed is not None and chosen.needed <= free
    assert planned(monkeypatch, None)[0].describe(8) == "1 at a time, 8 forwards a step"


def test_what_cannot_fit_is_said_with_what_would(monkeypatch):
    with pytest.raises(ValueError, match=r"training .* parameters takes .* GB .* are free on cpu; no preset would fit"):
        planned(monkeypatch, 1000)
    fixed = 12 * sum(p.numel() for p in parts()[0].parameters())
    with pytest.raises(ValueError, match=r"a piece of 32 tokens takes about .* lower --seq-len to 8, or"):
        planned(monkeypatch, int((fixed + 5000) / 0.9))


def test_devices_that_are_not_there():
    assert find_device("cpu") == torch.device("cpu") and find_device().type in ("cpu", "cuda")
    for name, rule in (("cuda:99", "this machine has cpu"), ("gpu", "choose auto, cpu, cuda"), ("cpu:1", "is unknown")):
        with pytest.raises(ValueError, match=rule):
            find_device(name)
    free = free_memory(torch.device("cpu"))
    assert free is None or 1 << 20 < free < 1 << 50


def test_a_compiler_that_is_missing_is_named_in_one_line_and_done_without(monkeypatch):
    def missing(_function):
        raise RuntimeError("Failed to find C compiler.\nPlease specify via CC environment variable.")

    said = []
    monkeypatch.setattr(torch, "compile", lambda function: lambda *arguments: function(*arguments))
    assert why_not_compiled(torch.device("cpu")) is None
    monkeypatch.setattr(torch, "compile", missing)
    assert not _compiles(torch.device("cpu"), SimpleNamespace(say=said.append))
    assert len(said) == 1 and "\n" not in said[0]
    assert said[0].startswith(
        "torch.compile makes no kernels here (Failed to find C compiler.), so training will be slower"
    )
    assert "packages gcc and python3-dev" in said[0]
