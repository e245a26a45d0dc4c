"""The whole examination: read a sample, look at text and tokens, mask some of it, try a few steps, plan for ranks.

read_material: options -> what was read, of files, a mixture or a store   (`material`)
_tokenizer:    options, what was read -> Tokenizer, or the finding that says why there is none
examine:       DoctorConfig -> Report
"""

import math
import os
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from mlm_pytorch.cli.options import DoctorConfig
from mlm_pytorch.cli.starting import preset_as_wide
from mlm_pytorch.data.pieces import Cutting
from mlm_pytorch.data.store import TokenStore
from mlm_pytorch.data.tokenizer import (
    Tokenizer,
    choose_vocab_size,
    load_tokenizer,
    parse_kind,
    tokenizer_for_ids,
    train_tokenizer,
)
from mlm_pytorch.data.tokenizer.alphabets import check_largest_id
from mlm_pytorch.data.tokenizer.content import fits_alphabet, kind_of_content
from mlm_pytorch.doctor.findings import Finding, Level, by_gravity, worst
from mlm_pytorch.doctor.fit import check_text_fit
from mlm_pytorch.doctor.languages import check_languages
from mlm_pytorch.doctor.masks import MaskedSample, masked_samples, pieces_of
from mlm_pytorch.doctor.material import Material, read_material, with_text
from mlm_pytorch.doctor.ranks import RankPlan, check_count, check_ranks, plan_ranks
from mlm_pytorch.doctor.sample import Sample
from mlm_pytorch.doctor.setup import Setup, check_entries, check_setup
from mlm_pytorch.doctor.text import check_texts
from mlm_pytorch.doctor.tokens import (
    SEQUENCES,
    check_tokens,
    check_vocabulary_size,
    check_words,
    encode_sample,
)
from mlm_pytorch.doctor.trial import Forecast, Trial, check_forecast, check_loss, forecast, free_resources, run_trial
from mlm_pytorch.encoder import PRESETS, Encoder, EncoderConfig, preset
from mlm_pytorch.huggingface import load_encoder, model_folder
from mlm_pytorch.huggingface.folder import read_config
from mlm_pytorch.masking import derive_words
from mlm_pytorch.objective.packs import PackMasker
from mlm_pytorch.tokens import SpecialTokens, WordTable
from mlm_pytorch.training.config import TrainConfig
from mlm_pytorch.training.recipe import choose
from mlm_pytorch.training.schedule import Budget
from mlm_pytorch.training.step import autocast_dtype
from mlm_pytorch.training.throughput import measure_peak

LEARNED_FROM = 1 << 22  # characters for a tokenizer that stands for the one to be trained
MASKED_SHOWN = 3
RANKS_VOCABULARY = 50_368  # ModernBERT's, for a plan without a corpus

Say = Callable[[str], None]


@dataclass(frozen=True)
class Report:
    """What an examination found.

    read: what was looked at, in figures. findings: red ones first. samples: pieces with their masks. trial, forecast:
    None where no model was tried. plans: for each of `--ranks`. seconds: that it all took.
    """

    read: dict[str, Any]
    tokenizer: str | None
    findings: list[Finding]
    samples: list[MaskedSample]
    trial: Trial | None
    forecast: Forecast | None
    plans: list[RankPlan]
    seconds: float

    @property
    def level(self) -> Level:
        """The worst of all findings'."""
        return worst(self.findings)


