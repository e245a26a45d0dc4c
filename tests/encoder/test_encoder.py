"""The encoder equals `ModernBertForMaskedLM` on the same weights, packed or not, forward and backward."""

from dataclasses import fields

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch._subclasses import FakeTensorMode
from transformers import ModernBertConfig, ModernBertForMaskedLM

from mlm_pytorch.encoder import PRESETS, Encoder, EncoderConfig, blocks, num_parameters, preset
from mlm_pytorch.encoder.encoder import positions_within
from mlm_pytorch.encoder.layers import GatedMLP, looked_up_and_multiplied
from mlm_pytorch.objective import logits_at

SHAPE = dict(
    vocab_size=96,
    hidden_size=64,
    intermediate_size=80,
    num_hidden_layers=4,
    num_attention_heads=2,
    max_position_embeddings=1024,
    local_attention=16,
)
VARIANTS = [
    {},
    {"global_attn_every_n_layers": 2, "local_attention": 2},
    {"norm_bias": True, "attention_bias": True, "mlp_bias": True, "classifier_bias": True},
    {"tie_word_embeddings": False, "decoder_bias": False},
    {"hidden_activation": "silu", "classifier_activation": "gelu_pytorch_tanh", "global_rope_theta": 500.0},
]


def pair(**changes) -> tuple[Encoder, ModernBertForMaskedLM]:
    torch.manual_seed(0)
    config = EncoderConfig(**SHAPE | changes)
    ours = Encoder(config)
    theirs = ModernBertForMaskedLM(ModernBertConfig(**config.to_huggingface())).eval()
    with torch.no_grad():  # larger weights than at initialization, so that a wrong path shows
        for parameter in ours.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.2 * parameter.shape[-1] ** -0.5)
    missing = theirs.load_state_dict(ours.state_dict(), strict=True)
    assert not missing.missing_keys and not missing.unexpected_keys
    return ours, theirs


def pieces(lengths: list[int]) -> tuple[list[torch.Tensor], torch.Tensor, torch.Tensor]:
    rows = [torch.randint(1, SHAPE["vocab_size"], (n,)) for n in lengths]
    return rows, torch.cat(rows), torch.tensor([0, *lengths]).cumsum(0)


@pytest.mark.parametrize("changes", VARIANTS)
def test_padded_logits_equal_modernbert(changes):
    ours, theirs = pair(**changes)
    ids = torch.randint(1, SHAPE["vocab_size"], (3, 50))
    attended = torch.arange(50) < torch.tensor([50, 31, 7])[:, None]
    with torch.no_grad():
        got = ours(ids, attended)
        expected = theirs(input_ids=ids, attention_mask=attended.long()).logits
        torch.testing.assert_close(got[attended], expected[attended], atol=1e-4, rtol=0)
        torch.testing.assert_close(ours(ids), theirs(input_ids=ids).logits, atol=1e-4, rtol=0)


@pytest.mark.parametrize("changes", VARIANTS)
def test_packed_logits_and_gradients_equal_modernbert(changes):
    ours, theirs = pair(**changes)
    rows, ids, cu_seqlens = pieces([50, 50, 33, 7, 7, 1])
    weight = torch.randn(len(ids), SHAPE["vocab_size"])
    (ours(ids, cu_seqlens=cu_seqlens) * weight).sum().backward()
    got = ours(ids, cu_seqlens=cu_seqlens)
    expected = torch.cat([theirs(input_ids=row[None]).logits[0] for row in rows])
    (expected * weight).sum().backward()
    torch.testing.assert_close(got, expected, atol=1e-4, rtol=0)
    gradients = dict(theirs.named_parameters())
    for name, parameter in ours.named_parameters():
        torch.testing.assert_close(
            parameter.grad, gradients[name].grad, atol=2e-4, rtol=1e-4, msg=lambda m, n=name: f"{n}: {m}"
        )


