"""The page: whole from whatever a run's folder holds, never a traceback, and text from outside is text."""

import io
import json
import re
import shutil
from contextlib import redirect_stderr, redirect_stdout
from html.parser import HTMLParser
from pathlib import Path

import pytest

from mlm_pytorch.cli import main
from mlm_pytorch.cli.factory import RECORD
from mlm_pytorch.data.prepare import prepare
from mlm_pytorch.data.tokenizer.alphabets import byte_tokenizer
from mlm_pytorch.huggingface import load_encoder
from mlm_pytorch.report import ReportWriter, write_report
from mlm_pytorch.report.page import _json

QUICK = {"num_tokens": 0, "num_samples": 0}


class Elements(HTMLParser):
    """What a browser would make of a page: its elements, and its text."""

    def __init__(self, html: str):
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""
        self.feed(html)
        self.close()

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))

    def handle_data(self, data):
        self.text += data

    def all(self, tag: str) -> list[dict[str, str | None]]:
        return [attributes for name, attributes in self.tags if name == tag]


def bare_run(folder: Path, lines: str = "") -> Path:
    """The least that is a run."""
    folder.mkdir()
    (folder / "config.yaml").write_text("model: tiny\ncorpus: [gone.txt]\n")
    if lines:
        (folder / "metrics.jsonl").write_text(lines)
    return folder


@pytest.fixture(scope="module")
def page(run, tmp_path_factory) -> str:
    out = tmp_path_factory.mktemp("page") / "page.html"
    return write_report([run], out).read_text()


def test_the_page_has_all_that_people_look_at(page):
    elements = Elements(page)
    for words in (
        "Held-out loss",
        "How frequent the token is in the training corpus",
        "begins a word",
        "All candidates of this sample",
        "vocabulary in use",
        "tokens per word",
        "Chosen for this run",
        "mlm train",
        "This run recorded no versions",
    ):
        assert words in elements.text, words
    charts = [figure["data-chart"] for figure in elements.all("figure")]
    speed = ["tokens_per_second", "peak_share"]
    assert charts == ["loss", "accuracy", "lr", "mask_prob", *speed, "grad_norm", "fill", "memory_bytes"]
    assert {"header", "nav", "main", "footer", "h1"} <= {tag for tag, _ in elements.tags}


def test_the_page_needs_nothing_but_itself(page):
    elements = Elements(page)
    policy = next(m["content"] for m in elements.all("meta") if m.get("http-equiv") == "Content-Security-Policy")
    assert policy.startswith("default-src 'none'") and "unsafe" not in policy and "http" not in policy
    for tag, attributes in elements.tags:
        assert not {"src", "srcset", "style", "onclick", "onerror"} & set(attributes), tag
        assert attributes.get("href", "#")[0] == "#" or (tag == "link" and attributes["href"].startswith("data:"))


def test_corpus_text_is_text(page, corpus):
    elements = Elements(page)
    assert elements.all("img") == [] and len(elements.all("script")) == 2
    assert "window.pwned" not in page.partition("<style>")[0]
    assert "<img src=x" in elements.text or "&lt;img src=x" in page  # it is there, as text
    assert {"<i>source</i>", "plain"} <= set(re.split(r"[\n]+", elements.text))
    assert corpus.name in elements.text  # the file's name as well


def test_json_in_a_script_cannot_end_it():
    value = {"name": "</script><!--", "values": [1.5, None]}
    assert "<" not in _json(value) and json.loads(_json(value)) == value
    with pytest.raises(ValueError, match="JSON compliant"):
        _json(float("nan"))


@pytest.mark.parametrize(
    ("lines", "is_drawn"),
    [
        ("", False),
        ('{"step": 1, "loss": 9.0}\n{"step": 2, "lo', True),  # being written
        ('{"loss": 9.0}\n' * 3000, True),  # of an older version
        ('{"step": 1, "loss": NaN, "grad_norm": Infinity}\n', True),
        ('{"step": 1, "valid_loss": 7.0, "valid_accuracy": null}\n', True),
        ('{"step": "x", "loss": "y", "lr": [1], "tokens": {}, "seconds": true}\nrubbish\n', False),
        ('{"step": 1, "loss": 9, "memory_bytes": NaN, "skipped_steps": 2, "peak_share": 0.4, "fill": 1}\n', True),
    ],
)
def test_whatever_metrics_hold_there_is_a_page(tmp_path, lines, is_drawn):
    run = bare_run(tmp_path / "run", lines)
    assert write_report([run, run]).read_text().rstrip().endswith("</html>")
    elements = Elements(write_report([run]).read_text())
    assert "The corpus's facts are left out" in elements.text
    assert bool(elements.all("figure")) == is_drawn != ("No step has been logged yet." in elements.text)
    assert not list(run.glob(".*"))


