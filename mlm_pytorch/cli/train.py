"""`mlm train`: put the rooms together, a store, a model, and the loop that brings them to each other."""

from collections.abc import Callable, Mapping
from contextlib import ExitStack
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from mlm_pytorch.adaptation import Extension, extend_embeddings
from mlm_pytorch.cli.adapting import kept_packs
from mlm_pytorch.cli.learners import FlatLearner, Learning, RowsLearner, make_learner
from mlm_pytorch.cli.memory import give_back_freed, keep_few_shapes
from mlm_pytorch.cli.models import sample_pieces
from mlm_pytorch.cli.settling import pack_tokens_of, settle_by_budget, settle_by_model
from mlm_pytorch.cli.starting import (
    FactoryStart,
    ModelStart,
    PresetStart,
    Start,
    check_lengths,
    find_start,
    restart,
    sizes_for,
)
from mlm_pytorch.cli.store import find_corpus, held_out, open_store
from mlm_pytorch.data.batches import Reader, count_tokens
from mlm_pytorch.data.packing import Pack, sequential_packs
from mlm_pytorch.data.store import TokenStore
from mlm_pytorch.data.tokenizer import load_tokenizer
from mlm_pytorch.encoder import PRESETS, Encoder
from mlm_pytorch.evaluation import MaskedResult, masked_loss
from mlm_pytorch.masking import derive_words
from mlm_pytorch.objective.packs import PackMasker
from mlm_pytorch.report import ReportWriter, model_card
from mlm_pytorch.training.checkpoint import newest_checkpoint
from mlm_pytorch.training.config import TrainConfig
from mlm_pytorch.training.device import why_not_compiled
from mlm_pytorch.training.distributed import World
from mlm_pytorch.training.feed import Feed
from mlm_pytorch.training.guards import unigram_entropy
from mlm_pytorch.training.metrics import Display
from mlm_pytorch.training.parallel import copy_size
from mlm_pytorch.training.record import begin_sitting, end_sitting
from mlm_pytorch.training.reporting import Watch
from mlm_pytorch.training.run import begin, run_folder
from mlm_pytorch.training.sizes import plan
from mlm_pytorch.training.step import autocast_dtype
from mlm_pytorch.training.throughput import flops_per_token, measure_peak
from mlm_pytorch.training.trackers import choose_trackers, open_trackers
from mlm_pytorch.training.trainer import Trainer

LENGTHS_FROM = 8192  # pieces, to know how far attention reaches
VALID_PIECES = 256  # of the held-out set, measured during training; `mlm evaluate` measures all of it
REPORT_SAMPLES = 3  # held-out texts on the page that is rewritten during training


def train(config: TrainConfig) -> bool:
    """`mlm train`: corpus in, Hugging Face model out. Returns False where a signal stopped it before the end."""
    config.check()
    keep_few_shapes()
    world = World.from_environment(config.device)
    copy_size(config.parallel, world, config.shard_ranks)  # fails before an hour is spent on tokenizing
    if config.threads:
        torch.set_num_threads(config.threads)
    with Display(quiet=not world.is_main) as display, ExitStack() as stack:
        folder = world.from_main(lambda: stack.enter_context(run_folder(config)))
        world.from_main(lambda: find_corpus(config, folder))
        config = settle_by_budget(config, folder, display, world)
        trainer, learner = _trainer(config, folder, display, world)
        if world.is_main:
            begin(folder, trainer.config)
            begin_sitting(folder, trainer.device, _facts(trainer, learner), display.say)
        finished = trainer.run()
        if world.is_main:
            end_sitting(folder, {"to_step": trainer.progress.step, "stopped_by": trainer.stop_requested})
        world.leave()
        if not finished:
            display.say(f"stopped by {trainer.stop_requested} and saved; the same command continues")
            return False
        factory = f" --factory {learner.factory[0]}" if isinstance(learner, RowsLearner) and learner.factory else ""
        display.say(
            f"done: {folder / 'model'} {learner.promise}; {folder / 'report.html'} shows how it went; "
            f'next: mlm fill {folder}{factory} "… [MASK] …"'
        )
        return True


