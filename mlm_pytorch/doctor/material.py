"""What an examination looks at: a sample of files, of a mixture's parts, or of a store."""

from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

import numpy as np

from mlm_pytorch.cli.options import DoctorConfig
from mlm_pytorch.cli.prepare import open_corpora
from mlm_pytorch.data.mixture import parse_mix
from mlm_pytorch.data.options import CorpusOptions
from mlm_pytorch.data.prepare import check_options
from mlm_pytorch.data.store import MANIFEST, TokenStore
from mlm_pytorch.data.tokenizer import Tokenizer
from mlm_pytorch.doctor.corpus import Part, check_corpus, check_duplicates, check_leak, check_mixture
from mlm_pytorch.doctor.findings import Finding
from mlm_pytorch.doctor.repeats import Repeats, held_out_hashes
from mlm_pytorch.doctor.sample import READ_BYTES, Sample, count_repeats, draw_sample, merge_samples, sample_store

REPEATS_SECONDS = 4.0  # to look for repeats in a corpus of which only a sample was read


@dataclass(frozen=True)
class Material:
    """What was read of a corpus, what is wrong with it, and figures for the report; the store, where it is one."""

    sample: Sample
    findings: list[Finding]
    read: dict[str, Any]
    store: TokenStore | None = None


def read_material(config: DoctorConfig) -> Material:
    """Read a sample of files, of a mixture's parts, or of a store.

    Raises:
        ValueError: paths that do not exist, a corpus of which nothing can be read, and options that a preparation, or
            training on a store, would refuse.
    """
    if len(config.corpus) == 1 and (Path(config.corpus[0]) / MANIFEST).is_file():
        _refuse_settled(config)
        return _read_store(Path(config.corpus[0]))
    corpora = open_corpora(config, config.corpus)
    check_options(config.workers, config.engine, drop_duplicates=config.drop_duplicates, corpora=corpora.values())
    valid = config.valid_files
    held_out = held_out_hashes(valid, config.column, config.split_text) if valid else set()
    reading: dict[str, Any] = {"column": config.column, "split_text": config.split_text, "valid": valid}
    options = reading | {"encoding_errors": config.encoding_errors, "held_out": held_out}
    findings: list[Finding] = []
    if config.mix:
        parts = [parse_mix(part) for part in config.mix]
        paths = [name for name, _ in parts]
        samples = [draw_sample([name], read_bytes=READ_BYTES // len(parts), **options) for name in paths]
        sample = merge_samples(samples, [weight for _, weight in parts])
        known = zip(parts, samples, strict=True)
        findings += check_mixture([Part(name, weight, s.documents_estimate) for (name, weight), s in known])
    else:
        paths = list(config.corpus)
        sample = draw_sample(paths, **options)
    repeats, share = sample.repeats, sample.share_read
    again = not sample.whole and not any(file.is_stream for file in corpora["train"].files)
    if again:
        more, more_share = count_repeats(paths, REPEATS_SECONDS, held_out=held_out, **reading)
        if more.documents > repeats.documents:
            repeats, share = more, more_share
    findings += [*check_corpus(sample), check_duplicates(repeats, share)]
    if valid:
        findings.append(check_leak(repeats, share))
    return Material(sample, findings, _facts(sample, repeats, again))


def _refuse_settled(config: DoctorConfig) -> None:
    """As `mlm train` does; what to do about its length is said where the setup is made."""
    for field in fields(CorpusOptions):
        if getattr(config, field.name) != field.default:
            raise ValueError(
                f"--{field.name.replace('_', '-')} is settled by the store {config.corpus[0]}; "
                "leave it out, or prepare another store"
            )


def _facts(sample: Sample, repeats: Repeats, again: bool) -> dict[str, Any]:
    names = ("files", "files_read", "bytes_total", "bytes_read", "documents_read", "characters_read", "whole")
    facts = {name: getattr(sample, name) for name in names}
    facts |= {"documents_looked_at": len(sample.documents), "documents_estimate": sample.documents_estimate}
    return facts | ({"documents_read_for_repeats": repeats.documents} if again else {})


def _read_store(folder: Path) -> Material:
    store = TokenStore.open(folder)
    info = store.manifest.splits["train"]
    documents = sample_store(store)
    sample = Sample(
        documents=documents,
        files=len(info.shards),
        files_read=len(info.shards),
        bytes_total=None,
        bytes_read=0,
        documents_read=len(store),
        characters_read=store.num_tokens,  # of which each is one "character" of a document of ids
        whole=True,
        empty_documents=0,
        failed=0,
        failure=None,
        barren_files=(),
        skipped_files=(),
        line_documents=False,
        repeats=Repeats(),
    )
    read = {
        "store": str(folder),
        "documents": info.documents,
        "pieces": info.pieces,
        "tokens": info.tokens,
        "pieces_looked_at": len(documents),
        "whole": False,
    }
    return Material(sample, [], read, store)


def with_text(sample: Sample, tokenizer: Tokenizer) -> Sample:
    """Pieces of a store, decoded. Ids that stand for themselves have no text."""
    if _is_numbers(tokenizer):
        return sample
    rows = [np.asarray(document.ids).tolist() for document in sample.documents]
    texts = tokenizer.backend.decode_batch(rows, skip_special_tokens=False)
    documents = [replace(d, text=text, ids=None) for d, text in zip(sample.documents, texts, strict=True)]
    return replace(sample, documents=documents)


def _is_numbers(tokenizer: Tokenizer) -> bool:
    """Whether its tokens are ids written out."""
    tokens = tokenizer.backend.get_vocab(with_added_tokens=False)
    return all(token.isdecimal() for token in list(tokens)[:100] if not token.startswith("["))
