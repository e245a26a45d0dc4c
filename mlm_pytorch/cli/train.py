"""`mlm train`: put the rooms together, a store, a model, and the loop that brings them to each other."""

import dataclasses
import socket
import tempfile
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from mlm_pytorch.adaptation import Extension, extend_embeddings
from mlm_pytorch.cli.adapting import Adaptation, kept_packs, read_adaptation
from mlm_pytorch.cli.learners import FlatLearner, RowsLearner, make_learner
from mlm_pytorch.cli.memory import keep_few_shapes
from mlm_pytorch.cli.models import printable, sample_pieces
from mlm_pytorch.cli.prepare import described, prepare_corpus
from mlm_pytorch.cli.starting import FactoryStart, ModelStart, Start, find_start, restart, sizes_for, width_of
from mlm_pytorch.data.batches import Reader, count_tokens
from mlm_pytorch.data.options import CorpusOptions
from mlm_pytorch.data.packing import Pack, sequential_packs
from mlm_pytorch.data.store import MANIFEST, Manifest, TokenStore
from mlm_pytorch.data.tokenizer import load_tokenizer
from mlm_pytorch.encoder import PRESETS, Encoder, Preset
from mlm_pytorch.evaluation import MaskedResult, masked_loss
from mlm_pytorch.masking import derive_words
from mlm_pytorch.objective.packs import PackMasker
from mlm_pytorch.report import ReportWriter, model_card
from mlm_pytorch.training.checkpoint import newest_checkpoint
from mlm_pytorch.training.config import FROM_SCRATCH, TrainConfig
from mlm_pytorch.training.device import find_device
from mlm_pytorch.training.distributed import World
from mlm_pytorch.training.feed import Feed
from mlm_pytorch.training.gentle import gentle_values
from mlm_pytorch.training.guards import unigram_entropy
from mlm_pytorch.training.metrics import Display
from mlm_pytorch.training.parallel import copy_size
from mlm_pytorch.training.recipe import choose
from mlm_pytorch.training.record import begin_sitting, end_sitting
from mlm_pytorch.training.reporting import Watch
from mlm_pytorch.training.run import CONFIG, STORE, begin, run_folder, store_to_prepare
from mlm_pytorch.training.schedule import Budget
from mlm_pytorch.training.sizes import plan
from mlm_pytorch.training.step import native_precision
from mlm_pytorch.training.throughput import flops_per_token, measure_peak
from mlm_pytorch.training.trackers import choose_trackers, open_trackers
from mlm_pytorch.training.trainer import Trainer

LENGTHS_FROM = 8192  # pieces, to know how far attention reaches
VALID_PIECES = 256  # of the held-out set, measured during training; `mlm evaluate` measures all of it
REPORT_SAMPLES = 3  # held-out texts on the page that is rewritten during training

Learning = FlatLearner | RowsLearner


def train(config: TrainConfig) -> bool:
    """`mlm train`: corpus in, Hugging Face model out. Returns False where a signal stopped it before the end."""
    config.check()
    keep_few_shapes()
    world = World.from_environment()
    copy_size(config.parallel, world, config.shard_ranks)  # fails before an hour is spent on tokenizing
    if world.size == 1:
        world = dataclasses.replace(world, device=find_device(config.device))
    if config.threads:
        torch.set_num_threads(config.threads)
    with Display(quiet=not world.is_main) as display, ExitStack() as stack:
        folder = world.from_main(lambda: stack.enter_context(run_folder(config)))
        config = _chosen(config, folder, display, world)
        trainer, learner = _trainer(config, folder, display, world)
        if world.is_main:
            begin(folder, config)
            begin_sitting(folder, trainer.device, _facts(trainer, learner), display.say)
        finished = trainer.run()
        if world.is_main:
            end_sitting(folder, {"to_step": trainer.progress.step, "stopped_by": trainer.stop_requested})
        world.leave()
        if not finished:
            display.say(f"stopped by {trainer.stop_requested} and saved; the same command continues")
            return False
        display.say(
            f"done: {folder / 'model'} {learner.promise}; {folder / 'report.html'} shows how it went; "
            f'next: mlm fill {folder} "… [MASK] …"'
        )
        return True


