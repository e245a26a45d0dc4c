"""What tests of Triton kernels share: on CUDA they are compiled, elsewhere Triton's interpreter runs the same code."""

from importlib import metadata

import numpy as np
import pytest
import torch

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
HALF = torch.bfloat16 if DEVICE.type == "cuda" else torch.float16  # the interpreter's numpy has no bfloat16
pytest.importorskip("triton", reason="needs Triton, which comes with torch for CUDA")


def _release(version: str) -> tuple[int, ...]:
    return tuple(map(int, version.split(".")[:2]))


if DEVICE.type == "cpu" and _release(metadata.version("triton")) < (3, 7) and _release(np.__version__) >= (2, 4):
    # It takes numbers from arrays of one element, as NumPy no longer lets it.
    reason = f"the interpreter of Triton {metadata.version('triton')} does not work with NumPy {np.__version__}"
    pytest.skip(reason, allow_module_level=True)
