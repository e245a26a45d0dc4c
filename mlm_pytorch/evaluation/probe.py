"""Does pretraining help a task? Classifiers on a model, and on the same model with fresh random weights.

Either the model is frozen, and logistic regression gets the mean of each text's hidden states (its tokens, without
framing); or the whole model is trained on with a linear layer on that mean. Each seed draws its own training texts (by
resampling), order and fresh weights, so that the difference comes with a spread.

Shapes: N texts, W width, C labels, T tokens of a pack, D texts in it.
"""

import copy
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mlm_pytorch.data.tokenizer import Tokenizer
from mlm_pytorch.encoder import Encoder
from mlm_pytorch.evaluation.padded import PaddedModel

PACK_TOKENS = 8192  # for features
ENCODED_TEXTS = 256  # at a time: a list of ids takes many times the memory of its text
FINETUNE_BATCH, FINETUNE_EPOCHS, FINETUNE_LR = 32, 3, 1e-4
WARMUP = 0.1  # share of the steps
HEADER = ("label", "text")

Probed = Encoder | PaddedModel
Measure = Callable[[Probed], Callable[[int], np.ndarray]]  # model -> seed -> which test texts are right, (N,) bool


@dataclass(frozen=True)
class Task:
    """Texts with labels, to learn from and to be measured on; labels are numbered as in `labels`."""

    labels: tuple[str, ...]
    train_texts: list[str]
    train_labels: np.ndarray  # (N,) int64
    test_texts: list[str]
    test_labels: np.ndarray


@dataclass(frozen=True)
class ProbeResult:
    """Accuracy on the test texts with and without pretraining.

    Attributes:
        pretrained, untrained: mean accuracy over seeds.
        difference: mean over seeds of pretrained less untrained.
        spread: standard deviation of that difference over seeds; 0 for one seed.
        error: standard error of the difference, of the seeds and of the test texts, of which others might have been.
        verdict: "helps" or "hurts" where the difference exceeds two standard errors, else "makes no clear difference".
        majority: accuracy of always saying the label that is most frequent in training.
        by_seed: (pretrained, untrained) of each seed.
        num_train, num_test: texts.
        num_truncated: texts cut to the model's length.
    """

    pretrained: float
    untrained: float
    difference: float
    spread: float
    error: float
    verdict: str
    majority: float
    by_seed: tuple[tuple[float, float], ...]
    num_train: int
    num_test: int
    num_truncated: int


def read_task(train: Path, test: Path) -> Task:
    """A task from two files with a label, a tab and a text on each line; a first line "label<TAB>text" is skipped.

    Raises:
        ValueError: a file that cannot be read or is empty, a line without a tab, a label or a text, one label only, or
            a label that only the test file has.
    """
    train_rows, test_rows = _rows(train), _rows(test)
    labels = tuple(sorted({label for label, _ in train_rows}))
    if len(labels) < 2:
        raise ValueError(f"{train} has one label only ({', '.join(labels)}); a task needs two or more")
    unknown = sorted({label for label, _ in test_rows} - set(labels))
    if unknown:
        raise ValueError(f"{test} has the label {unknown[0]!r}, which {train} has not; use the same labels in both")

    def numbered(rows: list[tuple[str, str]]) -> np.ndarray:
        return np.array([labels.index(label) for label, _ in rows], dtype=np.int64)

    return Task(
        labels, [t for _, t in train_rows], numbered(train_rows), [t for _, t in test_rows], numbered(test_rows)
    )


def _rows(path: Path) -> list[tuple[str, str]]:
    try:
        lines = path.read_bytes().decode("utf-8-sig").split("\n")  # Excel writes a byte order mark
    except OSError as error:
        raise ValueError(
            f"{path} cannot be read ({error.strerror or error}); name a file of label, tab, text"
        ) from None
    except UnicodeDecodeError as error:
        raise ValueError(f"{path} is not UTF-8 (byte {error.start:,}); convert it") from None
    rows = []
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        label, tab, text = line.rstrip("\r").partition("\t")
        if number == 1 and (label.strip(), text.strip()) == HEADER:
            continue
        if not tab or not label.strip() or not text.strip():
            raise ValueError(
                f"{path} line {number} is not a label, a tab and a text ({line[:40]!r}); mend or remove it"
            )
        rows.append((label.strip(), text))
    if not rows:
        raise ValueError(f"{path} holds no lines of label, tab, text; give at least one for each of two labels")
    return rows


