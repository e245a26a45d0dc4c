"""What is wrong with arguments that cannot be read, in one line, and what may have been meant."""

import dataclasses
import difflib
import re
from collections.abc import Mapping, Sequence
from typing import Any

from mlm_pytorch.cli.habits import explain_habits


def explain_arguments(arguments: Sequence[str], text: str, commands: Mapping[str, Any]) -> str | None:
    """What is wrong with `arguments`, of which the parser says `text`; None where the parser says it best.

    Args:
        arguments: as typed after `mlm`.
        text: the parser's own words.
        commands: the dataclass of options of each command.

    >>> @dataclasses.dataclass
    ... class Options:
    ...     budget: str = "10m"
    >>> explain_arguments(["train", "--buget", "3m"], "", {"train": Options})
    'mlm train has no option --buget; did you mean --budget? mlm train --help lists all'
    """
    return (
        explain_habits(arguments)
        or _misspelt(arguments, commands)
        or _one_too_many(arguments, text, commands)
        or _unreadable(arguments, text)
    )


def _misspelt(arguments: Sequence[str], commands: Mapping[str, Any]) -> str | None:
    if not arguments or arguments[0].startswith("-"):
        return None
    command = arguments[0]
    if command not in commands:
        near = _nearest(command, list(commands))
        return f"{command!r} is no command ({', '.join(commands)}); {near}mlm --help explains each"
    options = {"--help"}
    for field in dataclasses.fields(commands[command]):
        name = field.name.replace("_", "-")
        options |= {f"--{name}"} | ({f"--no-{name}"} if isinstance(field.default, bool) else set())
    for argument in arguments[1:]:
        name = _option(argument)
        if name.startswith("--") and name not in options:
            near = _nearest(name, sorted(options))
            return f"mlm {command} has no option {argument.partition('=')[0]}; {near}mlm {command} --help lists all"
    return None


def _one_too_many(arguments: Sequence[str], text: str, commands: Mapping[str, Any]) -> str | None:
    """A value that nothing takes: a second one behind an option, as a shell makes of --data *.jsonl, or any other."""
    found = re.search(r"Unrecognized options: (.*) For full helptext", text)
    if found is None:
        return None
    left = found[1].split(", ")
    command = arguments[0]
    defaults = {field.name: field.default for field in dataclasses.fields(commands[command])}
    option, values = "", []
    for argument in arguments[1:]:
        if argument.startswith("--"):
            option, values = _option(argument), argument.split("=", 1)[1:]
            if not values:
                continue
        else:
            values.append(argument)
        if " ".join(values[-1].split()) not in left:
            continue
        if re.match(r"-[^\d]", values[-1]):
            return f"mlm {command} has no option {values[-1]}; mlm {command} --help lists all"
        if not option:
            return f"{values[-1]} is one value too many for mlm {command}; mlm {command} --help says what it takes"
        default = defaults.get(option[2:].replace("-", "_"))
        if isinstance(default, bool):
            return f"{values[-1]} stands behind {option}, which takes no value; write it before all options"
        if len(values) == 2:
            if isinstance(default, tuple):
                repeated = " ".join(f"{option} {value}" for value in values)
                return f"{argument} stands behind {option}, which takes one value each time; write {repeated}"
            return f"{argument} stands behind {option} {values[0]}, which takes one value; write it before all options"
    return None


def _unreadable(arguments: Sequence[str], text: str) -> str | None:
    found = re.search(r"Error parsing (--[\w-]+).* \1 (\S+)", text)
    if found is None:
        return None
    name, kind = found[1], found[2].removeprefix("{None}|")
    pairs = zip(arguments, [*arguments[1:], ""], strict=True)
    value = next((b if "=" not in a else a.partition("=")[2] for a, b in pairs if _option(a) == name), "")
    return f"{name} {value!r} cannot be read as {kind}; mlm {arguments[0]} --help says what it takes"


def _option(argument: str) -> str:
    """The option that an argument names, as the help spells it."""
    return argument.partition("=")[0].replace("_", "-")


def _nearest(name: str, names: Sequence[str]) -> str:
    near = difflib.get_close_matches(name, names, n=1)
    return f"did you mean {near[0]}? " if near else ""