def text_of(*runs: Path, out: Path) -> str:
    return " ".join(Elements(write_report(runs, out, **QUICK).read_text()).text.split())


def change(manifest: Path, **values) -> None:
    content = json.loads(manifest.read_text())
    for name in ("seq_len", "tokenizer_fingerprint", "long_documents", "overlap"):
        content[name] = values.get(name, content[name])
    for name in ("documents", "text_hash", "cut_documents"):
        content["splits"]["valid"][name] = values.get(name, content["splits"]["valid"][name])
    manifest.write_text(json.dumps(content))


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ({}, None),
        ({"text_hash": None}, None),  # of an older store, which may hold the same
        ({"text_hash": "0" * 16}, "held out different texts"),
        ({"text_hash": None, "documents": 1}, "held out different texts"),
        ({"seq_len": 40}, "cut it into pieces of other lengths (160 and 40 tokens)"),
        ({"long_documents": "truncate", "cut_documents": 0}, None),
        ({"long_documents": "truncate", "cut_documents": 1}, "cut long documents in other ways (split and truncate)"),
        (
            {"long_documents": "windows", "overlap": 9, "cut_documents": 1},
            "cut long documents in other ways (split and windows that share 9 tokens)",
        ),
        (
            {"tokenizer_fingerprint": "x", "text_hash": "0" * 16},
            "have different tokenizers and held out different texts",
        ),
    ],
)
def test_runs_whose_losses_do_not_compare_are_named(run, tmp_path, values, said):
    other = tmp_path / "other"
    shutil.copytree(run, other, symlinks=True)
    change(other / "store/manifest.json", **values)
    text = text_of(run, other, out=tmp_path / "page.html")
    assert (f"first and other {said}: their losses do not compare." in text) == (said is not None)
    assert ("These losses do not compare; the summary says why." in text) == (said is not None)


@pytest.mark.parametrize("cutting", [{}, {"long_documents": "windows", "overlap": 5}, {"long_documents": "truncate"}])
def test_how_long_tokens_are_does_not_depend_on_how_documents_were_cut(tmp_path, cutting):
    run = bare_run(tmp_path / "run")
    texts = tmp_path / "texts.txt"
    texts.write_text("the cat sat on the mat by the river\n" * 40)
    prepare([texts], run / "store", tokenizer=byte_tokenizer(), seq_len=12, valid_share=0, **cutting)
    assert "characters per token1.00" in text_of(run, out=tmp_path / "page.html")


def test_averaged_weights_and_rollbacks_are_told(tmp_path):
    score = {"step": 2, "valid_loss": 2.5, "valid_accuracy": 0.25}
    lines = [{"step": 1, "loss": 3}, {"step": 2, "loss": 3, "rollbacks": 1}]
    ema = {"ema_valid_loss": 2.0, "ema_valid_accuracy": 0.5}
    run = bare_run(tmp_path / "run", "".join(json.dumps(one) + "\n" for one in (*lines, score | ema)))
    text = text_of(run, out=tmp_path / "page.html")
    assert "Held-out loss2.000 of the averaged weights, which the model holds" in text
    assert "Held-out accuracy50.0% of the averaged weights" in text and "Last weights2.500" in text
    assert "Rollbacks1 after too many steps that were not finite" in text
    plain = bare_run(tmp_path / "plain", "".join(json.dumps(one) + "\n" for one in (lines[0], score)))
    text = text_of(plain, out=tmp_path / "page.html")
    assert "Held-out loss2.500 nats" in text and "Last weights" not in text and "Rollbacks" not in text
    both = text_of(run, plain, out=tmp_path / "page.html")
    assert "run2.0002.00050.0%" in both and "plain2.5002.50025.0%" in both


def test_what_repeats_a_run_is_told_only_where_something_does(tmp_path):
    run = bare_run(tmp_path / "run")
    sittings = [{"command": f"mlm train a --budget {budget}steps"} for budget in (20, 20, 40)]
    for number, repeats in ((2, True), (3, False)):
        (run / "run.json").write_text(json.dumps({"sittings": sittings[:number]}))
        text = text_of(run, out=tmp_path / "page.html")
        assert ("this command on another folder repeats the training" in text) == repeats
        assert ("was changed (20steps, then 40steps)" in text and "no single command repeats it" in text) != repeats


def damaged(run: Path, tmp_path: Path, what: str) -> Path:
    copy = tmp_path / what
    shutil.copytree(run, copy, symlinks=True)
    match what:
        case "no checkpoint":
            (copy / "model").unlink()
        case "damaged model":
            (copy / "model").resolve().joinpath("model.safetensors").write_bytes(b"\0" * 100)
        case "damaged config":
            (copy / "model").resolve().joinpath("config.json").write_text("{")
        case "no held-out shard":
            next(copy.glob("store/valid-*.arrow")).unlink()
        case "no tokenizer":
            shutil.rmtree(copy / "store" / "tokenizer")
        case "nothing held out":
            manifest = json.loads((copy / "store" / "manifest.json").read_text())
            del manifest["splits"]["valid"]
            (copy / "store" / "manifest.json").write_text(json.dumps(manifest))
    return copy


