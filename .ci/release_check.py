"""Is what would be released whole, and does it work where the repository is not? `make release-check` runs this.

Builds the sdist and, from it, the wheel; looks into both; installs the wheel into an environment of its own under
`constraints.txt`; and runs the README's call and the command from there, in a folder outside the repository. Every
fault is one line, and all are told before it ends. Needs nothing but Python >= 3.11 and a registry to install from.
"""

import argparse
import json
import os
import re
import shutil
import subprocess
import sys
import tarfile
import tempfile
import tomllib
import venv
import zipfile
from collections.abc import Iterable
from email import message_from_bytes
from email.message import Message
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
PACKAGE = "mlm_pytorch"
COMMAND = "mlm = mlm_pytorch.cli:main"
# All that the sdist may hold besides the package: what the wheel is built from, and the papers.
PAPERS = {"PKG-INFO", "pyproject.toml", "README.md", "LICENSE", "CHANGELOG.md", "constraints.txt", ".gitignore"}
CORPUS = "\n\n".join(
    f"Sentence {n} of a small corpus: the cat sat on mat {n % 7}, and the dog lay by it." for n in range(400)
)


# -- what is written down ----------------------------------------------------------------------------------------------


def requirement_name(requirement: str) -> str:
    """The normalized name of a requirement.

    >>> requirement_name("ray[data]>=2.60"), requirement_name("PyYAML")
    ('ray', 'pyyaml')
    """
    name = re.match(r"[A-Za-z0-9._-]+", requirement.strip())
    return re.sub(r"[-_.]+", "-", name[0]).lower() if name else ""


def version_faults(pyproject: dict, init: str, changelog: str) -> list[str]:
    """Whether the version stands in one place, and is that of the changelog's newest entry."""
    faults = []
    stated = re.findall(r'^__version__ = "([^"]+)"$', init, re.MULTILINE)
    if len(stated) != 1:
        return [f"{PACKAGE}/__init__.py states {len(stated)} versions; it is the one place that states one"]
    if "version" in pyproject["project"] or "version" not in pyproject["project"].get("dynamic", []):
        faults.append(f"pyproject.toml states a version of its own; list it as dynamic, {PACKAGE}/__init__.py has it")
    newest = re.search(r"^## \[([^\]]+)\]", changelog, re.MULTILINE)
    if newest is None:
        faults.append("CHANGELOG.md has no entry; its newest begins with a line like ## [1.0.0] - 2026-01-31")
    elif newest[1] != stated[0]:
        faults.append(f"the package is {stated[0]} and CHANGELOG.md's newest entry is {newest[1]}; change one of them")
    if not re.fullmatch(r"\d+\.\d+\.\d+((a|b|rc)\d+)?", stated[0]):
        faults.append(f"version {stated[0]} is not MAJOR.MINOR.PATCH, as semantic versioning has it")
    return faults


def pin_faults(pyproject: dict, constraints: str) -> list[str]:
    """Whether every direct dependency, of extras too, has a version in `constraints.txt`."""
    pinned = {requirement_name(line) for line in constraints.splitlines() if "==" in line}
    project = pyproject["project"]
    wanted = {"": project["dependencies"], **project["optional-dependencies"]}
    return [
        f"constraints.txt has no version of {requirement_name(one)}, which {extra or 'the package'} needs; pin it"
        for extra, requirements in wanted.items()
        for one in requirements
        if requirement_name(one) not in pinned | {requirement_name(project["name"])}
    ]


def metadata_faults(metadata: Message, pyproject: dict, version: str) -> list[str]:
    """Whether a wheel's metadata say what `pyproject.toml` and the package do."""
    project, faults = pyproject["project"], []
    for field, wanted in (
        ("Name", project["name"]),
        ("Version", version),
        ("Summary", project["description"]),
        ("Requires-Python", project["requires-python"]),
        ("License-Expression", project["license"]),
        ("Description-Content-Type", "text/markdown"),
    ):
        if metadata[field] != wanted:
            faults.append(f"the wheel's {field} is {metadata[field]!r}, not {wanted!r}; see pyproject.toml")
    if "LICENSE" not in metadata.get_all("License-File", []):
        faults.append("the wheel's metadata name no licence file; see license-files in pyproject.toml")
    extras = set(metadata.get_all("Provides-Extra", []))
    if extras != set(project["optional-dependencies"]):
        faults.append(f"the wheel's extras are {sorted(extras)}, not {sorted(project['optional-dependencies'])}")
    classifiers = set(metadata.get_all("Classifier", []))
    oldest = project["requires-python"].removeprefix(">=")
    wanted = {"Typing :: Typed", f"Programming Language :: Python :: {oldest}"}
    faults += [f"the classifier {one} is missing; add it to pyproject.toml" for one in sorted(wanted - classifiers)]
    licences = [one for one in classifiers if one.startswith("License ::")]
    if licences:
        faults.append(f"the classifier {licences[0]} says again what the licence expression says; remove it")
    for url in metadata.get_all("Project-URL", []):
        address = url.partition(",")[2].strip()
        if not re.fullmatch(r"https://[\w.-]+\.\w+(/[^<>\s]*)?", address) or "example." in address:
            faults.append(f"the project URL {url!r} is no public https:// address; mend or remove it")
    return faults


