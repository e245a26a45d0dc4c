"""What tests of Triton kernels share: on CUDA they are compiled, elsewhere Triton's interpreter runs the same code."""

import pytest
import torch

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
HALF = torch.bfloat16 if DEVICE.type == "cuda" else torch.float16  # the interpreter's numpy has no bfloat16
pytest.importorskip("triton", reason="needs Triton, which comes with torch for CUDA")
