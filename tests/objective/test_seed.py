"""What users of the seed's class rely on, and its defects, each with a law that its logic breaks."""

import math

import pytest
import torch
from torch import nn

from mlm_pytorch.objective import MLM


class Recorder(nn.Module):
    """Shows what a transformer sees."""

    def __init__(self, num_tokens=200):
        super().__init__()
        self.net = nn.Sequential(nn.Embedding(num_tokens, 8), nn.Linear(8, num_tokens))

    def forward(self, ids):
        self.seen = ids
        return self.net(ids)


def run(ids, **settings):
    transformer = Recorder()
    output = MLM(transformer, **settings)(ids, return_output=True)
    selected = torch.zeros(ids.numel(), dtype=torch.bool)
    selected[output.positions] = True
    return transformer.seen, selected.view_as(ids), output


def test_readme_example(make_x_transformer, make_bert, make_plain, tmp_path):
    """The README's lines, with its transformer made small, for each kind of transformer, on CUDA where there is one."""
    from torch.optim import Adam

    device = "cuda" if torch.cuda.is_available() else "cpu"
    for transformer in (make_x_transformer(), make_bert(), make_plain()):
        trainer = MLM(
            transformer,
            mask_token_id=2,
            pad_token_id=0,
            mask_prob=0.15,
            replace_prob=0.90,
            mask_ignore_token_ids=[],
        ).to(device)
        opt = Adam(trainer.parameters(), lr=3e-3)
        data = torch.randint(0, 61, (8, 32)).to(device)
        losses = []
        for _ in range(15):
            loss = trainer(data)
            loss.backward()
            opt.step()
            opt.zero_grad()
            losses.append(loss.item())
        assert sum(losses[-3:]) < sum(losses[:3])
        torch.save(transformer, tmp_path / "pretrained-model.pt")
        torch.load(tmp_path / "pretrained-model.pt", weights_only=False)


def test_random_tokens_stay_among_the_selected():
    """The seed overwrites a share of all positions, specials and padding included, most of them outside the loss."""
    ids = torch.randint(10, 200, (16, 64))
    ids[:, 0], ids[:, 40], ids[:, 50:] = 3, 4, 0
    seen, selected, _ = run(ids, num_tokens=200, random_token_prob=0.5, mask_ignore_token_ids=[3, 4])
    assert torch.equal(seen[~selected], ids[~selected])
    assert not selected[(ids == 3) | (ids == 4) | (ids == 0)].any()
    assert not torch.isin(seen[selected & (seen != ids)], torch.tensor([0, 3, 4])).any()


@pytest.mark.parametrize("length", [1, 7, 30])
def test_an_all_padding_batch_gives_zero(length):
    """The seed gives NaN."""
    _, _, output = run(torch.zeros(4, length, dtype=torch.long))
    assert output.loss == 0
    assert output.loss.requires_grad


@pytest.mark.parametrize("side", ["left", "right"])
def test_padded_rows_get_their_share(side):
    """The seed gives left-padded rows ceil(p * L), however short they are."""
    ids = torch.zeros(8, 100, dtype=torch.long)
    for row, count in enumerate(range(5, 85, 10)):
        ids[row, slice(-count, None) if side == "left" else slice(count)] = 7
    _, selected, _ = run(ids)
    assert selected.sum(1).tolist() == [math.ceil(0.15 * count) for count in range(5, 85, 10)]


def test_a_row_that_starts_with_an_ignored_token_gets_no_more():
    """The seed masks one token too many there."""
    ids = torch.randint(10, 200, (32, 21))
    ids[:, 0] = 5
    _, selected, _ = run(ids, mask_ignore_token_ids=[5])
    assert (selected.sum(1) == 3).all()


def test_the_padding_id_is_no_label():
    """The seed ignores labels by the padding id: a padding id selected by another road would vanish from the count."""
    ids = torch.randint(1, 200, (4, 32))
    labels = torch.full_like(ids, -100)
    labels[0, 5] = 9
    transformer = Recorder()
    output = MLM(transformer)(ids, labels=labels, return_output=True)
    assert output.num_targets == 1
    assert output.labels.tolist() == [9]


def test_only_selected_positions_meet_the_vocabulary():
    """The seed computes logits everywhere."""
    transformer = Recorder()
    rows = []
    transformer.net[1].register_forward_hook(lambda module, args, output: rows.append(output.shape[:-1].numel()))
    model = MLM(transformer)
    ids = torch.randint(10, 200, (8, 40))
    model(ids)
    rows.clear()
    model(ids)
    assert rows == [8 * 6]
