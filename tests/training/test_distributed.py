"""Several processes train as one does: the same documents, masks and losses, by every engine, from one to another."""

import json
import os
import random
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from rank_jobs import STEPS, trained, trainer

from mlm_pytorch.cli import main
from mlm_pytorch.cli.train import train
from mlm_pytorch.training import distributed
from mlm_pytorch.training.config import TrainConfig
from mlm_pytorch.training.distributed import World, lost_rank, store_of_this_start
from mlm_pytorch.training.metrics import read_metrics
from mlm_pytorch.training.parallel import copy_size

ROOT = Path(__file__).parents[2]
PATIENCE = 900  # seconds for what takes a few on a machine that is free
ALONE = World(device=torch.device("cpu"))

pytestmark = pytest.mark.skipif(not torch.distributed.is_available(), reason="torch is built without distributed")


def free_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return free.getsockname()[1]


def environment(**changes: str) -> dict[str, str]:
    paths = os.pathsep.join([str(ROOT), str(ROOT / "tests")])
    return os.environ | {"PYTHONPATH": paths, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""} | changes


def run_ranks(jobs: str, size: int, folder: Path) -> list[dict]:
    """The reports of `size` processes that do `jobs`."""
    shared = {"WORLD_SIZE": str(size), "LOCAL_WORLD_SIZE": str(size), "MASTER_ADDR": "127.0.0.1"}
    shared["MASTER_PORT"] = str(free_port())
    processes = [
        subprocess.Popen(
            [sys.executable, str(ROOT / "tests/rank_jobs.py"), jobs, str(folder)],
            env=environment(**shared, RANK=str(rank), LOCAL_RANK=str(rank)),
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in range(size)
    ]
    said = [process.communicate(timeout=PATIENCE)[1] for process in processes]
    assert [process.returncode for process in processes] == [0] * size, "\n".join(said)
    return [json.loads((folder / f"{jobs}-{rank}.json").read_text()) for rank in range(size)]


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    return tmp_path_factory.mktemp("ranks")


@pytest.fixture(scope="module")
def four(folder) -> list[dict]:
    return run_ranks("four", 4, folder)


@pytest.fixture(scope="module")
def two(four, folder) -> list[dict]:
    return run_ranks("two", 2, folder)


@pytest.fixture(scope="module")
def alone(folder) -> dict:
    return trained(folder / "alone", ALONE)


def everything_taken(reports: list[dict]) -> list:
    """All micro-batches of all processes: step, borders, masked positions, ids."""
    return sorted(taken for report in reports for taken in report["taken"])


def test_others_wait_for_the_first_one_beyond_any_deadline(four, folder):
    assert [report["prepared"] for report in four] == [str(folder / "prepared")] * 4
    assert [report["nothing"] for report in four] == [None] * 4


def test_a_failure_of_the_first_one_ends_the_others_with_its_message(four):
    said = "corpus.txt does not exist; name another"
    assert four[0]["failed"] == said
    assert [four[rank]["failed"] for rank in (1, 2, 3)] == [
        f"process {rank} ends, since the first one stopped: {said}" for rank in (1, 2, 3)
    ]


def test_processes_agree_on_counts_on_stopping_and_on_the_time(four):
    for report in four:
        assert report["gathered"] == [0, 1, 2, 3]
        assert report["agreement"] == [0 + 1 + 2 + 3, 40, True, 7.5]
        assert report["sum"] == [4.0, 6.0]
        assert report["rows"][0] == report["rows"][1], "DDP's wrapping changes nothing of a model that takes rows"


@pytest.mark.parametrize("engine", ["ddp", "hybrid"])
def test_four_then_two_then_one_process_learn_what_one_learns(engine, four, two, alone, folder):
    """Three packs a step: some processes have none in a step. DDP goes on as FSDP, hybrid as DDP, both end alone."""
    one = trained(folder / engine, ALONE)
    assert [report[engine]["step"] for report in four] == [4] * 4
    assert [report[engine]["step"] for report in two] == [7] * 2
    assert four[0][engine]["saving"] > 0, "what --stop-before has to leave time for"
    assert all(report[engine]["released"] for report in (*four, *two)), "the engine would outlive the process group"
    assert one["finished"] and one["step"] == STEPS
    parts = [[report[engine] for report in four], [report[engine] for report in two], [one]]
    assert everything_taken([report for part in parts for report in part]) == everything_taken([alone])
    for part in parts:
        assert all(report["found"] == part[0]["found"] for report in part), "all know the same of each step"
    found = np.array([step for part in parts for step in part[0]["found"]])
    expected = np.array(alone["found"])
    assert np.array_equal(found[:, :2], expected[:, :2]), "targets and tokens of the whole step"
    assert found[:, 2] == pytest.approx(expected[:, 2], rel=2e-3)  # Muon multiplies in bfloat16,
    assert found[:, 3] == pytest.approx(expected[:, 3], rel=2e-2)  # of which norms of gradients tell sooner
    lines = [line for line in read_metrics(folder / engine / "metrics.jsonl") if "loss" in line]
    assert [line["step"] for line in lines] == list(range(1, STEPS + 1))
    assert [line["loss"] for line in lines] == pytest.approx(expected[:, 2], rel=2e-3)


def test_adamw_in_parts_equals_adamw_alone(four, folder):
    one = trained(folder / "adamw-alone", ALONE, 4, optimizer="adamw")
    assert np.array(four[3]["adamw"]["found"]) == pytest.approx(np.array(one["found"]), rel=1e-4)


def test_lists_of_all_kinds_fall_into_parts(two):
    """Those within lists, which compute nothing; within blocks, which are parts already; a layer listed twice."""
    for report in two:
        nested = report["nested"]
        assert nested["losses"][0] == pytest.approx(nested["losses"][1], rel=1e-5) and nested["gradients"] < 1e-5
        assert nested["gathered"] == 5, "two norms, two layers, and the model with what is left"


def test_a_checkpoint_of_parts_is_whole_weights_and_parts_of_the_optimizer(four, folder):
    newest = folder / "adamw/checkpoints/step-4"
    assert len(list((newest / "optimizer").glob("*.safetensors"))) == 4
    built = trainer(folder / "adamw", ALONE, optimizer="adamw")
    weights = torch.load(newest / "model/weights.pt", weights_only=True)
    for name, parameter in built.model.named_parameters():
        torch.testing.assert_close(parameter.data, weights[name])
        state = next(o.state[parameter] for o in built.optimizers if parameter in o.state)
        assert state["exp_avg"].shape == parameter.shape and state["exp_avg"].any()
        assert int(state["step"]) == 4


def test_a_signal_to_one_process_stops_all_after_the_same_step(four):
    reports = [report["ddp"] for report in four]
    assert [report["finished"] for report in reports] == [False] * 4
    assert [report["stopped"] for report in reports] == ["a signal to another process"] * 3 + ["SIGTERM"]


def test_a_time_budget_ends_all_after_the_same_step(two):
    first, second = (report["timed"] for report in two)
    assert first["finished"] and second["finished"]
    assert (first["step"], first["seconds"]) == (second["step"], second["seconds"])


# ------------------------------------------------------------------------------------------------ the command line


def corpus(folder: Path) -> Path:
    draw = random.Random(0)
    documents = [" ".join(f"w{(start + n) % 90}" for n in range(draw.randrange(5, 40))) for start in range(300)]
    path = folder / "corpus.txt"
    path.write_text("\n".join(documents))
    return path


def children(process: subprocess.Popen) -> list[int]:
    return [int(pid) for pid in Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()]


@pytest.mark.skipif(not Path("/proc/self/task").is_dir(), reason="finds torchrun's processes through Linux' /proc")
def test_two_nodes_one_dies_the_other_says_so_and_one_process_goes_on(tmp_path):
    run = tmp_path / "run"
    train = ["train", str(corpus(tmp_path)), "--out", str(run), "--model", "tiny", "--pack-tokens", "128"]
    train += ["--seq-len", "32", "--vocab-size", "300", "--packs-per-step", "1", "--precision", "float32"]
    train += ["--checkpoint-every", "2steps", "--evaluations", "1"]
    node = [sys.executable, "-m", "torch.distributed.run", "--nnodes", "2", "--nproc-per-node", "1", "--rdzv-id", "t"]
    node += ["--rdzv-backend", "c10d", "--rdzv-endpoint", f"127.0.0.1:{free_port()}", "--local-addr", "127.0.0.1"]
    command = [*node, "-m", "mlm_pytorch", *train, "--parallel", "fsdp", "--budget", "100000steps"]
    nodes = [subprocess.Popen(command, env=environment(), stderr=subprocess.PIPE, text=True) for _ in range(2)]
    try:
        deadline = time.monotonic() + PATIENCE
        while not list(run.glob("checkpoints/step-*")) and all(one.poll() is None for one in nodes):
            assert time.monotonic() < deadline
            time.sleep(0.1)
        if nodes[1].poll() is None:
            os.kill(children(nodes[1])[0], signal.SIGKILL)
        said = [one.communicate(timeout=PATIENCE)[1] for one in nodes]
    finally:
        for one in nodes:
            one.kill()
    assert all(one.returncode for one in nodes), said
    survivor = [line for line in "".join(said).splitlines() if line.startswith("mlm: ")]
    assert len(survivor) == 1, said
    assert "".join(said).count("packs-per-step 1 leaves 1 of 2 processes without work in each step") == 1
    assert "ends, since it lost another one" in survivor[0]
    assert "the same command continues from the last checkpoint" in survivor[0]

    steps = max(int(path.name.removeprefix("step-")) for path in run.glob("checkpoints/step-*"))
    main([*train, "--budget", f"{steps + 2}steps"])
    lines = [line["step"] for line in read_metrics(run / "metrics.jsonl") if "loss" in line]
    assert lines == list(range(1, steps + 3))


def test_torchrun_with_more_processes_than_gpus(monkeypatch):
    for name, value in {
        "WORLD_SIZE": "4",
        "RANK": "3",
        "LOCAL_RANK": "3",
        "MASTER_ADDR": "x",
        "MASTER_PORT": "1",
    }.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    message = "process 3 of this machine has no GPU of its own, there are 2; start torchrun with --nproc-per-node 2"
    with pytest.raises(ValueError, match=message):
        World.from_environment()
    with pytest.raises(ValueError, match="--device cuda:1 is one device, and each of 4 processes takes one of its own"):
        World.from_environment("cuda:1")
    monkeypatch.setattr(distributed, "rendezvous", lambda *_: iter([(None, 3, 4)]))
    monkeypatch.setattr(distributed, "store_of_this_start", lambda store, rank, size: store)
    assert World.from_environment("cpu").device == torch.device("cpu"), "GPUs are left alone where --device says so"


class Answers:
    """A store that has the first process' answers already."""

    def __init__(self, *paths: str | None):
        self.left = list(paths)

    def check(self, keys: list[str]) -> bool:
        return True

    def get(self, key: str) -> bytes:
        path = self.left.pop(0)
        return json.dumps({"value": None} if path is None else {"path": path}).encode()


def test_a_folder_that_another_machine_does_not_see(tmp_path, monkeypatch):
    second = World(1, 2, store=Answers("runs/mine", None, None, None, str(tmp_path / "runs/mine/store")))
    monkeypatch.setattr(World, "from_environment", lambda device: second)
    with pytest.raises(
        ValueError, match=r"process 1 on .* does not see .*store, which .* put --out on a file system that"
    ):
        train(TrainConfig(corpus=("corpus.txt",), out=tmp_path / "runs/mine", model="tiny"))
    assert not list(tmp_path.iterdir()), "only the first process writes"


def test_half_an_environment(monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.delenv("RANK", raising=False)
    with pytest.raises(ValueError, match="WORLD_SIZE is 2, but RANK is not set; start the processes with torchrun"):
        World.from_environment()


@pytest.mark.parametrize(
    "said", ["Connection closed by peer [127.0.0.1]:1", "NCCL communicator was aborted", "Timed out"]
)
def test_a_lost_process_is_told_in_one_line(said):
    with (
        pytest.raises(ConnectionError, match=r"process 3 ends, since it lost another one .*continues") as raised,
        lost_rank(3),
    ):
        raise RuntimeError(f"[gloo/pair.cc:1]\n{said}\nframe #0")
    assert "\n" not in str(raised.value)


def test_other_errors_pass():
    with pytest.raises(RuntimeError, match="mat1 and mat2"), lost_rank(3):
        raise RuntimeError("mat1 and mat2 shapes cannot be multiplied")


def test_alone_nothing_is_sent():
    world = World()
    agreement = world.agree(3, 8, stop=lambda: True, seconds=lambda: 2.5)
    assert (agreement.num_targets, agreement.num_tokens, agreement.stop, agreement.seconds) == (3, 8, True, 2.5)
    assert world.is_main and world.gather(5) == [5] and world.from_main(lambda: ROOT) == ROOT
    world.join()
    world.barrier()
    world.leave()
    assert not torch.distributed.is_initialized()


def test_copies_fall_evenly_on_the_processes():
    eight = World(size=8, local_size=4)
    assert [copy_size(mode, eight) for mode in ("auto", "ddp", "hybrid", "fsdp")] == [1, 1, 4, 8]
    assert copy_size("hybrid", eight, 2) == 2
    with pytest.raises(ValueError, match="--shard-ranks 3 does not divide the 8 processes; give one of 1, 2, 4, 8"):
        copy_size("hybrid", eight, 3)


def test_a_start_takes_nothing_of_an_earlier_one_for_new():
    """torchrun's store outlives the processes that it starts again, and what they wrote. One had not got far."""
    shared = torch.distributed.HashStore()

    def start(ranks: Sequence[int], before: Callable[[int], None] = lambda _: None) -> list[Any]:
        def one(rank: int) -> Any:
            before(rank)
            return store_of_this_start(shared, rank, 3)

        with ThreadPoolExecutor(3) as threads:
            return list(threads.map(one, ranks))

    shared.set("mlm/hello/2", "a process that ended while it waited")
    for _ in range(3):
        stores = start([2, 1, 0], before=lambda rank: time.sleep(0.05 * (rank == 1)))
        assert not any(store.check(["answer"]) for store in stores)
        stores[0].set("answer", "old")
        assert all(store.get("answer") == b"old" for store in stores), "the three are one"
