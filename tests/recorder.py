"""A small transformer that tells what it was given."""

from torch import nn

V = 61  # vocabulary


class Recorder(nn.Module):
    """Passes on what it was given."""

    def __init__(self):
        super().__init__()
        self.net, self.seen = nn.Sequential(nn.Embedding(V, 8), nn.Linear(8, V)), {}

    def forward(self, ids, **kwargs):
        self.seen = kwargs
        return self.net(ids)
