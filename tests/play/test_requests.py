"""Nothing that is sent is taken on trust."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mlm_pytorch.play.requests import MOST_MASKS, RequestError, mask_request, text_request

KNOWN = {"one", "two", "three"}
GOOD = {"text": "a b", "models": ["one", "two"], "masks": [{"word": 1}, {"word": 0, "tokens": 2}], "top_k": 5}


def body(**changes):
    return json.dumps({**GOOD, **changes}).encode()


def test_what_fits_is_read():
    asked = mask_request(body(), KNOWN)
    assert (asked.text, asked.models, asked.masks, asked.top_k) == ("a b", ("one", "two"), {1: None, 0: 2}, 5)
    assert text_request(b'{"text": "\\u6771", "models": ["two"]}', KNOWN).text == "\u6771"


@pytest.mark.parametrize(
    ("sent", "status", "message"),
    [
        (b"", 400, "no JSON"),
        (b"{", 400, "no JSON"),
        (b"\xff\xfe", 400, "no JSON"),
        (b"[" * 100_000, 400, "too deep"),
        (b'{"top_k": ' + b"9" * 5000 + b"}", 400, "no JSON"),
        (b"[]", 400, "no JSON object"),
        (b"null", 400, "no JSON object"),
        (b'{"text": "a"}', 422, "'masks' is missing"),
        (body(extra=1), 422, "'extra' is unknown"),
        (body(text=7), 422, "text is a number"),
        (body(text=None), 422, "text is null"),
        (body(models="one"), 422, "models is a string"),
        (body(models=[]), 422, "1 to 2 different names"),
        (body(models=["one", "one"]), 422, "1 to 2 different names"),
        (body(models=["one", {}]), 422, "1 to 2 different names"),
        (body(models=["one", "two", "three"]), 422, "models has 3 entries, more than 2"),
        (body(models=["../etc"]), 404, "no model '../etc' is served"),
        (body(models=["x" * 1000]), 404, "no model"),
        (body(masks={}), 422, "masks is an object"),
        (body(masks=[{"word": i} for i in range(MOST_MASKS + 1)]), 422, "masks has 33 entries"),
        (body(masks=[3]), 422, "each of masks"),
        (body(masks=[{"word": 1, "at": 2}]), 422, "each of masks"),
        (body(masks=[{"word": True}]), 422, "word is a boolean"),
        (body(masks=[{"word": -1}]), 422, "word is outside 0"),
        (body(masks=[{"word": 1.0}]), 422, "word is a number; send a whole number"),
        (body(masks=[{"word": 1, "tokens": 0}]), 422, "tokens is outside 1 to 8"),
        (body(top_k=0), 422, "top_k is outside 1 to 50"),
        (body(top_k=51), 422, "top_k is outside 1 to 50"),
        (body(top_k="5"), 422, "top_k is a string"),
        (b'{"text": "", "models": ["one"], "masks": [], "top_k": NaN}', 422, "top_k is a number"),
    ],
)
def test_what_does_not_fit_is_named_in_one_short_line(sent, status, message):
    with pytest.raises(RequestError) as refused:
        mask_request(sent, KNOWN)
    assert refused.value.status == status and message in str(refused.value)
    assert len(str(refused.value)) < 250 and "\n" not in str(refused.value)


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from([*GOOD, "word", "tokens"]), inner),
    max_leaves=8,
)


@given(st.dictionaries(st.sampled_from([*GOOD]), JSON), JSON)
def test_any_other_json_is_read_or_refused(fields, alone):
    for sent in ({**GOOD, **fields}, fields, alone):
        try:
            mask_request(json.dumps(sent).encode(), KNOWN)
        except RequestError as refused:
            assert 400 <= refused.status < 500
