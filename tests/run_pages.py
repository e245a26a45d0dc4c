"""Runs the blocks of pages, one process and one folder for each: `python run_pages.py ROOT FOLDER`.

It reads names of pages from standard input and answers each with a line of JSON: `error` (None where all went well),
`seconds`, `cpu_seconds`. Torch and transformers take seconds to import, so they are imported once, here; each page is a
fork of this.
"""

import io
import json
import os
import random
import re
import shlex
import shutil
import signal
import subprocess
import sys
import time
import traceback
import warnings
from contextlib import redirect_stderr, redirect_stdout
from functools import partial
from pathlib import Path

import numpy as np
import torch
import transformers  # noqa: F401 -- so that no page has to
from page_blocks import Block, blocks, missing_line
from page_furniture import furnish

from mlm_pytorch.cli import main as mlm

ROOT = Path(__file__).parents[1]
CHECKOUT = ("benchmarks", "examples")  # as pages name them, which are read beside a checkout
REFUSED = ("pip", "pip3", "conda", "uv", "git", "make", "sudo", "apt", "apt-get", "docker")
MOST_SECONDS = 600  # a page that hangs is ended; the longest takes 20 alone, and 100 where others keep the machine busy


class BlockFailed(Exception):
    """A block that does not do what its page says."""


def _captured(call) -> tuple[str, str | None]:
    """What a call prints, and its error."""
    said = io.StringIO()
    with redirect_stdout(said), redirect_stderr(said):
        try:
            call()
        except Exception:  # noqa: BLE001 -- whatever a block raises is its page's failure, reported with the block
            return said.getvalue(), traceback.format_exc()
    return said.getvalue(), None


def _in_this_process(command: str) -> list[str] | None:
    """The arguments of a plain `mlm …`; None where a shell is needed to understand the command."""
    if not command.startswith("mlm "):
        return None
    words = shlex.shlex(command.replace("\\\n", " "), posix=True, punctuation_chars=True)
    words.whitespace_split = True
    arguments = list(words)[1:]
    return None if any(set(word) <= set("();<>|&") or "$" in word or "`" in word for word in arguments) else arguments


class Page:
    """Runs the blocks of one page in the current folder."""

    def __init__(self, commands: Path):
        self.names = {"__name__": "__page__"}
        self.environment = {**os.environ, "PATH": f"{commands}{os.pathsep}{os.environ['PATH']}"}
        self.printed = ""  # by the block before

    def run(self, block: Block) -> None:
        """Run a block, or compare it with what the one before printed."""
        if block.kind == "shown" and "output" in block.said:
            self._compare(block.code.splitlines(), self.printed)
        elif block.kind == "run":
            self.printed = ""
            {"python": self._python, "setup": self._setup, "console": self._console}.get(block.language, self._script)(
                block
            )

    def _python(self, block: Block) -> None:
        self.printed, error = _captured(lambda: exec(compile(block.code, "<block>", "exec"), self.names))
        expected = block.said.get("raises")
        if expected and error and f"\n{expected}: " in error:
            self.printed += error.rpartition(f"\n{expected}: ")[2]
        elif expected or error:
            raise BlockFailed(error or f"the block raises no {expected}")

    def _setup(self, block: Block) -> None:
        for part in re.findall(r"(?:^\$ .*(?:\\\n.*)*\n?)+|(?:^(?!\$ ).*\n?)+", block.code, re.M):
            if part.startswith("$ "):
                self._console(Block("console", part, block.line))
            elif part.strip():
                self._python(Block("python", part, block.line))

    def _script(self, block: Block) -> None:
        lines = block.code.replace("\\\n", " ").splitlines()
        commands = [line for line in lines if line.strip() and not line.startswith("#")]
        plain = all(_in_this_process(command) is not None for command in commands)
        for command in commands if plain else [block.code]:
            self._command(command, int(block.said.get("exit", 0)))

    def _console(self, block: Block) -> None:
        for command, shown in block.commands():
            before = self.printed
            self._command(command, int(block.said.get("exit", 0)))
            if "output" in block.said:
                self._compare(shown, self.printed.removeprefix(before))

    def _command(self, command: str, expected: int) -> None:
        arguments = _in_this_process(command)
        if arguments is None:
            self._shell(command, expected)
            return
        code = 0

        def call() -> None:
            nonlocal code
            try:
                mlm(arguments)
            except SystemExit as stop:
                code = int(stop.code or 0)

        said, error = _captured(call)
        self._ended(command, code, expected, said, error)

    def _shell(self, command: str, expected: int) -> None:
        done = subprocess.run(
            ["bash", "-c", command],
            env=self.environment,
            text=True,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            check=False,
        )
        self._ended(command, done.returncode, expected, done.stdout, None)

    def _ended(self, command: str, code: int, expected: int, said: str, error: str | None) -> None:
        self.printed += said
        if error or code != expected:
            raise BlockFailed(f"{command}\nended with exit code {code}, not {expected}:\n{said[-3000:]}{error or ''}")

    def _compare(self, shown: list[str], printed: str) -> None:
        line = missing_line(shown, printed)
        if line is not None:
            raise BlockFailed(
                f"the page shows this line, which was not printed:\n{line}\nprinted was:\n{printed[-3000:]}"
            )


