"""The shape of the project: who may import whom, what importing costs, where tests stand."""

import ast
import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import mlm_pytorch

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "mlm_pytorch"

# Each room, and the rooms that it may import besides itself. The rooms at the edge may import all.
TRAINS = {"objective", "data", "encoder", "masking", "modes", "tokens"}
MAY_IMPORT: dict[str, set[str]] = {
    "tokens": set(),
    "modes": set(),
    "masking": {"tokens"},
    "data": {"tokens"},
    "encoder": {"tokens"},
    "objective": {"masking", "modes", "tokens"},
    "training": TRAINS,
    "adaptation": {"data", "encoder", "tokens"},
    "evaluation": TRAINS,
    "huggingface": {"encoder", "masking", "modes", "tokens"},
}
EDGE = {"__init__", "__main__", "cli", "demo", "doctor", "report", "play"}
NO_ROOM = {"utils", "util", "helpers", "common", "misc"}

# What `from mlm_pytorch import *` must not load: it is torch and our own modules, so that it costs next to nothing.
HEAVY = {"accelerate", "datasets", "matplotlib", "pandas", "pyarrow", "ray", "rich", "safetensors", "tensorboard"}
HEAVY |= {"tokenizers", "transformers", "tyro", "yaml", "zstandard"}


def imported_modules(path: Path, package: Path) -> Iterator[tuple[int, str]]:
    """Line and dotted name of every import in a file, inside functions too, with relative ones made absolute."""
    module = (package.name, *path.relative_to(package).with_suffix("").parts)
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield node.lineno, alias.name
        elif isinstance(node, ast.ImportFrom):
            base = [*module[: -node.level]] if node.level else []
            base += node.module.split(".") if node.module else []
            if base == [package.name]:  # `from mlm_pytorch import masking` names a room only in what it imports
                for alias in node.names:
                    yield node.lineno, f"{package.name}.{alias.name}"
            else:
                yield node.lineno, ".".join(base)


def violations(package: Path) -> list[str]:
    """Every import that leads where the table does not allow, every module without a room, every `utils`."""
    found = []
    for path in sorted(package.rglob("*.py")):
        parts = path.relative_to(package).with_suffix("").parts
        where = path.relative_to(package.parent).as_posix()
        found += [f"{where}: no room is called {part}" for part in parts if part in NO_ROOM]
        room = parts[0]
        if room in EDGE:
            continue
        if room not in MAY_IMPORT:
            found.append(f"{where}: the room {room} is not in the table of who may import whom")
            continue
        for line, name in imported_modules(path, package):
            target = name.split(".")
            if target[0] == package.name and (target[1:2] or ["__init__"])[0] not in MAY_IMPORT[room] | {room}:
                found.append(f"{where}:{line}: {room} may not import {name}")
    return found


def test_imports_go_one_way():
    assert violations(PACKAGE) == []


@pytest.mark.parametrize(
    ("path", "source", "report"),
    [
        ("masking/a.py", "from mlm_pytorch.data import store", "mlm_pytorch/masking/a.py:1: masking may not import"),
        ("masking/a.py", "from ..objective.loss import cross_entropy", "may not import mlm_pytorch.objective.loss"),
        ("masking/a.py", "from .. import data", "masking may not import mlm_pytorch.data"),
        ("objective/a.py", "def f():\n    import mlm_pytorch.data.store", "a.py:2: objective may not import"),
        ("training/a.py", "from mlm_pytorch import evaluation", "training may not import mlm_pytorch.evaluation"),
        ("evaluation/a.py", "from mlm_pytorch.training.trainer import Trainer", "evaluation may not import"),
        ("training/deep/a.py", "from ...huggingface import load", "training may not import mlm_pytorch.huggingface"),
        ("data/__init__.py", "from ..masking import select_tokens", "data may not import mlm_pytorch.masking"),
        ("tokens.py", "import mlm_pytorch", "tokens may not import mlm_pytorch"),
        ("huggingface.py", "from mlm_pytorch.training import Trainer", "huggingface may not import"),
        ("data/utils.py", "", "no room is called utils"),
        ("plumbing/a.py", "", "the room plumbing is not in the table"),
    ],
)
def test_the_walk_catches_a_planted_violation(tmp_path, path, source, report):
    planted = tmp_path / "mlm_pytorch" / path
    planted.parent.mkdir(parents=True)
    planted.write_text(source)
    found = violations(tmp_path / "mlm_pytorch")
    assert len(found) == 1
    assert report in found[0]