def _trainer(config: TrainConfig, folder: Path, display: Display, world: World) -> tuple[Trainer, Learning]:
    """A trainer and what it trains, for a run that is new, or continued; the first process prepares for all."""
    torch.manual_seed(config.seed)
    assert config.model is not None
    checkpoint = world.from_main(lambda: newest_checkpoint(folder, display.say))
    # All processes start from the first one's weights (`Parallel`).
    embeddings = config.first_embeddings if world.is_main else "random"
    start = find_start(config.model, embeddings) if checkpoint is None else None
    store, extension = open_store(config, start, folder, display, world)
    valid = held_out(store.folder)
    if valid is None and checkpoint is None and not config.holds_nothing_out:
        display.say(
            "no document is held out, so nothing will tell what the model makes of other text; name some with --valid"
        )
    learner = _learner(config, start, checkpoint, store, extension, display, world.device)
    config = settle_by_model(config, learner, display if checkpoint is None else None)
    assert config.lr is not None
    pack_tokens = pack_tokens_of(config, learner.model)
    if config.packs_per_step < world.size:
        display.say(
            f"--packs-per-step {config.packs_per_step} leaves {world.size - config.packs_per_step} of {world.size} "
            f"processes without work in each step; {world.size} or a multiple keeps them busy"
        )
    tokenizer, special = learner.tokenizer, store.special

    def measure(packs: Callable[[], list[Pack]]) -> Callable[[nn.Module], MaskedResult]:
        return lambda model: masked_loss(learner.measurable(model), packs(), special, autocast=autocast)

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

    autocast = autocast_dtype(config.precision, world.device)
    sizes = None
    if world.size == 1:
        sizes = plan(
            learner.model,
            loss,
            mask(next(iter(reader().take(1))), config.rate(0.0)),
            num_batches=config.batch_ramp.last,
            longest=store.seq_len,
            autocast=autocast,
            notice=display.say,
        )
    if world.device.type == "cuda" and _compiles(world.device, display):
        loss = learner.loss(config.z_loss, fused=True)
        if isinstance(learner.model, Encoder):
            learner.model.model.compile_layers(joined=config.parallel not in ("fsdp", "hybrid"))
    world.join()
    trainer = Trainer(
        learner.model,
        loss,
        Feed(reader(), mask, rate=config.rate, per_step=config.batch_ramp),
        config,
        folder,
        lr=config.lr,
        tokens_per_epoch=store.num_tokens + len(store) * (len(special.prefix) + len(special.suffix)),
        store_fingerprint=store.fingerprint,
        evaluate=measure(lambda: list(sequential_packs(valid, pack_tokens, VALID_PIECES))) if valid else None,
        keep=measure(lambda: kept) if kept else None,
        measure_first=config.model not in PRESETS,
        export=export,
        load=learner.load,
        display=display,
        watch=_watch(config, folder, store, learner, world) if world.is_main else Watch(),
        world=world,
    )
    per_step = ""
    if sizes is not None:
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


def _compiles(device: torch.device, display: Display) -> bool:
    """Whether torch.compile makes kernels here; says what to do where it does not."""
    reason = why_not_compiled(device)
    if reason is not None:
        display.say(
            f"torch.compile makes no kernels here ({reason}), so training will be slower; it needs Triton, which comes "
            "with torch for CUDA, and a C compiler (on Debian and Ubuntu the packages gcc and python3-dev)"
        )
    return reason is None


def _facts(trainer: Trainer, learner: Learning) -> dict[str, object]:
    """What is recorded of a sitting besides versions, machine and command."""
    return {
        "parameters": sum(p.numel() for p in learner.model.parameters()),
        "matmul_peak": trainer.watch.peak,
        "precision": "bf16" if trainer.autocast else "float32",
        "from_step": trainer.progress.step,
        "processes": trainer.world.size,
    }


def _watch(config: TrainConfig, folder: Path, store: TokenStore, learner: Learning, world: World) -> Watch:
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
        peak=measure_peak(learner.device, autocast_dtype(config.precision, learner.device) or torch.float32),
        processes=world.size,
        unigram_entropy=unigram_entropy(count_tokens(store)),
        after_evaluation=rewrite_report if whole else None,
    )


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
        if isinstance(start, PresetStart) and start.embeddings == "corpus":
            display.say("first embeddings: counting what stands beside each token; --first-embeddings random does not")
        model = start.make(store)
        give_back_freed()
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
    if config.recompute:
        if not isinstance(model, Encoder):
            raise ValueError(
                f"--recompute is for the built-in encoder (presets and ModernBERT's), not {type(model).__name__}; "
                "leave it out, or lower --pack-tokens"
            )
        model.model.recompute = True
    check_lengths(store.seq_len, learner.longest, pack_tokens_of(config, model))
    return learner
