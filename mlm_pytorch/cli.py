"""The `mlm` command: thin wrappers that print what the rooms compute.

Heavy modules are imported by the command that needs them, so that `mlm --help` answers at once.
"""

import json
import sys
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import tyro

from mlm_pytorch.encoder import PRESETS
from mlm_pytorch.training.config import TrainConfig

if TYPE_CHECKING:
    from mlm_pytorch.data.prepare import PrepareProgress, PrepareReport
    from mlm_pytorch.data.store import TokenStore
    from mlm_pytorch.encoder import Encoder
    from mlm_pytorch.evaluation import MaskedResult
    from mlm_pytorch.training.metrics import Display
    from mlm_pytorch.training.trainer import Trainer

LEARNING_RATES = {"muon": 4e-3, "adamw": 2e-3}
VALID_PIECES = 256  # of the held-out set, measured during training; `mlm evaluate` measures all of it


@dataclass(frozen=True)
class PrepareConfig:
    """Tokenize a corpus into a store, once, for many runs.

    Example: mlm prepare corpus.jsonl.gz --out stores/mine
    """

    corpus: Annotated[tuple[str, ...], tyro.conf.Positional]
    """Files, globs, folders, or - for standard input."""
    out: Path
    """Folder of the store."""
    valid: tuple[str, ...] = ()
    """Held-out files. By default a share of the corpus is held out."""
    tokenizer: Path | None = None
    """Folder of a Hugging Face tokenizer. By default one is trained on the corpus."""
    vocab_size: int | None = None
    """Entries of the tokenizer that is trained. By default chosen by the size of the corpus."""
    seq_len: int = 512
    """Longest piece in tokens, special tokens included; longer documents are split."""
    column: str | None = None
    """Field that holds the text in JSON lines and Parquet. By default found."""
    split_text: Literal["line", "paragraph", "file"] | None = None
    """What a document is in text files. By default a line in .txt files, the file in source code."""
    encoding_errors: Literal["strict", "replace"] = "strict"
    """What to do with bytes that are not UTF-8: stop, or read them as U+FFFD."""
    workers: int | None = None
    """Threads that tokenize. By default one per core."""
    json: bool = False
    """Print the report as JSON."""


@dataclass(frozen=True)
class EvaluateConfig:
    """Held-out loss and accuracy under fixed masks; the same positions for every model with the same tokenizer.

    Example: mlm evaluate runs/mine --data valid.jsonl.gz
    """

    models: Annotated[tuple[Path, ...], tyro.conf.Positional]
    """Run folders or Hugging Face folders of ModernBERT models."""
    data: tuple[str, ...] = ()
    """Held-out files. By default what the run held out."""
    column: str | None = None
    """Field that holds the text. By default found."""
    seq_len: int | None = None
    """Longest piece in tokens. By default what the model was trained at."""
    mask_prob: float = 0.15
    """Share of each piece's tokens to predict."""
    json: bool = False
    """Print one JSON object per model."""


@dataclass(frozen=True)
class FillConfig:
    """Show what a model puts in place of [MASK].

    Example: mlm fill runs/mine "The [MASK] sat on the mat."
    """

    model: Annotated[Path, tyro.conf.Positional]
    """A run folder or a Hugging Face folder of a ModernBERT model."""
    texts: Annotated[tuple[str, ...], tyro.conf.Positional]
    """Texts with one or more [MASK]."""
    top_k: int = 5
    """Candidates per mask."""
    json: bool = False
    """Print one JSON object per text."""


@dataclass(frozen=True)
class ExportConfig:
    """Copy a run's newest model to a folder of its own, checked through transformers.

    Example: mlm export runs/mine models/mine
    """

    run: Annotated[Path, tyro.conf.Positional]
    """A run folder."""
    folder: Annotated[Path, tyro.conf.Positional]
    """A new or empty folder."""


@dataclass(frozen=True)
class DemoConfig:
    """Pretrain on the text of Python's own standard library: no download, about two minutes on two cores.

    Example: mlm demo
    """

    out: Path = Path("runs/demo")
    """Folder of the run."""
    budget: str = "100s"
    """How long to train."""


Command = (
    Annotated[DemoConfig, tyro.conf.subcommand("demo")]
    | Annotated[PrepareConfig, tyro.conf.subcommand("prepare")]
    | Annotated[TrainConfig, tyro.conf.subcommand("train")]
    | Annotated[EvaluateConfig, tyro.conf.subcommand("evaluate")]
    | Annotated[FillConfig, tyro.conf.subcommand("fill")]
    | Annotated[ExportConfig, tyro.conf.subcommand("export")]
)


