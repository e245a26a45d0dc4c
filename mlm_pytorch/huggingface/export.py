"""Write a model as a folder that Hugging Face loads, and read it back there before anyone relies on it.

Why so much care: published models were exported with weights that did not load (ModernBERT's issues 209 and 234), and
nobody noticed until others used them. Tokenizers are the data room's business: the caller saves them.

Shapes: B rows, L columns, V vocabulary.
"""

import copy
import hashlib
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import tokenizers
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from mlm_pytorch.encoder import Encoder
from mlm_pytorch.huggingface.folder import CONFIG, TIED, WEIGHTS
from mlm_pytorch.huggingface.masked_lm import load_through_transformers, quiet
from mlm_pytorch.modes import evaluating, full_precision
from mlm_pytorch.tokens import SpecialTokens

# Real pieces are read back from ids, so they went through the tokenizer's normalizer; this did not. Letters with
# accents and of full width, a ligature, upper case, blanks of several kinds.
PROBE = "ÉCOLE Ａﬁ  x\u00a0y\tZ"
GENERIC_CLASS = "PreTrainedTokenizerFast"  # which takes tokenizer.json as it is, as no class of a model's own does
TOKENIZER_CONFIG = "tokenizer_config.json"
KEYS = ("missing_keys", "unexpected_keys", "mismatched_keys")
TOLERANCE = 1e-3  # of a logit
# What the check may compute: about 0.1 s on a core, less than a thousandth of a hundred steps for any model.
SAMPLE_FLOPS = 4e9
FEWEST_COLUMNS, MOST_COLUMNS = 8, 96  # 96: more than ModernBERT's sliding window sees on one side


class CheckedExport:
    """Writes a model with its tokenizer, loads both back through `transformers`, and raises where they differ.

    The model is a built-in `Encoder` or a `transformers` masked language model; its parameters must all be at hand (a
    sharded one is gathered first). Called with a folder that nobody reads yet, such as the partial one of a checkpoint,
    so that after a failure the old export stays.

    Args:
        special: what the vocabulary reserves.
        backend: the tokenizer that the model is trained with.
        save_tokenizer: writes the tokenizer's files into a folder.
        sample: ids of real pieces, without framing; a few hundred tokens of them are used.

    Costs a few seconds once, for importing `transformers`; then about as much as writing the weights again. The
    tokenizer's files are read back when they differ from those that were found good last.

    Example:
        >>> export = CheckedExport(tokenizer.special, tokenizer.backend, tokenizer.save, [store.piece(0)])
        >>> export(encoder, Path("model"))
        >>> export.check(encoder, Path("model"))                               # the largest difference of a logit
        1.4e-06
    """

    def __init__(
        self,
        special: SpecialTokens,
        backend: tokenizers.Tokenizer,
        save_tokenizer: Callable[[Path], None],
        sample: Sequence[Sequence[int]],
    ):
        self.special, self.backend, self.save_tokenizer = special, backend, save_tokenizer
        self.sample = [list(map(int, ids)) for ids in sample if len(ids)]
        if not self.sample:
            raise ValueError("the sample holds no token; give the ids of a piece or two")
        self._good_tokenizer: bytes | None = None
        self._as_generic = False

    def __call__(self, model: nn.Module, folder: Path) -> None:
        """Write `model` into `folder` and check it.

        A tokenizer that the class named in its files would read otherwise is written as one of `GENERIC_CLASS`, where
        that mends it.

        Raises:
            ValueError: weights that are not finite (nothing is written then), or an export that `check` refuses.
        """
        check_finite(model)
        write = export_encoder if isinstance(model, Encoder) else export_masked_lm
        write(model, self.special, folder, self.save_tokenizer)  # type: ignore[arg-type]
        if self._as_generic:
            make_generic(self.special, self.backend, folder)
        elif _digest(folder) != self._good_tokenizer:
            self._mend_tokenizer(folder)
        self.check(model, folder)

    def _mend_tokenizer(self, folder: Path) -> None:
        """Let `check` find what is wrong with a tokenizer, unless another class reads it right."""
        path = folder / TOKENIZER_CONFIG
        try:
            check_tokenizer(self.special, self.backend, folder, self.sample)
        except ValueError:
            before = path.read_bytes() if path.is_file() else None
            try:
                make_generic(self.special, self.backend, folder)
                check_tokenizer(self.special, self.backend, folder, self.sample)
            except ValueError:
                if before is None:
                    path.unlink(missing_ok=True)
                else:
                    path.write_bytes(before)
                return
            self._as_generic = True
        self._good_tokenizer = _digest(folder)

    def check(self, model: nn.Module, folder: Path) -> float:
        """Compare what lies in `folder` with `model` and the tokenizer; return the largest difference of a logit.

        Raises:
            ValueError: see `check_tokenizer` and `check_weights`.
        """
        digest = _digest(folder)
        if digest != self._good_tokenizer:
            check_tokenizer(self.special, self.backend, folder, self.sample)
            self._good_tokenizer = digest
        return check_weights(model, self.special, folder, self.sample)


