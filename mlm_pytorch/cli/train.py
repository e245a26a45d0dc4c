"""`mlm train`: put the rooms together, a store, an encoder, and the loop that brings them to each other."""

import dataclasses
from pathlib import Path

import torch

from mlm_pytorch.cli.models import sample_pieces
from mlm_pytorch.cli.prepare import described, prepare_corpus
from mlm_pytorch.data.batches import Reader, count_tokens
from mlm_pytorch.data.options import CorpusOptions
from mlm_pytorch.data.packing import sequential_packs
from mlm_pytorch.data.store import MANIFEST, Manifest, TokenStore
from mlm_pytorch.data.tokenizer import load_tokenizer
from mlm_pytorch.encoder import PRESETS, Encoder, Preset, num_parameters, preset
from mlm_pytorch.evaluation import MaskedResult, masked_loss
from mlm_pytorch.huggingface import CheckedExport, load_encoder, model_folder
from mlm_pytorch.masking import derive_words
from mlm_pytorch.objective.packs import PackMasker
from mlm_pytorch.training.checkpoint import newest_checkpoint
from mlm_pytorch.training.config import TrainConfig
from mlm_pytorch.training.metrics import Display
from mlm_pytorch.training.run import CONFIG, STORE, begin, run_folder
from mlm_pytorch.training.trainer import Trainer

LEARNING_RATES = {"muon": 4e-3, "adamw": 2e-3}
VALID_PIECES = 256  # of the held-out set, measured during training; `mlm evaluate` measures all of it


def train(config: TrainConfig) -> bool:
    """`mlm train`: corpus in, Hugging Face model out. Returns False where a signal stopped it before the end."""
    config.check()
    with Display() as display, run_folder(config) as folder:
        trainer = _trainer(config, folder, display)
        begin(folder, config)
        finished = trainer.run()
        if not finished:
            display.say(f"stopped by {trainer.stop_requested} and saved; the same command continues")
            return False
        display.say(f'done: {folder / "model"} loads with transformers; next: mlm fill {folder} "… [MASK] …"')
        return True


def _trainer(config: TrainConfig, folder: Path, display: Display) -> Trainer:
    """A trainer, for a run that is new, or continued from its newest checkpoint."""
    if config.threads:
        torch.set_num_threads(config.threads)
    torch.manual_seed(config.seed)
    checkpoint = newest_checkpoint(folder, display.say)
    store_folder = _store(config, folder, display)
    store, valid = TokenStore.open(store_folder), held_out(store_folder)
    tokenizer, special = load_tokenizer(store.tokenizer_folder), store.special
    encoder = _encoder(config, store, checkpoint)

    export = CheckedExport(
        special,
        tokenizer.backend,
        lambda path: tokenizer.save(path, model_max_length=store.seq_len),
        sample_pieces(store),
    )

    def evaluate(model: torch.nn.Module) -> MaskedResult:
        assert valid is not None
        packs = sequential_packs(valid, _pack_tokens(config), VALID_PIECES)
        return masked_loss(model, packs, special, autocast=trainer.autocast)

    trainer = Trainer(
        encoder,
        Reader(store, _pack_tokens(config), seed=config.seed, longest=store.seq_len),
        config,
        folder,
        masker=PackMasker(
            special,
            config.seed,
            config.replace_prob,
            config.random_token_prob,
            selection=config.selection,
            words=derive_words(tokenizer.backend) if config.selection in ("words", "ngrams") else None,
        ),
        lr=config.lr or LEARNING_RATES[config.optimizer],
        packs_per_step=config.packs_per_step,
        tokens_per_epoch=store.num_tokens + len(store) * (len(special.prefix) + len(special.suffix)),
        evaluate=evaluate if valid is not None else None,
        export=lambda path: export(encoder, path),
        display=display,
    )
    if checkpoint is not None:
        trainer.restore(checkpoint)
    display.say(
        f"{config.model}: {num_parameters(encoder.config) / 1e6:.1f}M parameters, {trainer.device}, "
        f"{'bf16' if trainer.autocast else 'float32'}; {store.num_tokens:,} tokens; budget {config.budget}"
        + (f"; continuing at step {trainer.progress.step:,}" if checkpoint else "")
    )
    return trainer


def _store(config: TrainConfig, folder: Path, display: Display) -> Path:
    """The store to train on: the one named, the run's own, or one prepared now."""
    named = Path(config.corpus[0]) if config.corpus else folder
    if len(config.corpus) == 1 and (named / MANIFEST).is_file():
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
    seq_len = config.seq_len or _recipe(config).seq_len
    tokenizer = None
    if config.model in PRESETS:
        longest = PRESETS[config.model].max_position_embeddings
    else:
        longest = load_encoder(Path(config.model)).config.max_position_embeddings
        tokenizer = model_folder(Path(config.model))
    _check_lengths(seq_len, longest, _pack_tokens(config))  # before an hour is spent on tokenizing
    display.say(described(prepare_corpus(config, config.corpus, own, seq_len, display, tokenizer)))
    return own


def _recipe(config: TrainConfig) -> Preset:
    """What a preset is trained at; a model from a folder, of whatever size, is trained like `base`."""
    return PRESETS[config.model if config.model in PRESETS else "base"]


def _pack_tokens(config: TrainConfig) -> int:
    return config.pack_tokens or max(_recipe(config).pack_tokens, config.seq_len or 0)


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


def _encoder(config: TrainConfig, store: TokenStore, checkpoint: Path | None) -> Encoder:
    """A new encoder of the preset's shape, or the weights of a checkpoint or folder."""
    if checkpoint is None and config.model in PRESETS:
        special = store.special
        encoder = Encoder(preset(config.model, vocab_size=special.num_tokens, pad_token_id=special.pad_token_id))
        encoder.start_at_frequencies(torch.from_numpy(count_tokens(store)))
    else:
        source = checkpoint / "model" if checkpoint else Path(config.model)
        encoder = load_encoder(source)
        if load_tokenizer(model_folder(source)).fingerprint != store.tokenizer_fingerprint:
            raise ValueError(f"the tokenizer of {source} is not the store's; pass --tokenizer {source}")
    _check_lengths(store.seq_len, encoder.config.max_position_embeddings, _pack_tokens(config))
    return encoder.to("cuda" if torch.cuda.is_available() else "cpu")