def main(arguments: Sequence[str] | None = None) -> None:
    """Run `mlm`; the user's mistakes end with one line on standard error and exit code 2."""
    try:
        command = tyro.cli(
            Command,  # type: ignore[arg-type]
            args=arguments,
            prog="mlm",
            description="Pretrain any encoder with masked language modelling.",
            config=(tyro.conf.UseAppendAction,),
        )
        run(command)
    except (ValueError, OSError) as error:
        message = " ".join(str(error).split())
        print(f"mlm: {message}", file=sys.stderr)
        raise SystemExit(2) from None
    except KeyboardInterrupt:
        print("mlm: interrupted", file=sys.stderr)
        raise SystemExit(130) from None


def run(command: object) -> None:
    """Carry out a parsed command."""
    match command:
        case DemoConfig():
            from mlm_pytorch.demo import demo

            demo(command.out, command.budget)
        case PrepareConfig():
            prepare_command(command)
        case TrainConfig():
            train(command)
        case EvaluateConfig():
            evaluate_command(command)
        case FillConfig():
            fill_command(command)
        case ExportConfig():
            export_command(command)


# ------------------------------------------------------------------------------------------------------------- prepare


def prepare_command(config: PrepareConfig) -> None:
    """`mlm prepare`."""
    from mlm_pytorch.data.prepare import prepare
    from mlm_pytorch.data.tokenizer import load_tokenizer
    from mlm_pytorch.training.metrics import Display

    with Display() as display:
        report = prepare(
            config.corpus,
            config.out,
            tokenizer=load_tokenizer(config.tokenizer) if config.tokenizer else None,
            vocab_size=config.vocab_size,
            seq_len=config.seq_len,
            valid=config.valid or None,
            column=config.column,
            split_text=config.split_text,
            encoding_errors=config.encoding_errors,
            workers=config.workers,
            progress=_preparing(display),
        )
        if not config.json:
            display.say(_described(report))
    if config.json:
        print(json.dumps(asdict(report), default=str))


def _preparing(display: "Display") -> "Callable[[PrepareProgress], None]":
    def progress(state: "PrepareProgress") -> None:
        share = state.bytes_done / state.bytes_total if state.bytes_total else 0.0
        reading = {"tokenizer": "reading for the tokenizer", "store": "tokenizing"}[state.stage]
        display.show(reading, share, f"{state.documents:,} documents, {state.tokens:,} tokens")

    return progress


def _described(report: "PrepareReport") -> str:
    parts = [
        f"{report.documents:,} documents, {report.tokens:,} tokens in {report.pieces:,} pieces",
        f"{report.split_documents:,} documents split",
        f"{report.valid_documents:,} held out",
        f"{report.characters_per_token:.2f} characters a token",
    ]
    if report.empty_documents:
        parts.append(f"{report.empty_documents:,} empty ones skipped")
    if report.unknown_tokens:
        parts.append(f"{100 * report.unknown_rate:.2f}% of tokens unknown to the tokenizer")
    if report.skipped_files:
        parts.append(f"{len(report.skipped_files):,} files skipped, of unknown kinds")
    return f"{report.out}: " + "; ".join(parts)


# --------------------------------------------------------------------------------------------------------------- train


def train(config: TrainConfig) -> bool:
    """`mlm train`: corpus in, Hugging Face model out. Returns False where a signal stopped it before the end."""
    from mlm_pytorch.huggingface_io import check_export
    from mlm_pytorch.training.metrics import Display
    from mlm_pytorch.training.run import begin, run_folder

    config.check()
    with Display() as display, run_folder(config) as folder:
        trainer = _trainer(config, folder, display)
        begin(folder, config)
        finished = trainer.run()
        if not finished:
            display.say(f"stopped by {trainer.stop_requested} and saved; the same command continues")
            return False
        check_export(trainer.model, trainer.masker.special, folder / "model")
        display.say(f'done: {folder / "model"} loads with transformers; next: mlm fill {folder} "… [MASK] …"')
        return True


