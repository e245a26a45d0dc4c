"""What a process keeps and what it gives back."""

import ctypes
import subprocess
import sys

import pytest

PINNED = """
from mlm_pytorch.cli.memory import give_back_freed

def resident():
    with open("/proc/self/statm") as pages:
        return int(pages.read().split()[1]) * 4096

held = [bytes(1 << 16) for _ in range(3200)]  # 200 MB below the last one, which stays
held.append(bytes(1 << 16))
del held[:-1]
before = resident()
give_back_freed()
print(before - resident())
"""


@pytest.mark.skipif(not hasattr(ctypes.CDLL(None), "malloc_trim"), reason="glibc's allocator alone keeps what is freed")
def test_what_is_freed_goes_back_to_the_system():
    done = subprocess.run([sys.executable, "-c", PINNED], capture_output=True, text=True, check=True)
    assert int(done.stdout) > 100e6