# -- writing -----------------------------------------------------------------------------------------------------------


def check_finite(model: nn.Module) -> None:
    """Refuse weights that are NaN or infinite.

    Raises:
        ValueError: naming the first of them.
    """
    both = [*model.named_parameters(), *model.named_buffers()]
    named = [(name, value) for name, value in both if value.is_floating_point()]
    finite = torch.stack([value.isfinite().all() for _, value in named]).tolist()  # one wait for the device
    wrong = [name for (name, _), is_finite in zip(named, finite, strict=True) if not is_finite]
    if wrong:
        raise ValueError(
            f"{len(wrong)} of the model's {len(named)} weights hold NaN or infinity ({wrong[0]}), so it is not "
            "exported; go back to an earlier checkpoint and lower the learning rate"
        )


def export_encoder(
    encoder: Encoder, special: SpecialTokens, folder: Path, save_tokenizer: Callable[[Path], None]
) -> None:
    """Write an encoder and its tokenizer as a folder that `AutoModelForMaskedLM.from_pretrained` loads.

    Args:
        encoder: the model; its weights are written in float32, tied ones once.
        special: what its vocabulary reserves.
        folder: to write into; made if it is not there.
        save_tokenizer: writes the tokenizer's files into a folder.
    """
    folder.mkdir(parents=True, exist_ok=True)
    weights = {name: value.detach().float().cpu().contiguous() for name, value in encoder.state_dict().items()}
    if encoder.config.tie_word_embeddings:
        del weights[TIED]
    save_file(weights, folder / WEIGHTS, metadata={"format": "pt"})
    config = encoder.config.to_huggingface() | {"pad_token_id": special.pad_token_id}
    if len(special.prefix) == 1 and len(special.suffix) == 1:
        config |= {"cls_token_id": special.prefix[0], "sep_token_id": special.suffix[0]}
        config |= {"bos_token_id": special.prefix[0], "eos_token_id": special.suffix[0]}
    (folder / CONFIG).write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")
    save_tokenizer(folder)


def export_masked_lm(
    model: nn.Module,
    special: SpecialTokens,  # noqa: ARG001 -- the face of export_encoder; these models' own config names their ids
    folder: Path,
    save_tokenizer: Callable[[Path], None],
) -> None:
    """Write any masked language model of `transformers` and its tokenizer, as `export_encoder` does.

    Weights are written in float32 whatever their type, tied ones once. What the config may say of code elsewhere
    (`auto_map`) is left out: `transformers`' own class computes what was trained.
    """
    written: Any = model
    if any(p.dtype != torch.float32 for p in model.parameters()):
        written = copy.deepcopy(model).float()
    with quiet():
        written.save_pretrained(folder)
    path = folder / CONFIG
    config = json.loads(path.read_text(encoding="utf-8"))
    if config.pop("auto_map", None) is not None:
        path.write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")
    save_tokenizer(folder)


