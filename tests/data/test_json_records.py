"""JSON: arrays, objects and columns of a file that is one value."""

import gzip
import io
import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from readings import TEXT, ids, refused, texts, write

from mlm_pytorch.data.corpus import Corpus, documents
from mlm_pytorch.data.formats import json_records


@pytest.mark.parametrize("indent", [None, 0, 3])
@pytest.mark.parametrize("pack", [bytes, gzip.compress])
def test_json_arrays_and_objects(tmp_path, indent, pack):
    records = [{"text": f'"{i}" \\ {{[', "source": "s", "more": [{"a": [1]}]} for i in range(3)]
    path = write(tmp_path / "a.json", pack(json.dumps(records, indent=indent).encode()))
    assert [(document.text, document.source) for document in documents([path])] == [
        (f'"{i}" \\ {{[', "s") for i in range(3)
    ]
    objects = "\n".join(json.dumps(record, indent=indent) for record in records)
    assert texts(write(path, pack(objects.encode()))) == [f'"{i}" \\ {{[' for i in range(3)]
    assert texts(write(path, pack(b"\xef\xbb\xbf [ ] \n"))) == []
    assert texts(write(path, b"")) == []


@settings(max_examples=60)
@given(
    values=st.lists(TEXT, max_size=6), indent=st.sampled_from([None, 2]), ascii=st.booleans(), chunk=st.integers(1, 9)
)
def test_json_arrays_hold_what_was_written_however_they_are_cut_into_chunks(values, indent, ascii, chunk):
    content = json.dumps([{"text": value} for value in values], indent=indent, ensure_ascii=ascii).encode()
    reader = io.BufferedReader(io.BytesIO(content), chunk)
    assert [json.loads(value)["text"] for value in json_records._Values(reader, "a.json")] == values


@pytest.mark.parametrize("size", [1, 7, 8, 9, 200])
@pytest.mark.parametrize("pack", [bytes, gzip.compress])
def test_json_is_told_by_more_than_its_first_bytes(tmp_path, size, pack):
    blanks, member = " " * size, "x" * size
    for content in (
        f'{blanks}[{{"text": "a"}}]',
        f'{{"{member}": 1,\n "text": "a"}}',
        f'{blanks}{{"{member}": 1, "text": "a"}}\n',
        f'{blanks}\n{{\n"text": "a"}}',
    ):
        assert texts(write(tmp_path / "a.json", pack(content.encode()))) == ["a"], content


def test_lists_of_ids_in_json(tmp_path):
    path = write(
        tmp_path / "a.jsonl", '{"input_ids": [1, 2, 3]}\n{"input_ids": []}\n{"input_ids": null}\n{"input_ids": [0]}'
    )
    corpus = Corpus([path], num_tokens=4)
    assert [document.ids.tolist() for document in corpus] == [[1, 2, 3], [0]]
    assert corpus.empty_documents == 2
    assert ids(write(tmp_path / "b.json", '[{"genes": [7]}]'), column="genes") == [[7]]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ('[{"text": "a"}, 5]', r"a\.json record 2 \(line 1\) begins with b'5'; only objects"),
        ('[\n{"text": "a"}\n{"text": "b"}]', r"line 3: after record 1 comes b'{', not a comma or the end"),
        ('[{"text": "a"},]', r"record 2 \(line 1\) begins with b'\]'"),
        ('[{"text": "a"},\n', r"a\.json ends within its array, after 1 records; it was cut off"),
        ("[", r"a\.json ends within its array, after 0 records"),
        ('[{"text": "a"}]\n{"text": "b"}', r"line 2: more follows the end of the array"),
        ('[{"text": "a}]\n', r"record 1 \(line 1\) has no end; the file was cut off or a quote"),
        ('[{"text": "a"},\n\n{"text": ]}]', r"record 2 \(line 3\) is not JSON \(.*\); repair it"),
        (b'[\n{"text": "a\xff"}]', r"record 1 \(line 2\): byte 0xff is not UTF-8; repair or convert .*replace"),
        ('{\n"text": "a"\n},\n{"text": "b"}', r"record 2 \(line 3\) begins with b','"),
        ('{"text": "a\n{"text": "b"}', r"a\.json line 1 is not JSON"),
        ('{"text": "a"}\n{"text": 1}', r"a\.json line 2: 'text' is a JSON number, not a string or a list of ids"),
        ('"text"', r"a\.json line 1 is a JSON string"),
        (
            '[{"input_ids": [1, "2"]}]',
            r"is a JSON array whose item 2 is of type string, but ids are integers",
        ),
        ('[{"input_ids": [true]}]', r"item 1 is of type boolean"),
        ('[{"input_ids": [1, 2.0]}]', r"item 2 is of type number"),
        ('[{"input_ids": [1, -2]}]', r"record 1 \(line 1\): id -2 is negative; ids count from 0"),
        ('[{"input_ids": [9, 10]}]', r"id 10 is not less than num_tokens 10; repair the data, or name the"),
        (f'[{{"input_ids": [{10**30}]}}]', r"id of more than 20 digits is not less than num_tokens"),
        ('[{"input_ids": "1 2"}]', r"'input_ids' is text, not a list of ids; name another"),
        ('[{"text": "a", "input_ids": [1]}]', r"could mean any of 'text', 'input_ids'; its columns are"),
    ],
)
def test_what_is_wrong_with_json(tmp_path, content, message):
    refused(write(tmp_path / "a.json", content), message, num_tokens=10)


@pytest.mark.parametrize("value", ['"input_ids": [5, 6]', '"text": "a"'])
def test_half_a_character_in_a_source(tmp_path, value):
    path = write(tmp_path / "a.jsonl", f'{{{value}, "source": "x\\ud800"}}\n')
    refused(path, r"a\.jsonl line 1 holds half a character \(\\ud800\); repair it or pass --encoding-errors replace")
    assert [document.source for document in Corpus([path], encoding_errors="replace")] == ["x\ufffd"]


def test_ids_are_checked_without_num_tokens_too(tmp_path):
    refused(write(tmp_path / "a.jsonl", '{"input_ids": [4294967296]}'), r"id 4294967296 is too large; ids must be less")
    refused(write(tmp_path / "a.jsonl", '{"input_ids": [-1]}'), r"line 1: id -1 is negative")
    with pytest.raises(ValueError, match="num_tokens 0 leaves no ids"):
        Corpus([tmp_path], num_tokens=0)