def run_page(page: Path, folder: Path, commands: Path) -> str | None:
    """Run a page in a folder; the error, or None."""
    os.chdir(folder)
    for name in ("runs", "models", "stores"):
        Path(name).mkdir(exist_ok=True)
    for name in CHECKOUT:
        if (ROOT / name).exists():
            Path(name).symlink_to(ROOT / name)
    random.seed(0)
    np.random.seed(0)  # noqa: NPY002 -- blocks may draw from the global one
    torch.manual_seed(0)
    here, found = Page(commands), blocks(page.read_text(encoding="utf-8"))
    for block in found:  # at first, since a page may name a file before it shows it
        if block.kind == "file":
            path = Path(block.said["save as"])
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(block.code, encoding="utf-8")
    for block in found:
        try:
            here.run(block)
        except BlockFailed as failed:
            return f"{page}:{block.line}: {failed}"
    return None


def in_a_fork(work) -> str | None:
    """What `work` returns in a fork of this process; a process that dies is an error too."""
    reading, writing = os.pipe()
    child = os.fork()
    if not child:
        signal.alarm(MOST_SECONDS)
        os.close(reading)
        try:
            answer = work()
        except BaseException:  # noqa: BLE001 -- a fork must not go on in its parent's code, whatever happens
            answer = traceback.format_exc()
        with os.fdopen(writing, "w", encoding="utf-8") as pipe:
            json.dump(answer, pipe)
        os._exit(0)
    os.close(writing)
    with os.fdopen(reading, encoding="utf-8") as pipe:
        answer = pipe.read()
    _, status = os.waitpid(child, 0)
    return json.loads(answer) if answer else f"the page's process ended with status {os.waitstatus_to_exitcode(status)}"


def make_commands(folder: Path) -> Path:
    """Programs in a folder for PATH: those of this interpreter, and those refused, which fail."""
    folder.mkdir()
    for name, arguments in {"mlm": "-m mlm_pytorch", "python": "", "torchrun": "-m torch.distributed.run"}.items():
        program = folder / name
        program.write_text(f'#!/bin/sh\nexec "{sys.executable}" {arguments} "$@"\n', encoding="utf-8")
        program.chmod(0o755)
    for name in REFUSED:
        program = folder / name
        program.write_text(
            f"#!/bin/sh\necho 'a page does not run {name}: mark the block as not run'\nexit 9\n", encoding="utf-8"
        )
        program.chmod(0o755)
    return folder


def serve(root: Path, folder: Path) -> None:
    """Answer each page's name with what came of it."""
    answers = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)  # what libraries print by themselves must not stand among the answers
    warnings.filterwarnings("ignore", message=".*fork.*", category=DeprecationWarning)
    torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", "2")))
    commands = make_commands(folder / "bin")
    furnished = folder / "furnished"
    furnished.mkdir()
    error = in_a_fork(partial(furnish, furnished))
    for line in sys.stdin:
        began, spent = time.monotonic(), os.times()
        before = spent.children_user + spent.children_system
        own = folder / re.sub(r"\W+", "-", line.strip())
        shutil.copytree(furnished, own)
        page = root / line.strip()
        failed = error or in_a_fork(partial(run_page, page, own, commands))
        seconds, spent = time.monotonic() - began, os.times()
        cpu = spent.children_user + spent.children_system - before
        print(json.dumps({"error": failed, "seconds": seconds, "cpu_seconds": cpu}), file=answers, flush=True)


if __name__ == "__main__":
    serve(Path(sys.argv[1]), Path(sys.argv[2]))
