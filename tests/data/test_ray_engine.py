"""Encoding on a Ray cluster: what threads give, in the same order, whatever dies on the way."""

import gzip
import json
import os
import pickle
import re
import signal
import subprocess
import sys
from contextlib import nullcontext, suppress
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from stores import contents, write_jsonl

from mlm_pytorch.data import encode as encode_module
from mlm_pytorch.data import ray_engine as module
from mlm_pytorch.data.corpus import Corpus
from mlm_pytorch.data.encode import EncodedBatch, Position, encode_threaded, read_batches
from mlm_pytorch.data.prepare import prepare
from mlm_pytorch.data.ray_engine import cut_into_units, encode_on_ray, encode_unit

# Ray's own: it sets fields of its configuration that it calls deprecated.
pytestmark = pytest.mark.filterwarnings("ignore:.*is deprecated:DeprecationWarning")

WORDS = ["the", "cat", "sat", "on", "a", "mat", "dog", "not", "naïve", "ran", "[MASK]", "日本"]


@pytest.fixture(scope="module")
def cluster():
    """A head without cores and two nodes with one each: as on machines of their own, save for the network."""
    pytest.importorskip("ray", reason="Ray is not installed (the extra `ray`)")
    from ray.cluster_utils import Cluster

    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("RAY_AUTH_MODE", "disabled")
        patch.delenv("RAY_ADDRESS", raising=False)
        cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 0, "object_store_memory": 80 << 20})
        for _ in range(2):
            cluster.add_node(num_cpus=1, object_store_memory=80 << 20)
        patch.setenv("RAY_ADDRESS", cluster.address)
        yield cluster
        cluster.shutdown()


def damaged_jsonl(path, lines):
    path.write_text('{"text": "the cat sat"}\n' * lines + "{\n")


def write_corpus(folder, sizes, seed=0):
    """Files of several formats with so many documents, some of them blank."""
    folder.mkdir()
    random = np.random.default_rng(seed)
    for index, size in enumerate(sizes):
        texts = [" ".join(random.choice(WORDS, random.integers(0, 30))) for _ in range(size)]
        records = "".join(
            json.dumps({"text": text, "source": f"s{number % 3}"}) + "\n" for number, text in enumerate(texts)
        )
        name = folder / f"{index:03d}"
        if index % 4 == 0:
            name.with_suffix(".jsonl.gz").write_bytes(gzip.compress(records.encode()))
        elif index % 4 == 1:
            name.with_suffix(".txt").write_text("\n".join(texts))
        elif index % 4 == 2:
            pq.write_table(pa.table({"text": pa.array(texts, pa.string())}), name.with_suffix(".parquet"))
        else:
            name.with_suffix(".jsonl").write_text(records)
    return folder


def same(batches: list[EncodedBatch], others: list[EncodedBatch]) -> bool:
    one, other = EncodedBatch.join(batches), EncodedBatch.join(others)
    arrays = ("ids", "lengths", "characters", "bytes", "hashes")
    return all(np.array_equal(getattr(one, name), getattr(other, name)) for name in arrays) and (
        (one.sources, one.num_read, one.words) == (other.sources, other.num_read, other.words)
    )


def encoded_by_threads(tokenizer, corpus):
    return list(encode_threaded(tokenizer, read_batches(corpus), 2))


# -- units and parts, without Ray --------------------------------------------------------------------------------------