# -- what was built ----------------------------------------------------------------------------------------------------


def package_files(root: Path) -> set[str]:
    """Every file of the package, as a wheel names them: code, py.typed, and the pages of report and play."""
    files = (path for path in (root / PACKAGE).rglob("*") if path.is_file())
    return {path.relative_to(root).as_posix() for path in files if "__pycache__" not in path.parts}


def wheel_faults(names: Iterable[str], files: set[str]) -> list[str]:
    """Whether a wheel holds the package's files, the licence and its metadata, and nothing else."""
    found = set(names)
    info = {name for name in found if re.match(rf"{PACKAGE}-[^/]+\.dist-info/", name)}
    faults = [f"the wheel lacks {name}; see tool.hatch.build in pyproject.toml" for name in sorted(files - found)]
    faults += [f"the wheel carries {name}, which is no file of the package" for name in sorted(found - files - info)]
    if not any(name.endswith("/licenses/LICENSE") for name in info):
        faults.append("the wheel lacks LICENSE; see license-files in pyproject.toml")
    return faults


def sdist_faults(names: Iterable[str], files: set[str]) -> list[str]:
    """Whether an sdist holds the package and the papers, and nothing else: no tests, test data or benchmarks."""
    found = {name.partition("/")[2] for name in names}
    faults = [f"the sdist lacks {name}" for name in sorted((files | PAPERS - {".gitignore"}) - found)]
    strays = sorted(found - files - PAPERS)
    if strays:
        more = f" and {len(strays) - 1} more" if len(strays) > 1 else ""
        faults.append(f"the sdist carries {strays[0]}{more}; only the package and its papers travel")
    return faults


def readme_call(readme: str) -> str:
    """The README's first block of Python, which calls MLM on the reader's `transformer` and `token_ids`.

    Raises:
        ValueError: there is none.
    """
    block = re.search(r"```python\n(.*?)```", readme, re.DOTALL)
    if block is None or "MLM(" not in block[1]:
        raise ValueError("README.md does not begin with a call of MLM in Python, which is what a newcomer tries first")
    return block[1]


# -- what it does elsewhere --------------------------------------------------------------------------------------------


def call(*command: str | Path, cwd: Path) -> str:
    """Standard output of a command that knows nothing of this repository.

    Raises:
        ValueError: it failed; with the command, and its last line.
    """
    environment = {k: v for k, v in os.environ.items() if k not in ("PYTHONPATH", "PYTHONHOME", "VIRTUAL_ENV")}
    done = subprocess.run([*map(str, command)], cwd=cwd, env=environment, capture_output=True, text=True, check=False)
    if done.returncode:
        said = (done.stderr or done.stdout).strip().splitlines() or ["nothing"]
        shown = " ".join(Path(part).name if Path(part).is_absolute() else str(part) for part in command)
        raise ValueError(f"`{' '.join(shown.split())}` ended with {done.returncode}: {said[-1].strip()}")
    return done.stdout


def environment(folder: Path, *requirements: str, root: Path) -> Path:
    """A new environment with `requirements` under constraints.txt; returns the folder of its commands."""
    venv.create(folder, with_pip=True)
    index = os.environ.get("TORCH_INDEX")
    more = ["--extra-index-url", index] if index else []
    commands = folder / "bin"
    pip = (commands / "python", "-m", "pip", "--disable-pip-version-check")
    call(*pip, "install", "--quiet", *more, "-c", root / "constraints.txt", *requirements, cwd=folder)
    call(*pip, "check", cwd=folder)
    return commands


