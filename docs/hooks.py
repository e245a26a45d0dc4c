"""What mkdocs does beside reading pages: writes generated ones, drops hidden comments, brings linked files along."""

import posixpath
import re
import sys
from pathlib import Path

from mkdocs.structure.files import File, InclusionLevel

ROOT = Path(__file__).parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "docs" / "reference"), str(ROOT / "tests")]

from commands import command_pages  # noqa: E402
from errors import error_tables  # noqa: E402
from page_blocks import COMMENT, FENCE  # noqa: E402

ERRORS = "<!-- every error message: written by docs/reference/errors.py -->"
OUTSIDE = "repository"  # where files from outside docs/ that a page links to stand in the site
LINK = re.compile(r"(?<=\]\()([^)#\s]+)(#[^)\s]*)?(?=\))")


def on_files(files, config):
    """Add the command line's pages, and the files of the repository that pages link to."""
    for path, text in command_pages().items():
        files.append(File.generated(config, path, content=text))
    waiting = [(f"docs/{page.src_uri}", page.content_string) for page in files.documentation_pages()]
    while waiting:
        path, text = waiting.pop()
        for target in sorted(_outside(path, text)):
            uri = f"{OUTSIDE}/{target}"
            if files.get_file_from_path(uri) is None:
                linked = File.generated(config, uri, abs_src_path=str(ROOT / target))
                linked.inclusion = InclusionLevel.NOT_IN_NAV
                files.append(linked)
                if target.endswith(".md"):
                    waiting.append((target, (ROOT / target).read_text(encoding="utf-8")))
    return files


def _outside(path: str, text: str) -> set[str]:
    """The files outside docs/ that a page links to, by their paths in the repository."""
    targets = {posixpath.normpath(posixpath.join(posixpath.dirname(path), link)) for link, _ in LINK.findall(text)}
    return {target for target in targets if not target.startswith(("docs/", "..")) and (ROOT / target).is_file()}


def on_page_markdown(markdown, page, config, files):
    """Leave out comments that only the tests read, lead links to files in the site, write the error tables."""
    uri = page.file.src_uri
    inside = uri.startswith(f"{OUTSIDE}/")
    path = uri.removeprefix(f"{OUTSIDE}/") if inside else f"docs/{uri}"

    def lead(match: re.Match) -> str:
        target = posixpath.normpath(posixpath.join(posixpath.dirname(path), match[1]))
        if not (ROOT / target).is_file() or (target.startswith("docs/") and not inside):
            return match[0]
        uri_of = target.removeprefix("docs/") if target.startswith("docs/") else f"{OUTSIDE}/{target}"
        return posixpath.relpath(uri_of, posixpath.dirname(uri)) + (match[2] or "")

    text = _outside_fences(markdown, lambda prose: LINK.sub(lead, COMMENT.sub("", prose)))
    return text.replace(ERRORS, error_tables(ROOT / "mlm_pytorch")) if ERRORS in text else text


def _outside_fences(markdown: str, change) -> str:
    """A page with everything but its code blocks changed."""
    parts, end = [], 0
    for fence in FENCE.finditer(markdown):
        parts += [change(markdown[end : fence.start()]), fence[0]]
        end = fence.end()
    return "".join([*parts, change(markdown[end:])])
