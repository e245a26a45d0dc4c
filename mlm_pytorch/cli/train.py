"""`mlm train`: put the rooms together, a store, an encoder, and the loop that brings them to each other."""

import dataclasses
import socket
from contextlib import ExitStack
from pathlib import Path

import torch

from mlm_pytorch.cli.prepare import described, prepare_corpus
from mlm_pytorch.data.batches import Reader, count_tokens
from mlm_pytorch.data.options import CorpusOptions
from mlm_pytorch.data.packing import sequential_packs
from mlm_pytorch.data.store import MANIFEST, Manifest, TokenStore
from mlm_pytorch.data.tokenizer import load_tokenizer
from mlm_pytorch.encoder import PRESETS, Encoder, num_parameters, preset
from mlm_pytorch.evaluation import MaskedResult, masked_loss
from mlm_pytorch.huggingface import check_export, export_encoder, load_encoder, model_folder
from mlm_pytorch.masking import derive_words
from mlm_pytorch.objective.head import find_head
from mlm_pytorch.objective.packs import PackMasker, pack_loss
from mlm_pytorch.training.checkpoint import newest_checkpoint
from mlm_pytorch.training.config import TrainConfig
from mlm_pytorch.training.distributed import World
from mlm_pytorch.training.feed import Feed
from mlm_pytorch.training.metrics import Display
from mlm_pytorch.training.parallel import copy_size
from mlm_pytorch.training.recipe import Recipe, choose, matmul_peak
from mlm_pytorch.training.run import CONFIG, STORE, begin, run_folder
from mlm_pytorch.training.schedule import Budget
from mlm_pytorch.training.step import native_precision
from mlm_pytorch.training.trainer import Trainer

VALID_PIECES = 256  # of the held-out set, measured during training; `mlm evaluate` measures all of it


def train(config: TrainConfig) -> bool:
    """`mlm train`: corpus in, Hugging Face model out. Returns False where a signal stopped it before the end."""
    config.check()
    world = World.from_environment()
    copy_size(config.parallel, world, config.shard_ranks)  # fails before an hour is spent on tokenizing
    with Display(quiet=not world.is_main) as display, ExitStack() as stack:
        folder = world.from_main(lambda: stack.enter_context(run_folder(config)))
        config, recipe = _settled(config, folder, display, world)
        trainer = _trainer(config, recipe, folder, display, world)
        if world.is_main:
            begin(folder, config)
        finished = trainer.run()
        if not finished:
            display.say(f"stopped by {trainer.stop_requested} and saved; the same command continues")
        else:
            _check(trainer, folder)
        world.leave()
        if not finished:
            return False
        display.say(f'done: {folder / "model"} loads with transformers; next: mlm fill {folder} "… [MASK] …"')
        return True


def _check(trainer: Trainer, folder: Path) -> None:
    """Load the run's model through transformers and compare; the first process does so for all."""
    with trainer.averaged():
        whole = trainer.parallel.whole_model()

        def check() -> Path:
            assert isinstance(whole, Encoder)
            check_export(whole, load_tokenizer(folder / "model").special, folder / "model")
            return folder

        trainer.world.from_main(check)


def _settled(config: TrainConfig, folder: Path, display: Display, world: World) -> tuple[TrainConfig, Recipe]:
    """The configuration with what it leaves open: as the run began with it, or chosen now."""
    before = (
        TrainConfig.from_yaml((folder / CONFIG).read_text(encoding="utf-8")) if (folder / CONFIG).is_file() else None
    )
    if before is not None:
        config = config.settled(**{name: getattr(before, name) for name in before.chosen})
    if config.threads:
        torch.set_num_threads(config.threads)
    device, budget, store = world.device, Budget.parse(config.budget), _named_store(config)
    facts = Manifest.read(store) if store else None
    by_speed, precision = config.model is None and budget.unit == "seconds", native_precision(device) or torch.float32
    recipe = choose(
        budget,
        device,
        peak=world.from_main(lambda: matmul_peak(device, precision)) * world.size if by_speed else 0.0,
        corpus_tokens=facts.splits["train"].tokens if facts else None,
        optimizer=config.optimizer,
        model=config.model,
        seq_len=facts.seq_len if facts else config.seq_len,
    )
    values = recipe.values()
    given = {name: getattr(config, name) for name in values if getattr(config, name) is not None}
    recipe = dataclasses.replace(recipe, **given)
    if store:
        del values["seq_len"]  # the store settles it, and the run need not know
    config = config.settled(**values)
    if before is not None:
        return dataclasses.replace(config, chosen=tuple(sorted({*before.chosen, *config.chosen}))), recipe
    if "model" in config.chosen:
        options = " ".join(f"--{name.replace('_', '-')} {getattr(config, name)}" for name in config.chosen)
        display.say(f"chosen for a budget of {config.budget} on this {device.type}: {options}")
    return config, recipe


def _named_store(config: TrainConfig) -> Path | None:
    """The corpus, where it is one store."""
    named = Path(config.corpus[0]) if len(config.corpus) == 1 else None
    return named if named and (named / MANIFEST).is_file() else None