def make_generic(special: SpecialTokens, backend: tokenizers.Tokenizer, folder: Path) -> None:
    """Name `GENERIC_CLASS` as the class of a saved tokenizer, and the roles that its own class knows without a file.

    Classes with a vocabulary of their own kind build normalizer and pre-tokenizer anew and drop those of
    tokenizer.json, as RobertaTokenizer does with lower-casing.

    Raises:
        ValueError: the tokenizer cannot be loaded as it is, or its configuration is damaged.
    """
    path = folder / TOKENIZER_CONFIG
    config = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
    if not isinstance(config, dict):
        raise ValueError(f"{path} holds no object of JSON; copy or download it again")
    added = {token.content: token for token in backend.get_added_tokens_decoder().values()}
    ids = {"mask_token": special.mask_token_id, "pad_token": special.pad_token_id}
    roles = {role: backend.id_to_token(id) for role, id in ids.items()}
    for role, name in (roles | dict(_load_tokenizer(folder).special_tokens_map)).items():
        # As an object: transformers would otherwise put a token that eats no blank in the place of tokenizer.json's.
        if isinstance(name, str) and name in added:
            token = added[name]
            flags = ("content", "lstrip", "normalized", "rstrip", "single_word", "special")
            config[role] = {"__type": "AddedToken"} | {flag: getattr(token, flag) for flag in flags}
        elif isinstance(name, str):
            config[role] = name
    config["tokenizer_class"] = GENERIC_CLASS
    path.write_text(json.dumps(config, indent=2, sort_keys=True, ensure_ascii=False) + "\n", encoding="utf-8")


# -- checking ----------------------------------------------------------------------------------------------------------


def _digest(folder: Path) -> bytes:
    """Of all files that a tokenizer is loaded from: those beside the weights and what is for people to read."""
    digest = hashlib.sha256()
    for path in sorted(folder.iterdir()):
        if path.is_file() and path.suffix not in (".safetensors", ".md"):
            digest.update(path.name.encode() + b"\0" + path.read_bytes() + b"\0")
    return digest.digest()


def _load_tokenizer(folder: Path) -> Any:
    """Through `transformers`; ValueError where that fails."""
    from transformers import AutoTokenizer

    try:
        return AutoTokenizer.from_pretrained(str(folder), trust_remote_code=False, local_files_only=True)
    except (OSError, ValueError, KeyError, TypeError, AttributeError, ImportError) as error:
        reason = " ".join(str(error).split())
        message = f"the tokenizer in {folder} cannot be loaded by transformers ({reason}); {_remedy(folder)}"
        raise ValueError(message) from None


def _remedy(folder: Path) -> str:
    return f"the tokenizer's files in {folder} are damaged or transformers reads them otherwise; prepare with another"


def check_tokenizer(
    special: SpecialTokens, backend: tokenizers.Tokenizer, folder: Path, sample: Sequence[Sequence[int]]
) -> None:
    """Load the tokenizer in `folder` through `transformers`, and compare it with `backend` on real pieces, and on text
    that no normalizer has seen.

    Args:
        special: what the vocabulary reserves.
        backend: the tokenizer that we hold.
        folder: an export.
        sample: ids of pieces, without framing.

    Raises:
        ValueError: a slow tokenizer, other special tokens, or ids or text that do not come out the same.
    """
    again, loaded = _remedy(folder), _load_tokenizer(folder)
    if not loaded.is_fast:
        raise ValueError(f"{type(loaded).__name__} in {folder} is a slow tokenizer; {again}")
    expected = {"mask_token_id": special.mask_token_id, "pad_token_id": special.pad_token_id}
    for name, framing in (("cls_token_id", special.prefix), ("sep_token_id", special.suffix)):
        if len(framing) == 1 and getattr(loaded, name) is not None:
            expected[name] = framing[0]
    for name, value in expected.items():
        if getattr(loaded, name) != value:
            raise ValueError(f"{name} is {getattr(loaded, name)} in {folder} and {value} in training; {again}")
    mask = backend.id_to_token(special.mask_token_id)
    for ids in sample:
        some = list(ids[: 4 * MOST_COLUMNS])
        text = backend.decode(some, skip_special_tokens=False)
        read = loaded.decode(some, skip_special_tokens=False, clean_up_tokenization_spaces=False)
        if read != text:
            raise ValueError(f"{folder} decodes {some[:8]}… to {read[:60]!r} and not to {text[:60]!r}; {again}")
        half = len(text) // 2
        words = backend.decode(some)
        for written in (text, f"{text[:half]} {mask} {text[half:]}", words.upper(), words.lower(), PROBE):
            ours = _encoded(backend, written)
            if ours is None:
                continue
            theirs = loaded(written, truncation=False, verbose=False)["input_ids"]
            if ours != theirs:
                at = next((i for i, (a, b) in enumerate(zip(ours, theirs, strict=False)) if a != b), len(theirs))
                raise ValueError(f"{folder} encodes {written[:60]!r}… to other ids, from token {at} on; {again}")


