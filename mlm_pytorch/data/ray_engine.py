"""Encode a corpus on a Ray cluster: what takes the place of the worker threads in `prepare(engine="ray")`.

    cut the corpus into units: runs of consecutive files of about equal size      (this process)
    a unit -> parts: read, decompress, parse, encode                              (tasks on any node, one per CPU core)
    parts -> encoded batches in the order of the corpus, whatever is done first   (this process)

Ray Data hands out the units, brings the parts into order, holds tasks back while this process is behind, and does again
what was lost with a worker or a node. Two rules make that safe:

- The parts that a task sends are decided by its unit alone. Ray takes of a repeated task only the parts that it lacks,
  by their number.
- What is wrong with the corpus travels as a part of its own, not as an exception. So the first error in the order of
  the corpus is the one that is raised, as one line, just as without a cluster; and Ray does not repeat what must fail.

Ray is imported only here, and only when used.
"""

import copy
import functools
import logging
import os
import pickle
import socket
import tempfile
from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import fields, replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

from mlm_pytorch.data.corpus import Corpus, DocumentStream
from mlm_pytorch.data.encode import TOKENIZER_THREADS, EncodedBatch, Position, encode_batch, read_batches
from mlm_pytorch.data.tokenizer import Tokenizer, load_tokenizer

UNIT_BYTES = 1 << 25  # of corpus files: what a killed worker has to do again, at most, and what balances the load
UNITS_PER_CORE = 4  # of a small corpus, so that no core is left over
SMALLEST_UNIT_BYTES = 1 << 18
PART_TOKENS = 1 << 20  # in one object of Ray's store: large enough that handing it over costs next to nothing
CONNECT_SECONDS = 10
SAME_EVERYWHERE = ("mlm-pytorch", "tokenizers")  # packages that decide about ids


def encode_on_ray(
    tokenizer: Tokenizer, corpus: DocumentStream, start: Position, address: str | None = None
) -> Generator[EncodedBatch, None, None]:
    """Encode a corpus from `start` on, on a Ray cluster, in its order: what `encode_threaded` makes of `read_batches`,
    in larger batches.

    Joins the cluster at `address` (None: the one that RAY_ADDRESS names, else one that runs on this machine, else a
    local one is started, and stopped at the end); Ray that is initialized in this process already is used as it is. The
    nodes must see the corpus under the paths that it has here, and hold the same mlm-pytorch and tokenizers. Memory
    here is bounded by a few parts of `PART_TOKENS`.

    Raises ValueError when Ray is not installed, the cluster cannot be joined, a node does not see a file or has other
    versions, an input is a pipe, or the corpus is no `Corpus` of files; and what reading it here would raise.

    >>> sum(len(batch) for batch in encode_on_ray(tokenizer, Corpus(["/shared/corpus/"]), Position()))
    85090
    """
    ray = _import_ray()
    if not isinstance(corpus, Corpus):
        raise ValueError("engine ray reads files, not a mixture of corpora; leave out --engine ray")
    with _joined(ray, address):
        units = cut_into_units(corpus, int(ray.cluster_resources().get("CPU", 1)), start.file)
        if not units:
            return
        # Units count from their own beginning; of the first file, what comes before the start is passed over.
        before = Position(start.documents_before, start.empty_before, start.bytes_before, start.file - 1).next_file()
        starts = [Position(start.documents - start.documents_before)] + [Position()] * (len(units) - 1)
        tasks = [pickle.dumps(task) for task in zip(units, starts, strict=True)]
        remaining = [len(unit.files) for unit in reversed(units)]
        files = dict(tokenizer.files)
        for batch in _run(ray, tasks, _task(files, _versions(), PART_TOKENS)):
            at = _after(before, batch.position)
            yield replace(batch, position=at)
            if batch.position.file == remaining[-1]:  # the end of a unit
                before = at
                remaining.pop()


def _after(before: Position, at: Position) -> Position:
    """A position in a unit as one in the corpus; the unit begins at `before`."""
    return Position(*(getattr(before, field.name) + getattr(at, field.name) for field in fields(Position)))


