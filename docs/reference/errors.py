"""Every error message of the package, read from its source, with `<…>` where a value stands."""

import ast
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

# What a user may see as one line: ValueError and what derives from it, and failures of files.
LEFT_OUT = {
    "AssertionError",
    "AttributeError",
    "NotImplementedError",
    "SystemExit",
    "KeyboardInterrupt",
    "StopIteration",
}


@dataclass(frozen=True)
class Message:
    """One message.

    Attributes:
        module: such as `mlm_pytorch/data/corpus.py`.
        line: in that file.
        text: with `<name>` where a value stands.
    """

    module: str
    line: int
    text: str

    @property
    def room(self) -> str:
        """The room of the package."""
        return self.module.split("/")[1].removesuffix(".py")


class _Texts:
    """Reads the texts of messages in one module: constants, what names were given, what small functions return."""

    def __init__(self, tree: ast.Module):
        self.functions = {node.name: node for node in ast.walk(tree) if isinstance(node, ast.FunctionDef)}
        self.constants = _assigned(tree.body)

    def of(self, node: ast.expr, names: dict[str, ast.expr]) -> str | None:
        """The text of a message, or None where it is made elsewhere."""
        match node:
            case ast.Constant(value=str(text)):
                return text
            case ast.JoinedStr(values=parts):
                return "".join(self.of(part, names) or "" for part in parts)
            case ast.FormattedValue(value=value):
                return self.of(value, names) or f"<{_name(value)}>"
            case ast.BinOp(left=left, op=ast.Add(), right=right):
                return "".join(self.of(side, names) or f"<{_name(side)}>" for side in (left, right))
            case ast.Name(id=name) if name in names:
                return self.of(names[name], {key: value for key, value in names.items() if key != name})
            case ast.IfExp(body=one, orelse=other) | ast.BoolOp(values=[one, other]):
                return " / ".join(filter(None, (self.of(one, names), self.of(other, names)))) or None
            case ast.Call(func=ast.Attribute(value=ast.Name(id=name), attr="format")) if name in self.constants:
                return (self.of(self.constants[name], {}) or "").replace("{", "<").replace("}", ">")
            case ast.Call(func=ast.Name(id=name)) if name in self.functions:
                function = self.functions.pop(name)  # so that a function that calls itself ends here
                texts = [self.of(made.value, _assigned(function.body)) for made in _returns(function)]
                self.functions[name] = function
                return " / ".join(dict.fromkeys(filter(None, texts))) or None
        return None


def _assigned(body: list[ast.stmt]) -> dict[str, ast.expr]:
    """What names are given in some statements, and in those within them."""
    nodes = [node for statement in body for node in ast.walk(statement) if isinstance(node, ast.Assign)]
    return {node.targets[0].id: node.value for node in nodes if isinstance(node.targets[0], ast.Name)}


def _returns(function: ast.FunctionDef) -> list[ast.Return]:
    return [node for node in ast.walk(function) if isinstance(node, ast.Return) and node.value is not None]


def _name(node: ast.expr) -> str:
    """A short name of a value that stands in a message."""
    match node:
        case ast.Name(id=name):
            return name
        case ast.Attribute(attr=name):
            return name
        case ast.Constant(value=value):
            return str(value)
        case ast.Call(func=ast.Name(id="len"), args=[value]):
            return f"number of {_name(value)}"
        case ast.Call(func=ast.Attribute(attr="join"), args=[value]):
            return _name(value)
        case ast.Call(func=ast.Name(id="getattr")):
            return "value"
        case ast.Call(args=[value, *_]):
            return _name(value)
        case ast.Call(func=func):
            return _name(func)
        case ast.Subscript(value=value) | ast.Starred(value=value):
            return _name(value)
        case ast.BinOp(left=left):
            return _name(left)
        case ast.IfExp(body=body):
            return _name(body)
        case ast.GeneratorExp(generators=[first, *_]) | ast.ListComp(generators=[first, *_]):
            return _name(first.iter)
    return "…"


def _errors(tree: ast.Module) -> Iterator[tuple[ast.Call, dict[str, ast.expr]]]:
    """Every error that is made, with what the names of its function were given."""
    seen = set()
    for function in ast.walk(tree):
        if isinstance(function, ast.FunctionDef):
            for node in ast.walk(function):
                name = node.func.id if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) else ""
                if name.endswith("Error") and name not in LEFT_OUT and node.args and node not in seen:
                    seen.add(node)
                    yield node, _assigned(function.body)


def messages(package: Path) -> tuple[list[Message], list[str]]:
    """The messages of all errors that the package makes, by module and line; and the errors whose text is not ours."""
    found, foreign = set(), []
    for path in sorted(package.rglob("*.py")):
        module = path.relative_to(package.parent).as_posix()
        tree = ast.parse(path.read_text(encoding="utf-8"))
        texts = _Texts(tree)
        for call, names in _errors(tree):
            text = texts.of(call.args[-1], names)
            if text is None:
                foreign.append(f"{module}: {ast.unparse(call)}")
            else:
                found.add(Message(module, call.lineno, " ".join(text.split())))
    return sorted(found, key=lambda message: (message.module, message.line)), foreign


ROOMS = {
    "data": "Corpora, tokenizers and stores",
    "training": "Training and runs",
    "cli": "Commands",
    "objective": "The class `MLM`",
    "masking": "Masking",
    "tokens": "Special tokens",
    "encoder": "The built-in encoder",
    "huggingface": "Hugging Face models and the collator",
    "adaptation": "Adapting a vocabulary",
    "evaluation": "Evaluating",
    "doctor": "The doctor",
    "report": "Reports and cards",
    "play": "The page to play with",
    "demo": "The demo",
}


def _cell(text: str) -> str:
    """Text in a cell of a table, as it is."""
    escaped = text.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;").replace("|", "&#124;")
    return re.sub(r"([\\`*_\[\]{}])", r"\\\1", escaped)


def error_tables(package: Path) -> str:
    """All messages in a table for each room: what is said is wrong, and the cure, which every message ends with."""
    every, _ = messages(package)
    parts = []
    for room in sorted({message.room for message in every}, key=lambda name: list(ROOMS).index(name)):
        texts = sorted({message.text for message in every if message.room == room}, key=str.lower)
        rows = []
        for text in texts:
            fault, _, cure = text.rpartition("; ")
            rows.append(f"| {_cell(fault or cure)} | {_cell(cure if fault else '')} |")
        parts.append(f"### {ROOMS[room]}\n\n| message | cure |\n| --- | --- |\n" + "\n".join(rows))
    return "\n\n".join(parts)