@pytest.mark.parametrize("changes", VARIANTS)
@pytest.mark.parametrize("layout", ["flat", "padded", "long"])
def test_logits_at_positions_equal_those_of_all_in_value_and_gradient(changes, layout):
    """The last layer leaves out what nobody reads, and nothing else."""
    ours, _ = pair(**changes)
    if layout == "padded":
        ids, arguments = torch.randint(1, SHAPE["vocab_size"], (3, 20)), {"attention_mask": torch.ones(3, 20)}
    else:
        _, ids, cu_seqlens = pieces([30, 30, 17, 1] if layout == "flat" else [600, 20])
        arguments = {"cu_seqlens": cu_seqlens}
    positions = torch.randperm(ids.numel())[:11]
    weight = torch.randn(11, SHAPE["vocab_size"])
    gradients = []
    for logits in (
        ours(ids, **arguments).reshape(-1, SHAPE["vocab_size"])[positions],
        ours(ids, **arguments, positions=positions),
    ):
        ours.zero_grad()
        (logits * weight).sum().backward()
        gradients.append((logits.detach(), [p.grad.clone() for p in ours.parameters()]))
    torch.testing.assert_close(gradients[0], gradients[1], atol=1e-4, rtol=1e-4)
    assert logits_at(ours, ours.output_head, positions, ids, **arguments).equal(gradients[1][0])


@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor:UserWarning")  # dynamo looks at it while tracing
@pytest.mark.parametrize("joined", [False, True])
def test_compiled_layers_compute_the_same_with_few_graphs(joined):
    ours, _ = pair()
    results = []
    torch._dynamo.reset()
    torch._dynamo.utils.counters.clear()
    for compiled in (False, True):
        if compiled:
            ours.model.compile_layers(joined=joined, backend="aot_eager")
        for lengths in ([30, 30, 17, 1], [40, 30, 8], [78]):  # other packs of the same size
            _, ids, cu_seqlens = pieces(lengths)
            ids = torch.arange(78) % 90 + 1
            ours.zero_grad()
            ours(ids, cu_seqlens=cu_seqlens, positions=torch.arange(0, 78, 5)).square().sum().backward()
            results.append([p.grad.clone() for p in ours.parameters()])
    torch.testing.assert_close(results[:3], results[3:], atol=1e-5, rtol=1e-5)
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] <= 4  # first and last layer differ from the others


def test_exporting_leaves_every_encoder_as_it_was():
    ours, _ = pair()
    ids = torch.randint(1, SHAPE["vocab_size"], (2, 70))
    exported = torch.export.export(ours.eval(), (ids,))
    got = ours(ids)
    assert type(got) is torch.Tensor  # nothing without values is left where a later call would find it
    torch.testing.assert_close(exported.module()(ids), got)
    other, _ = pair()
    torch.testing.assert_close(other(ids), got)


def test_recomputing_activations_changes_no_gradient():
    ours, _ = pair()
    _, ids, cu_seqlens = pieces([30, 30, 17, 1])
    gradients = []
    for recompute in (False, True):
        ours.model.recompute = recompute
        ours.zero_grad()
        ours(ids, cu_seqlens=cu_seqlens, positions=torch.arange(0, 78, 5)).square().sum().backward()
        gradients.append([p.grad.clone() for p in ours.parameters()])
    assert all(torch.equal(a, b) for a, b in zip(*gradients, strict=True))


@given(st.lists(st.integers(0, 40), min_size=1, max_size=12).filter(sum), st.integers(0, 2**16))
def test_packed_equals_each_piece_alone(lengths, seed):
    ours, _ = pair()
    torch.manual_seed(seed)
    rows, ids, cu_seqlens = pieces(lengths)
    with torch.no_grad():
        alone = torch.cat([ours(row[None])[0] for row in rows if len(row)])
        torch.testing.assert_close(ours(ids, cu_seqlens=cu_seqlens), alone, atol=1e-4, rtol=0)


