"""What a process keeps that it will hardly need again."""

import os


def keep_few_shapes(capacity: int = 64) -> None:
    """Bound how many shapes of matrix products are kept ready; to be called before the first one.

    Packs differ in shape. Both oneDNN and torch's layer above it (ideep) keep the products of the last 1,024 shapes, up
    to half a megabyte each: memory would grow for thousands of steps, and none of them would be faster.
    """
    for name in ("ONEDNN_PRIMITIVE_CACHE_CAPACITY", "LRU_CACHE_CAPACITY"):
        os.environ.setdefault(name, str(capacity))