@settings(deadline=None, max_examples=50)
@given(sizes=st.lists(st.integers(0, 400), min_size=1, max_size=12), cores=st.integers(1, 5), limit=st.integers(1, 900))
def test_units_are_the_files_in_order(tmp_path_factory, sizes, cores, limit):
    folder = tmp_path_factory.mktemp("units")
    for index, size in enumerate(sizes):
        (folder / f"{index:02d}.txt").write_bytes(b"a" * size)
    corpus = Corpus([folder])
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "UNIT_BYTES", limit)
        patch.setattr(module, "SMALLEST_UNIT_BYTES", 1)
        units = cut_into_units(corpus, cores)
    assert [file for unit in units for file in unit.files] == corpus.files
    for unit in units:
        assert len(unit.files) == 1 or sum(file.num_bytes for file in unit.files) <= limit
    for unit, following in pairwise(units):  # none could be one with the next
        assert sum(file.num_bytes for file in unit.files + following.files[:1]) > min(limit, sum(sizes) // (4 * cores))


def test_units_have_absolute_paths(tmp_path, monkeypatch):
    (tmp_path / "a.txt").write_text("a cat")
    monkeypatch.chdir(tmp_path)
    [unit] = cut_into_units(Corpus(["a.txt"]), 1)
    assert (unit.files[0].path, unit.files[0].label) == (tmp_path / "a.txt", "a.txt")


def parts_of(corpus, tokenizer, part_tokens, versions=None):
    """What tasks send for each unit of a corpus: batches, or errors."""
    versions = module._versions() | (versions or {})
    for unit in cut_into_units(corpus, 1):
        for part in encode_unit(pickle.dumps((unit, Position())), dict(tokenizer.files), versions, part_tokens):
            yield pickle.loads(part)


@settings(deadline=None, max_examples=40)
@given(
    sizes=st.lists(st.integers(0, 12), min_size=1, max_size=6),
    part_tokens=st.integers(1, 300),
    batch_characters=st.integers(1, 300),
    limit=st.sampled_from([1, 1000, 1 << 20]),
    interrupted=st.integers(0, 20),
)
def test_parts_are_the_corpus(tokenizer, tmp_path_factory, sizes, part_tokens, batch_characters, limit, interrupted):
    """Also from where an interrupted preparation came to; Ray is replaced by calling its task in a loop."""
    corpus = Corpus([write_corpus(tmp_path_factory.mktemp("parts") / "corpus", sizes, sum(sizes))])

    def run(ray, units, task):
        for unit in units:
            for table in task(pa.table({"unit": [unit]})):
                yield pickle.loads(table["part"][0].as_py())

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(encode_module, "BATCH_CHARACTERS", batch_characters)
        patch.setattr(module, "UNIT_BYTES", limit)
        patch.setattr(module, "PART_TOKENS", part_tokens)
        patch.setattr(module, "_run", run)
        patch.setattr(module, "_joined", lambda ray, address: nullcontext())
        patch.setattr(module, "_import_ray", lambda: SimpleNamespace(cluster_resources=dict))
        expected = encoded_by_threads(tokenizer, corpus)
        found = list(encode_on_ray(tokenizer, corpus, Position()))
        assert found[-1].position == expected[-1].position
        for before in (expected, found):
            stop = min(interrupted, len(before) - 1)
            at = before[stop].position
            assert same([*before[: stop + 1], *encode_on_ray(tokenizer, corpus, at)], expected)
            rest = encode_threaded(tokenizer, read_batches(corpus, at), 1)
            assert same([*before[: stop + 1], *rest], expected)


def test_an_error_is_the_last_part(tokenizer, tmp_path):
    damaged_jsonl(tmp_path / "a.jsonl", 600)
    parts = list(parts_of(Corpus([tmp_path]), tokenizer, 100))
    assert all(isinstance(part, EncodedBatch) for part in parts[:-1])
    assert re.search(r"a.jsonl line 601 is not JSON", str(parts[-1]))


def test_nodes_that_differ(tokenizer, tmp_path):
    file = write_jsonl(tmp_path / "a.jsonl", ["the cat"])
    corpus = Corpus([file])
    [error] = parts_of(corpus, tokenizer, 100, {"tokenizers": "0.1.2"})
    assert re.fullmatch(
        r"node \S+ of the cluster has tokenizers \S+, but .* with 0.1.2; install the same .*", str(error)
    )
    file.write_text("longer than before" * 10)
    [error] = parts_of(corpus, tokenizer, 100)
    assert re.match(r".*a.jsonl has 180 bytes on node \S+ .*, but 20 where .*; put the corpus where", str(error))
    file.unlink()
    [error] = parts_of(corpus, tokenizer, 100)
    assert re.fullmatch(
        r".*a.jsonl cannot be read on node \S+ .* \(No such file .*\); put the corpus where .*", str(error)
    )


# -- what is refused ---------------------------------------------------------------------------------------------------


def test_without_ray(tokenizer, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "ray", None)
    corpus = Corpus([write_jsonl(tmp_path / "a.jsonl", ["the cat"])])
    with pytest.raises(ValueError, match=r"engine ray needs Ray .*; run pip install '\.\[ray\]' in the checkout"):
        list(encode_on_ray(tokenizer, corpus, Position()))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"workers": 2}, "workers 2 is for threads, but engine ray uses every core of its cluster; leave it out"),
        ({"drop_duplicates": True}, "drop_duplicates reads the corpus on one machine, so engine ray does not do it"),
    ],
)
def test_options_of_one_machine(tokenizer, tmp_path, options, message):
    write_jsonl(tmp_path / "a.jsonl", ["the cat"])
    with pytest.raises(ValueError, match=message):
        prepare([tmp_path / "a.jsonl"], tmp_path / "store", tokenizer=tokenizer, engine="ray", **options)


def test_a_mixture(tokenizer, monkeypatch):
    monkeypatch.setattr(module, "_import_ray", lambda: None)
    with pytest.raises(ValueError, match="engine ray reads files, not a mixture of corpora; leave out --engine ray"):
        list(encode_on_ray(tokenizer, SimpleNamespace(files=[]), Position()))