@pytest.mark.parametrize("at_once", [blocks.SCORES_AT_ONCE, 1])
@pytest.mark.parametrize("weights_kept", [blocks.WEIGHTS_KEPT, 1_000_000, 0])  # of all, of one bucket, of none
@pytest.mark.parametrize("lengths", [[700, 513, 20], [600, 600]])
def test_long_pieces_are_banded_or_computed_again_in_backward_and_stay_equal(
    lengths, weights_kept, at_once, monkeypatch
):
    monkeypatch.setattr(blocks, "SCORES_AT_ONCE", at_once)
    monkeypatch.setattr(blocks, "WEIGHTS_KEPT", weights_kept)
    kept = {b.length: b.kept for b in blocks.Blocks.of(torch.tensor([0, *lengths]).cumsum(0), 2).buckets}
    if len(lengths) == 3:
        assert kept == {704: weights_kept > 0, 528: weights_kept > 1_000_000, 32: True}
    ours, theirs = pair()
    rows, ids, cu_seqlens = pieces(lengths)
    weight = torch.randn(len(ids), SHAPE["vocab_size"])
    got = ours(ids, cu_seqlens=cu_seqlens)
    expected = torch.cat([theirs(input_ids=row[None]).logits[0] for row in rows])
    torch.testing.assert_close(got, expected, atol=1e-4, rtol=0)
    (got * weight).sum().backward()
    (expected * weight).sum().backward()
    gradients = dict(theirs.named_parameters())
    for name, parameter in ours.named_parameters():
        torch.testing.assert_close(
            parameter.grad, gradients[name].grad, atol=1e-3, rtol=1e-3, msg=lambda m, n=name: f"{n}: {m}"
        )


@pytest.mark.parametrize("tied", [True, False])
def test_the_gradient_of_looked_up_rows_is_added_to_the_decoders(tied):
    """On a CPU rows are added to what the decoder gives a tied table; hidden states alone know nothing of that."""
    ours, _ = pair(tie_word_embeddings=tied)
    _, ids, cu_seqlens = pieces([20, 7, 1])
    ids[3:9] = ids[2]  # rows that are looked up more than once
    ids[12] = ours.config.pad_token_id
    weight = torch.randn(len(ids), SHAPE["vocab_size"])
    found = []
    for logits_of in (ours, lambda *a, **k: ours.decoder(ours.head(ours.hidden_states(*a, **k)))):
        ours.zero_grad()
        for scale in (1.0, 0.5):  # gradients of micro-batches add up
            (logits_of(ids, cu_seqlens=cu_seqlens) * weight * scale).sum().backward()
        found.append({name: p.grad.clone() for name, p in ours.named_parameters()})
    for name, gradient in found[0].items():
        assert gradient.layout is torch.strided, name
        torch.testing.assert_close(gradient, found[1][name], rtol=1e-5, atol=1e-5, msg=lambda m, n=name: f"{n}: {m}")
    ours.zero_grad()
    ours.hidden_states(ids, cu_seqlens=cu_seqlens).sum().backward()
    assert ours.model.embeddings.tok_embeddings.weight.grad.layout is torch.strided


@pytest.mark.parametrize("uses", [(True, True), (True, False), (False, True)])
def test_a_tied_table_has_the_gradient_of_those_uses_that_have_one(uses):
    """As where what follows the lookup is frozen, or a loss does without logits."""
    ids, x, found = torch.tensor([1, 1, 4]), torch.randn(2, 3), []
    table = torch.randn(6, 3).requires_grad_()
    for looked_up, multiplied in ((table, table), looked_up_and_multiplied(table)):
        rows = torch.nn.functional.embedding(ids, looked_up, sparse=looked_up is not table)
        terms = [out.square().sum() for out, use in zip((rows, x @ multiplied.mT), uses, strict=True) if use]
        found.append(torch.autograd.grad(sum(terms), table)[0])
    torch.testing.assert_close(*found)
    assert found[1].layout is torch.strided


def test_a_piece_never_sees_its_neighbour():
    ours, _ = pair()
    _, ids, cu_seqlens = pieces([20, 20, 9])
    changed = ids.clone()
    changed[20:40] = (changed[20:40] % 90) + 1
    with torch.no_grad():
        before, after = ours(ids, cu_seqlens=cu_seqlens), ours(changed, cu_seqlens=cu_seqlens)
    same = torch.ones(len(ids), dtype=torch.bool)
    same[20:40] = False
    torch.testing.assert_close(before[same], after[same], atol=1e-5, rtol=0)
    assert (before[~same] - after[~same]).abs().max() > 1e-2


