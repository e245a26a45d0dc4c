"""A good file of every format, and ways to damage it: shared by the tests and by benchmarks/fuzz_readers.py."""

import bz2
import gzip
import io
import json
import lzma
import random
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import zstandard

from mlm_pytorch.data.corpus import Corpus

COUNT = 40
TEXTS = [f'text "number" {i}, with ümläuts\tand a tab' for i in range(COUNT)]
MULTILINE = [f'line {i}, "quoted"\nand more' if i % 3 else f"plain {i}" for i in range(COUNT)]
SEQUENCES = ["".join(random.Random(i).choices("ACGTacgt", k=30 + i)) for i in range(COUNT)]
IDS = [random.Random(i).choices(range(1000), k=1 + i % 7) for i in range(COUNT)]
COMPRESS: dict[str, Callable[[bytes], bytes]] = {
    "": bytes,
    ".gz": gzip.compress,
    ".zst": zstandard.ZstdCompressor(write_checksum=True).compress,
    ".bz2": bz2.compress,
    ".xz": lzma.compress,
}


@dataclass(frozen=True)
class Sample:
    """Files under their names, the one of them that is damaged, and what of them is named to the reader."""

    files: dict[str, bytes]
    damaged: str
    given: str
    has_end: bool  # whether the format says where it ends, so that a file cut off must be refused
    has_checksum: bool = False  # so that a flipped bit must be found, or be without effect


def samples() -> dict[str, Sample]:
    """One of each kind, under a name for messages."""
    found = {}
    for name, content, has_end in _plain():
        found[name] = Sample({name: content}, name, name, has_end)
    for name in ("a.jsonl", "a.csv", "a.fasta"):
        content = found[name].files[name]
        for suffix in (".gz", ".zst", ".bz2", ".xz"):
            packed = COMPRESS[suffix](content)
            found[name + suffix] = Sample({name + suffix: packed}, name + suffix, name + suffix, True, True)
    saved = _saved()
    for damaged in saved:
        if not damaged.endswith("info.json"):  # which is not read
            found[damaged] = Sample(saved, damaged, "saved", True)
    return found


def _plain() -> list[tuple[str, bytes, bool]]:
    records = [{"text": text, "source": "s"} for text in MULTILINE]
    table = pa.table({"text": MULTILINE, "source": ["s"] * COUNT})
    encoded = table.set_column(0, "text", table["text"].dictionary_encode())
    csv = "text,label\n" + "".join('"{}",{}\n'.format(text.replace('"', '""'), i) for i, text in enumerate(MULTILINE))
    fastq = "".join(f"@r{i}\n{text}\n+\n{'I' * len(text)}\n" for i, text in enumerate(SEQUENCES))
    fasta = "".join(f">r{i}\n{text[:20]}\n{text[20:]}\n" for i, text in enumerate(SEQUENCES))
    npy = io.BytesIO()
    np.save(npy, np.arange(COUNT * 5, dtype=np.uint16).reshape(COUNT, 5))
    return [
        ("a.txt", "\n".join(TEXTS).encode(), False),
        ("a.jsonl", "".join(json.dumps(record, ensure_ascii=False) + "\n" for record in records).encode(), False),
        ("ids.jsonl", "".join(json.dumps({"input_ids": ids}) + "\n" for ids in IDS).encode(), False),
        ("array.json", json.dumps(records).encode(), True),
        ("indented.json", json.dumps(records, indent=1).encode(), True),
        ("objects.json", "\n".join(json.dumps(record, indent=1) for record in records).encode(), False),
        ("a.csv", csv.encode(), False),
        ("a.tsv", "".join(f"{i}\t{text}\n" for i, text in [("n", "text"), *enumerate(MULTILINE[::3])]).encode(), False),
        ("a.fasta", fasta.encode(), False),
        ("a.fastq", fastq.encode(), False),
        ("a.npy", npy.getvalue(), True),
        ("a.parquet", _parquet(table, row_group_size=15, write_page_checksum=True), True),
        ("ids.parquet", _parquet(pa.table({"input_ids": IDS})), True),
        ("file.arrow", _arrow(table, pa.ipc.new_file), True),
        ("stream.arrow", _arrow(table, pa.ipc.new_stream), True),
        (
            "dictionary.arrow",
            _arrow(encoded, pa.ipc.new_file),
            True,
        ),
        ("ids.arrow", _arrow(pa.table({"input_ids": IDS}), pa.ipc.new_stream), True),
        ("lz4.feather", _arrow(table, pa.ipc.new_file, pa.ipc.IpcWriteOptions(compression="lz4")), True),
    ]