def _trainer(config: TrainConfig, folder: Path, display: Display, world: World) -> tuple[Trainer, Learning]:
    """A trainer and what it trains, for a run that is new, or continued; the first process prepares for all."""
    torch.manual_seed(config.seed)
    assert config.model is not None
    checkpoint = world.from_main(lambda: newest_checkpoint(folder, display.say))
    start = find_start(config.model) if checkpoint is None else None
    store, extension = _open_store(config, start, folder, display, world)
    valid = held_out(store.folder)
    learner = _learner(config, start, checkpoint, store, extension, display, world.device)
    config = _gently(config, learner, display if checkpoint is None else None)
    assert config.lr is not None
    pack_tokens = _pack_tokens(config, learner.model)
    if config.packs_per_step < world.size:
        display.say(
            f"--packs-per-step {config.packs_per_step} leaves {world.size - config.packs_per_step} of {world.size} "
            f"processes without work in each step; {world.size} or a multiple keeps them busy"
        )
    tokenizer, special = learner.tokenizer, store.special

    def measure(packs: Callable[[], list[Pack]]) -> Callable[[nn.Module], MaskedResult]:
        return lambda model: masked_loss(learner.measurable(model), packs(), special, autocast=trainer.autocast)

    def export(weights: Mapping[str, Tensor], path: Path) -> None:
        learner.export(weights, path)
        if not (isinstance(learner, RowsLearner) and learner.factory):
            (path / "README.md").write_text(model_card(folder, path), encoding="utf-8")

    masker = PackMasker(
        special,
        config.seed,
        config.replace_prob,
        config.random_token_prob,
        selection=config.selection,
        words=derive_words(tokenizer.backend) if config.selection in ("words", "ngrams") else None,
    )
    kept = kept_packs(config.keep, config.column, tokenizer, store.seq_len, pack_tokens)
    loss, mask = learner.loss(config.z_loss), learner.mask(masker)
    if world.device.type == "cuda" and isinstance(learner.model, Encoder):
        learner.model.model.compile_layers()

    def reader() -> Reader:
        return Reader(
            store,
            pack_tokens,
            seed=config.seed,
            longest=store.seq_len,
            layout=learner.layout,
            rank=world.rank,
            world_size=world.size,
        )

    world.join()
    trainer = Trainer(
        learner.model,
        loss,
        Feed(reader(), mask, rate=config.rate, per_step=config.batch_ramp),
        config,
        folder,
        lr=config.lr,
        tokens_per_epoch=store.num_tokens + len(store) * (len(special.prefix) + len(special.suffix)),
        evaluate=measure(lambda: list(sequential_packs(valid, pack_tokens, VALID_PIECES))) if valid else None,
        keep=measure(lambda: kept) if kept else None,
        measure_first=config.model not in PRESETS,
        export=export,
        load=learner.load,
        display=display,
        watch=_watch(config, folder, store, learner) if world.is_main else Watch(),
        world=world,
    )
    per_step = ""
    if world.size == 1:
        first = mask(next(iter(reader().take(1))), config.rate(0.0))
        sizes = plan(
            learner.model,
            loss,
            first,
            num_batches=config.batch_ramp.last,
            longest=store.seq_len,
            autocast=trainer.autocast,
            notice=display.say,
        )
        trainer.step.sizes = sizes.sizes
        per_step = f", {sizes.describe(config.batch_ramp.last)}"
    if checkpoint is not None:
        trainer.restore(checkpoint)
    unit = "pack" if isinstance(learner, FlatLearner) else "padded batch"
    unit += ("es" if unit.endswith("ch") else "s") * (config.packs_per_step > 1)
    display.say(
        f"{config.model}: {learner.title}, {trainer.device}"
        f"{f' and {world.size - 1} more' if world.size > 1 else ''}, "
        f"{'bf16' if trainer.autocast else 'float32'}; {store.num_tokens:,} tokens; a step reads "
        f"{config.packs_per_step} {unit} of {pack_tokens:,} tokens{per_step}; budget {config.budget}"
        + (f"; continuing at step {trainer.progress.step:,}" if checkpoint else "")
    )
    return trainer, learner


def _facts(trainer: Trainer, learner: Learning) -> dict[str, object]:
    """What is recorded of a sitting besides versions, machine and command."""
    return {
        "parameters": sum(p.numel() for p in learner.model.parameters()),
        "matmul_peak": trainer.watch.peak,
        "precision": "bf16" if trainer.autocast else "float32",
        "from_step": trainer.progress.step,
        "processes": trainer.world.size,
    }


def _watch(config: TrainConfig, folder: Path, store: TokenStore, learner: Learning) -> Watch:
    """What is looked after besides the loss."""
    lengths = store.lengths(np.arange(min(len(store), LENGTHS_FROM)))
    pages: list[ReportWriter] = []  # made once the run has a configuration to show

    def rewrite_report() -> None:
        pages[:] = pages or [ReportWriter([folder])]
        pages[0].write(learner.measurable(learner.model), num_tokens=0, num_samples=REPORT_SAMPLES)

    whole = config.parallel not in ("fsdp", "hybrid")  # a part of a model can be asked nothing
    return Watch(
        trackers=open_trackers(choose_trackers(config.track), folder, config=vars(config)),
        cost=flops_per_token(
            learner.model,
            num_tokens=store.special.num_tokens,
            piece_length=float((lengths.astype(float) ** 2).sum() / max(1, lengths.sum())),
        ),
        peak=measure_peak(learner.device, _precision(config, learner.device) or torch.float32),
        unigram_entropy=unigram_entropy(count_tokens(store)),
        after_evaluation=rewrite_report if whole else None,
    )


# -- what is left open -------------------------------------------------------------------------------------------------