def smoke_faults(commands: Path, folder: Path, readme: str) -> list[str]:
    """Use what was installed as a newcomer would: the README's call, then files to a model that fills in masks."""
    (folder / "corpus.txt").write_text(CORPUS, encoding="utf-8")
    (folder / "call.py").write_text(
        "import torch\nfrom torch import nn\n"
        "transformer = nn.Sequential(nn.Embedding(100, 32), nn.Linear(32, 100))\n"
        f"token_ids = torch.randint(3, 100, (4, 32))\n{readme_call(readme)}\n"
        "assert loss.isfinite() and transformer[0].weight.grad is not None\n"
        "import mlm_pytorch\nprint(mlm_pytorch.__file__)\n",
        encoding="utf-8",
    )
    faults = []

    def attempt(*command: str) -> str:
        try:
            return call(commands / command[0], *command[1:], cwd=folder)
        except ValueError as error:
            faults.append(str(error))
            return ""

    where = attempt("python", "call.py")
    if where and not Path(where.split()[-1]).is_relative_to(commands.parent):
        faults.append(f"mlm_pytorch was imported from {where.split()[-1]}, not from where the wheel was installed")
    attempt("mlm", "demo", "--budget", "5s", "--out", "demo")
    attempt(
        "mlm", "train", "corpus.txt", "--out", "run", "--model", "tiny", "--vocab-size", "300", "--budget", "2steps"
    )
    filled = attempt("mlm", "fill", "run", "the cat sat on the [MASK]", "--json")
    if filled and not json.loads(filled)["masks"]:
        faults.append("`mlm fill run … --json` named no mask")
    measured = attempt("mlm", "evaluate", "run", "--json")
    if measured and not json.loads(measured)["num_targets"]:
        faults.append("`mlm evaluate run --json` measured nothing")
    attempt("mlm", "report", "run", "--out", "page.html")
    attempt("mlm", "export", "run", "exported")
    wanted = ("demo/report.html", "run/model/model.safetensors", "page.html", "exported/config.json")
    faults += [
        f"{name} is missing after the commands that write it" for name in wanted if not (folder / name).is_file()
    ]
    return faults


# -- all of it ---------------------------------------------------------------------------------------------------------


def tell(title: str, faults: list[str]) -> int:
    """Print what a check found; returns the number of faults."""
    print(f"ok    {title}" if not faults else "\n".join(f"FAIL  {title}: {fault}" for fault in faults), flush=True)
    return len(faults)


def main() -> int:
    """Run all checks; returns how many faults there are."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=ROOT / "dist", help="where wheel and sdist are left (dist/)")
    out = parser.parse_args().out.resolve()
    read = {
        name: (ROOT / name).read_text(encoding="utf-8") for name in ("README.md", "CHANGELOG.md", "constraints.txt")
    }
    init = (ROOT / PACKAGE / "__init__.py").read_text(encoding="utf-8")
    pyproject = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    count = tell("one version, the changelog's", version_faults(pyproject, init, read["CHANGELOG.md"]))
    count += tell("every direct dependency is pinned", pin_faults(pyproject, read["constraints.txt"]))
    with tempfile.TemporaryDirectory(prefix="release-check-") as temporary:
        folder = Path(temporary)
        try:
            tools = environment(folder / "tools", "build", "hatchling", root=ROOT)
            call(tools / "python", "-m", "build", "--no-isolation", "--outdir", folder / "built", ROOT, cwd=folder)
        except ValueError as error:
            return count + tell("wheel and sdist are built", [str(error)])
        (wheel,), (sdist,) = (folder / "built").glob("*.whl"), (folder / "built").glob("*.tar.gz")
        files = package_files(ROOT)
        with tarfile.open(sdist) as archive:
            count += tell("the sdist", sdist_faults((one.name for one in archive if one.isfile()), files))
        with zipfile.ZipFile(wheel) as archive:
            count += tell("the wheel", wheel_faults(archive.namelist(), files))
            described = next(name for name in archive.namelist() if name.endswith(".dist-info/METADATA"))
            entries = archive.read(described.replace("METADATA", "entry_points.txt")).decode()
            metadata = message_from_bytes(archive.read(described))
        faults = metadata_faults(metadata, pyproject, re.findall(r'__version__ = "([^"]+)"', init)[0])
        if COMMAND not in entries:
            faults.append(f"the wheel's commands lack `{COMMAND}`; see project.scripts in pyproject.toml")
        count += tell("metadata", faults)
        try:
            commands = environment(folder / "clean", str(wheel), root=ROOT)
            (folder / "elsewhere").mkdir()
            count += tell("installed elsewhere", smoke_faults(commands, folder / "elsewhere", read["README.md"]))
        except ValueError as error:
            count += tell("installed elsewhere", [str(error)])
        if not metadata.get_all("Project-URL"):
            links = len(re.findall(r"\]\((?!https?://|#)", read["README.md"]))
            print(f"note  no project URLs: the repository has no public address yet; its {links} relative links in")
            print("      README.md will lead nowhere on a package index until [project.urls] and they have one")
        if re.search(r"^## \[[^\]]+\] - unreleased", read["CHANGELOG.md"], re.MULTILINE):
            print("note  CHANGELOG.md's newest entry has no date yet")
        if not count:
            out.mkdir(exist_ok=True)
            for built in (wheel, sdist):
                ready = Path(shutil.copy(built, out))
                print(f"ready {ready}, {ready.stat().st_size / 1e6:.2f} MB")
    return count


if __name__ == "__main__":
    sys.exit(min(main(), 1))
