"""What the readers of every format make of a file."""

import numpy as np
import pytest
from hypothesis import strategies as st

from mlm_pytorch.data.corpus import documents


def texts(*paths, **options):
    return [document.text for document in documents(list(paths), **options)]


def ids(*paths, **options):
    found = list(documents(list(paths), **options))
    assert all(document.ids.dtype == np.int64 and document.text == "" for document in found)
    return [document.ids.tolist() for document in found]


def write(path, content):
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return path


def refused(path, message, **options):
    with pytest.raises(ValueError, match=message) as raised:
        list(documents([path], **options))
    assert "\n" not in str(raised.value)


TEXT = st.text(st.characters(exclude_categories=["Cs"]), max_size=12)