def _chosen(config: TrainConfig, folder: Path, display: Display, world: World) -> TrainConfig:
    """The configuration of a preset with what it leaves open: as the run began with it, or chosen now."""
    before = (
        TrainConfig.from_yaml((folder / CONFIG).read_text(encoding="utf-8")) if (folder / CONFIG).is_file() else None
    )
    if before is not None:
        config = config.settled(**{name: getattr(before, name) for name in before.chosen})
    if config.model is not None and config.model not in PRESETS:
        return config
    device, budget, store = world.device, Budget.parse(config.budget), _named_store(config)
    facts = Manifest.read(store) if store else None
    by_speed = config.model is None and budget.unit == "seconds"
    precision = _precision(config, device) or torch.float32
    recipe = choose(
        budget,
        device,
        peak=world.from_main(lambda: measure_peak(device, precision)) * world.size if by_speed else 0.0,
        corpus_tokens=facts.splits["train"].tokens if facts else None,
        optimizer=config.optimizer or FROM_SCRATCH["optimizer"],
        model=config.model,
        seq_len=facts.seq_len if facts else config.seq_len,
    )
    values = recipe.values()
    if store:
        del values["seq_len"]  # the store settles it, and the run need not know
    config = config.settled(**values)
    if before is not None:
        return dataclasses.replace(config, chosen=tuple(sorted({*before.chosen, *config.chosen})))
    if "model" in config.chosen:
        options = " ".join(f"--{name.replace('_', '-')} {getattr(config, name)}" for name in config.chosen)
        display.say(f"chosen for a budget of {config.budget} on this {device.type}: {options}")
    return config


def _gently(config: TrainConfig, learner: Learning, display: Display | None) -> TrainConfig:
    """The same for any other model, which is known by now; said on the display."""
    if config.model in PRESETS:
        return config
    continued = not (isinstance(learner, RowsLearner) and learner.factory)
    values = FROM_SCRATCH | gentle_values(width_of(learner.model), continued=continued)
    if config.schedule != "wsd":
        del values["decay"]
    if display is not None:
        chosen = [
            f"--{name.replace('_', '-')} {value}" for name, value in values.items() if getattr(config, name) is None
        ]
        why = "gentle on a model that is continued" if continued else "for a module of your own"
        display.say(f"chosen, {why}: {' '.join(chosen)}" if chosen else "nothing was left open")
    return config.settled(**values)


def _precision(config: TrainConfig, device: torch.device) -> torch.dtype | None:
    """Of matrix products; None for float32."""
    if config.precision == "auto":
        return native_precision(device)
    return torch.bfloat16 if config.precision == "bf16" else None


def _named_store(config: TrainConfig) -> Path | None:
    """The corpus, where it is one store."""
    named = Path(config.corpus[0]) if len(config.corpus) == 1 else None
    return named if named and (named / MANIFEST).is_file() else None


# -- the store ---------------------------------------------------------------------------------------------------------


def _open_store(
    config: TrainConfig, start: Start | None, folder: Path, display: Display, world: World
) -> tuple[TokenStore, Extension | None]:
    """The store to train on, prepared by the first process, and what its tokenizer was extended by."""
    extensions: list[Extension | None] = []

    def prepare() -> Path:
        path, extension = _store(config, start, folder, display)
        extensions.append(extension)
        return path

    path = world.from_main(prepare)
    if not (path / MANIFEST).is_file():
        raise ValueError(
            f"process {world.rank} on {socket.gethostname()} does not see {path}, which the first process prepared; "
            "put --out on a file system that all machines share"
        )
    return TokenStore.open(path), extensions[0] if extensions else _extension_again(config, start)


def _store(config: TrainConfig, start: Start | None, folder: Path, display: Display) -> tuple[Path, Extension | None]:
    """The store to train on: the one named, the run's own, or one prepared now; and what its tokenizer was extended by.

    A model that is continued is told how well its tokenizer fits the corpus, while there is time to think again.
    """
    named = _named_store(config)
    if named:
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
    if start is None:
        return folder / STORE, None
    own = store_to_prepare(folder, config)
    if own is None:  # ended before its first checkpoint
        return folder / STORE, _extension_again(config, start)
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


def _extension_again(config: TrainConfig, start: Start | None) -> Extension | None:
    """The same as when the store was prepared, in this process or in another one."""
    if not isinstance(start, ModelStart) or not config.extend_vocabulary:
        return None
    return _extension(config, read_adaptation(config, start.tokenizer))


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
    device: torch.device,
) -> Learning:
    """What is trained: new, continued, or as a checkpoint holds it."""
    factory = None
    if start is None:
        assert checkpoint is not None
        assert config.model is not None
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
        model.to(device),
        tokenizer,
        store.seq_len,
        sample=sample_pieces(store),
        factory=factory,
        say=display.say,
    )
    _check_lengths(store.seq_len, learner.longest, _pack_tokens(config, model))
    return learner


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