def _parquet(table: pa.Table, **options) -> bytes:
    out = io.BytesIO()
    pq.write_table(table, out, **options)
    return out.getvalue()


def _arrow(table: pa.Table, new, options=None) -> bytes:
    out = io.BytesIO()
    with new(out, table.schema, options=options) as writer:
        writer.write_table(table, max_chunksize=15)
    return out.getvalue()


def _saved() -> dict[str, bytes]:
    """What `datasets` writes for a DatasetDict, without its help."""
    shards = [_arrow(pa.table({"text": MULTILINE[start::2]}), pa.ipc.new_stream) for start in range(2)]
    names = [f"data-0000{index}-of-00002.arrow" for index in range(2)]
    state = {"_data_files": [{"filename": name} for name in names], "_fingerprint": "0", "_split": "train"}
    return {
        "saved/dataset_dict.json": json.dumps({"splits": ["train"]}).encode(),
        "saved/train/state.json": json.dumps(state, indent=1).encode(),
        "saved/train/dataset_info.json": b"{}",
        **{f"saved/train/{name}": shard for name, shard in zip(names, shards, strict=True)},
    }


def damage(content: bytes, draw: random.Random) -> tuple[str, bytes]:
    """Damage a file once, twice or thrice; the first word says how, "several" for more than once."""
    kinds = []
    for _ in range(draw.choice((1, 1, 1, 2, 3))):
        kind = draw.choice(("flip", "cut", "insert", "repeat", "erase", "overwrite"))
        place = draw.randrange(max(len(content), 1))
        size = draw.choice((1, 2, 4, 8, 64, 512))
        rest = content[place:]
        if kind == "flip" and rest:
            rest = bytes([rest[0] ^ 1 << draw.randrange(8)]) + rest[1:]
        elif kind == "cut":
            rest = b""
        elif kind == "insert":
            rest = draw.randbytes(size) + rest
        elif kind == "repeat":
            rest = rest[:size] + rest
        elif kind == "erase":
            rest = rest[size:]
        elif kind == "overwrite":
            rest = draw.choice((b"\0", b"\xff", b"\x7f", b'"', b"\n")) * min(size, len(rest)) + rest[size:]
        content = content[:place] + rest
        kinds.append(kind)
    return kinds[0] if len(kinds) == 1 else "several", content


def read(given: Path) -> list[tuple[str, list[int] | None]]:
    """All documents, as values that can be compared."""
    return [
        (document.text, None if document.ids is None else document.ids.tolist())
        for document in Corpus([given], num_tokens=1000)
    ]


def check(sample: Sample, seed: int, folder: Path) -> str:
    """Damage a sample by a seed and read it: "read" or "refused". AssertionError where an error is not one line that
    names the file, or where something was lost without a word.
    """
    kind, content = damage(sample.files[sample.damaged], random.Random(f"{sample.damaged} {seed}"))
    for name, good in sample.files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content if name == sample.damaged else good)
    try:
        found = read(folder / sample.given)
    except ValueError as error:
        assert "\n" not in str(error), f"an error of several lines: {error}"
        assert str(folder) in str(error), f"an error that names no file: {error}"
        assert type(error) is ValueError, f"an error of another library: {error!r}"
        return "refused"
    if content != sample.files[sample.damaged] and kind == "cut":
        assert not sample.has_end, "a file that was cut off was read"
    if kind == "cut" or (kind == "flip" and sample.has_checksum):
        good_folder = folder / "good"
        for name, good in sample.files.items():
            path = good_folder / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(good)
        expected = read(good_folder / sample.given)
        if kind == "cut":
            assert found[:-1] == expected[: max(len(found) - 1, 0)], "what lies before a cut was not read as before"
        else:
            assert found == expected, "a flipped bit under a checksum was read"
    return "read"
