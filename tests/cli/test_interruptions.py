"""Runs that are interrupted and killed: real processes, real signals."""

import json
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from mlm_pytorch.training.metrics import read_metrics

WORDS = ("the", "cat", "sat", "on", "a", "mat", "and", "dog", "ran", "to", "its", "own", "red", "house", "river")
SMALL = ("--model", "nano", "--seq-len", "48", "--pack-tokens", "512", "--vocab-size", "384", "--threads", "1")


@pytest.fixture(scope="module")
def corpus(tmp_path_factory) -> Path:
    draw = random.Random(0)
    lines = (" ".join(draw.choices(WORDS, k=draw.randint(4, 30))) for _ in range(600))
    path = tmp_path_factory.mktemp("corpus") / "corpus.txt"
    path.write_text("".join(f"{line}.\n" for line in lines))
    return path


@pytest.fixture(scope="module")
def command(corpus) -> list[str]:
    """All but `--out` of a run's command line."""
    options = ("--budget", "60steps", "--checkpoint-every", "10steps", "--evaluations", "2", *SMALL)
    return [sys.executable, "-m", "mlm_pytorch", "train", str(corpus), *options]


def trained(command: list[str], out: Path) -> str:
    """What a run says that comes to its end."""
    done = subprocess.run([*command, "--out", str(out)], capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr
    return done.stderr


@pytest.fixture(scope="module")
def whole(command, tmp_path_factory) -> bytes:
    """The weights of a run in one piece."""
    out = tmp_path_factory.mktemp("runs") / "whole"
    trained(command, out)
    return (out / "model/model.safetensors").read_bytes()


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_interrupt_and_continue_equals_one_run(command, whole, tmp_path, number):
    out = tmp_path / "parts"
    child = subprocess.Popen([*command, "--out", str(out)], stderr=subprocess.PIPE, text=True)
    while not (out / "model/config.json").exists():  # the link is set when a checkpoint is complete
        assert child.poll() is None
        time.sleep(0.02)
    child.send_signal(number)
    _, said = child.communicate(timeout=120)
    assert child.returncode == 0 and f"stopped by {signal.Signals(number).name} and saved" in said
    assert (out / "model/model.safetensors").is_file()
    assert "continuing at step" in trained(command, out)
    assert (out / "model/model.safetensors").read_bytes() == whole
    steps = [line["step"] for line in read_metrics(out / "metrics.jsonl") if "loss" in line]
    assert steps == list(range(1, 61))


def test_five_kills_lose_nothing():
    """The benchmark's own check, shortened: bit-identical weights, no gap and no double line in the metrics."""
    script = Path(__file__).parents[2] / "benchmarks/kill.py"
    command = [sys.executable, str(script), "--kills", "5", "--steps", "60", "--no-record"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=900, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert json.loads(done.stdout.splitlines()[-1])["total"] == 5


def test_a_second_signal_ends_the_process(corpus, tmp_path):
    arguments = ["train", str(corpus), "--out", str(tmp_path / "run"), "--budget", "99999steps", *SMALL]
    child = subprocess.Popen([sys.executable, "-m", "mlm_pytorch", *arguments], stderr=subprocess.DEVNULL)
    while not (tmp_path / "run/metrics.jsonl").exists():
        assert child.poll() is None
        time.sleep(0.02)
    while child.poll() is None:
        child.send_signal(signal.SIGTERM)
    assert child.wait() in (128 + signal.SIGTERM, -signal.SIGTERM)  # the latter where the handler was gone again
