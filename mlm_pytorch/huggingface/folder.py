"""Folders that Hugging Face loads: read a ModernBERT, export one, check the export against what it came from.

Tokenizers are the data room's business: the caller loads and saves them.
"""

import json
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from mlm_pytorch.encoder import Encoder, EncoderConfig
from mlm_pytorch.tokens import SpecialTokens

WEIGHTS, CONFIG = "model.safetensors", "config.json"
_TIED = "decoder.weight"


def export_encoder(
    encoder: Encoder,
    special: SpecialTokens,
    folder: Path,
    save_tokenizer: Callable[[Path], None],
    weights: Mapping[str, Tensor] | None = None,
) -> None:
    """Write an encoder and its tokenizer as a folder that `AutoModelForMaskedLM.from_pretrained` loads.

    Args:
        encoder: the model; its weights are written in float32, tied ones once.
        special: what its vocabulary reserves.
        folder: to write into; made if it is not there.
        save_tokenizer: writes the tokenizer's files into a folder.
        weights: a `state_dict` that the encoder had, None for what it has now.
    """
    folder.mkdir(parents=True, exist_ok=True)
    state = encoder.state_dict() if weights is None else weights
    written = {name: value.detach().float().cpu().contiguous() for name, value in state.items()}
    if encoder.config.tie_word_embeddings:
        del written[_TIED]
    save_file(written, folder / WEIGHTS, metadata={"format": "pt"})
    config = encoder.config.to_huggingface() | {"pad_token_id": special.pad_token_id}
    if len(special.prefix) == 1 and len(special.suffix) == 1:
        config |= {"cls_token_id": special.prefix[0], "sep_token_id": special.suffix[0]}
        config |= {"bos_token_id": special.prefix[0], "eos_token_id": special.suffix[0]}
    (folder / CONFIG).write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")
    save_tokenizer(folder)


def model_folder(folder: Path) -> Path:
    """Where the model lies in a run's folder, or the folder itself where it is a Hugging Face folder.

    Raises:
        ValueError: neither.
    """
    for candidate in (folder / "model", folder):
        if (candidate / CONFIG).is_file():
            return candidate
    raise ValueError(f"{folder} holds no model ({CONFIG} is missing); name a run or a Hugging Face folder")


def load_encoder(folder: Path) -> Encoder:
    """Read a ModernBERT masked-language model: JSON and safetensors only, nothing is executed.

    Raises:
        ValueError: no model there, another architecture, or weights that are damaged or do not fit.
    """
    folder = model_folder(folder)
    try:
        raw = json.loads((folder / CONFIG).read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{folder / CONFIG} is damaged ({error}); export the model again") from None
    config = EncoderConfig.from_huggingface(raw)
    if not (folder / WEIGHTS).is_file():
        raise ValueError(f"{folder} has no {WEIGHTS}; save the model with safe_serialization=True, in one file")
    try:
        weights = load_file(folder / WEIGHTS)
    except (SafetensorError, OSError) as error:
        raise ValueError(f"{folder / WEIGHTS} is damaged ({error}); export the model again") from None
    with torch.device("meta"):
        encoder = Encoder(config)
    encoder.to_empty(device="cpu")
    if config.tie_word_embeddings:
        encoder.decoder.weight = encoder.model.embeddings.tok_embeddings.weight
        weights.setdefault(_TIED, weights.get("model.embeddings.tok_embeddings.weight", torch.empty(0)))
    expected = encoder.state_dict()
    wrong = sorted(set(expected) ^ set(weights)) or [k for k in expected if expected[k].shape != weights[k].shape]
    if wrong:
        raise ValueError(
            f"{folder / WEIGHTS} does not fit its {CONFIG}: {', '.join(wrong[:3])}; export the model again"
        )
    encoder.load_state_dict(weights)
    return encoder


@torch.no_grad()
def check_export(encoder: Encoder, special: SpecialTokens, folder: Path, *, tolerance: float = 1e-3) -> float:
    """Load an export back through `transformers` and compare its logits with the encoder's on framed random tokens.

    Returns:
        The largest difference of a logit, in float32.

    Raises:
        ValueError: missing or unexpected weights, logits that differ by more than `tolerance` or are not finite.
    """
    from transformers import AutoModelForMaskedLM, AutoTokenizer
    from transformers.utils import logging

    shows_bars = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()  # it takes a moment; a bar would only clutter the console
    try:
        loaded, report = AutoModelForMaskedLM.from_pretrained(folder, output_loading_info=True, dtype=torch.float32)
    finally:
        if shows_bars:
            logging.enable_progress_bar()
    strange = {
        key: sorted(report[key]) for key in ("missing_keys", "unexpected_keys", "mismatched_keys") if report[key]
    }
    if strange:
        raise ValueError(f"the export in {folder} does not load cleanly: {strange}")
    if AutoTokenizer.from_pretrained(folder).mask_token_id != special.mask_token_id:
        raise ValueError(f"the export in {folder} has another mask token; its tokenizer files are damaged")
    generator = torch.Generator().manual_seed(0)
    drawable = special.drawable_ids()
    length = min(64, encoder.config.max_position_embeddings) - len(special.prefix) - len(special.suffix)
    body = drawable[torch.randint(len(drawable), (2, length), generator=generator)]
    body[:, ::7] = special.mask_token_id
    rows = [[*special.prefix, *row, *special.suffix] for row in body.tolist()]
    ids = torch.tensor(rows)
    device = next(encoder.parameters()).device
    was_training = encoder.training
    ours = encoder.eval()(ids.to(device)).float().cpu()
    encoder.train(was_training)
    theirs = loaded.eval()(input_ids=ids).logits.float()
    difference = float((ours - theirs).abs().max())
    if not difference <= tolerance:  # NaN is no match either
        raise ValueError(
            f"the export in {folder} computes other logits: they differ by {difference:.2g}, more than {tolerance:g}"
        )
    return difference


def copy_export(source: Path, target: Path) -> None:
    """Copy an exported model to a new or empty folder, complete or not at all.

    Raises:
        ValueError: the target exists and is not an empty folder.
    """
    if target.exists() and (not target.is_dir() or any(target.iterdir())):
        raise ValueError(f"{target} exists and is not an empty folder; choose another one")
    partial = target.with_name(f".{target.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    try:
        shutil.copytree(source, partial)
        if target.exists():
            target.rmdir()
        partial.replace(target)
    except OSError:
        shutil.rmtree(partial, ignore_errors=True)
        raise