def examine(config: DoctorConfig, say: Say = lambda _: None) -> Report:
    """Look at a corpus and a setup.

    config: what `mlm doctor` is told. say: told what is being done.

    Raises ValueError for what the user should mend before there is anything to look at: paths that do not exist, a
    corpus of which nothing can be read, options that contradict each other.
    """
    started = time.monotonic()
    if not 0 <= config.trial_seconds < math.inf:
        raise ValueError(f"--trial-seconds {config.trial_seconds} is no length of time; 10 is usual, 0 leaves it out")
    for ranks in config.ranks:
        check_count(ranks)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    if not config.corpus and not config.mix:
        if not config.ranks:
            raise ValueError("no corpus is named; give files, globs, folders, a store, or --ranks for a plan alone")
        config = _settled(config, None, device)
        setup = _setup(config, None, None, device)
        plans, found = _plans(config, setup)
        return Report({}, None, found, [], None, None, plans, time.monotonic() - started)
    say("reading")
    material = read_material(config)
    chosen = config.model is None
    config = _settled(config, material.store, device)
    findings = list(material.findings)
    sample = material.sample
    tokenizer, about, trouble = _tokenizer(config, material)
    findings += trouble
    say("looking at texts")
    sequences = bool(sample.texts) and _are_sequences(sample.texts[:2000], tokenizer)
    if material.store is not None and tokenizer is not None:
        sample = with_text(sample, tokenizer)
    if sample.texts:
        findings += check_texts(sample.texts, sequences=sequences)
        findings += [] if sequences else check_languages(sample.texts)
    samples, trial, expected, plans = [], None, None, []
    setup = _setup(config, tokenizer, material.store, device)
    if material.store is None:  # what a preparation refuses
        cutting = Cutting(setup.seq_len, config.long_documents, config.overlap)
        if tokenizer is not None:
            cutting.max_piece(tokenizer.special)
    if tokenizer is None:
        findings += check_setup(setup)
    else:
        say("looking at tokens")
        looked = _Tokens(config, material, tokenizer, setup)
        findings += looked.findings
        samples = looked.samples
        if not looked.broken:
            say(f"trying {config.model}" + (f", which mlm train would choose for {config.budget}" if chosen else ""))
            trial, expected, found = looked.tried()
            findings += found
    if config.ranks:
        plans, found = _plans(config, setup)
        findings += found
    seconds = time.monotonic() - started
    return Report(material.read, about, by_gravity(findings), samples, trial, expected, plans, seconds)


# -- with what ---------------------------------------------------------------------------------------------------------


def _settled(config: DoctorConfig, store: TokenStore | None, device: torch.device) -> DoctorConfig:
    """With the model and the packs that `mlm train` would choose, where they are left open."""
    if config.model is not None and (config.model not in PRESETS or config.pack_tokens is not None):
        return config
    budget = Budget.parse(config.budget)
    precision = autocast_dtype(config.precision, device) or torch.float32
    chosen = choose(
        budget,
        device,
        peak=measure_peak(device, precision) if budget.unit == "seconds" else 0.0,
        corpus_tokens=store.num_tokens if store is not None else None,
        optimizer=config.optimizer,
        model=config.model,
        seq_len=store.seq_len if store is not None else config.seq_len,
    )
    return replace(config, model=chosen.model, pack_tokens=config.pack_tokens or chosen.pack_tokens)


def _tokenizer(config: DoctorConfig, material: Material) -> tuple[Tokenizer | None, str | None, list[Finding]]:
    """The tokenizer, what it is in words, and what is wrong with it."""
    if material.store is not None:
        return load_tokenizer(material.store.tokenizer_folder), "the store's", []
    for_ids = (config.num_tokens, config.mask_token_id, config.pad_token_id, config.special_ids or None)
    if any(option is not None for option in for_ids) or config.add_special_tokens:
        if config.tokenizer:
            raise ValueError("--num-tokens and the like describe ids without a tokenizer; leave out --tokenizer")
        made = tokenizer_for_ids(
            config.num_tokens or _largest_id(material.sample) + 1,
            mask_token_id=config.mask_token_id,
            pad_token_id=config.pad_token_id,
            special_ids=config.special_ids,
            add_special_tokens=config.add_special_tokens,
        )
        return made, "made for ids", []
    named = config.tokenizer
    assert config.model is not None
    if named is None and config.model not in PRESETS:
        named = str(model_folder(Path(config.model)))
    if named is not None and (Path(named).is_dir() or os.sep in named):
        if config.vocab_size is not None:
            raise ValueError(
                f"--vocab-size {config.vocab_size} is for training a tokenizer, but one is given; leave out one of them"
            )
        try:
            return load_tokenizer(named), named, []
        except ValueError as error:
            return None, named, [_no_tokenizer(str(error), "mend what the message names, or leave --tokenizer out")]
    if not material.sample.texts:
        made = tokenizer_for_ids(_largest_id(material.sample) + 1, add_special_tokens=True)
        trouble = _no_tokenizer(
            "the corpus holds token ids, and no tokenizer is given",
            "pass the tokenizer that made them, or --add-special-tokens where there is none",
        )
        return made, "made for ids", [trouble]
    return _learned(config, named, material.sample)