def _trainer(config: TrainConfig, recipe: Recipe, folder: Path, display: Display, world: World) -> Trainer:
    """A trainer for a run that is new, or continued from its newest checkpoint; the first process prepares for all."""
    torch.manual_seed(config.seed)
    checkpoint = world.from_main(lambda: newest_checkpoint(folder, display.say))
    store_folder = world.from_main(lambda: _store(config, recipe, folder, display))
    if not (store_folder / MANIFEST).is_file():
        raise ValueError(
            f"process {world.rank} on {socket.gethostname()} does not see {store_folder}, which the first process "
            "prepared; put --out on a file system that all machines share"
        )
    if config.packs_per_step < world.size:
        display.say(
            f"--packs-per-step {config.packs_per_step} leaves {world.size - config.packs_per_step} of {world.size} "
            f"processes without work in each step; {world.size} or a multiple keeps them busy"
        )
    store, valid = TokenStore.open(store_folder), held_out(store_folder)
    tokenizer, special = load_tokenizer(store.tokenizer_folder), store.special
    encoder = _encoder(recipe, store, checkpoint).to(world.device)
    device = world.device

    def evaluate(model: torch.nn.Module) -> MaskedResult:
        assert valid is not None
        packs = sequential_packs(valid, recipe.pack_tokens, VALID_PIECES)
        return masked_loss(model, packs, special, autocast=trainer.autocast)

    masker = PackMasker(
        special,
        config.seed,
        config.replace_prob,
        config.random_token_prob,
        selection=config.selection,
        words=derive_words(tokenizer.backend) if config.selection in ("words", "ngrams") else None,
    )
    head = find_head(encoder)
    world.join()
    trainer = Trainer(
        encoder,
        lambda model, pack: pack_loss(model, head, pack.to(device), z_loss=config.z_loss),
        Feed(
            Reader(
                store,
                recipe.pack_tokens,
                seed=config.seed,
                longest=store.seq_len,
                rank=world.rank,
                world_size=world.size,
            ),
            masker,
            rate=config.rate,
            per_step=config.batch_ramp,
        ),
        config,
        folder,
        lr=recipe.lr,
        tokens_per_epoch=store.num_tokens + len(store) * (len(special.prefix) + len(special.suffix)),
        evaluate=evaluate if valid is not None else None,
        export=lambda model, path: export_encoder(
            model,  # type: ignore[arg-type]  # a copy of the encoder, or itself
            special,
            path,
            lambda folder: tokenizer.save(folder, model_max_length=store.seq_len),
        ),
        display=display,
        world=world,
    )
    if checkpoint is not None:
        trainer.restore(checkpoint)
    display.say(
        f"{recipe.model}: {num_parameters(encoder.config) / 1e6:.1f}M parameters, "
        f"{trainer.device}{f' and {world.size - 1} more' if world.size > 1 else ''}, "
        f"{'bf16' if trainer.autocast else 'float32'}; {store.num_tokens:,} tokens; budget {config.budget}"
        + (f"; continuing at step {trainer.progress.step:,}" if checkpoint else "")
    )
    return trainer


def _store(config: TrainConfig, recipe: Recipe, folder: Path, display: Display) -> Path:
    """The store to train on: the one named, the run's own, or one prepared now."""
    named = _named_store(config)
    if named:
        untouched = CorpusOptions()
        for option in ("seq_len", *(field.name for field in dataclasses.fields(CorpusOptions))):
            if getattr(config, option) != getattr(untouched, option, None):
                raise ValueError(
                    f"--{option.replace('_', '-')} is settled by the store {named}; "
                    "leave it out, or prepare another store"
                )
        return named
    own = folder / STORE
    if (folder / CONFIG).is_file():
        return own
    seq_len = recipe.seq_len
    tokenizer = None
    if recipe.model in PRESETS:
        longest = PRESETS[recipe.model].max_position_embeddings
    else:
        longest = load_encoder(Path(recipe.model)).config.max_position_embeddings
        tokenizer = model_folder(Path(recipe.model))
    _check_lengths(seq_len, longest, recipe.pack_tokens)  # before an hour is spent on tokenizing
    display.say(described(prepare_corpus(config, config.corpus, own, seq_len, display, tokenizer)))
    return own


def _check_lengths(seq_len: int, longest: int, pack_tokens: int) -> None:
    if seq_len > longest:
        raise ValueError(
            f"seq_len {seq_len} exceeds max_position_embeddings {longest}; "
            "lower --seq-len or choose a model with longer positions"
        )
    if seq_len > pack_tokens:
        raise ValueError(f"seq_len {seq_len} exceeds the {pack_tokens} tokens of a pack; raise --pack-tokens")


def held_out(store_folder: Path) -> TokenStore | None:
    """The held-out split of a store, where it has one."""
    return TokenStore.open(store_folder, "valid") if "valid" in Manifest.read(store_folder).splits else None


def _encoder(recipe: Recipe, store: TokenStore, checkpoint: Path | None) -> Encoder:
    """A new encoder of the preset's shape, or the weights of a checkpoint or folder."""
    if checkpoint is None and recipe.model in PRESETS:
        special = store.special
        encoder = Encoder(preset(recipe.model, vocab_size=special.num_tokens, pad_token_id=special.pad_token_id))
        encoder.start_at_frequencies(torch.from_numpy(count_tokens(store)))
    else:
        source = checkpoint / "model" if checkpoint else Path(recipe.model)
        encoder = load_encoder(source)
        if load_tokenizer(model_folder(source)).fingerprint != store.tokenizer_fingerprint:
            raise ValueError(f"the tokenizer of {source} is not the store's; pass --tokenizer {source}")
    _check_lengths(store.seq_len, encoder.config.max_position_embeddings, recipe.pack_tokens)
    return encoder
