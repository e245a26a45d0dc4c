"""What a preparation is made from: whether one that was interrupted may be continued."""

from collections.abc import Mapping
from typing import Any

import tokenizers

from mlm_pytorch.data import store
from mlm_pytorch.data.corpus import DocumentStream

VERSION = 3  # of what a journal holds, and of how a store is written


def identity_of(corpora: Mapping[str, DocumentStream], vocabulary: Any, options: Any) -> dict[str, Any] | None:
    """All that decides about the bytes of a store; None where an input cannot be read again, or cannot be told from
    another one.
    """
    inputs = {split: reader.identity for split, reader in corpora.items()}
    if None in inputs.values():
        return None
    sizes = [store.SHARD_TOKENS, store.SHARD_PIECES, store.SHARD_SOURCE_BYTES]
    return {
        "corpus": inputs,
        "tokenizer": vocabulary,
        "set of options": options,
        "version of this program": [VERSION, tokenizers.__version__, *sizes],
    }