def test_bfloat16_stays_near_float32():
    ours, _ = pair()
    _, ids, cu_seqlens = pieces([100, 64, 64, 9])
    with torch.no_grad():
        exact = ours(ids, cu_seqlens=cu_seqlens)
        with torch.autocast("cpu", torch.bfloat16):
            half = ours(ids, cu_seqlens=cu_seqlens)
    assert ((half.float() - exact).norm() / exact.norm()) < 2e-2


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("compiled", [False, True])
@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor:UserWarning")  # dynamo looks, in torch 2.11
def test_the_varlen_kernel_equals_blocks(compiled):
    ours, _ = pair(max_position_embeddings=2048)
    lengths = [700, 100, 64, 64, 1, 9]
    _, ids, cu_seqlens = pieces(lengths)
    positions = torch.arange(0, len(ids), 3)
    results = []
    for device in ("cpu", "cuda"):
        ours.to(device).zero_grad()
        if compiled and device == "cuda":
            ours.model.compile_layers()
        with torch.autocast(device, torch.bfloat16, enabled=device == "cuda"):
            where = [x.to(device) for x in (ids, cu_seqlens, positions)]
            logits = ours(where[0], cu_seqlens=where[1], max_seqlen=max(lengths), positions=where[2])
            logits.float().square().sum().backward()
        results.append([logits.float().cpu(), *(p.grad.float().cpu().clone() for p in ours.parameters())])
    for exact, half in zip(*results, strict=True):
        assert ((half - exact).norm() / exact.norm()) < 4e-2


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_a_step_on_cuda_does_not_wait_for_the_device():
    ours, _ = pair()
    ours.cuda()
    _, ids, cu_seqlens = pieces([100, 64, 64, 9])
    where = [x.cuda() for x in (ids, cu_seqlens, torch.arange(0, len(ids), 3))]
    torch.cuda.synchronize()
    torch.cuda.set_sync_debug_mode("error")
    try:
        with torch.autocast("cuda", torch.bfloat16):
            ours(where[0], cu_seqlens=where[1], max_seqlen=100, positions=where[2]).float().sum().backward()
    finally:
        torch.cuda.set_sync_debug_mode("default")


def test_weights_go_both_ways_without_loss():
    ours, theirs = pair()
    back = Encoder(EncoderConfig.from_huggingface(theirs.config.to_dict()))
    back.load_state_dict(theirs.state_dict())
    assert all(torch.equal(a, b) for a, b in zip(ours.parameters(), back.parameters(), strict=True))
    assert back.decoder.weight is back.model.embeddings.tok_embeddings.weight


def test_configuration_round_trip_and_older_keys():
    config = EncoderConfig(**SHAPE | {"local_rope_theta": 77.0, "global_attn_every_n_layers": 4})
    assert EncoderConfig.from_huggingface(config.to_huggingface()) == config
    older = config.to_huggingface()
    del older["rope_parameters"], older["layer_types"]
    assert EncoderConfig.from_huggingface(older) == config


def test_what_a_configuration_leaves_out_is_what_transformers_takes():
    told = ModernBertConfig().to_dict()
    ours = EncoderConfig.from_huggingface({"model_type": "modernbert"}).to_huggingface()
    shared = {field.name for field in fields(EncoderConfig)} & told.keys()
    assert len(shared) > 15 and {name: ours[name] for name in shared} == {name: told[name] for name in shared}
    assert ours["rope_parameters"] == told["rope_parameters"]