@pytest.mark.parametrize(
    ("what", "says"),
    [
        ("no checkpoint", "There is no checkpoint yet"),
        ("damaged model", "The model cannot be looked at"),
        ("damaged config", "The model cannot be looked at"),
        ("no held-out shard", "The corpus cannot be read"),
        ("no tokenizer", "The corpus cannot be read"),
        ("nothing held out", "This run held nothing out"),
    ],
)
def test_what_is_missing_is_said(run, tmp_path, what, says):
    page = write_report([damaged(run, tmp_path, what)]).read_text()
    assert says in Elements(page).text and "data-chart" in page


def test_a_module_of_the_users_own_is_not_taken_for_a_missing_checkpoint(run, tmp_path):
    """Its curves are there; nothing is imported because a folder names it, so nothing more is said of it."""
    copy = damaged(run, tmp_path, "own module")
    export = (copy / "model").resolve()
    (export / "config.json").unlink()
    (export / RECORD).write_text('{"factory": "a_module_that_nobody_has:build", "num_tokens": 400}')
    page = write_report([copy]).read_text()
    text = " ".join(Elements(page).text.split())
    assert "no checkpoint" not in text and "cannot be looked at" not in text and "data-chart" in page
    assert "The model is a module of your own; no code is run because a folder names it: its curves" in text


def test_during_training_the_model_at_hand_is_shown_and_nothing_is_read_twice(run, tmp_path):
    copy = damaged(run, tmp_path, "no checkpoint")
    model = load_encoder(run).train()
    writer = ReportWriter([copy])
    first = writer.write(model, num_tokens=0, num_samples=1).read_text()
    assert "All candidates of this sample" in first and model.training
    with (copy / "metrics.jsonl").open("a") as file:
        file.write('{"step": 13, "valid_loss": 1.2345}\n')
    read = writer._curves[0]._offset
    assert "1.234" in writer.write(model, num_tokens=0, num_samples=0).read_text()
    assert writer._curves[0]._offset > read > 0


def test_runs_beside_each_other(run, tmp_path):
    other = bare_run(tmp_path / "first", '{"step": 1, "loss": 9.0, "tokens": 10}\n')
    elements = Elements(write_report([run, other], tmp_path / "both.html", **QUICK).read_text())
    name = f"{run.parent.name}/first"  # folders of one name are told apart by those above
    assert name in elements.text and f"{tmp_path.name}/first" in elements.text
    assert "Where their configurations differ" in elements.text and not (run / "report.html").exists()


def test_a_page_that_cannot_be_written_leaves_the_old_one(run, tmp_path, monkeypatch):
    out = tmp_path / "page.html"
    out.write_text("old")

    def full(*_):
        raise OSError("no space left on device")

    monkeypatch.setattr("os.fsync", full)
    with pytest.raises(OSError, match="no space"):
        write_report([run], out, **QUICK)
    assert out.read_text() == "old" and [path.name for path in tmp_path.iterdir()] == ["page.html"]


def mlm(*arguments: str | Path) -> tuple[int, str, str]:
    out, err, code = io.StringIO(), io.StringIO(), 0
    with redirect_stdout(out), redirect_stderr(err):
        try:
            main([str(argument) for argument in arguments])
        except SystemExit as stop:
            code = int(stop.code or 0)
    return code, out.getvalue(), err.getvalue()


def test_the_command(run, tmp_path):
    out = tmp_path / "page.html"
    code, said, _ = mlm("report", run, "--out", out, "--samples", "1", "--held-out-tokens", "200")
    assert code == 0 and str(out) in said
    assert Elements(out.read_text()).text.count("All candidates of this sample") == 1


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ((), "no run is named; give folders"),
        (("none",), "none is no folder; name a run"),
        ((".",), ". is not a run"),
        (("RUN", "--samples", "-1"), "--samples -1 is negative"),
        (("RUN", "--held-out-tokens", "-1"), "--held-out-tokens -1 is negative"),
        (("RUN", "--out", "."), "--out . is a folder; name a file"),
        (("RUN", "--out", "no/where.html"), "lies in no folder that there is"),
    ],
)
def test_mistakes_are_told_in_one_line(run, tmp_path, monkeypatch, arguments, says):
    monkeypatch.chdir(tmp_path)
    code, _, err = mlm("report", *(str(run) if argument == "RUN" else argument for argument in arguments))
    assert code == 2 and says in err and err.count("\n") == 1
