"""The release check's own checks, on what is here and on planted faults. Building and installing is left to `make`."""

import importlib.util
import tomllib
from email.message import Message
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PYPROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
INIT = (ROOT / "mlm_pytorch" / "__init__.py").read_text(encoding="utf-8")
CHANGELOG = (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")
CONSTRAINTS = (ROOT / "constraints.txt").read_text(encoding="utf-8")
FILES = {"mlm_pytorch/__init__.py", "mlm_pytorch/py.typed", "mlm_pytorch/report/page.html"}
INFO = "mlm_pytorch-1.0.0.dist-info"


@pytest.fixture(scope="module")
def check():
    spec = importlib.util.spec_from_file_location("release_check", ROOT / ".ci" / "release_check.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def metadata(**changes):
    """A wheel's metadata as they should be; a field given as None is left out, one given as a list repeated."""
    project = PYPROJECT["project"]
    fields = {
        "Name": project["name"],
        "Version": "1.0.0",
        "Summary": project["description"],
        "Requires-Python": project["requires-python"],
        "License-Expression": project["license"],
        "License-File": "LICENSE",
        "Description-Content-Type": "text/markdown",
        "Classifier": project["classifiers"],
        "Provides-Extra": list(project["optional-dependencies"]),
    }
    message = Message()
    for name, value in (fields | {k.replace("_", "-"): v for k, v in changes.items()}).items():
        for one in value if isinstance(value, list) else [value]:
            if one is not None:
                message[name] = one
    return message


def test_what_is_here_has_no_fault(check):
    assert check.version_faults(PYPROJECT, INIT, CHANGELOG) == []
    assert check.pin_faults(PYPROJECT, CONSTRAINTS) == []
    assert check.metadata_faults(metadata(), PYPROJECT, "1.0.0") == []
    assert "MLM(" in check.readme_call((ROOT / "README.md").read_text(encoding="utf-8"))
    files = check.package_files(ROOT)
    assert {"mlm_pytorch/py.typed", "mlm_pytorch/report/page.js", "mlm_pytorch/play/static/index.html"} <= files
    assert not any(name.endswith(".pyc") for name in files)


@pytest.mark.parametrize(
    ("init", "changelog", "fault"),
    [
        ("", CHANGELOG, "states 0 versions"),
        ('__version__ = "1.0.1"\n', "## [1.0.0] - unreleased", "1.0.1 and CHANGELOG.md's newest entry is 1.0.0"),
        ('__version__ = "1.0"\n', "## [1.0] - unreleased", "1.0 is not MAJOR.MINOR.PATCH"),
        ('__version__ = "1.0.0"\n', "# Changelog\n", "has no entry"),
    ],
)
def test_a_version_that_disagrees_is_one_line(check, init, changelog, fault):
    (found,) = check.version_faults(PYPROJECT, init, changelog)
    assert fault in found
    assert "\n" not in found


def test_a_version_stated_twice_is_found(check):
    twice = PYPROJECT | {"project": PYPROJECT["project"] | {"version": "1.0.0"}}
    (found,) = check.version_faults(twice, INIT, CHANGELOG)
    assert "states a version of its own" in found


def test_a_dependency_without_a_pin_is_found(check):
    (found,) = check.pin_faults(PYPROJECT, CONSTRAINTS.replace("\ntyro==", "\nother=="))
    assert found == "constraints.txt has no version of tyro, which the package needs; pin it"


@pytest.mark.parametrize(
    ("changes", "fault"),
    [
        ({"Version": "0.9.0"}, "the wheel's Version is '0.9.0', not '1.0.0'"),
        ({"License_Expression": None}, "the wheel's License-Expression is None, not 'MIT'"),
        ({"License_File": None}, "name no licence file"),
        ({"Provides_Extra": ["play"]}, "the wheel's extras are ['play'], not"),
        ({"Classifier": ["Typing :: Typed"]}, "Python :: 3.11 is missing"),
        (
            {"Classifier": [*PYPROJECT["project"]["classifiers"], "License :: OSI Approved :: MIT License"]},
            "says again what the licence expression says",
        ),
        ({"Project_URL": "Source, http://code.org/mlm"}, "is no public https:// address"),
        ({"Project_URL": "Source, https://example.org/mlm"}, "is no public https:// address"),
        ({"Project_URL": "Source, <this repository>"}, "is no public https:// address"),
    ],
)
def test_each_fault_of_the_metadata_is_one_line(check, changes, fault):
    (found,) = check.metadata_faults(metadata(**changes), PYPROJECT, "1.0.0")
    assert fault in found
    assert "\n" not in found


def test_a_wheel_holds_the_package_and_nothing_else(check):
    whole = {*FILES, f"{INFO}/METADATA", f"{INFO}/licenses/LICENSE"}
    assert check.wheel_faults(whole, FILES) == []
    (lacking,) = check.wheel_faults(whole - {"mlm_pytorch/report/page.html"}, FILES)
    assert lacking.startswith("the wheel lacks mlm_pytorch/report/page.html;")
    (carrying,) = check.wheel_faults(whole | {"tests/test_cli.py"}, FILES)
    assert carrying == "the wheel carries tests/test_cli.py, which is no file of the package"
    (unlicensed,) = check.wheel_faults(whole - {f"{INFO}/licenses/LICENSE"}, FILES)
    assert unlicensed.startswith("the wheel lacks LICENSE;")


def test_an_sdist_holds_no_tests_and_no_benchmarks(check):
    whole = {f"mlm_pytorch-1.0.0/{name}" for name in FILES | check.PAPERS}
    assert check.sdist_faults(whole, FILES) == []
    strays = {"mlm_pytorch-1.0.0/tests/masking/multilingual.txt", "mlm_pytorch-1.0.0/benchmarks/speed.py"}
    (found,) = check.sdist_faults(whole | strays, FILES)
    assert found == "the sdist carries benchmarks/speed.py and 1 more; only the package and its papers travel"
    assert check.sdist_faults(whole - {"mlm_pytorch-1.0.0/LICENSE"}, FILES) == ["the sdist lacks LICENSE"]


def test_a_readme_without_the_call_is_refused(check):
    with pytest.raises(ValueError, match=r"README\.md does not begin with a call of MLM"):
        check.readme_call("# mlm-pytorch\n```console\n$ make demo\n```\n")


def test_a_command_that_fails_is_told_in_one_line(check, tmp_path):
    with pytest.raises(ValueError, match=r"ended with 3: no such luck$"):
        check.call("sh", "-c", "echo first; echo no such luck >&2; exit 3", cwd=tmp_path)


def test_all_faults_are_counted_and_each_is_a_line(check, capsys):
    assert check.tell("the wheel", ["one", "two"]) == 2
    assert check.tell("the sdist", []) == 0
    assert capsys.readouterr().out == "FAIL  the wheel: one\nFAIL  the wheel: two\nok    the sdist\n"
