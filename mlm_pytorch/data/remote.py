"""Files elsewhere, read through fsspec: hf://, s3://, gs://, https://, … Nothing here runs unless a URL is named.

fsspec comes with huggingface_hub; a protocol may need a package more (s3fs, gcsfs, aiohttp), which the error names.
"""

import glob
import io
from pathlib import Path
from typing import Any, BinaryIO, cast
from urllib.parse import urlsplit, urlunsplit

from mlm_pytorch.data.files import CorpusFile, walk
from mlm_pytorch.data.formats.record import one_line


def find_remote(url: str) -> tuple[list[CorpusFile], list[Path]]:
    """The files that a URL, a glob in one, or a folder's URL names, and those left out of folders."""
    label = shown_url(url)
    try:
        import fsspec

        system, path = fsspec.core.url_to_fs(url)
        if glob.has_magic(path) and not system.exists(path):
            matches = sorted(cast("list[str]", system.glob(path)))
            if not matches:
                raise ValueError(f"{label} matches no file; check the pattern, and quote it")
        elif system.exists(path):
            matches = [path]
        else:
            raise ValueError(f"{label} does not exist; check the URL, and that you may read it")
        files: list[CorpusFile] = []
        skipped: list[str] = []
        for match in matches:
            if system.isdir(match):
                if "**" not in path:  # whose folders were entered already
                    known, unknown = walk(
                        match.rstrip("/"), lambda folder: _list_folder(system, folder), system.cat_file
                    )
                    files += [_remote_file(system, found, None) for found in known]
                    skipped += unknown
            else:
                files.append(_remote_file(system, match, url if match == path else None))
    except (OSError, ImportError) as error:
        raise ValueError(f"{label} cannot be read ({one_line(error)})") from None
    except ValueError as error:
        if type(error) is ValueError and not str(error).startswith("Protocol not known"):
            raise
        raise ValueError(f"{label} cannot be read ({one_line(error)})") from None
    return files, [Path(name) for name in skipped]


def open_url(url: str, label: str) -> BinaryIO:
    """The bytes of a file elsewhere; it can be sought in where its protocol allows."""
    import fsspec

    try:
        system, path = fsspec.core.url_to_fs(url)
        return cast("BinaryIO", _Remote(system.open(path, "rb"), label))
    except (OSError, ValueError, ImportError) as error:
        raise ValueError(f"{label} cannot be read ({one_line(error)})") from None


class _Remote(io.RawIOBase):
    """A file of fsspec whose failures are errors that name it: a connection may break at any byte."""

    def __init__(self, file: Any, label: str):
        self.file, self.label = file, label

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return bool(self.file.seekable())

    def readinto(self, buffer: Any) -> int:
        try:
            data = self.file.read(len(buffer))
        except (OSError, ValueError) as error:
            raise ValueError(f"{self.label} broke off ({one_line(error)}); try again") from None
        buffer[: len(data)] = data
        return len(data)

    def seek(self, offset: int, whence: int = 0) -> int:
        return self.file.seek(offset, whence)

    def tell(self) -> int:
        return self.file.tell()

    def close(self) -> None:
        if not self.closed:
            self.file.close()
        super().close()


def _remote_file(system: Any, path: str, url: str | None) -> CorpusFile:
    url = url or str(system.unstrip_protocol(path))
    label = shown_url(url)
    return CorpusFile(None, label, label.rstrip("/").rpartition("/")[2], system.size(path), url)


def _list_folder(system: Any, folder: str) -> tuple[list[str], list[str]]:
    folders: list[str] = []
    names: list[str] = []
    for entry in system.ls(folder, detail=True):
        name = entry["name"].rstrip("/").rpartition("/")[2]
        (folders if entry["type"] == "directory" else names).append(name)
    return folders, names


def shown_url(url: str) -> str:
    """A URL without what may be a secret: a password, or the signature in a query.

    >>> shown_url("zip://a.txt::https://me:secret@host/a.zip?signature=secret")
    'zip://a.txt::https://host/a.zip'
    """
    chain = map(urlsplit, url.split("::"))  # of what lies inside an archive, each address for itself
    return "::".join(urlunsplit((p.scheme, p.netloc.rpartition("@")[2], p.path, "", "")) for p in chain)