def _trainer(config: TrainConfig, folder: Path, display: "Display") -> "Trainer":
    """Put the rooms together: a store, an encoder, and the loop that brings them to each other."""
    import torch

    from mlm_pytorch.data.batches import Reader
    from mlm_pytorch.data.packing import sequential_packs
    from mlm_pytorch.data.store import TokenStore
    from mlm_pytorch.data.tokenizer import load_tokenizer
    from mlm_pytorch.encoder import num_parameters
    from mlm_pytorch.evaluation import masked_loss
    from mlm_pytorch.huggingface_io import export_encoder
    from mlm_pytorch.objective.packs import PackMasker
    from mlm_pytorch.training.checkpoint import newest_checkpoint
    from mlm_pytorch.training.trainer import Trainer

    if config.threads:
        torch.set_num_threads(config.threads)
    torch.manual_seed(config.seed)
    checkpoint = newest_checkpoint(folder, display.say)
    store_folder = _store(config, folder, display)
    store, held_out = TokenStore.open(store_folder), _held_out(store_folder)
    tokenizer, special = load_tokenizer(store.tokenizer_folder), store.special
    encoder = _encoder(config, store, checkpoint)

    def evaluate(model: torch.nn.Module) -> "MaskedResult":
        assert held_out is not None
        return masked_loss(
            model, sequential_packs(held_out, config.pack_tokens, VALID_PIECES), special, autocast=trainer.autocast
        )

    trainer = Trainer(
        encoder,
        Reader(store, config.pack_tokens, seed=config.seed, longest=store.seq_len),
        config,
        folder,
        masker=PackMasker(special, config.seed, config.replace_prob, config.random_token_prob),
        lr=config.lr or LEARNING_RATES[config.optimizer],
        packs_per_step=config.packs_per_step,
        tokens_per_epoch=store.num_tokens + len(store) * (len(special.prefix) + len(special.suffix)),
        evaluate=evaluate if held_out is not None else None,
        export=lambda model, path: export_encoder(model, tokenizer, path, max_length=store.seq_len),
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


def _store(config: TrainConfig, folder: Path, display: "Display") -> Path:
    """The store to train on: the one named, the run's own, or one prepared now."""
    from mlm_pytorch.data.prepare import prepare
    from mlm_pytorch.data.store import MANIFEST
    from mlm_pytorch.data.tokenizer import load_tokenizer
    from mlm_pytorch.training.run import CONFIG, STORE

    named = Path(config.corpus[0])
    if len(config.corpus) == 1 and (named / MANIFEST).is_file():
        for option in ("tokenizer", "vocab_size", "seq_len", "valid", "column", "split_text"):
            if getattr(config, option):
                raise ValueError(
                    f"--{option.replace('_', '-')} is settled by the store {named}; "
                    "leave it out, or prepare another store"
                )
        return named
    own = folder / STORE
    if (folder / CONFIG).is_file():
        return own
    source = None if config.model in PRESETS else Path(config.model)
    tokenizer = config.tokenizer or source
    report = prepare(
        config.corpus,
        own,
        tokenizer=load_tokenizer(tokenizer) if tokenizer else None,
        vocab_size=config.vocab_size,
        seq_len=config.seq_len or (PRESETS[config.model].seq_len if source is None else PRESETS["base"].seq_len),
        valid=config.valid or None,
        column=config.column,
        split_text=config.split_text,
        encoding_errors=config.encoding_errors,
        progress=_preparing(display),
    )
    display.say(_described(report))
    return own


def _held_out(store_folder: Path) -> "TokenStore | None":
    from mlm_pytorch.data.store import Manifest, TokenStore

    return TokenStore.open(store_folder, "valid") if "valid" in Manifest.read(store_folder).splits else None


def _encoder(config: TrainConfig, store: "TokenStore", checkpoint: Path | None) -> "Encoder":
    """A new encoder of the preset's shape, or the weights of a checkpoint or folder."""
    import torch

    from mlm_pytorch.data.batches import count_tokens
    from mlm_pytorch.encoder import Encoder, preset
    from mlm_pytorch.huggingface_io import load_encoder

    if checkpoint is None and config.model in PRESETS:
        special = store.special
        encoder = Encoder(preset(config.model, vocab_size=special.num_tokens, pad_token_id=special.pad_token_id))
        encoder.start_at_frequencies(torch.from_numpy(count_tokens(store)))
    else:
        source = checkpoint / "model" if checkpoint else Path(config.model)
        encoder, tokenizer = load_encoder(source)
        if tokenizer.fingerprint != store.tokenizer_fingerprint:
            raise ValueError(f"the tokenizer of {source} is not the store's; pass --tokenizer {source}")
    if store.seq_len > encoder.config.max_position_embeddings:
        raise ValueError(
            f"seq_len {store.seq_len} exceeds max_position_embeddings {encoder.config.max_position_embeddings}; "
            "lower --seq-len or choose a model with longer positions"
        )
    return encoder.to("cuda" if torch.cuda.is_available() else "cpu")


# ----------------------------------------------------------------------------------------------- evaluate, fill, export


def evaluate_command(config: EvaluateConfig) -> None:
    """`mlm evaluate`."""
    import tempfile

    import torch

    from mlm_pytorch.data.packing import sequential_packs
    from mlm_pytorch.data.prepare import prepare
    from mlm_pytorch.data.store import TokenStore
    from mlm_pytorch.evaluation import masked_loss
    from mlm_pytorch.huggingface_io import load_encoder
    from mlm_pytorch.training.metrics import Display
    from mlm_pytorch.training.trainer import native_precision

    for folder in config.models:
        encoder, tokenizer = load_encoder(folder)
        device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        with tempfile.TemporaryDirectory() as scratch, Display() as display:
            if config.data:
                report = prepare(
                    config.data,
                    Path(scratch) / "store",
                    tokenizer=tokenizer,
                    seq_len=min(config.seq_len or _declared_length(folder), encoder.config.max_position_embeddings),
                    valid_share=0.0,
                    column=config.column,
                    progress=_preparing(display),
                )
                store = TokenStore.open(report.out)
            else:
                held_out = _held_out(_run_store(folder))
                if held_out is None:
                    raise ValueError(f"{folder} held nothing out; name a corpus with --data")
                store = held_out
            total = store.num_tokens

            def progress(done: int, display: "Display" = display, total: int = total) -> None:
                display.show("evaluating", min(1.0, done / total), f"{done:,} tokens")

            result = masked_loss(
                encoder.to(device),
                sequential_packs(store, max(4096, store.seq_len)),
                store.special,
                mask_prob=config.mask_prob,
                autocast=native_precision(device),
                progress=progress,
            )
        if config.json:
            print(json.dumps({"model": str(folder), **asdict(result)}))
        else:
            print(
                f"{folder}: loss {result.loss:.4f} nats per token, accuracy {100 * result.accuracy:.2f}%, "
                f"{result.num_targets:,} predicted of {result.num_tokens:,} tokens"
            )


def _run_store(folder: Path) -> Path:
    """The store that a run was trained on."""
    from mlm_pytorch.training.run import CONFIG, STORE

    if not (folder / CONFIG).is_file():
        raise ValueError(f"{folder} is not a run, so it has no held-out data of its own; name a corpus with --data")
    config = TrainConfig.from_yaml((folder / CONFIG).read_text(encoding="utf-8"))
    return folder / STORE if (folder / STORE).is_dir() else Path(config.corpus[0])


def _declared_length(folder: Path) -> int:
    """The piece length that a model was trained at, as its tokenizer declares it."""
    path = folder / "model" if (folder / "model").is_dir() else folder
    declared = json.loads((path / "tokenizer_config.json").read_text(encoding="utf-8")).get("model_max_length", 512)
    return int(min(declared, 8192))  # transformers writes 10**30 for "not known"


def fill_command(config: FillConfig) -> None:
    """`mlm fill`."""
    from rich.console import Console
    from rich.text import Text

    from mlm_pytorch.evaluation import fill
    from mlm_pytorch.huggingface_io import load_encoder

    encoder, tokenizer = load_encoder(config.model)
    console = Console(highlight=False, markup=False)
    for text in config.texts:
        filled = fill(encoder, tokenizer, text, config.top_k)
        if config.json:
            print(json.dumps(asdict(filled), ensure_ascii=False))
            continue
        console.print(Text(printable(text), style="bold"))
        for mask in filled.masks:
            for candidate in mask.candidates:
                bar = "█" * round(24 * candidate.probability) or "▏"
                line = Text(f"  {candidate.probability:6.1%} ")
                line.append(f"{bar:<24} ", style="cyan")
                console.print(line.append(printable(candidate.token)))
            if mask is not filled.masks[-1]:
                console.print()


def printable(text: str) -> str:
    """Text without what a terminal would obey: an escape character becomes the picture of one, and so on."""
    shown = (
        chr(0x2400 + ord(c)) if ord(c) < 32 else c if c.isprintable() else "\N{REPLACEMENT CHARACTER}" for c in text
    )
    return "".join(shown)


def export_command(config: ExportConfig) -> None:
    """`mlm export`."""
    from mlm_pytorch.huggingface_io import check_export, copy_export, load_encoder

    encoder, tokenizer = load_encoder(config.run)
    source = config.run / "model" if (config.run / "model").is_dir() else config.run
    difference = check_export(encoder, tokenizer.special, source)
    copy_export(source.resolve(), config.folder)
    print(f"{config.folder}: loads with transformers, logits equal to {difference:.1g}")
