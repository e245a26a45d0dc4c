"""Each example is run as a user runs it, shorter, and has to do what it promises."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch

EXAMPLES = Path(__file__).parents[2] / "examples"
MOST_LINES = 80


def run(folder: Path, *command: str, **settings: str) -> str:
    """What an example prints, run in `folder` by the interpreter of the tests."""
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
    places = os.pathsep.join([str(EXAMPLES.parent), os.environ.get("PYTHONPATH", "")])
    ran = subprocess.run(
        command,
        cwd=folder,
        env=os.environ | {"PATH": path, "PYTHONPATH": places, "COLUMNS": "200"} | settings,
        check=False,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=600,
    )
    assert ran.returncode == 0, ran.stdout
    return ran.stdout


def losses(printed: str) -> list[float]:
    return [float(number) for number in re.findall(r"loss (\d+\.\d+)", printed)]


@pytest.mark.parametrize("path", sorted(EXAMPLES.glob("*.[ps][yh]")), ids=lambda path: path.name)
def test_an_example_is_short(path):
    lines = path.read_text(encoding="utf-8").splitlines()
    assert len(lines) <= MOST_LINES
    assert max(map(len, lines)) <= 120


def test_a_transformer_of_ones_own_learns(tmp_path):
    first, *_, last = losses(run(tmp_path, sys.executable, str(EXAMPLES / "own_transformer.py"), "60"))
    assert last < first - 0.3
    weights = torch.load(tmp_path / "own_transformer.pt", weights_only=True)
    assert {name.partition(".")[0] for name in weights} == {"tokens", "positions", "layers", "head"}


def test_what_a_researcher_writes_is_six_lines_at_most():
    source = (EXAMPLES / "own_transformer.py").read_text(encoding="utf-8")
    assert 1 <= source.partition('"""\n\n')[2].count("# <-") <= 6


def test_text_becomes_a_model(tmp_path):
    script = str(EXAMPLES / "text_from_scratch.sh")
    printed = run(tmp_path, "bash", script, OUT="runs/text", BUDGET="3steps", MODEL="tiny")
    assert printed.count("The import") >= 4  # filled by us, then three guesses of transformers' pipeline
    assert "accuracy" in printed
    assert (tmp_path / "runs/text.model/model.safetensors").is_file()
    assert (tmp_path / "runs/text/report.html").is_file()


def test_a_model_is_adapted(tmp_path):
    script = str(EXAMPLES / "adapt_domain.sh")
    printed = run(tmp_path, "bash", script, OUT="runs/adapted", BUDGET="3steps", NEW_TOKENS="50")
    assert "50 tokens added to the vocabulary" in printed
    assert "runs/adapted.start/model" in printed
    lines = [json.loads(line) for line in (tmp_path / "runs/adapted/metrics.jsonl").read_text().splitlines()]
    assert any("keep_loss" in line for line in lines)
    before, after = (
        json.loads((tmp_path / run / "model/tokenizer.json").read_text(encoding="utf-8"))["model"]["vocab"]
        for run in ("runs/adapted.start", "runs/adapted")
    )
    assert len(after) == len(before) + 50


def test_a_fasta_file_becomes_a_protein_model(tmp_path):
    protein = str(EXAMPLES / "protein.py")
    printed = run(tmp_path, sys.executable, protein, "--budget", "8steps")
    assert "amino-acids" in printed
    assert printed.count("guess") == 3
    held_out = [float(loss) for loss in re.findall(r"held-out loss (\d\.\d+)", printed)]
    assert held_out[-1] < held_out[0]
    similarities = [float(number) for number in re.findall(r"-?\d\.\d\d", printed.partition("similarities")[2])]
    assert similarities[0::4] == [1.0, 1.0, 1.0]


def test_a_fasta_file_of_ones_own(tmp_path):
    fasta = "".join(f">protein {n}\n{'MKTAYIAKQRQISFVKSHFS' * 2}\n{'RQLEERLGLIEVQCDNW'[n % 9 :]}\n" for n in range(40))
    (tmp_path / "mine.fasta").write_text(fasta)
    command = ["mine.fasta", "--budget", "1steps", "--out", "runs/mine"]
    printed = run(tmp_path, sys.executable, str(EXAMPLES / "protein.py"), *command)
    assert "protein 2\n" in printed


def test_lightning_and_the_trainer_learn(tmp_path):
    from transformers import AutoModelForMaskedLM

    first, last, first_of_trainer, last_of_trainer = [
        float(number)
        for pair in re.findall(
            r"loss (\d\.\d+), then (\d\.\d+)",
            run(tmp_path, sys.executable, str(EXAMPLES / "lightning_and_trainer.py"), "12"),
        )
        for number in pair
    ]
    assert last < first - 0.3
    assert last_of_trainer < first_of_trainer - 0.3
    assert first == pytest.approx(first_of_trainer, abs=0.1)
    for name in ("lightning", "trainer"):
        AutoModelForMaskedLM.from_pretrained(tmp_path / "runs/lightning_and_trainer" / name)


def test_the_notebook_runs(tmp_path):
    """In a kernel as Jupyter starts it, since its cells are shell commands too."""
    notebook = tmp_path / "first_hour.ipynb"
    notebook.write_bytes((EXAMPLES / "first_hour.ipynb").read_bytes())
    run(tmp_path, "jupyter", "execute", "--inplace", "--timeout=600", str(notebook), BUDGET="3steps")
    cells = json.loads(notebook.read_text(encoding="utf-8"))["cells"]
    assert all(cell["execution_count"] for cell in cells if cell["cell_type"] == "code")
    assert (tmp_path / "runs/first/model/model.safetensors").is_file()


def test_the_notebook_keeps_the_outputs_of_a_run_that_went_through():
    cells = [c for c in json.loads((EXAMPLES / "first_hour.ipynb").read_text())["cells"] if c["cell_type"] == "code"]
    assert [cell["execution_count"] for cell in cells] == list(range(1, len(cells) + 1))
    outputs = [output for cell in cells for output in cell["outputs"]]
    assert all(output["output_type"] != "error" for output in outputs)
    assert any("image/png" in output.get("data", {}) for output in outputs)
