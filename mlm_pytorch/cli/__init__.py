"""The `mlm` command: thin wrappers that print what the rooms compute.

Heavy modules are imported by the command that needs them, so that `mlm --help` answers soon.
"""

import errno
import io
import os
import re
import select
import signal
import sys
from collections.abc import Sequence
from contextlib import redirect_stderr
from typing import Annotated, get_args

import tyro

from mlm_pytorch.cli.mistyped import explain_arguments
from mlm_pytorch.cli.options import (
    DemoConfig,
    DoctorConfig,
    EvaluateConfig,
    ExportConfig,
    FillConfig,
    PlayConfig,
    PrepareConfig,
    ReportConfig,
)
from mlm_pytorch.cli.terminal import printable
from mlm_pytorch.training.config import TrainConfig

Command = (
    Annotated[DemoConfig, tyro.conf.subcommand("demo")]
    | Annotated[PrepareConfig, tyro.conf.subcommand("prepare")]
    | Annotated[TrainConfig, tyro.conf.subcommand("train")]
    | Annotated[EvaluateConfig, tyro.conf.subcommand("evaluate")]
    | Annotated[FillConfig, tyro.conf.subcommand("fill")]
    | Annotated[PlayConfig, tyro.conf.subcommand("play")]
    | Annotated[ExportConfig, tyro.conf.subcommand("export")]
    | Annotated[ReportConfig, tyro.conf.subcommand("report")]
    | Annotated[DoctorConfig, tyro.conf.subcommand("doctor")]
)


def main(arguments: Sequence[str] | None = None) -> None:
    """Run `mlm`; the user's mistakes end with one line on standard error and exit code 2."""
    # Tokenizers start threads of their own; said here, they do not warn of every process that is forked afterwards.
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "true")
    if isinstance(sys.stdout, io.TextIOWrapper) and sys.stdout.errors == "strict":
        sys.stdout.reconfigure(errors="backslashreplace")  # for bars, marks and text that an older encoding has not
    try:
        run(parse(arguments))
        if sys.stdout is not None:  # closed by who started the program, it is
            sys.stdout.flush()
    except (ValueError, OSError) as error:
        if isinstance(error, BrokenPipeError) and _nobody_reads():
            raise SystemExit(128 + signal.SIGPIPE) from None
        message = " ".join((_of_files(error) or str(error)).split())
        print(f"mlm: {printable(message)}", file=sys.stderr)  # which may quote a file
        raise SystemExit(2) from None
    except SystemExit as stop:
        if isinstance(stop.__context__, BrokenPipeError):  # rich's way to end a program that nobody reads
            raise SystemExit(128 + signal.SIGPIPE) from None
        raise
    except KeyboardInterrupt:
        print("mlm: interrupted", file=sys.stderr)
        raise SystemExit(130) from None


def _nobody_reads() -> bool:
    """Whether who read standard output has gone, as `head` does; what is left of it then goes nowhere."""
    watch = select.poll()
    watch.register(1, 0)
    gone = bool(watch.poll(0))
    if gone:
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)  # the interpreter flushes once more
    return gone


def _of_files(error: ValueError | OSError) -> str | None:
    """What is wrong with a file or folder, where the system alone said so."""
    if not isinstance(error, OSError) or error.filename is None:
        return None
    if isinstance(error, PermissionError) or error.errno == errno.EROFS:
        return f"{error.filename}: {error.strerror}; choose a place where you may write, or mend its permissions"
    return f"{error.filename}: {error.strerror}; check the path"


def parse(arguments: Sequence[str] | None) -> object:
    """The command that the arguments ask for.

    Raises:
        ValueError: arguments that cannot be read; the parser frames its message in a box, here it is one line.
    """
    said = io.StringIO()
    try:
        with redirect_stderr(said):
            return tyro.cli(
                Command,  # type: ignore[arg-type]
                args=arguments,
                prog="mlm",
                description="Pretrain any encoder with masked language modelling.",
                config=(tyro.conf.UseAppendAction,),
            )
    except SystemExit as stop:
        if not stop.code:
            raise  # --help
        commands = {part.name: config for config, part in map(get_args, get_args(Command))}
        given = list(sys.argv[1:] if arguments is None else arguments)
        text = " ".join(re.sub(r"[╭╮╰╯│─]+", " ", said.getvalue()).split())
        raise ValueError(explain_arguments(given, text, commands) or text) from None


def run(command: object) -> None:
    """Carry out a parsed command."""
    match command:
        case DemoConfig():
            from mlm_pytorch.demo import demo

            demo(command.out, command.budget)
        case PrepareConfig():
            from mlm_pytorch.cli.prepare import prepare_command

            prepare_command(command)
        case TrainConfig():
            from mlm_pytorch.cli.train import train

            train(command)
        case EvaluateConfig():
            from mlm_pytorch.cli.evaluate import evaluate_command

            evaluate_command(command)
        case FillConfig():
            from mlm_pytorch.cli.fill import fill_command

            fill_command(command)
        case PlayConfig():
            from mlm_pytorch.cli.play import play_command

            play_command(command)
        case ExportConfig():
            from mlm_pytorch.cli.models import export_command

            export_command(command)
        case ReportConfig():
            from mlm_pytorch.cli.report import report_command

            report_command(command)
        case DoctorConfig():
            from mlm_pytorch.cli.doctor import doctor_command

            doctor_command(command)