def cut_into_units(corpus: Corpus, cores: int, first: int = 0) -> list[Corpus]:
    """Corpora of consecutive files, from the file number `first` on: each of at most `UNIT_BYTES` or one file, and
    smaller for few bytes on many cores.

    >>> [len(unit.files) for unit in cut_into_units(corpus_of_three_small_files, cores=1)]
    [3]
    """
    files = corpus.files[first:]
    piped = [file.label for file in files if file.is_stream]
    if piped:
        raise ValueError(
            f"{piped[0]} can be read only once, and only here, so not by a cluster; save it to a file that every node "
            "sees, or leave out --engine ray"
        )
    sizes = [file.num_bytes or 0 for file in files]
    limit = min(UNIT_BYTES, max(SMALLEST_UNIT_BYTES, sum(sizes) // (UNITS_PER_CORE * cores)))
    units: list[Corpus] = []
    unit_bytes = 0
    for file, size in zip(files, sizes, strict=True):
        if not units or unit_bytes + size > limit:
            unit = copy.copy(corpus)
            unit.files, unit.skipped_files, unit_bytes = [], [], 0
            units.append(unit)
        # A worker runs in another folder.
        units[-1].files.append(file if file.path is None else replace(file, path=file.path.absolute()))
        unit_bytes += size
    return units


# -- Ray ---------------------------------------------------------------------------------------------------------------


def _import_ray() -> Any:
    """The package `ray` with `ray.data`."""
    try:
        import ray  # pyright: ignore[reportMissingImports]
        import ray.data  # pyright: ignore[reportMissingImports]
    except ImportError as error:
        raise ValueError(
            f"engine ray needs Ray with its data library, which cannot be imported here ({error}); "
            "run pip install '.[ray]' in the checkout"
        ) from None
    return ray


@contextmanager
def _joined(ray: Any, address: str | None) -> Iterator[None]:
    """Connect to a cluster or start a local one, without Ray's messages on the console, and leave it at the end."""
    if ray.is_initialized():
        yield
        return
    named = address or os.environ.get("RAY_ADDRESS")
    try:
        if named not in (None, "auto", "local"):
            host, _, port = named.rpartition("://")[2].rpartition(":")
            # Ray itself would try for many minutes.
            socket.create_connection((host.strip("[]"), int(port)), CONNECT_SECONDS).close()
        ray.init(address=address, log_to_driver=False, logging_level=logging.ERROR, include_dashboard=False)
    except (OSError, RuntimeError, ValueError, ray.exceptions.RayError) as error:
        reason = " ".join(str(error).split())
        cluster = "a local Ray cluster" if named is None else f"the Ray cluster at {named}"
        raise ValueError(
            f"{cluster} cannot be joined ({reason}); check that it runs (ray status), its address (host:port), "
            "RAY_AUTH_MODE=token if it wants one, and that Python and Ray have the same versions there as here"
        ) from None
    try:
        yield
    finally:
        ray.shutdown()  # leaves a cluster that we did not start as it is


def _run(ray: Any, units: Sequence[bytes], task: Callable[[Any], Iterator[Any]]) -> Iterator[EncodedBatch]:
    """The parts of all units in their order, from tasks of Ray Data."""
    context = ray.data.DataContext.get_current().copy()
    context.execution_options.preserve_order = True
    context.enable_progress_bars = False
    # One part is one block: if Ray joined or split parts by what it estimates of their sizes, a task that is repeated
    # would have to come to the same number of blocks.
    context.target_max_block_size = 1
    with _quiet(logging.getLogger("ray.data")), ray.data.DataContext.current(context):
        rows = [{"unit": unit} for unit in units]
        dataset = ray.data.from_items(rows, override_num_blocks=len(rows))
        dataset = dataset.map_batches(task, batch_size=None, batch_format="pyarrow", zero_copy_batch=True)
        with closing(iter(dataset.iter_batches(batch_size=None, batch_format="pyarrow"))) as blocks:
            for block in blocks:
                for part in block.column("part"):
                    # From a task of ours; and who can write to the cluster can run code on it anyway.
                    content = pickle.loads(part.as_buffer())  # noqa: S301
                    if isinstance(content, Exception):
                        raise content
                    yield content


@contextmanager
def _quiet(logger: logging.Logger) -> Iterator[None]:
    before = logger.level
    logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        logger.setLevel(before)


def _task(files: dict[str, bytes], versions: dict[str, str], part_tokens: int) -> Callable[[Any], Iterator[Any]]:
    """What Ray runs on a unit: a table of it -> a table of each part. The arguments are those of `encode_unit`.

    It is no function of this module, so that Ray sends it by value: a node without mlm-pytorch must be able to say so.
    """

    def task(table: Any) -> Iterator[Any]:
        import pyarrow as pa

        def block(part: bytes) -> Any:
            return pa.table({"part": pa.array([part], pa.large_binary())})

        try:
            from mlm_pytorch.data.ray_engine import encode_unit
        except ImportError as error:
            message = (
                f"node {socket.gethostname()} of the cluster cannot import mlm-pytorch ({error}); install version "
                f"{versions['mlm-pytorch']} there"
            )
            yield block(pickle.dumps(ValueError(message)))
            return
        for unit in table.column("unit").to_pylist():
            yield from map(block, encode_unit(unit, files, versions, part_tokens))

    return task


# -- the workers -------------------------------------------------------------------------------------------------------


def _versions() -> dict[str, str]:
    return {package: version(package) for package in SAME_EVERYWHERE}


def encode_unit(
    unit: bytes, files: dict[str, bytes], versions: dict[str, str], part_tokens: int = PART_TOKENS
) -> Iterator[bytes]:
    """The parts of a pickled unit and where to start in it, pickled: batches with positions in the unit; an error, if
    there is one, at last.

    `files` are those of the tokenizer, `versions` those of the packages where the
    preparation was started.
    """
    os.environ[TOKENIZER_THREADS] = "false"  # a task has one core
    corpus: Corpus
    corpus, start = pickle.loads(unit)  # noqa: S301 - from the process that started this one
    try:
        _check_node(corpus, versions)
        tokenizer = _loaded(tuple(files.items()))
        for part in _parts(tokenizer, corpus, start, part_tokens):
            yield pickle.dumps(part, protocol=5)
    except (ValueError, OSError) as error:
        yield pickle.dumps(error)


def _check_node(corpus: Corpus, versions: dict[str, str]) -> None:
    """Raise ValueError where this node would not give what others give."""
    node = f"node {socket.gethostname()} of the cluster"
    for package, found in _versions().items():
        if found != versions[package]:
            raise ValueError(
                f"{node} has {package} {found}, but the preparation was started with {versions[package]}; install the "
                "same version everywhere"
            )
    for file in corpus.files:
        if file.path is None:  # an address, which is the same everywhere
            continue
        try:
            size = file.path.stat().st_size
        except OSError as error:
            raise ValueError(
                f"{file.label} cannot be read on {node} ({error.strerror}); put the corpus where every node sees it "
                "under the same path"
            ) from None
        if size != file.num_bytes:
            raise ValueError(
                f"{file.label} has {size:,} bytes on {node}, but {file.num_bytes:,} where the preparation was started; "
                "put the corpus where every node sees the same files"
            )


@functools.lru_cache(maxsize=1)
def _loaded(files: tuple[tuple[str, bytes], ...]) -> Tokenizer:
    """A process serves many units: it builds the tokenizer once."""
    with tempfile.TemporaryDirectory() as folder:
        for name, content in files:
            Path(folder, name).write_bytes(content)
        return load_tokenizer(folder)


def _parts(tokenizer: Tokenizer, corpus: Corpus, start: Position, part_tokens: int) -> Iterator[EncodedBatch]:
    """The corpus from `start` on in parts of at least `part_tokens`; the last one is what is left, up to the end."""
    batches: list[EncodedBatch] = []
    for read in read_batches(corpus, start):
        if sum(len(batch.ids) for batch in batches) >= part_tokens:
            yield EncodedBatch.join(batches)
            batches = []
        batches.append(encode_batch(tokenizer, read))
    yield EncodedBatch.join(batches)
