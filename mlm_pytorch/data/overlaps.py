"""Files that are named twice, or both held out and trained on: each is read once, on one side."""

from collections.abc import Callable, Mapping, Sequence
from typing import TypeVar

from mlm_pytorch.data.corpus import Corpus, CorpusFile, DocumentStream
from mlm_pytorch.data.mixture import Mixture

Stream = TypeVar("Stream", bound=DocumentStream)


def each_file_in_one_place(
    corpora: Mapping[str, Stream], notice: Callable[[str], None] = lambda _: None
) -> dict[str, Stream]:
    """The corpora of the splits "train" and, if it has one, "valid", as they are read: a file that is named twice once,
    and one of "valid" not for "train", as long as that has others. `notice` is told which, in single lines.

    Raises ValueError for a mixture of which a part is held out.
    """
    found = {split: _each_file_once(reader, notice) for split, reader in corpora.items()}
    if "valid" in found:
        found["train"] = _without_held_out(found["train"], found["valid"], notice)
    return found


def _each_file_once(reader: Stream, notice: Callable[[str], None]) -> Stream:
    """A corpus without the files that are among its paths a second time. The parts of a mixture may repeat files."""
    if not isinstance(reader, Corpus) or len(reader.files) < 2:
        return reader
    places: set[str] = set()
    files: list[CorpusFile] = []
    again: list[CorpusFile] = []
    for file in reader.files:
        place = file.place
        (again if place in places else files).append(file)
        if place is not None:
            places.add(place)
    if not again:
        return reader
    notice(_of_files(again, "is named twice, so it is read once", "are named twice, so they are read once"))
    return reader.of_files(files)


def _without_held_out(train: Stream, valid: DocumentStream, notice: Callable[[str], None]) -> Stream:
    """A corpus without the files that are held out: a folder may hold both. Where it has no others, it stays as it is.

    Raises ValueError for a mixture, whose weights are given for all that its parts hold.
    """
    if not isinstance(train, Corpus | Mixture):  # what others write may read other documents of the same file
        return train
    held_out = places_of(valid)
    both = [file for file in train.files if file.place in held_out]
    if not both:
        return train
    if not isinstance(train, Corpus):
        raise ValueError(
            f"{both[0].label} is held out, but a part of the mixture too, which is trained on; move it out of that "
            "part's folder, or hold out another file"
        )
    if len(both) == len(train.files):
        rest = "trained on as well, so what is measured there says nothing about other text"
        notice(_of_files(both, f"is held out and {rest}", f"are held out and {rest}"))
        return train
    notice(_of_files(both, "is held out, so it is not trained on", "are held out, so they are not trained on"))
    return train.of_files([file for file in train.files if file.place not in held_out])


def places_of(reader: DocumentStream) -> set[str]:
    """Where the files lie that are read, but for what can be read only once."""
    return {place for file in reader.files if (place := file.place) is not None}


def _of_files(files: Sequence[CorpusFile], one: str, several: str) -> str:
    """A notice about files that stays one line however many there are."""
    if len(files) == 1:
        return f"{files[0].label} {one}"
    return f"{files[0].label} and {len(files) - 1:,} more {several}"