def _learned(
    config: DoctorConfig, named: str | None, sample: Sample
) -> tuple[Tokenizer | None, str | None, list[Finding]]:
    """A tokenizer trained on a part of the sample, in the place of the one that training would learn from all."""
    kind = parse_kind(named)[0] if named else kind_of_content(sample.texts[:2000])
    texts = sample.texts
    total = sum(map(len, texts))
    texts = texts[:: max(1, -(-total // LEARNED_FROM))]
    size = None if kind in (*SEQUENCES, "bytes", "characters") else choose_vocab_size(sample.characters_estimate)
    made = train_tokenizer(texts, config.vocab_size or size, named or kind)
    used = sum(map(len, texts))
    return made, f"{made.kind}, trained on {used / 1e6:.1f} MB of the sample (training learns it from more)", []


def _shape_of(folder: Path) -> EncoderConfig:
    """The shape of the encoder in a folder. Others than the built-in one are not tried, and not guessed at."""
    kind = read_config(model_folder(folder)).get("model_type")
    if kind != "modernbert":
        raise ValueError(
            f"--model {folder} is of type {kind!r}, and the doctor tries ModernBERT's architecture only; to look at a "
            f"corpus with its tokenizer, pass --tokenizer {folder} --trial-seconds 0 in its place"
        )
    return load_encoder(folder).config


def _are_sequences(texts: Sequence[str], tokenizer: Tokenizer | None) -> bool:
    """Whether texts are DNA or proteins, by their letters, or by a tokenizer whose alphabet they fit."""
    named = (tokenizer.kind or "").partition(":")[0] if tokenizer is not None else ""
    return kind_of_content(texts) in SEQUENCES or (named in SEQUENCES and fits_alphabet(texts, named))


def _no_tokenizer(seen: str, remedy: str) -> Finding:
    return Finding(
        "tokenizer", "red", "No tokenizer to train with", seen, "nothing can be masked or padded without one", remedy
    )


def _largest_id(sample: Sample) -> int:
    largest = -1
    for document in sample.documents:
        if document.ids is not None:
            largest = max(largest, int(document.ids.max()))
            check_largest_id(largest, str(document.source))
    if largest < 0:
        raise ValueError("the corpus holds no token ids; leave out --add-special-tokens, --num-tokens and the like")
    return largest


def _setup(config: DoctorConfig, tokenizer: Tokenizer | None, store: TokenStore | None, device: torch.device) -> Setup:
    assert config.model is not None
    if config.model in PRESETS:
        recipe = PRESETS[config.model]
        special = tokenizer.special if tokenizer else SpecialTokens(RANKS_VOCABULARY, 1, 0, (0, 1))
        shape = preset(config.model, vocab_size=special.num_tokens, pad_token_id=special.pad_token_id)
    elif Path(config.model).is_dir():
        shape = _shape_of(Path(config.model))
        recipe = preset_as_wide(shape.hidden_size)
    else:
        raise ValueError(
            f"--model {config.model!r} is neither a preset ({', '.join(PRESETS)}) nor a folder; "
            "name one of these, or give --model FOLDER"
        )
    for name in ("seq_len", "pack_tokens", "packs_per_step"):
        value = getattr(config, name)
        if value is not None and value < 1:
            raise ValueError(f"--{name.replace('_', '-')} {value} is too small; give at least 1")
    if not 0 < config.mask_prob <= 1:
        raise ValueError(f"--mask-prob {config.mask_prob} is outside (0, 1]; 0.15 to 0.4 is usual")
    if store is not None and config.seq_len not in (None, store.seq_len):
        raise ValueError(
            f"--seq-len is settled by the store, at {store.seq_len}; leave it out, or prepare another store"
        )
    by_default = min(recipe.seq_len, shape.max_position_embeddings)
    seq_len = store.seq_len if store is not None else config.seq_len or by_default
    return Setup(
        model=config.model,
        config=shape,
        device=device,
        seq_len=seq_len,
        pack_tokens=config.pack_tokens or max(recipe.pack_tokens, config.seq_len or 0),
        packs_per_step=config.packs_per_step or max((TrainConfig.packs_per_step, *config.ranks)),
        mask_prob=config.mask_prob,
        selection=config.selection,
        optimizer=config.optimizer,
        precision=config.precision,
        budget=config.budget,
        keep=TrainConfig.keep_checkpoints,
    )


def _plans(config: DoctorConfig, setup: Setup) -> tuple[list[RankPlan], list[Finding]]:
    plans, findings = [], []
    for ranks in config.ranks:
        packs = config.packs_per_step or ranks
        made = plan_ranks(
            setup.config,
            ranks,
            pack_tokens=setup.pack_tokens,
            packs_per_step=packs,
            seq_len=setup.seq_len,
            optimizer=setup.optimizer,
            mask_prob=setup.mask_prob,
        )
        plans += made
        findings.append(check_ranks(ranks, packs, made))
    return plans, findings


# -- tokens, masks, trial ----------------------------------------------------------------------------------------------


class _Tokens:
    """The part of an examination for which there is a tokenizer."""

    def __init__(self, config: DoctorConfig, material: Material, tokenizer: Tokenizer, setup: Setup):
        self.config, self.material, self.tokenizer, self.setup = config, material, tokenizer, setup
        self.encoded = encode_sample(tokenizer, material.sample.documents)
        self.words = self._word_table()
        sample = material.sample
        characters = sample.characters_estimate
        self.total = int(characters * self.encoded.tokens_per_character)  # at least, where it is not known
        self.total_known = sample.share_read is not None
        found = check_tokens(tokenizer, self.encoded, seq_len=setup.seq_len, long_documents=config.long_documents)
        self.broken = any(finding.check == "ids" and finding.level == "red" for finding in found)
        self.samples: list[MaskedSample] = []
        if not self.broken:
            found += check_text_fit(tokenizer, self.encoded)
            found.append(check_words(self.words, self.encoded, config.selection))
            if self.total_known:
                found.append(check_vocabulary_size(tokenizer.special.num_tokens, self.total, tokenizer.kind))
            found += self._masked()
        found.append(check_entries(setup, tokenizer.special.num_tokens))
        self.findings = found + check_setup(setup, self.encoded.lengths)

    def _word_table(self) -> WordTable | str:
        try:
            return derive_words(self.tokenizer.backend)
        except ValueError as error:
            return str(error)

    def _masked(self) -> list[Finding]:
        if isinstance(self.words, str) and self.config.selection in ("words", "ngrams"):
            self.broken = True  # already said by `check_words`
            return []
        self.pieces = pieces_of(self.encoded.ids, self.tokenizer.special, self.setup.seq_len)
        self.masker = PackMasker(
            self.tokenizer.special,
            0,
            self.config.replace_prob,
            self.config.random_token_prob,
            selection=self.config.selection,
            words=self.words if isinstance(self.words, WordTable) else None,
        )
        rate = round(1e6 * self.config.mask_prob)
        self.samples, finding = masked_samples(self.pieces, self.masker, self.tokenizer, rate, MASKED_SHOWN)
        return [finding]

    def tried(self) -> tuple[Trial | None, Forecast | None, list[Finding]]:
        """A few steps of training, and what follows from them."""
        setup = self.setup
        fits = setup.seq_len <= min(setup.pack_tokens, setup.config.max_position_embeddings)
        if not self.config.trial_seconds or not fits or self.tokenizer.special.num_tokens > setup.config.vocab_size:
            return None, None, []
        free = free_resources(setup.device, Path())
        trial = run_trial(setup, self.pieces, self.masker, self.config.trial_seconds, free, self._model)
        pieces = round(len(self.pieces) * self.total / max(1, self.pieces.num_tokens))
        seconds = self.material.sample.characters_estimate * self.encoded.seconds / max(1, self.encoded.characters)
        expected = forecast(setup, trial, tokens=self.total, pieces=pieces, prepare_seconds=seconds)
        expected = replace(expected, at_least=not self.total_known)
        found = [*check_forecast(setup, trial, expected, free), check_loss(trial, setup.config.vocab_size)]
        return trial, expected, found

    def _model(self) -> Encoder:
        torch.manual_seed(0)
        if self.setup.model not in PRESETS:
            return load_encoder(Path(self.setup.model))
        encoder = Encoder(self.setup.config)
        counts = np.zeros(self.tokenizer.special.num_tokens, np.int64)
        for ids in self.encoded.ids:
            counts += np.bincount(ids, minlength=len(counts))
        encoder.start_at_frequencies(torch.from_numpy(counts))
        return encoder