def test_standard_input(tokenizer):
    with pytest.raises(ValueError, match="standard input can be read only once, and only here, .*; save it to a file"):
        cut_into_units(Corpus(["-"]), 1)


def test_no_cluster_there(tokenizer, tmp_path):
    pytest.importorskip("ray")
    corpus = Corpus([write_jsonl(tmp_path / "a.jsonl", ["the cat"])])
    with pytest.raises(ValueError, match=r"the Ray cluster at 127.0.0.1:9 cannot be joined \(.*\); check that it runs"):
        list(encode_on_ray(tokenizer, corpus, Position(), "127.0.0.1:9"))


def test_a_node_without_the_package(tokenizer, tmp_path):
    pytest.importorskip("ray")
    from ray import cloudpickle

    (tmp_path / "task").write_bytes(cloudpickle.dumps(module._task({}, {"mlm-pytorch": "1.2.3"}, 1)))
    program = (
        "import pathlib, pickle, sys; sys.modules['mlm_pytorch'] = None; from ray import cloudpickle;"
        "[table] = cloudpickle.loads(pathlib.Path(sys.argv[1]).read_bytes())(None);"
        "print(pickle.loads(table['part'][0].as_py()))"
    )
    run = subprocess.run([sys.executable, "-c", program, tmp_path / "task"], capture_output=True, text=True, check=True)
    assert re.match(r"node \S+ of the cluster cannot import mlm-pytorch .*; install version 1.2.3 there", run.stdout)


# -- on a cluster ------------------------------------------------------------------------------------------------------


def test_the_same_documents_and_the_same_error_as_threads(cluster, tokenizer, tmp_path, monkeypatch):
    import ray

    corpus = Corpus([write_corpus(tmp_path / "corpus", [30, 0, 1, 50, 7, 200, 3, 3])])
    damaged_jsonl(tmp_path / "a.jsonl", 5000)
    (tmp_path / "b.jsonl").write_text("[")
    damaged = Corpus([tmp_path / "a.jsonl", tmp_path / "b.jsonl"])
    expected = encoded_by_threads(tokenizer, corpus)
    with pytest.raises(ValueError, match=r"a.jsonl line 5001 is not JSON") as by_threads:
        encoded_by_threads(tokenizer, damaged)
    ray.init(log_to_driver=False)  # a program of the user's, whose connection stays
    try:
        found = list(encode_on_ray(tokenizer, corpus, Position()))
        monkeypatch.setattr(module, "UNIT_BYTES", 1)  # b.jsonl fails first
        with pytest.raises(ValueError, match=re.escape(str(by_threads.value))):
            list(encode_on_ray(tokenizer, damaged, Position()))
        assert ray.is_initialized()
    finally:
        ray.shutdown()
    assert same(found, expected)
    assert found[-1].position == expected[-1].position


def busy_workers(cluster):
    """Process ids of workers of this cluster that are running a task of Ray Data."""
    for node in cluster.list_all_nodes():
        for raylet in node.all_processes.get("raylet", ()):
            for thread in Path(f"/proc/{raylet.process.pid}/task").iterdir():
                for child in map(int, (thread / "children").read_text().split()):
                    with suppress(OSError):  # it has ended
                        if Path(f"/proc/{child}/cmdline").read_bytes().startswith(b"ray::MapBatches(task)"):
                            yield child


@pytest.mark.skipif(not Path("/proc/self/task").exists(), reason="finds workers in /proc")
def test_what_dies_midway_loses_nothing(cluster, tokenizer, tmp_path, monkeypatch):
    monkeypatch.setattr(module, "UNIT_BYTES", 1)  # a file each
    monkeypatch.setattr(module, "PART_TOKENS", 50_000)
    folder = tmp_path / "corpus"
    folder.mkdir()
    for index in range(10):
        lines = (f"{index} {line} {'the cat sat on the mat and the dog did not ' * 5}\n" for line in range(2000))
        (folder / f"{index:02d}.txt").write_text("".join(lines))
    expected = prepare([folder], tmp_path / "threads", tokenizer=tokenizer)
    killed: list[int] = []
    nodes = cluster.list_all_nodes()

    def kill(state):
        if not killed:
            killed.extend(busy_workers(cluster))
            for process in killed:
                os.kill(process, signal.SIGKILL)
        elif (state.documents or 0) > 6000 and nodes:
            cluster.remove_node(nodes[-1], allow_graceful=False)
            nodes.clear()

    found = prepare([folder], tmp_path / "ray", tokenizer=tokenizer, engine="ray", progress=kill)
    assert killed
    assert not nodes
    assert contents(tmp_path / "ray") == contents(tmp_path / "threads")
    assert replace(found, seconds=0, out=expected.out) == replace(expected, seconds=0)
    assert found.documents == 20_000
