"""`mlm train`: put the rooms together, a store, a model, and the loop that brings them to each other."""

import dataclasses
import tempfile
from collections.abc import Callable
from pathlib import Path

import torch
from torch import nn

from mlm_pytorch.adaptation import Extension, extend_embeddings
from mlm_pytorch.cli.adapting import Adaptation, kept_packs, read_adaptation
from mlm_pytorch.cli.learners import FlatLearner, RowsLearner, make_learner
from mlm_pytorch.cli.models import printable
from mlm_pytorch.cli.prepare import described, prepare_corpus
from mlm_pytorch.cli.starting import FactoryStart, ModelStart, Start, find_start, restart, sizes_for, width_of
from mlm_pytorch.data.batches import Reader
from mlm_pytorch.data.options import CorpusOptions
from mlm_pytorch.data.packing import Pack, sequential_packs
from mlm_pytorch.data.store import MANIFEST, Manifest, TokenStore
from mlm_pytorch.data.tokenizer import load_tokenizer
from mlm_pytorch.encoder import PRESETS, Preset
from mlm_pytorch.evaluation import MaskedResult, masked_loss
from mlm_pytorch.masking import RateSchedule, derive_words
from mlm_pytorch.objective.packs import PackMasker
from mlm_pytorch.training.checkpoint import newest_checkpoint
from mlm_pytorch.training.config import FROM_SCRATCH, TrainConfig
from mlm_pytorch.training.device import find_device
from mlm_pytorch.training.feed import Feed
from mlm_pytorch.training.gentle import gentle_values
from mlm_pytorch.training.metrics import Display
from mlm_pytorch.training.run import CONFIG, STORE, begin, run_folder
from mlm_pytorch.training.sizes import plan
from mlm_pytorch.training.trainer import Trainer

LEARNING_RATES = {"muon": 4e-3, "adamw": 2e-3}
VALID_PIECES = 256  # of the held-out set, measured during training; `mlm evaluate` measures all of it

Learning = FlatLearner | RowsLearner


def train(config: TrainConfig) -> bool:
    """`mlm train`: corpus in, Hugging Face model out. Returns False where a signal stopped it before the end."""
    config.check()
    with Display() as display, run_folder(config) as folder:
        trainer, learner = _trainer(config, folder, display)
        begin(folder, config)
        finished = trainer.run()
        if not finished:
            display.say(f"stopped by {trainer.stop_requested} and saved; the same command continues")
            return False
        said = learner.check(folder / "model")
        display.say(f'done: {folder / "model"} {said}; next: mlm fill {folder} "… [MASK] …"')
        return True


def _trainer(config: TrainConfig, folder: Path, display: Display) -> tuple[Trainer, Learning]:
    """A trainer and what it trains, for a run that is new, or continued from its newest checkpoint."""
    if config.threads:
        torch.set_num_threads(config.threads)
    torch.manual_seed(config.seed)
    checkpoint = newest_checkpoint(folder, display.say)
    start = find_start(config.model) if checkpoint is None else None
    store_folder, extension = _store(config, start, folder, display)
    store, valid = TokenStore.open(store_folder), held_out(store_folder)
    learner = _learner(config, start, checkpoint, store, extension, display)
    config = _settled(config, learner, display if checkpoint is None else None)
    pack_tokens = _pack_tokens(config, learner.model)
    tokenizer, special = learner.tokenizer, store.special

    def measure(packs: Callable[[], list[Pack]]) -> Callable[[nn.Module], MaskedResult]:
        return lambda model: masked_loss(learner.measurable(model), packs(), special, autocast=trainer.autocast)

    masker = PackMasker(
        special,
        config.seed,
        config.replace_prob,
        config.random_token_prob,
        selection=config.selection,
        words=derive_words(tokenizer.backend) if config.selection in ("words", "ngrams") else None,
    )
    kept = kept_packs(config.keep, config.column, tokenizer, store.seq_len, pack_tokens)
    reader = Reader(store, pack_tokens, seed=config.seed, longest=store.seq_len, layout=learner.layout)
    loss, mask = learner.loss(), learner.mask(masker)
    trainer = Trainer(
        learner.model,
        loss,
        Feed(reader, mask, rate=RateSchedule(config.mask_prob, config.mask_prob_end), per_step=config.packs_per_step),
        config,
        folder,
        lr=config.lr or LEARNING_RATES["adamw"],
        tokens_per_epoch=store.num_tokens + len(store) * (len(special.prefix) + len(special.suffix)),
        evaluate=measure(lambda: list(sequential_packs(valid, pack_tokens, VALID_PIECES))) if valid else None,
        keep=measure(lambda: kept) if kept else None,
        measure_first=config.model not in PRESETS,
        export=learner.export,
        display=display,
    )
    first = Reader(store, pack_tokens, seed=config.seed, longest=store.seq_len, layout=learner.layout)
    sizes = plan(
        learner.model,
        loss,
        mask(next(first.take(1)), RateSchedule(config.mask_prob)(0.0)),
        num_batches=config.packs_per_step,
        longest=store.seq_len,
        autocast=trainer.autocast,
        notice=display.say,
    )
    trainer.step.sizes = sizes.sizes
    if checkpoint is not None:
        trainer.restore(checkpoint)
    unit = "pack" if isinstance(learner, FlatLearner) else "padded batch"
    unit += ("es" if unit.endswith("ch") else "s") * (config.packs_per_step > 1)
    per_step = config.packs_per_step
    display.say(
        f"{config.model}: {learner.title}, {trainer.device}, "
        f"{'bf16' if trainer.autocast else 'float32'}; {store.num_tokens:,} tokens; a step reads {per_step} "
        f"{unit} of {pack_tokens:,} tokens, {sizes.describe(per_step)}; budget {config.budget}"
        + (f"; continuing at step {trainer.progress.step:,}" if checkpoint else "")
    )
    return trainer, learner


