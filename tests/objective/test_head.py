import pytest
import torch
from torch import nn

from mlm_pytorch.objective import find_head, logits_at
from mlm_pytorch.objective.head import head_width, name_of


def test_finds_what_each_library_offers(make_bert, make_x_transformer, plain):
    bert = make_bert()
    assert find_head(bert) is bert.cls.predictions.decoder
    x = make_x_transformer()
    assert find_head(x) is x.to_logits
    assert find_head(make_x_transformer(tie_embedding=True)) == "to_logits"
    assert find_head(plain) is plain.out


def test_an_attribute_that_names_the_head_comes_first(plain):
    plain.output_head = plain.norm
    assert find_head(plain) is plain.norm


def test_last_linear_of_the_vocabulary_s_width():
    layers = nn.Sequential(
        nn.Embedding(9, 4), nn.Linear(4, 9), nn.Linear(9, 4), nn.Linear(4, 9), nn.Linear(9, 9), nn.ReLU()
    )
    assert find_head(layers) is layers[4]
    assert find_head(layers, num_tokens=4) is layers[2]
    assert find_head(layers, num_tokens=5) is None
    assert find_head(nn.Sequential(nn.Linear(3, 3))) is None


def test_a_table_of_positions_in_front_misleads_nobody():
    layers = [nn.Embedding(8, 8), nn.Embedding(30, 8), nn.Linear(8, 16), nn.Linear(16, 8), nn.Linear(8, 30)]
    assert find_head(nn.Sequential(*layers)) is None, "a Linear as wide as there are positions"
    assert find_head(nn.Sequential(*layers), num_tokens=30) is layers[4]
    tied = nn.Linear(8, 30)
    tied.weight = layers[1].weight
    assert find_head(nn.Sequential(layers[1], tied, nn.Linear(8, 2))) is tied


def test_several_heads_are_none(make_x_transformer):
    assert find_head(make_x_transformer(num_output_heads=2)) is not None  # a Linear inside, for the check to refuse
    assert head_width(make_x_transformer(tie_embedding=True), "to_logits") == 61
    assert head_width(nn.Identity(), None) is None


def test_logits_at_positions(transformer, ids):
    positions = torch.tensor([3, 17, 40, 41, 90])
    head = find_head(transformer)
    dense = transformer(ids)
    dense = getattr(dense, "logits", dense).flatten(0, 1)
    torch.testing.assert_close(logits_at(transformer, head, positions, ids), dense[positions], rtol=1e-4, atol=1e-5)


def test_flat_layout():
    flat = nn.Sequential(nn.Embedding(9, 4), nn.Linear(4, 9))
    ids = torch.arange(7)
    positions = torch.tensor([0, 5])
    torch.testing.assert_close(logits_at(flat, flat[1], positions, ids), flat(ids)[positions])


def test_no_position_at_all(plain, ids):
    logits = logits_at(plain, plain.out, torch.tensor([], dtype=torch.long), ids)
    logits.sum().backward()
    assert logits.shape == (0, 61)
    assert plain.out.weight.grad.abs().sum() == 0


@pytest.mark.parametrize("way", ["keyword", "first of two", "last of two"])
def test_hidden_states_among_other_arguments(way, ids):
    class Scaled(nn.Module):
        def __init__(self):
            super().__init__()
            self.embed, self.out = nn.Embedding(61, 8), nn.Module()
            self.out.linear = nn.Linear(8, 61)
            if way == "first of two":
                self.out.forward = lambda hidden_states, scale: self.out.linear(hidden_states) * scale
            else:
                self.out.forward = lambda scale, hidden_states: self.out.linear(hidden_states) * scale

        def forward(self, ids):
            if way == "keyword":
                return self.out(2, hidden_states=self.embed(ids))
            return self.out(self.embed(ids), 2) if way == "first of two" else self.out(2, self.embed(ids))

    model = Scaled()
    positions = torch.tensor([1, 50])
    torch.testing.assert_close(logits_at(model, "out", positions, ids), model(ids).flatten(0, 1)[positions])


def test_nothing_is_left_behind(transformer, ids):
    before = {name: dict(vars(module)) for name, module in transformer.named_modules()}
    logits_at(transformer, find_head(transformer), torch.tensor([0]), ids)
    with pytest.raises((IndexError, RuntimeError)):
        logits_at(transformer, find_head(transformer), torch.tensor([10**6]), ids)
    for name, module in transformer.named_modules():
        assert not module._forward_pre_hooks
        assert vars(module).keys() == before[name].keys()
    if "to_logits" in vars(transformer):
        assert transformer.to_logits is before[""]["to_logits"]


def test_a_method_as_head_is_uncovered_again(ids):
    class Method(nn.Module):
        def __init__(self):
            super().__init__()
            self.embed = nn.Embedding(61, 8)

        def to_logits(self, x):
            return x @ self.embed.weight.T

        def forward(self, ids):
            return self.to_logits(self.embed(ids))

    model = Method()
    positions = torch.tensor([1, 50])
    torch.testing.assert_close(logits_at(model, "to_logits", positions, ids), model(ids).flatten(0, 1)[positions])
    assert "to_logits" not in vars(model)


def test_names(plain):
    assert name_of(plain, plain.layers.layers[1].linear1) == "layers.layers.1.linear1"
    assert name_of(plain, "out") == "out"
    with pytest.raises(ValueError, match="head 'nowhere' is not in Plain; give a name that named_modules"):
        name_of(plain, "nowhere")
    with pytest.raises(ValueError, match="head Linear is not a part of Plain"):
        name_of(plain, nn.Linear(2, 2))


def test_a_head_without_hidden_states(plain, ids):
    with pytest.raises(ValueError, match="the head got no hidden states to gather from; give another module as head="):
        logits_at(plain, plain.embed, torch.tensor([0]), ids)


@pytest.mark.parametrize("output", [None, (torch.zeros(4, 24, 61),), torch.zeros(4, 24, dtype=torch.long)])
def test_no_logits(output, ids):
    class Mute(nn.Module):
        def __init__(self):
            super().__init__()
            self.out = nn.Linear(2, 2)

        def forward(self, ids):
            return output

    with pytest.raises(
        ValueError, match="Mute returned .*, which is neither a tensor of logits nor an object with .logits"
    ):
        logits_at(Mute(), "out", torch.tensor([0]), ids)
