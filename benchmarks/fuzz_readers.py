"""Damaged files of every format: an error of one line or a result, never a crash, a hang or silent loss. Bar: 10,000.

    .venv/bin/python benchmarks/fuzz_readers.py [--cases 12000] [--seed 0]

Each case damages a small file by its seed (bits flipped, cut off, bytes inserted, repeated, erased, overwritten) and
reads it in another process, with 8 GiB of address space: if that dies it is a crash, if it is silent for ten seconds a
hang, and any exception but a ValueError of one line that names the file is a defect. Loss is found where it can be
known: a file cut off must be refused where its format says where it ends, and else be read as before up to the cut; a
flipped bit under a checksum must be found or be without effect. A defect is printed with its seed.
"""

import argparse
import multiprocessing
import resource
import sys
import tempfile
import time
from collections import Counter
from multiprocessing.connection import Connection
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))

from damaged_files import check, samples
from machine import write_result

HANG_SECONDS = 10
ADDRESS_SPACE = 8 << 30


def work(connection: Connection) -> None:
    """Answer (name, seed) with what became of it, until there is no more."""
    resource.setrlimit(resource.RLIMIT_AS, (ADDRESS_SPACE, ADDRESS_SPACE))
    known = samples()
    while (case := connection.recv()) is not None:
        name, seed = case
        with tempfile.TemporaryDirectory() as folder:
            try:
                outcome = check(known[name], seed, Path(folder))
            except BaseException as error:  # noqa: BLE001 - that there is none is what is tested
                outcome = f"{type(error).__name__}: {error}"
        connection.send(outcome)


class Worker:
    """A process that reads damaged files, and a new one whenever it is gone."""

    def __init__(self) -> None:
        self.start()

    def start(self) -> None:
        """Begin a process, and wait for its imports."""
        self.connection, other = multiprocessing.Pipe()
        context = multiprocessing.get_context("spawn")
        self.process = context.Process(target=work, args=(other,), daemon=True)
        self.process.start()
        other.close()
        self.connection.send(("a.txt", 0))
        self.connection.recv()

    def outcome(self, name: str, seed: int) -> str:
        """What became of a case."""
        self.connection.send((name, seed))
        try:
            if self.connection.poll(HANG_SECONDS):
                return self.connection.recv()
            trouble = "hang"
        except EOFError:
            trouble = "crash"
        self.process.kill()
        self.process.join()
        trouble += f" (exit code {self.process.exitcode})"
        self.start()
        return trouble


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--cases", type=int, default=12_000)
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args()
    names = list(samples())
    worker = Worker()
    counts = {name: Counter(read=0, refused=0) for name in names}
    defects = []
    started = time.perf_counter()
    for case in range(given.cases):
        name, seed = names[case % len(names)], given.seed + case // len(names)
        outcome = worker.outcome(name, seed)
        if outcome in ("read", "refused"):
            counts[name][outcome] += 1
        else:
            defects.append({"file": name, "seed": seed, "defect": outcome})
            print(f"{name} seed {seed}: {outcome}")
    worker.connection.send(None)
    for name, count in counts.items():
        print(f"{name:45} {count['read']:5} read {count['refused']:5} refused")
    print(f"{given.cases:,} damaged files, {len(defects)} defects, {time.perf_counter() - started:.0f} s")
    write_result(
        "fuzz_readers",
        {
            "cases": given.cases,
            "seed": given.seed,
            "files": {k: dict(v) for k, v in counts.items()},
            "defects": defects,
        },
    )
    return int(bool(defects) or given.cases < 10_000)


if __name__ == "__main__":
    sys.exit(main())