def probe(
    model: Probed,
    tokenizer: Tokenizer,
    task: Task,
    *,
    kind: Literal["frozen", "finetuned"] = "frozen",
    seeds: int = 3,
    max_seq_len: int,
    progress: Callable[[float, str], None] | None = None,
) -> ProbeResult:
    """Measure whether `model` does better at a task than the same model with fresh random weights.

    Args:
        model: the pretrained model; it is left as it was.
        tokenizer: the model's.
        task: what to learn.
        kind: "frozen" features with logistic regression (needs scikit-learn), or the whole model "finetuned".
        seeds: repetitions.
        max_seq_len: texts are cut to so many tokens, framing included, and counted.
        progress: called with the share done and what is being done.

    Raises:
        ValueError: `seeds` below 1, a text without tokens, or scikit-learn is not installed.
    """
    if seeds < 1:
        raise ValueError(f"--probe-seeds {seeds} is below 1; choose how often the probe is repeated")
    train, cut_train = _encode(tokenizer, task.train_texts, max_seq_len)
    test, cut_test = _encode(tokenizer, task.test_texts, max_seq_len)
    measure = (_frozen if kind == "frozen" else _finetuned)(tokenizer, task, train, test)
    was_training = model.training

    def say(done: float, what: str) -> None:
        if progress is not None:
            progress(done / seeds, f"{kind}, {what}")

    say(0, "pretrained")
    right_of_pretrained = measure(model)
    right = []
    for seed in range(seeds):
        say(seed, f"seed {seed}, pretrained")
        with_pretraining = right_of_pretrained(seed)
        say(seed + 0.5, f"seed {seed}, untrained")
        right.append((with_pretraining, measure(fresh(model, seed))(seed)))
    model.train(was_training)
    right_S2N = np.array(right, dtype=np.float64)
    pretrained, untrained = right_S2N.mean(2).T
    difference = pretrained - untrained
    spread = float(difference.std(ddof=1)) if seeds > 1 else 0.0
    mean = float(difference.mean())
    error = (spread**2 / seeds + _error_of_texts((right_S2N[:, 0] - right_S2N[:, 1]).mean(0)) ** 2) ** 0.5
    clear = abs(mean) > 2 * error
    return ProbeResult(
        pretrained=float(pretrained.mean()),
        untrained=float(untrained.mean()),
        difference=mean,
        spread=spread,
        error=error,
        verdict=("helps" if mean > 0 else "hurts") if clear else "makes no clear difference",
        majority=float((task.test_labels == np.bincount(task.train_labels).argmax()).mean()),
        by_seed=tuple(zip(pretrained.tolist(), untrained.tolist(), strict=True)),
        num_train=len(train),
        num_test=len(test),
        num_truncated=cut_train + cut_test,
    )


def _error_of_texts(difference_N: np.ndarray) -> float:
    """Standard error of the mean of differences between -1 and 1, of the same texts with and without pretraining.

    All seeds are measured on the same texts, whose luck their spread does not show. As if one text more were right each
    way by half (Agresti and Min 2005, Statistics in Medicine 24), so that a few texts which agree are no certainty.

    >>> _error_of_texts(np.zeros(98)), round(_error_of_texts(np.array([1.0, -1.0] * 49)), 4)
    (0.01, 0.0995)
    """
    count = len(difference_N) + 2
    variance = (np.square(difference_N).sum() + 1) / count - (difference_N.sum() / count) ** 2
    return float((variance / count) ** 0.5)


def fresh(model: Probed, seed: int) -> Probed:
    """The same model with fresh random weights, drawn from `seed`; torch's own generator is left as it was."""
    device = next(model.parameters()).device
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        if isinstance(model, Encoder):
            return Encoder(model.config).to(device)
        inner = type(model.inner)(copy.deepcopy(model.inner.config))
        return PaddedModel(inner.to(device), model.special, model.max_seq_len)


def _encode(tokenizer: Tokenizer, texts: Sequence[str], max_seq_len: int) -> tuple[list[np.ndarray], int]:
    """Framed ids of each text, and how many texts were cut to fit."""
    special = tokenizer.special
    room = max_seq_len - len(special.prefix) - len(special.suffix)
    encoded, truncated = [], 0
    for start in range(0, len(texts), ENCODED_TEXTS):
        batch = texts[start : start + ENCODED_TEXTS]
        for text, ids in zip(batch, tokenizer.encode_batch(batch), strict=True):
            if not ids:
                raise ValueError(f"the text {text[:40]!r} has no tokens; leave it out")
            truncated += len(ids) > room
            encoded.append(np.array([*special.prefix, *ids[:room], *special.suffix], dtype=np.int64))
    return encoded, truncated


def _frozen(tokenizer: Tokenizer, task: Task, train: list[np.ndarray], test: list[np.ndarray]) -> Measure:
    """Logistic regression on features, which are computed once per model."""
    try:
        from sklearn.linear_model import LogisticRegression
        from sklearn.pipeline import make_pipeline
        from sklearn.preprocessing import StandardScaler
    except ImportError:
        raise ValueError("the probe needs scikit-learn; run pip install '.[probe]' in the checkout") from None

    def measure(model: Probed) -> Callable[[int], np.ndarray]:
        train_NW, test_NW = (_features(model, tokenizer, texts) for texts in (train, test))

        def right(seed: int) -> np.ndarray:
            chosen = _resampled(task.train_labels, seed)
            classifier = make_pipeline(StandardScaler(), LogisticRegression(C=0.1, max_iter=1000))
            classifier.fit(train_NW[chosen], task.train_labels[chosen])
            return classifier.predict(test_NW) == task.test_labels

        return right

    return measure


