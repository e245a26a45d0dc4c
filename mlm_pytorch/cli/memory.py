"""What a process keeps that it will hardly need again."""

import ctypes
import os


def keep_few_shapes(capacity: int = 256) -> None:
    """Bound how many shapes of matrix products are kept ready; to be called before the first one.

    Packs differ in shape. Both oneDNN and torch's layer above it (ideep) keep the products of the last 1,024 shapes, up
    to half a megabyte each: memory would grow for thousands of steps. With 256 a step of `nano` takes 100 ms, as with
    more, and 0.1 GB more than with 64, where it takes 116.
    """
    for name in ("ONEDNN_PRIMITIVE_CACHE_CAPACITY", "LRU_CACHE_CAPACITY"):
        os.environ.setdefault(name, str(capacity))


def give_back_freed() -> None:
    """Return to the system what was freed and the allocator keeps, where it is glibc's; 100 MB after first embeddings,
    which a small model's training would otherwise have on top of its own.
    """
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if trim is not None:
        trim(0)