def _encoded(backend: tokenizers.Tokenizer, text: str) -> list[int] | None:
    """The ids of a text; None where it holds a word that is unknown to a vocabulary without a token for that."""
    try:
        return backend.encode(text).ids
    except Exception as error:  # the Rust library's bare one
        if type(error) is not Exception:
            raise
        return None


@torch.no_grad()
def check_weights(model: nn.Module, special: SpecialTokens, folder: Path, sample: Sequence[Sequence[int]]) -> float:
    """Load the model in `folder` through `transformers`, and compare its weights and its logits on real pieces.

    Two rows are compared, of which one is padded, with every seventh token masked. Training mode and the precision of
    matrix products are left as they were; nothing draws random numbers.

    Args:
        model: what was exported, with weights on one device.
        special: what its vocabulary reserves.
        folder: the export.
        sample: ids of pieces, without framing.

    Returns:
        The largest difference of a logit, in float32.

    Raises:
        ValueError: missing or unexpected weights, other ones, or logits that differ by more than 1e-3.
    """
    device = next(model.parameters()).device
    # Loading draws no random numbers, and putting their state back would rewind what training has drawn meanwhile.
    loaded, report = load_through_transformers(folder)
    strange = {kind: sorted(map(str, report[kind])) for kind in KEYS if report[kind]}
    if strange:
        raise ValueError(f"the export in {folder} does not load cleanly: {strange}")
    ids_BL, mask_BL = (x.to(device) for x in _rows(model, special, sample))
    reference = model if all(p.dtype == torch.float32 for p in model.parameters()) else copy.deepcopy(model).float()
    with full_precision(), evaluating(reference):
        ours = _logits(reference(ids_BL, attention_mask=mask_BL))
        theirs = _logits(loaded.to(device).eval()(input_ids=ids_BL, attention_mask=mask_BL))
    difference = float((ours - theirs)[mask_BL.bool()].abs().max())
    if not difference <= TOLERANCE:  # NaN is no match either
        raise ValueError(
            f"the export in {folder} computes other logits: they differ by {difference:.2g}, more than {TOLERANCE:g}"
        )
    # What a short sample cannot see, such as the embeddings of tokens that are not in it.
    read = loaded.state_dict()
    for name, value in reference.state_dict().items():
        if name not in read or not torch.equal(read[name], value):
            raise ValueError(f"the weight {name} is another in the export in {folder}; free the disk and try again")
    return difference


def _rows(model: nn.Module, special: SpecialTokens, sample: Sequence[Sequence[int]]) -> tuple[Tensor, Tensor]:
    """Ids and attention mask (2, L) of two pieces, framed, the second one at most half as long."""
    config: Any = model.config
    framing = len(special.prefix) + len(special.suffix)
    affordable = int(SAMPLE_FLOPS / (8 * sum(p.numel() for p in model.parameters())))  # 2 rows, 2 models, 2 a weight
    positions = getattr(config, "max_position_embeddings", None) or MOST_COLUMNS
    columns = min(max(affordable, FEWEST_COLUMNS), MOST_COLUMNS, positions // 2) - framing
    rows = []
    for ids, longest in ((sample[0], columns), (sample[-1], columns // 2)):
        body = list(ids[: max(1, longest)])
        body[::7] = [special.mask_token_id] * len(body[::7])
        rows.append([*special.prefix, *body, *special.suffix])
    length = max(map(len, rows))
    ids_BL = torch.tensor([row + [special.pad_token_id] * (length - len(row)) for row in rows])
    mask_BL = torch.tensor([[1] * len(row) + [0] * (length - len(row)) for row in rows])
    return ids_BL, mask_BL


def _logits(output: Any) -> Tensor:
    return (output if isinstance(output, Tensor) else output.logits).float()
