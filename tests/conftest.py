"""What holds for every test: the same numbers each time, no network, few threads."""

import os

# Before anything imports them: the tests are offline, and tokenizers must not warn about forks in loader workers.
os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["TOKENIZERS_PARALLELISM"] = "false"

import random

import hypothesis
import numpy as np
import pytest
import torch

if not torch.cuda.is_available():  # then Triton's interpreter runs its kernels; read when Triton is first imported
    os.environ["TRITON_INTERPRET"] = "1"

# Tests are small: more threads cost more than they bring, and results should not depend on the machine's cores.
torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", "2")))


class _TorchRandom:
    """Torch's global generator as hypothesis wants it, so that every example starts from the same state."""

    def seed(self, seed: int) -> None:
        torch.manual_seed(seed)

    def getstate(self) -> torch.Tensor:
        return torch.get_rng_state()

    def setstate(self, state: torch.Tensor) -> None:
        torch.set_rng_state(state)


_torch_random = _TorchRandom()  # hypothesis holds a weak reference only
hypothesis.register_random(_torch_random)

# derandomize: the same examples on every run; deadline=None: no test is timed (torch's first call alone takes seconds).
hypothesis.settings.register_profile("mlm", deadline=None, derandomize=True, max_examples=50, print_blob=True)
hypothesis.settings.load_profile("mlm")


@pytest.fixture(autouse=True)
def _seeded() -> None:
    """Every test starts from the same state of the three global generators."""
    random.seed(0)
    np.random.seed(0)  # noqa: NPY002 -- the libraries under test draw from the global one
    torch.manual_seed(0)
