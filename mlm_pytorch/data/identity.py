"""What a preparation is made from: whether one that was interrupted may be continued."""

from collections.abc import Mapping
from typing import Any

import tokenizers

from mlm_pytorch.data import store
from mlm_pytorch.data.corpus import Corpus
from mlm_pytorch.data.encode import Documents

VERSION = 1  # of what a journal holds, and of how a store is written


def identity_of(corpora: Mapping[str, Documents], vocabulary: Any, options: Any) -> dict[str, Any] | None:
    """All that decides about the bytes of a store; None where an input cannot be read again, or cannot be told from
    another one.
    """
    inputs = []
    for reader in corpora.values():
        if any(file.is_stream for file in reader.files):
            return None
        if isinstance(reader, Corpus):
            # Every plain option there is, so that none can be forgotten.
            about = {key: value for key, value in vars(reader).items() if isinstance(value, str | int | None)}
            for counter in ("bytes_done", "empty_documents"):
                about.pop(counter)
        else:
            about = getattr(reader, "identity", None)
            if about is None:
                return None
        files = [
            (str(file.path.absolute()), file.num_bytes, file.path.stat().st_mtime_ns if file.path.exists() else None)
            for file in reader.files
            if file.path is not None
        ]
        inputs.append([about, files])
    sizes = [store.SHARD_TOKENS, store.SHARD_PIECES, store.SHARD_SOURCE_BYTES]
    return {
        "corpus": inputs,
        "tokenizer": vocabulary,
        "set of options": options,
        "version of this program": [VERSION, tokenizers.__version__, *sizes],
    }
