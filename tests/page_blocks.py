"""The code blocks of a page of documentation: what is run, what a hidden comment says of it, what it should print.

    <!-- not run: REASON -->                 the next block is not run
    <!-- run with: OLD -> NEW; … -->         replacements in the next block, which shorten it
    <!-- run page with: OLD -> NEW; … -->    the same in every block of the page
    <!-- setup (newline) … -->               run at its place: lines with `$ ` are commands, the others Python
    <!-- output -->                          what the next block shows is compared with what was printed
    <!-- output not compared: REASON -->     it is not
    <!-- exit: 2 -->                         the commands of the next block end with this code
    <!-- raises: ValueError -->             the next block, Python, does; the error's message counts as printed
    <!-- save as: FILE -->                   the next block is written to a file instead of being run

They stand on lines of their own, before the fence that they speak of; `docs/hooks.py` keeps them out of the site.
"""

import re
from dataclasses import dataclass, field
from pathlib import Path

RUN = ("python", "console", "sh", "bash")
SHOWN = ("", "text", "diff", "yaml", "json", "bibtex", "html", "toml", "csv", "markdown")

FENCE = re.compile(
    r"^(?P<indent> *)(?P<ticks>`{3,})(?P<language>[\w+-]*)[^\n`]*\n(?P<code>.*?)^ *(?P=ticks) *$", re.M | re.S
)
WORDS = "not run|run with|run page with|output not compared|output|exit|raises|save as|setup"
COMMENT = re.compile(rf"^ *<!-- (?P<word>{WORDS})\b(?P<said>.*?)-->[ \t]*$", re.M | re.S)


@dataclass(frozen=True)
class Block:
    """A fence, or a setup (whose language is "setup"), with what the comments before it say."""

    language: str
    code: str
    line: int
    said: dict[str, str] = field(default_factory=dict)

    @property
    def kind(self) -> str:
        """`run`, `skip` (with a reason), `file`, `shown`, or `unknown`: no reason and no way to run it."""
        if "not run" in self.said:
            return "skip" if self.said["not run"] else "unknown"
        if "save as" in self.said:
            return "file"
        if self.language in (*RUN, "setup"):
            return "run"
        return "shown" if self.language in SHOWN else "unknown"

    def commands(self) -> list[tuple[str, list[str]]]:
        """Of a console block: each command, with the lines that are shown after it."""
        found: list[tuple[str, list[str]]] = []
        for line in self.code.splitlines():
            if line.startswith("$ "):
                found.append((line[2:], []))
            elif found and found[-1][0].endswith("\\") and not found[-1][1]:
                found[-1] = (f"{found[-1][0]}\n{line}", [])
            elif line.strip():
                assert found, f"line {self.line}: a console block begins with a command, `$ …`, not with {line!r}"
                found[-1][1].append(line)
        return found

    def shows_output(self) -> bool:
        """Does a console block show what its commands print?"""
        return self.language == "console" and any(lines for _, lines in self.commands())


def replacements(said: str) -> list[tuple[str, str]]:
    """`old -> new; old -> new`, in pairs.

    >>> replacements("20m -> 2steps; a.txt -> b.txt")
    [('20m', '2steps'), ('a.txt', 'b.txt')]
    """
    pairs = [part.partition(" -> ") for part in re.split(r";\s+|;$", said.strip()) if part.strip()]
    assert all(arrow for _, arrow, _ in pairs), f"a replacement is written OLD -> NEW: {said!r}"
    return [(old.strip(), new.strip()) for old, _, new in pairs]


def blocks(page: str) -> list[Block]:
    """The fences and setups of a page, in order, with replacements made.

    Raises:
        AssertionError: a replacement of what is not there, a comment that no fence follows.
    """
    everywhere: dict[tuple[str, str], bool] = {}
    found, waiting, end = [], {}, 0
    fences = list(FENCE.finditer(page))
    inside = [fence.span() for fence in fences]
    comments = [c for c in COMMENT.finditer(page) if not any(a <= c.start() < b for a, b in inside)]
    for match in sorted([*fences, *comments], key=lambda match: match.start()):
        line = page.count("\n", 0, match.start()) + 1
        if waiting:
            between = page[end : match.start()].strip()
            assert not between, (
                f"line {line}: the comments {sorted(waiting)} stand before no fence, but {between[:40]!r}"
            )
        end = match.end()
        if "word" in match.groupdict():
            word, said = match["word"], match["said"].removeprefix(":")
            if word == "setup":
                found.append(Block("setup", said.strip("\n"), line))
            elif word == "run page with":
                everywhere |= dict.fromkeys(replacements(said), False)
            else:
                waiting[word] = re.sub(r"\s*\n\s*", " ", said).strip()
            continue
        indent = match["indent"]
        code = "".join(row.removeprefix(indent) for row in match["code"].splitlines(keepends=True))
        found.append(Block(match["language"], code, line, waiting))
        waiting = {}
    assert not waiting, f"the comments {sorted(waiting)} at the end stand before no fence"
    return [_replaced(block, everywhere) for block in found] if _all_used(found, everywhere) else []


def _all_used(found: list[Block], everywhere: dict[tuple[str, str], bool]) -> bool:
    for old, _ in everywhere:
        assert any(old in block.code for block in found), f"no block of the page has {old!r} to replace"
    return True


def _replaced(block: Block, everywhere: dict[tuple[str, str], bool]) -> Block:
    if block.language == "setup":
        return block
    code = block.code
    for old, new in replacements(block.said.get("run with", "")):
        assert old in code, f"line {block.line}: the block has no {old!r} to replace"
        code = code.replace(old, new)
    for old, new in everywhere:
        code = code.replace(old, new)
    return Block(block.language, code, block.line, block.said)


NUMBER = re.compile(r"[-+]?\d[\d,]*(\.\d+)?(e[-+]?\d+)?%?")


def _masked(line: str) -> str:
    """A line with its numbers masked and bars and blanks made one blank."""
    return " ".join(NUMBER.sub("#", re.sub(r"[█▏▎▍▌▋▊▉\s]+", " ", line)).split())


def missing_line(shown: list[str], printed: str) -> str | None:
    """The first line shown that was not printed (in this order), numbers and bars aside; `…` stands for any text.

    >>> missing_line(["loss 5.03 …"], "step 1\\nloss 7.2 nats a token")
    >>> missing_line(["a", "b"], "b\\na")
    'b'
    """
    real = iter(_masked(line) for line in re.split(r"[\r\n]+", printed))
    for line in shown:
        pattern = ".*".join(re.escape(part) for part in _masked(line).split("…"))
        if pattern.strip(".*") and not any(re.fullmatch(pattern, candidate) for candidate in real):
            return line
    return None


def pages(root: Path) -> list[Path]:
    """The pages whose blocks are run: the README and everything under docs/ that is written by hand."""
    return [root / "README.md", *sorted((root / "docs").rglob("*.md"))]