def test_a_configuration_without_padding_freezes_no_token_and_classifier_options_are_kept():
    torch.manual_seed(0)
    options = {"pad_token_id": None, "classifier_pooling": "cls", "classifier_dropout": 0.2}
    theirs = ModernBertForMaskedLM(ModernBertConfig(**SHAPE | options | {"tie_word_embeddings": False})).eval()
    config = EncoderConfig.from_huggingface(theirs.config.to_dict())
    assert config.to_huggingface().items() >= options.items()
    ours = Encoder(config)
    ours.load_state_dict(theirs.state_dict())
    rows, ids, cu_seqlens = pieces([9])
    ids[3] = rows[0][3] = 0
    ours(ids, cu_seqlens=cu_seqlens).square().sum().backward()
    theirs(input_ids=rows[0][None]).logits.square().sum().backward()
    got, expected = ours.model.embeddings.tok_embeddings.weight, theirs.model.embeddings.tok_embeddings.weight
    assert expected.grad[0].count_nonzero()
    torch.testing.assert_close(got.grad, expected.grad, atol=1e-4, rtol=1e-4)
    table = got.detach().clone()
    ours.start_at_vectors(torch.randn(90, SHAPE["hidden_size"]))
    assert got[0].count_nonzero() and got[90:].equal(table[90:])


@pytest.mark.parametrize("name", PRESETS)
def test_presets_count_their_parameters(name):
    config = preset(name, vocab_size=1000)
    assert config.vocab_size == 1024
    with torch.device("meta"):
        built = sum(p.numel() for p in Encoder(config).parameters())
    assert built == num_parameters(config)


def test_positions_restart_with_each_piece():
    assert positions_within(torch.tensor([0, 3, 3, 5]), 5).tolist() == [0, 1, 2, 0, 1]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"num_attention_heads": 3}, "hidden_size 64 is not an even multiple of num_attention_heads 3"),
        ({"local_attention": 15}, "local_attention 15 is odd"),
        ({"pad_token_id": 96}, "pad_token_id 96 is not below vocab_size 96"),
        ({"local_attention": 0}, "local_attention 0 is not positive; choose at least 1"),
        ({"num_attention_heads": 0}, "num_attention_heads 0 is not positive"),
        ({"hidden_activation": "swoosh"}, "activation 'swoosh' is unknown; choose one of gelu"),
        ({"layer_types": ("full_attention",)}, "for each of 4 layers"),
    ],
)
def test_configuration_errors(changes, message):
    with pytest.raises(ValueError, match=message):
        EncoderConfig(**SHAPE | changes)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"model_type": "bert"}, "model_type 'bert' is not 'modernbert'"),
        ({"attention_dropout": 0.1}, "attention_dropout 0.1 is not supported"),
        ({"rope_parameters": {"full_attention": {"rope_type": "yarn"}}}, "rope_type 'yarn' is not supported"),
        ({"rope_parameters": {"full_attention": {"type": "linear"}}}, "rope_type 'linear' is not supported"),
        ({"rope_parameters": [1]}, r"rope_parameters is \[1\] and no object"),
        ({"layer_types": 3}, "layer_types 3 is no list"),
        ({"hidden_size": "64"}, "hidden_size is '64' and no int; export the model again"),
        ({"norm_eps": True}, "norm_eps is True and no float"),
        ({"rope_scaling": {"type": "linear", "factor": 2.0}}, "rope_scaling of type 'linear' is not supported"),
    ],
)
def test_foreign_configuration_errors(changes, message):
    with pytest.raises(ValueError, match=message):
        EncoderConfig.from_huggingface(EncoderConfig(**SHAPE).to_huggingface() | changes)


def test_input_errors():
    ours, _ = pair(max_position_embeddings=8)
    with pytest.raises(ValueError, match="a piece of 9 tokens exceeds max_position_embeddings 8"):
        ours(torch.ones(9, dtype=torch.int64), cu_seqlens=torch.tensor([0, 9]))
    with pytest.raises(ValueError, match="need cu_seqlens"):
        ours(torch.ones(9, dtype=torch.int64))
    with pytest.raises(ValueError, match="preset 'huge' does not exist; choose one of nano, tiny"):
        preset("huge", vocab_size=10)


