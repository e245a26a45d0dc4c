"""Pretrain a transformer of your own on id tensors of your own. What has to be written around it is marked <-: 4 lines.

    python examples/own_transformer.py [STEPS]          400 steps: half a minute on a laptop

The ids here are walks around a circle of 100 places, one to three places a step; yours may stand for anything.
"""

import sys

import torch
from torch import Tensor, nn

from mlm_pytorch import MLM  # <-

PLACES, PAD, MASK, NUM_TOKENS, LENGTH = 100, 100, 101, 102, 48


class Transformer(nn.Module):
    """Any module will do that takes ids (B, L) and returns logits (B, L, V)."""

    def __init__(self, width: int = 64, depth: int = 2, heads: int = 4):
        super().__init__()
        self.tokens = nn.Embedding(NUM_TOKENS, width)
        self.positions = nn.Embedding(LENGTH, width)
        layer = nn.TransformerEncoderLayer(width, heads, 4 * width, dropout=0.0, batch_first=True, norm_first=True)
        self.layers = nn.TransformerEncoder(layer, depth, norm=nn.LayerNorm(width), enable_nested_tensor=False)
        self.head = nn.Linear(width, NUM_TOKENS)

    def forward(self, ids: Tensor, is_token: Tensor | None = None) -> Tensor:
        hidden = self.tokens(ids) + self.positions.weight[: ids.shape[1]]
        return self.head(self.layers(hidden, src_key_padding_mask=None if is_token is None else ~is_token))


def walks(count: int) -> Tensor:
    """(count, LENGTH) ids: walks of 16 to 48 steps, padded behind their ends."""
    starts, steps = torch.randint(PLACES, (count, 1)), torch.randint(1, 4, (count, LENGTH))
    ends = torch.randint(16, LENGTH + 1, (count, 1))
    return ((starts + steps.cumsum(1)) % PLACES).where(torch.arange(LENGTH) < ends, PAD)


def main(steps: int) -> None:
    torch.manual_seed(0)
    transformer = Transformer()
    mlm = MLM(transformer, mask_token_id=MASK, pad_token_id=PAD, pad_mask_argument="is_token")  # <-
    optimizer = torch.optim.AdamW(transformer.parameters(), lr=3e-3)

    for step in range(1, steps + 1):
        loss = mlm(walks(64))  # <-
        loss.backward()  # <-
        optimizer.step()
        optimizer.zero_grad()
        if step in (1, steps) or step % 100 == 0:
            print(f"step {step}: loss {loss.item():.3f}")

    transformer.eval()
    walk = walks(1)[:, :12]
    shown = walk.where(torch.arange(12) % 4 != 2, MASK)
    guess = transformer(shown).argmax(-1).where(shown == MASK, PAD)
    for name, row in (("walk ", walk), ("shown", shown), ("guess", guess)):
        print(name, *(f"{place:3}" if place < PLACES else "  _" for place in row[0].tolist()))
    torch.save(transformer.state_dict(), "own_transformer.pt")  # nothing of ours is left on it


if __name__ == "__main__":
    main(int(sys.argv[1]) if sys.argv[1:] else 400)