@torch.inference_mode()
def _features(model: Probed, tokenizer: Tokenizer, texts: list[np.ndarray]) -> np.ndarray:
    """Mean hidden states (N, W) float32."""
    model.eval()
    rows: list[np.ndarray] = [np.empty(0)] * len(texts)
    for indices in _packs(texts, PACK_TOKENS):
        means_DW = _means(model, tokenizer, [texts[i] for i in indices]).float().cpu().numpy()
        for index, row in zip(indices, means_DW, strict=True):
            rows[index] = row
    return np.stack(rows)


def _finetuned(tokenizer: Tokenizer, task: Task, train: list[np.ndarray], test: list[np.ndarray]) -> Measure:
    """The whole model and a linear layer, trained by AdamW with warmup and linear decay."""

    def measure(model: Probed) -> Callable[[int], np.ndarray]:
        def right(seed: int) -> np.ndarray:
            tuned, layer = _finetune(copy.deepcopy(model), tokenizer, task, train, seed)
            said_N = np.empty(len(test), dtype=np.int64)
            with torch.inference_mode():
                for indices in _packs(test, PACK_TOKENS):
                    means_DW = _means(tuned, tokenizer, [test[i] for i in indices])
                    said_N[indices] = layer(means_DW).argmax(-1).cpu().numpy()
            return said_N == task.test_labels

        return right

    return measure


def _finetune(
    model: Probed, tokenizer: Tokenizer, task: Task, train: list[np.ndarray], seed: int
) -> tuple[Probed, nn.Linear]:
    """`model` itself, trained on the task, and its new last layer."""
    chosen = _resampled(task.train_labels, seed)
    device = next(model.parameters()).device
    steps = -(-len(chosen) // FINETUNE_BATCH) * FINETUNE_EPOCHS
    with torch.random.fork_rng():
        torch.manual_seed(seed)  # of the new layer, the order and dropout
        layer = nn.Linear(_means(model.eval(), tokenizer, train[:1]).shape[1], len(task.labels)).to(device)
        parameters = [*model.parameters(), *layer.parameters()]
        optimizer = torch.optim.AdamW(parameters, lr=FINETUNE_LR, weight_decay=0.01)
        schedule = torch.optim.lr_scheduler.LambdaLR(
            optimizer, lambda step: min((step + 1) / (WARMUP * steps + 1), (steps - step) / steps / (1 - WARMUP))
        )
        model.train()
        for _ in range(FINETUNE_EPOCHS):
            for batch in torch.randperm(len(chosen)).split(FINETUNE_BATCH):
                indices = chosen[batch.numpy()]
                logits_DC = layer(_means(model, tokenizer, [train[i] for i in indices]))
                labels_D = torch.from_numpy(task.train_labels[indices]).to(device)
                optimizer.zero_grad()
                F.cross_entropy(logits_DC, labels_D).backward()
                nn.utils.clip_grad_norm_([p for p in parameters if p.grad is not None], 1.0)
                optimizer.step()
                schedule.step()
    model.eval()
    return model, layer


def _resampled(labels: np.ndarray, seed: int) -> np.ndarray:
    """As many indices as there are labels, drawn with replacement; every label is among them."""
    generator = np.random.default_rng(seed)
    while True:
        chosen = generator.integers(len(labels), size=len(labels))
        if len(np.unique(labels[chosen])) == len(np.unique(labels)):
            return chosen


def _packs(texts: Sequence[np.ndarray], capacity: int) -> Iterator[list[int]]:
    """Indices of texts of like length, as many as fill a pack."""
    held: list[int] = []
    room = capacity
    for index in sorted(range(len(texts)), key=lambda i: -len(texts[i])):
        if held and len(texts[index]) > room:
            yield held
            held, room = [], capacity
        held.append(index)
        room -= len(texts[index])
    if held:
        yield held


def _means(model: Probed, tokenizer: Tokenizer, texts: Sequence[np.ndarray]) -> Tensor:
    """(D, W): the mean hidden state of each text's own tokens."""
    device = next(model.parameters()).device
    lengths = torch.tensor([len(ids) for ids in texts])
    cu_seqlens = torch.cat([torch.zeros(1, dtype=torch.int64), lengths.cumsum(0)])
    input_ids = torch.from_numpy(np.concatenate(texts))
    text_T = torch.repeat_interleave(torch.arange(len(texts)), lengths)
    place_T = torch.arange(len(input_ids)) - cu_seqlens[text_T]
    special = tokenizer.special
    own_T = (place_T >= len(special.prefix)) & (place_T < lengths[text_T] - len(special.suffix))
    states_TW = model.hidden_states(input_ids.to(device), cu_seqlens=cu_seqlens.to(device))
    weight_T = (
        own_T / own_T.new_zeros(len(texts), dtype=torch.float32).index_add(0, text_T, own_T.float())[text_T]
    ).to(device)
    means_DW = states_TW.new_zeros(len(texts), states_TW.shape[1])
    return means_DW.index_add(0, text_T.to(device), states_TW * weight_T[:, None].to(states_TW))