def test_it_starts_at_the_frequencies_of_tokens():
    torch.manual_seed(0)
    ours = Encoder(EncoderConfig(**SHAPE))
    counts = torch.arange(90)
    ours.start_at_frequencies(counts)
    probabilities = ours.decoder.bias.softmax(-1)
    torch.testing.assert_close(probabilities[:90], counts / counts.sum(), atol=1e-3, rtol=1e-2)
    assert (probabilities[90:] < 1e-4).all() and ours.decoder.bias.isfinite().all()


@pytest.mark.parametrize("tied", [True, False])
def test_it_starts_at_vectors_that_are_larger_than_random_ones(tied):
    torch.manual_seed(0)
    ours = Encoder(EncoderConfig(**SHAPE | {"tie_word_embeddings": tied, "pad_token_id": 3}))
    before = ours.model.embeddings.tok_embeddings.weight.detach().clone()
    vectors = torch.randn(90, SHAPE["hidden_size"])
    ours.start_at_vectors(vectors)
    table = ours.model.embeddings.tok_embeddings.weight.detach()
    some = torch.tensor([0, 1, 2, *range(4, 90)])
    torch.testing.assert_close(torch.cosine_similarity(table[some], vectors[some]), torch.ones(89))
    assert table[3].count_nonzero() == 0 and torch.equal(table[90:], before[90:])
    torch.testing.assert_close(table[some].std(), 4 * torch.tensor(ours.config.initializer_range), rtol=0.05, atol=0)
    assert (ours.decoder.weight is ours.model.embeddings.tok_embeddings.weight) == tied


@pytest.mark.parametrize("shape", [(96, 63), (97, 64), (64,)])
def test_vectors_that_do_not_fit(shape):
    with pytest.raises(
        ValueError, match=r"do not fit embeddings \(96, 64\); give one of width 64 for each of at most 96"
    ):
        Encoder(EncoderConfig(**SHAPE)).start_at_vectors(torch.zeros(shape))


@pytest.mark.parametrize("local_attention", [32, 8])
def test_full_pieces_within_a_window_that_is_half_as_long_or_banded(local_attention, monkeypatch):
    """No slot is past an end, so that one bias serves all pieces of the bucket; nor has a gradient anything to leave
    out."""
    monkeypatch.setattr(blocks, "LONGEST_KEPT", 16)
    ours, theirs = pair(local_attention=local_attention, global_attn_every_n_layers=2)
    rows, ids, cu = pieces([48, 48, 48])
    got = ours(ids, cu_seqlens=cu)
    expected = torch.cat([theirs(input_ids=row[None]).logits[0] for row in rows])
    torch.testing.assert_close(got, expected, atol=1e-4, rtol=0)
    for logits in (got, expected):
        logits.square().mean().backward()
    for a, b in zip(ours.parameters(), theirs.parameters(), strict=True):
        torch.testing.assert_close(a.grad, b.grad, atol=1e-4 * float(b.grad.abs().max()), rtol=1e-3)


@pytest.mark.parametrize("hooked", ["model.embeddings.tok_embeddings", "model.layers.3.attn.Wqkv", "decoder"])
def test_a_hook_on_a_module_is_not_passed_by(hooked):
    ours, _ = pair()
    calls = []
    ours.get_submodule(hooked).register_forward_hook(lambda *_: calls.append(1))
    _, ids, cu = pieces([30, 20])
    ours(ids, cu_seqlens=cu, positions=torch.tensor([3, 40]))
    assert len(calls) == 1


def test_a_hook_on_the_gated_mlp_is_not_passed_by_where_it_is_compiled_for_cuda(monkeypatch):
    with torch.device("meta"):
        mlp = GatedMLP(EncoderConfig(**SHAPE))
    calls = []
    with torch.no_grad(), FakeTensorMode(allow_non_fake_inputs=True):  # shapes alone, for want of the device
        mlp.to_empty(device="cuda")
        mlp.Wi.register_forward_hook(lambda *_: calls.append(1))
        monkeypatch.setattr(torch.compiler, "is_compiling", lambda: True)
        mlp(torch.empty(3, SHAPE["hidden_size"], device="cuda"))
    assert len(calls) == 1
