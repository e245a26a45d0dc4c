import errno
import io
import sys

import pytest
from rich.console import Console

from mlm_pytorch.training.metrics import Display, MetricsFile, clock, read_metrics


def test_lines_and_cutting_back(tmp_path):
    path = tmp_path / "metrics.jsonl"
    metrics = MetricsFile(path)
    metrics.write({"step": 1, "loss": 2.5})
    offset = metrics.flush()
    metrics.write({"step": 2, "loss": 2.25})
    metrics.close()
    assert [line["step"] for line in read_metrics(path)] == [1, 2]
    again = MetricsFile(path, offset)
    again.write({"step": 2, "loss": 2.0})
    again.close()
    assert read_metrics(path) == [{"step": 1, "loss": 2.5}, {"step": 2, "loss": 2.0}]


def test_half_a_line_is_not_read_and_not_kept(tmp_path):
    path = tmp_path / "metrics.jsonl"
    path.write_text('{"step": 1}\n{"step": 2}\n{"st')
    assert read_metrics(path) == [{"step": 1}, {"step": 2}]
    shorter = MetricsFile(path, 1000)  # than a checkpoint says: what there is of whole lines stays
    shorter.write({"step": 3, "loss": float("nan")})
    shorter.close()
    assert shorter.missing == 1000 - 28 and read_metrics(path) == [{"step": 1}, {"step": 2}, {"step": 3}]


def test_clock():
    assert [clock(s) for s in (0, 59.6, 75, 3700, -3)] == ["0:00", "1:00", "1:15", "1:01:40", "0:00"]


def display(terminal: bool) -> tuple[Display, io.StringIO]:
    file = io.StringIO()
    return Display(Console(file=file, force_terminal=terminal, width=100)), file


def test_plain_lines_are_few_and_markup_is_text():
    shown, file = display(terminal=False)
    with shown:
        for i in range(100):
            shown.show("training", i / 100, f"[bold]loss {i}[/bold]")
        shown.show("training", 1.0, "last", force=True)
        shown.say("[red]not markup[/red]")
    lines = file.getvalue().splitlines()
    assert lines == ["training   0%  [bold]loss 0[/bold]", "training 100%  last", "[red]not markup[/red]"]


def test_a_terminal_gets_a_bar():
    shown, file = display(terminal=True)
    with shown:
        shown.show("training", 0.5, "[i]half[/i]")
        shown.show("training", 0.6, "[i]more[/i]")
        shown.show("exporting", 0.1, "")
        assert [task.description for task in shown._bar.tasks] == ["training", "exporting"], "a bar for each title"
    assert "[i]half[/i]" in file.getvalue() and "training" in file.getvalue()


def test_a_narrow_terminal_keeps_title_bar_and_the_beginning():
    shown, file = display(terminal=True)
    with shown:
        shown.show("reading for the tokenizer", 1.0, "0:00 left, 12 documents")
        shown.show("training", 0.5, "12:34 left, step 1,200, " + "and more, " * 20)
    lines = [line for line in file.getvalue().replace("\r", "\n").splitlines() if "step 1,200" in line]
    assert lines and all("12:34 left, step 1,200" in line and "━" in line and "…" in line for line in lines)
    assert "reading for the tokenizer" in file.getvalue()


def test_a_pipe_is_no_terminal_whatever_the_environment_says(monkeypatch, capsys):
    monkeypatch.setenv("FORCE_COLOR", "1")  # as notebooks do
    with Display() as display:
        display.show("training", 0.5, "step 5", force=True)
    assert capsys.readouterr().err == "training  50%  step 5\n"


class Gone(io.StringIO):
    """A terminal that was closed, or a pipe that nobody reads."""

    def __init__(self, error: OSError):
        super().__init__()
        self.error = error

    def write(self, text: str) -> int:
        raise self.error


@pytest.mark.parametrize("error", [OSError(errno.EIO, "Input/output error"), BrokenPipeError()])
@pytest.mark.parametrize("terminal", [True, False])
def test_a_console_that_has_gone_does_not_end_a_run(error, terminal, monkeypatch):
    monkeypatch.setattr(sys, "stderr", Gone(error))
    sys.stderr.isatty = lambda: terminal  # type: ignore[method-assign]
    shown = Display()
    for step in range(3):
        shown.say(f"step {step}")
        shown.show("training", step / 3, "on", force=True)
    assert shown.console.quiet