# -- the store ---------------------------------------------------------------------------------------------------------


def _store(config: TrainConfig, start: Start | None, folder: Path, display: Display) -> tuple[Path, Extension | None]:
    """The store to train on: the one named, the run's own, or one prepared now; and what its tokenizer was extended by.

    A model that is continued is told how well its tokenizer fits the corpus, while there is time to think again.
    """
    named = Path(config.corpus[0]) if config.corpus else folder
    if len(config.corpus) == 1 and (named / MANIFEST).is_file():
        untouched = CorpusOptions()
        for option in ("seq_len", *(field.name for field in dataclasses.fields(CorpusOptions)), "extend_vocabulary"):
            if getattr(config, option) != getattr(untouched, option, None):
                raise ValueError(
                    f"--{option.replace('_', '-')} is settled by the store {named}; "
                    "leave it out, or prepare another store"
                )
        if isinstance(start, ModelStart):
            start.check_store(TokenStore.open(named))
            _say_fit(read_adaptation(config, start.tokenizer, TokenStore.open(named)), display)
        return named, None
    own = folder / STORE
    if start is None:
        return own, None
    if (folder / CONFIG).is_file():  # ended before its first checkpoint
        if isinstance(start, ModelStart) and config.extend_vocabulary:
            return own, _extension(config, read_adaptation(config, start.tokenizer))
        return own, None
    trained_at = start.trained_at
    seq_len = config.seq_len or min(trained_at.seq_len, start.longest or trained_at.seq_len)
    _check_lengths(seq_len, start.longest, config.pack_tokens or max(trained_at.pack_tokens, config.seq_len or 0))
    if not isinstance(start, ModelStart):
        if config.extend_vocabulary:
            raise ValueError(
                f"--extend-vocabulary {config.extend_vocabulary} is for a model that is continued; --model "
                f"{config.model} is built for any vocabulary, so pass --vocab-size"
            )
        display.say(described(prepare_corpus(config, config.corpus, own, seq_len, display)))
        return own, None
    start.check_tokenizer(config.tokenizer)
    adaptation = read_adaptation(config, start.tokenizer)
    _say_fit(adaptation, display)
    extension = _extension(config, adaptation)
    with tempfile.TemporaryDirectory() as temporary:
        tokenizer = start.folder
        if extension is not None:
            tokenizer = Path(temporary)
            extension.tokenizer.save(tokenizer)
            after = read_adaptation(config, extension.tokenizer)
            assert adaptation is not None
            assert after is not None
            display.say(
                f"{len(extension.pieces):,} tokens added to the vocabulary, which then makes "
                f"{after.fit.pieces_per_word:.2f} pieces a word instead of {adaptation.fit.pieces_per_word:.2f}; their "
                "embeddings start at the means of their pieces'"
            )
        options = dataclasses.replace(config, tokenizer=None)
        display.say(described(prepare_corpus(options, config.corpus, own, seq_len, display, tokenizer)))
    return own, extension


