"""What a training run is made of: one frozen record, saved as YAML in the run's folder."""

import dataclasses
import typing
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

import tyro
import yaml

from mlm_pytorch.data.options import CorpusOptions
from mlm_pytorch.encoder import PRESETS
from mlm_pytorch.training.schedule import Budget
from mlm_pytorch.training.trackers import TrackerName, choose_trackers

# What may change when a run is continued: how long, and how it is run, but not what is learned from.
MAY_CHANGE = frozenset({"out", "budget", "checkpoint_every", "keep", "threads", "encoding_errors", "engine", "workers"})
MAY_CHANGE |= {"keep_every", "stop_before", "track"}


@dataclass(frozen=True)
class TrainConfig(CorpusOptions):
    """Pretrain an encoder on a corpus.

    Example: mlm train corpus.jsonl.gz --out runs/mine --budget 20m
    """

    corpus: Annotated[tuple[str, ...], tyro.conf.Positional]
    """Files, globs, folders, - for standard input, or one store made by `mlm prepare`."""
    out: Path
    """Folder of the run. The same command on the same folder continues it."""
    budget: str = "20m"
    """How long to train: 20m, 3h, 5000steps, 2epochs or 1Btokens."""
    model: str = "mini"
    """A preset (tiny, mini, small, base, large) or the folder of a ModernBERT model to continue from."""
    seq_len: int | None = None
    """Longest piece in tokens; longer documents are split. By default the preset's."""

    pack_tokens: int | None = None
    """Tokens of one pack of whole pieces. By default the preset's."""
    packs_per_step: int = 1
    """Packs of one optimizer step."""
    selection: Literal["tokens", "words", "spans", "ngrams", "balanced"] = "tokens"
    """What is predicted together: single tokens, whole words, spans, n-grams of words, or each token in its turn."""
    mask_prob: float = 0.30
    """Share of tokens to predict at the start."""
    mask_prob_end: float = 0.15
    """The same at the end; in between it moves linearly."""
    replace_prob: float = 1.0
    """Among the selected tokens, the share that is not shown as it is."""
    random_token_prob: float = 0.0
    """Among the selected tokens, the share shown as a random token."""
    optimizer: Literal["muon", "adamw"] = "muon"
    """Muon for the matrices with AdamW for the rest, or AdamW for all."""
    lr: float | None = None
    """Peak learning rate. By default the optimizer's."""
    weight_decay: float = 0.05
    """Decoupled weight decay of the matrices."""
    warmup: float = 0.02
    """Share of the budget over which the learning rate rises."""
    decay: float = 0.6
    """Share of the budget, at its end, over which the learning rate falls to zero."""
    clip: float = 1.0
    """Largest norm of the gradient; beyond it the gradient is scaled down. 0 turns it off."""
    precision: Literal["auto", "bf16", "float32"] = "auto"
    """Precision of matrix products. auto: bf16 where the hardware computes it natively."""
    seed: int = 0
    """Seed of weights, order and masks."""
    evaluations: int = 10
    """How often the held-out loss is measured during training."""
    checkpoint_every: str = "5m"
    """How often the run is saved: 5m, 500steps."""
    keep: int = 2
    """Newest checkpoints to keep."""
    keep_every: str | None = None
    """Besides these, checkpoints at the multiples of so many steps, for good: 1000steps."""
    stop_before: str | None = None
    """Save and stop when so much time has passed since the command's start: 3h50m. The same command continues."""
    track: tuple[TrackerName, ...] = ()
    """Where curves are drawn: tensorboard (by default, where it is installed), wandb, none."""
    threads: int | None = None
    """CPU threads. By default as many as there are cores."""

    def check(self) -> None:
        """Find what contradicts itself or cannot be, before anything starts.

        Not done at construction, since the command line's parser would frame the message as a fault of its own.

        Raises:
            ValueError: a value outside its range, or two that exclude each other.
        """
        if not self.corpus and not self.mix:
            raise ValueError("no corpus is named; give files, globs, folders, a store, or - for standard input")
        Budget.parse(self.budget)
        if Budget.parse(self.checkpoint_every).unit not in ("seconds", "steps"):
            raise ValueError(
                f"--checkpoint-every {self.checkpoint_every} is neither a time nor steps; write it like 5m or 500steps"
            )
        if self.keep_every is not None and Budget.parse(self.keep_every).unit != "steps":
            raise ValueError(f"--keep-every {self.keep_every} is no number of steps; write it like 1000steps")
        if self.stop_before is not None and Budget.parse(self.stop_before).unit != "seconds":
            raise ValueError(f"--stop-before {self.stop_before} is no time; write it like 3h50m")
        choose_trackers(self.track)
        for name in ("mask_prob", "mask_prob_end"):
            if not 0 < getattr(self, name) <= 1:
                raise ValueError(
                    f"--{name.replace('_', '-')} {getattr(self, name)} is outside (0, 1]; 0.15 to 0.4 is usual"
                )
        for name in ("replace_prob", "random_token_prob", "warmup", "decay"):
            if not 0 <= getattr(self, name) <= 1:
                raise ValueError(f"--{name.replace('_', '-')} {getattr(self, name)} is outside [0, 1]; it is a share")
        if self.random_token_prob > self.replace_prob:
            raise ValueError(
                f"--random-token-prob {self.random_token_prob} exceeds --replace-prob {self.replace_prob}, "
                "of which it is a part"
            )
        if self.warmup + self.decay > 1:
            raise ValueError(f"--warmup {self.warmup} and --decay {self.decay} exceed the budget together; lower one")
        if self.lr is not None and self.lr <= 0:
            raise ValueError(f"--lr {self.lr} is not positive; 1e-4 to 1e-2 is usual")
        for name in ("pack_tokens", "packs_per_step", "seq_len", "vocab_size", "evaluations", "keep", "threads"):
            value = getattr(self, name)
            if value is not None and value < (0 if name == "evaluations" else 1):
                least = 0 if name == "evaluations" else 1
                raise ValueError(f"--{name.replace('_', '-')} {value} is too small; give at least {least}")
        if self.model not in PRESETS and not Path(self.model).is_dir():
            raise ValueError(f"--model {self.model!r} is neither a preset ({', '.join(PRESETS)}) nor a folder")

    def to_yaml(self) -> str:
        """One `field: value` a line, paths as text."""
        values = {f.name: getattr(self, f.name) for f in dataclasses.fields(self)}
        plain = {
            k: str(v) if isinstance(v, Path) else list(v) if isinstance(v, tuple) else v for k, v in values.items()
        }
        return yaml.safe_dump(plain, sort_keys=False, allow_unicode=True)

    @classmethod
    def from_yaml(cls, text: str) -> "TrainConfig":
        """The inverse of `to_yaml`; fields that this version does not know are refused.

        Raises:
            ValueError: text that is no such record.
        """
        values = yaml.safe_load(text)
        if not isinstance(values, dict):
            raise ValueError("config.yaml holds no fields; the run folder is damaged")
        known = {f.name for f in dataclasses.fields(cls)}
        if set(values) - known:
            raise ValueError(
                f"config.yaml has fields unknown to this version: {', '.join(sorted(set(values) - known))}"
            )
        hints = typing.get_type_hints(cls)
        for name, value in values.items():
            if isinstance(value, list):
                values[name] = tuple(value)
            elif isinstance(value, str) and hints[name] in (Path, Path | None):
                values[name] = Path(value)
        return cls(**values)

    def differences(self, other: "TrainConfig") -> list[str]:
        """Fields in which `other` would make another run, as `name: mine -> other's`."""
        pairs = {f.name: (getattr(self, f.name), getattr(other, f.name)) for f in dataclasses.fields(self)}
        return [f"{k}: {a} -> {b}" for k, (a, b) in pairs.items() if k not in MAY_CHANGE and a != b]
