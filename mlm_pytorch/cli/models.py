"""`mlm evaluate`, `mlm fill`, `mlm export`: what can be done with a trained model."""

import json
import tempfile
from dataclasses import asdict
from pathlib import Path

import torch
from rich.console import Console
from rich.text import Text

from mlm_pytorch.cli.options import EvaluateConfig, ExportConfig, FillConfig
from mlm_pytorch.cli.prepare import show_preparing
from mlm_pytorch.cli.train import held_out
from mlm_pytorch.data.packing import sequential_packs
from mlm_pytorch.data.prepare import prepare
from mlm_pytorch.data.store import TokenStore
from mlm_pytorch.data.tokenizer import Tokenizer, load_tokenizer
from mlm_pytorch.encoder import Encoder
from mlm_pytorch.evaluation import fill, masked_loss
from mlm_pytorch.huggingface import check_export, copy_export, load_encoder, model_folder
from mlm_pytorch.training.config import TrainConfig
from mlm_pytorch.training.metrics import Display
from mlm_pytorch.training.run import CONFIG, STORE
from mlm_pytorch.training.trainer import native_precision

EVALUATION_PACK = 4096  # tokens computed at a time


def _load(folder: Path) -> tuple[Encoder, Tokenizer]:
    """The model and tokenizer of a run, or of a Hugging Face folder."""
    return load_encoder(folder), load_tokenizer(model_folder(folder))


def evaluate_command(config: EvaluateConfig) -> None:
    """`mlm evaluate`."""
    if not config.models:
        raise ValueError("no model is named; give run folders or Hugging Face folders")
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    for folder in config.models:
        encoder, tokenizer = _load(folder)
        with tempfile.TemporaryDirectory() as scratch, Display() as display:
            if config.data:
                length = min(config.seq_len or _declared_length(folder), encoder.config.max_position_embeddings)
                store = _prepare_evaluation(config, Path(scratch) / "store", tokenizer, length, display)
            else:
                store = _own_held_out(folder)

            def show(done: int, display: Display = display, total: int = store.num_tokens) -> None:
                display.show("evaluating", min(1.0, done / total), f"{done:,} tokens")

            packs = sequential_packs(store, max(EVALUATION_PACK, store.seq_len))
            result = masked_loss(
                encoder.to(device),
                packs,
                store.special,
                mask_prob=config.mask_prob,
                autocast=native_precision(device),
                progress=show,
            )
        if config.json:
            print(json.dumps({"model": str(folder), **asdict(result)}))
        else:
            print(
                f"{folder}: loss {result.loss:.4f} nats per token, accuracy {100 * result.accuracy:.2f}%, "
                f"{result.num_targets:,} predicted of {result.num_tokens:,} tokens"
            )


def _prepare_evaluation(
    config: EvaluateConfig, out: Path, tokenizer: Tokenizer, seq_len: int, display: Display
) -> TokenStore:
    options = {"valid_share": 0.0, "column": config.column, "progress": show_preparing(display)}
    prepare(config.data, out, tokenizer=tokenizer, seq_len=seq_len, **options)
    return TokenStore.open(out)


def _own_held_out(folder: Path) -> TokenStore:
    store = held_out(_run_store(folder))
    if store is None:
        raise ValueError(f"{folder} held nothing out; name a corpus with --data")
    return store


def _run_store(folder: Path) -> Path:
    """The store that a run was trained on."""
    if not (folder / CONFIG).is_file():
        raise ValueError(f"{folder} is not a run, so it has no held-out data of its own; name a corpus with --data")
    config = TrainConfig.from_yaml((folder / CONFIG).read_text(encoding="utf-8"))
    return folder / STORE if (folder / STORE).is_dir() else Path(config.corpus[0])


def _declared_length(folder: Path) -> int:
    """The piece length that a model was trained at, as its tokenizer declares it."""
    declared = json.loads((model_folder(folder) / "tokenizer_config.json").read_text(encoding="utf-8")).get(
        "model_max_length", 512
    )
    return int(min(declared, 8192))  # transformers writes 10**30 for "not known"


def fill_command(config: FillConfig) -> None:
    """`mlm fill`."""

    if not config.texts:
        raise ValueError("no text is given; write one with [MASK] where a word is to be found")
    encoder, tokenizer = _load(config.model)
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
    encoder, tokenizer = _load(config.run)
    source = model_folder(config.run)
    difference = check_export(encoder, tokenizer.special, source)
    copy_export(source.resolve(), config.folder)
    print(f"{config.folder}: loads with transformers, logits equal to {difference:.1g}")