def _extension(config: TrainConfig, adaptation: Adaptation | None) -> Extension | None:
    """What is added to the vocabulary. The same corpus gives the same."""
    if not config.extend_vocabulary:
        return None
    if adaptation is None:
        raise ValueError(
            f"--extend-vocabulary {config.extend_vocabulary} has to read the corpus as text, and more than once; name "
            "files of text"
        )
    return adaptation.extend(config.extend_vocabulary)


def _say_fit(adaptation: Adaptation | None, display: Display) -> None:
    if adaptation is None:
        return
    display.say(adaptation.fit.describe())
    if adaptation.fit.fits_badly and adaptation.fit.costliest:
        words = (f"{printable(word)} ({pieces} pieces, {n:,} times)" for word, pieces, n in adaptation.fit.costliest)
        display.say(f"costliest words: {', '.join(words)}")


def held_out(store_folder: Path) -> TokenStore | None:
    """The held-out split of a store, where it has one."""
    return TokenStore.open(store_folder, "valid") if "valid" in Manifest.read(store_folder).splits else None


# -- the model ---------------------------------------------------------------------------------------------------------


def _learner(
    config: TrainConfig,
    start: Start | None,
    checkpoint: Path | None,
    store: TokenStore,
    extension: Extension | None,
    display: Display,
) -> Learning:
    """What is trained: new, continued, or as a checkpoint holds it."""
    factory = None
    if start is None:
        assert checkpoint is not None
        model, factory = restart(config.model, checkpoint / "model", store)
    elif isinstance(start, ModelStart):
        if extension is None:
            start.check_store(store)
        model = start.model if extension is None else extend_embeddings(start.model, extension.pieces)
    else:
        model = start.make(store)
        if isinstance(start, FactoryStart):
            factory = start.name, sizes_for(store.special, store.seq_len)
    tokenizer = load_tokenizer(store.tokenizer_folder)
    learner = make_learner(
        model.to(find_device(config.device)), tokenizer, store.seq_len, factory=factory, say=display.say
    )
    _check_lengths(store.seq_len, learner.longest, _pack_tokens(config, model))
    return learner


def _settled(config: TrainConfig, learner: Learning, display: Display | None) -> TrainConfig:
    """The configuration with what was left open chosen for the model, and said on the display."""
    if config.model in PRESETS:
        settled = config.settled(**FROM_SCRATCH)
        return settled.settled(lr=LEARNING_RATES[settled.optimizer])
    continued = not (isinstance(learner, RowsLearner) and learner.factory)
    values = gentle_values(width_of(learner.model), continued=continued)
    values = FROM_SCRATCH | values
    if display is not None:
        chosen = [
            f"--{name.replace('_', '-')} {value}" for name, value in values.items() if getattr(config, name) is None
        ]
        why = "gentle on a model that is continued" if continued else "for a module of your own"
        display.say(f"chosen, {why}: {' '.join(chosen)}" if chosen else "nothing was left open")
    return config.settled(**values)


def _trained_at(config: TrainConfig, model: nn.Module) -> Preset:
    if config.model in PRESETS:
        return PRESETS[config.model]
    fitting = [shape for shape in PRESETS.values() if shape.hidden_size <= width_of(model)]
    return fitting[-1] if fitting else PRESETS["tiny"]


def _pack_tokens(config: TrainConfig, model: nn.Module) -> int:
    return config.pack_tokens or max(_trained_at(config, model).pack_tokens, config.seq_len or 0)


def _check_lengths(seq_len: int, longest: int | None, pack_tokens: int) -> None:
    if longest is not None and seq_len > longest:
        raise ValueError(
            f"seq_len {seq_len} exceeds max_position_embeddings {longest}; "
            "lower --seq-len or choose a model with longer positions"
        )
    if seq_len > pack_tokens:
        raise ValueError(f"seq_len {seq_len} exceeds the {pack_tokens} tokens of a pack; raise --pack-tokens")
