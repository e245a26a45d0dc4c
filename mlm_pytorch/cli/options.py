"""What each command of `mlm` is told, apart from `train`, whose options a run keeps (`training.config`)."""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

import tyro

from mlm_pytorch.data.options import CorpusOptions
from mlm_pytorch.training.config import OptimizerName, Precision, SelectionName, TrainConfig


@dataclass(frozen=True)
class PrepareConfig(CorpusOptions):
    """Tokenize a corpus into a store, once, for many runs.

    Example: mlm prepare corpus.jsonl.gz --out stores/mine
    """

    corpus: Annotated[tuple[str, ...], tyro.conf.Positional] = ()
    """Files, globs, folders, addresses (hf://, s3://, …), or - for standard input."""
    out: Path | None = None
    """Folder of the store."""
    seq_len: int = 512
    """Longest piece in tokens, special tokens included; longer documents are split."""
    verify: Path | None = None
    """Instead of preparing: read a store whole, and say whether every byte is as written."""
    json: bool = False
    """Print the report as JSON."""


@dataclass(frozen=True)
class EvaluateConfig:
    """Compare models: masked loss on held-out text, minimal pairs, and whether pretraining helps a task.

    Example: mlm evaluate runs/mine models/bert --data valid.jsonl.gz --minimal-pairs blimp.jsonl.gz
    """

    models: Annotated[tuple[Path, ...], tyro.conf.Positional]
    """Run folders or Hugging Face folders of masked language models."""
    data: tuple[str, ...] = ()
    """Held-out files, or a store. By default what the run held out, unless other measures are asked for; several runs
    must have held out the same."""
    column: str | None = None
    """Field that holds the text. By default found."""
    seq_len: int | None = None
    """Longest piece in tokens. By default what the model was trained at."""
    mask_prob: float = 0.15
    """Share of each piece's tokens to predict."""
    breakdown: bool = False
    """Also show the loss by token frequency, place in the word, length and source."""
    minimal_pairs: Path | None = None
    """JSON lines with the fields good and bad (or BLiMP's own names): how often the good one is likelier."""
    pll: Literal["original", "word-l2r"] = "original"
    """Pseudo-log-likelihood: mask each token alone (Salazar et al. 2020), or also the later ones of its word."""
    pair_score: Literal["sum", "mean"] = "sum"
    """Compare the sentences of a pair by the sum over their tokens, or by the mean."""
    probe_train: Path | None = None
    """Lines of label, tab, text: train a classifier on the model's features, and on those of an untrained one."""
    probe_test: Path | None = None
    """The same, to measure the classifier on."""
    probe_finetune: bool = False
    """Train the whole model on the task as well."""
    probe_seeds: int = 3
    """How often the probe is repeated."""
    json: bool = False
    """Print one JSON object per model."""
    factory: str | None = None
    """module:factory that makes the model of a run of your own module; no code is run because a folder names it."""


@dataclass(frozen=True)
class FillConfig:
    """Show what a model puts in place of [MASK].

    Example: mlm fill runs/mine "The [MASK] sat on the [MASK]."
    """

    model: Annotated[Path, tyro.conf.Positional]
    """A run folder or a Hugging Face folder of a masked language model."""
    texts: Annotated[tuple[str, ...], tyro.conf.Positional]
    """Texts with one or more [MASK]. On a terminal, without any, they are asked for."""
    file: Path | None = None
    """A file with a text on each line; - for standard input."""
    top_k: int = 5
    """Candidates per mask."""
    json: bool = False
    """Print one JSON object per text."""
    factory: str | None = None
    """module:factory that makes the model of a run of your own module; no code is run because a folder names it."""


@dataclass(frozen=True)
class PlayConfig:
    """Open a page on this machine: click words to hide them, see what models expect and what surprises them.

    Needs the extra play: pip install '.[play]' in the checkout. Example: mlm play runs/mine models/bert
    """

    models: Annotated[tuple[Path, ...], tyro.conf.Positional]
    """Run folders or Hugging Face folders of masked language models; the page compares two at a time."""
    host: str = "127.0.0.1"
    """Address to listen on. With any other, whoever reaches it can use the page."""
    port: int = 8000
    """Port to listen on; 0 for a free one."""
    factory: str | None = None
    """module:factory that makes the models of runs of your own module; no code is run because a folder names it."""


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
class ReportConfig:
    """Write one self-contained page about a run, or about several beside each other.

    Example: mlm report runs/mine runs/other --out both.html
    """

    runs: Annotated[tuple[Path, ...], tyro.conf.Positional]
    """Run folders."""
    out: Path | None = None
    """The file. By default report.html in the first run."""
    samples: int = 6
    """Held-out pieces of each run to show with their masks."""
    held_out_tokens: int = 65536
    """Held-out tokens of each run to measure accuracy by kind of token on; 0 for none."""


@dataclass(frozen=True)
class DemoConfig:
    """Pretrain on the text of Python's own standard library: no download, about two minutes on two cores.

    Example: mlm demo
    """

    out: Path = Path("runs/demo")
    """Folder of the run."""
    budget: str = "130s"
    """How long to train."""


@dataclass(frozen=True)
class DoctorConfig(CorpusOptions):
    """Look at a corpus and a setup before hours are spent: green, yellow or red, with a remedy each.

    Example: mlm doctor corpus.jsonl.gz --model small --budget 3h
    """

    corpus: Annotated[tuple[str, ...], tyro.conf.Positional] = ()
    """As for mlm train: files, globs, folders, - for standard input, or one store. With --ranks it may be left out."""
    model: str | None = None
    """A preset (nano, tiny, mini, small, base, large) or the folder of a ModernBERT model. By default the preset that
    mlm train chooses."""
    budget: str = TrainConfig.budget
    """How long you mean to train: 20m, 3h, 5000steps, 2epochs or 1Btokens."""
    seq_len: int | None = None
    """Longest piece in tokens. By default the preset's."""
    pack_tokens: int | None = None
    """Tokens of one pack. By default chosen by preset, budget and device: 2,048 or 4,096 for small presets on a CPU,
    16,384 to 131,072 on a GPU."""
    packs_per_step: int | None = None
    """Packs of one optimizer step. By default that of mlm train, and with --ranks one for each rank."""
    selection: SelectionName = "tokens"
    """What is predicted together."""
    mask_prob: float = TrainConfig.mask_prob
    """Share of tokens to predict."""
    replace_prob: float = TrainConfig.replace_prob
    """Among the selected tokens, the share that is not shown as it is."""
    random_token_prob: float = TrainConfig.random_token_prob
    """Among the selected tokens, the share shown as a random token."""
    optimizer: OptimizerName = "muon"
    """Muon for the matrices with AdamW for the rest, or AdamW for all."""
    precision: Precision = "auto"
    """Precision of matrix products."""
    trial_seconds: float = 10.0
    """How long to train on the sample, for the forecast. 0 leaves it out."""
    ranks: tuple[int, ...] = ()
    """Also plan for so many GPUs: memory and communication of each. Repeat it to compare."""
    json: bool = False
    """Print one JSON object."""