@pytest.mark.parametrize(
    ("path", "source"),
    [
        ("masking/a.py", "import torch\nfrom mlm_pytorch.tokens import SpecialTokens\nfrom .scores import draw_scores"),
        ("masking/__init__.py", "from .scores import draw_scores\nfrom . import selection"),
        ("objective/a.py", "from mlm_pytorch import masking, tokens\nfrom mlm_pytorch.masking import corrupt"),
        ("evaluation/a.py", "from ..objective import cross_entropy\nfrom ..data.batches import batches"),
        ("cli.py", "from mlm_pytorch import evaluation, training, huggingface"),
    ],
)
def test_the_walk_lets_allowed_imports_pass(tmp_path, path, source):
    module = tmp_path / "mlm_pytorch" / path
    module.parent.mkdir(parents=True)
    module.write_text(source)
    assert violations(tmp_path / "mlm_pytorch") == []


def test_importing_the_package_loads_nothing_heavy():
    probe = (
        "import json, sys, torch; before = set(sys.modules); from mlm_pytorch import *; "
        "print(json.dumps(sorted(set(sys.modules) - before)))"
    )
    run = subprocess.run([sys.executable, "-c", probe], cwd=ROOT, capture_output=True, text=True, check=True)
    loaded = set(json.loads(run.stdout))
    assert "mlm_pytorch.objective.mlm" in loaded
    assert {name.partition(".")[0] for name in loaded} & HEAVY == set()
    assert "torch._dynamo" not in loaded  # the compiler: more than a second


@pytest.mark.parametrize("arguments", [["--help"], ["train", "--help"], ["train", "text.txt", "--budgit", "2m"]])
def test_help_needs_no_torch(arguments):
    probe = (
        "import sys\nfrom mlm_pytorch.cli import main\n"
        "try: main(sys.argv[1:])\nfinally: print('torch' in sys.modules, file=sys.stderr)"
    )
    run = subprocess.run([sys.executable, "-c", probe, *arguments], capture_output=True, text=True, check=False)
    assert run.stderr.splitlines()[-1] == "False"
    assert "usage: mlm" in run.stdout or "did you mean --budget?" in run.stderr


def test_names_of_the_package_come_when_they_are_asked_for():
    probe = "import mlm_pytorch as m; print(m.masking.RateSchedule is m.RateSchedule, set(m.__all__) <= set(dir(m)))"
    assert subprocess.check_output([sys.executable, "-c", probe], cwd=ROOT, text=True).split() == ["True", "True"]
    with pytest.raises(AttributeError, match="'mlm_pytorch' has no attribute 'MML'"):
        mlm_pytorch.MML  # noqa: B018


def modules_in_the_tree(page: str) -> set[str]:
    """The modules that an annotated tree names: two blanks of indentation per level, a name, then what it is for."""
    found, folders = set(), []
    for line in page.partition("```text\n")[2].partition("```")[0].splitlines():
        name = line.split()[0]
        folders[(len(line) - len(line.lstrip())) // 2 :] = [name]
        if name.endswith(".py") and folders[0] == "mlm_pytorch/":
            found.add("".join(folders))
    return found


def test_the_annotated_tree_is_true():
    modules = {path.relative_to(ROOT).as_posix() for path in PACKAGE.rglob("*.py")}
    rooms = {f"mlm_pytorch/{path.name}/__init__.py" for path in PACKAGE.iterdir() if path.is_dir()}
    assert modules_in_the_tree((ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")) == modules - rooms


def test_tests_mirror_the_package():
    rooms = {path.name for path in PACKAGE.iterdir()}
    assert {test.parent.name for test in (ROOT / "tests").glob("*/test_*.py")} <= rooms | {"docs", "examples"}


def test_tests_need_no_packages():
    assert list((ROOT / "tests").rglob("__init__.py")) == []  # pytest imports by path (importmode=importlib)
