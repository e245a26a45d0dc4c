"""What a training run is made of: one frozen record, saved as YAML in the run's folder."""

import dataclasses
import math
import typing
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

import tyro
import yaml

from mlm_pytorch.data.options import CorpusOptions
from mlm_pytorch.encoder import PRESETS
from mlm_pytorch.masking import RateSchedule
from mlm_pytorch.training.schedule import BatchRamp, Budget, learning_rate_factor

# What may change when a run is continued: how long, and how it is run, but not what is learned from.
MAY_CHANGE = frozenset({"out", "budget", "checkpoint_every", "keep", "threads", "encoding_errors", "engine", "workers"})
MAY_CHANGE |= {"parallel", "shard_ranks"}


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
    model: str | None = None
    """A preset (tiny, mini, small, base, large) or the folder of a ModernBERT model to continue from. By default a
    preset that fits budget, device and corpus."""
    seq_len: int | None = None
    """Longest piece in tokens; longer documents are split. By default the preset's."""

    pack_tokens: int | None = None
    """Tokens of one pack of whole pieces. By default the preset's."""
    packs_per_step: int = 1
    """Packs of one optimizer step, at the start."""
    packs_per_step_end: int | None = None
    """The same from --ramp on; in between it moves in equal treads. By default as many as at the start."""
    ramp: float = 0.5
    """Share of the budget over which the number of packs moves."""
    selection: Literal["tokens", "words", "spans", "ngrams", "balanced"] = "tokens"
    """What is predicted together: single tokens, whole words, spans, n-grams of words, or each token in its turn."""
    mask_prob: float = 0.30
    """Share of tokens to predict at the start."""
    mask_prob_end: float | None = None
    """The same at the end. By default 0.15."""
    mask_schedule: Literal["constant", "linear", "cosine", "step"] = "linear"
    """How the share moves from one to the other: not at all, straight, in half a wave, in four steps."""
    replace_prob: float = 1.0
    """Among the selected tokens, the share that is not shown as it is."""
    random_token_prob: float = 0.0
    """Among the selected tokens, the share shown as a random token."""
    optimizer: Literal["muon", "adamw"] = "muon"
    """Muon for the matrices with AdamW for the rest, or AdamW for all."""
    lr: float | None = None
    """Peak learning rate. By default the optimizer's."""
    embedding_lr: float = 1.0
    """Learning rate of the embeddings, as a multiple of --lr."""
    weight_decay: float = 0.05
    """Decoupled weight decay of the matrices."""
    schedule: Literal["wsd", "linear", "cosine"] = "wsd"
    """How the learning rate moves: rise, plateau and straight fall, or no plateau, or half a wave."""
    warmup: float = 0.02
    """Share of the budget over which the learning rate rises."""
    decay: float | None = None
    """Share of the budget, at its end, over which the learning rate falls, with --schedule wsd. By default 0.6."""
    final_lr: float = 0.0
    """Share of the peak learning rate that is left at the end."""
    clip: float = 1.0
    """Largest norm of the gradient; beyond it the gradient is scaled down. 0 turns it off."""
    z_loss: float = 0.0
    """Weight of the squared log-normaliser in the training loss; 1e-4 keeps logits from drifting."""
    ema: float = 0.0
    """Keep an exponential mean of the weights with this decay (0.999, say), measure it as well, and export it in place
    of the last weights. 0 turns it off."""
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
    threads: int | None = None
    """CPU threads. By default as many as there are cores."""
    parallel: Literal["auto", "ddp", "fsdp", "hybrid"] = "auto"
    """How several processes (torchrun) share the model: each has a copy (ddp, auto), a part (fsdp), or a part within
    its machine (hybrid)."""
    shard_ranks: int | None = None
    """With --parallel hybrid: processes that share one copy of the model. By default those of a machine."""

    chosen: tyro.conf.Suppress[tuple[str, ...]] = ()
    """Options that were left open, and settled by `training.recipe` when the run began."""

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
        self._check_learning()
        for name in ("replace_prob", "random_token_prob"):
            if not 0 <= getattr(self, name) <= 1:
                raise ValueError(f"--{name.replace('_', '-')} {getattr(self, name)} is outside [0, 1]; it is a share")
        if self.random_token_prob > self.replace_prob:
            raise ValueError(
                f"--random-token-prob {self.random_token_prob} exceeds --replace-prob {self.replace_prob}, "
                "of which it is a part"
            )
        counts = ("pack_tokens", "packs_per_step", "packs_per_step_end", "seq_len", "vocab_size", "keep", "threads")
        for name in (*counts, "shard_ranks", "evaluations"):
            value = getattr(self, name)
            if value is not None and value < (0 if name == "evaluations" else 1):
                least = 0 if name == "evaluations" else 1
                raise ValueError(f"--{name.replace('_', '-')} {value} is too small; give at least {least}")
        if self.shard_ranks is not None and self.parallel != "hybrid":
            raise ValueError(
                f"--shard-ranks {self.shard_ranks} is for --parallel hybrid, but --parallel is {self.parallel}; "
                "change one of them"
            )
        if self.model is not None and self.model not in PRESETS and not Path(self.model).is_dir():
            raise ValueError(f"--model {self.model!r} is neither a preset ({', '.join(PRESETS)}) nor a folder")

    def _check_learning(self) -> None:
        """What concerns rates and schedules."""
        for name in ("mask_prob", "mask_prob_end", "ramp"):
            value = getattr(self, name)
            if value is not None and not 0 < value <= 1:
                usual = "0.5" if name == "ramp" else "0.15 to 0.4"
                raise ValueError(f"--{name.replace('_', '-')} {value} is outside (0, 1]; {usual} is usual")
        for name in ("warmup", "decay", "final_lr"):
            value = getattr(self, name)
            if value is not None and not 0 <= value <= 1:
                raise ValueError(f"--{name.replace('_', '-')} {value} is outside [0, 1]; it is a share")
        if self.schedule != "wsd" and self.decay is not None:
            raise ValueError(f"--decay {self.decay} is of --schedule wsd, not {self.schedule}; leave one of them out")
        if self.schedule == "wsd" and self.warmup + self._decay > 1:
            raise ValueError(f"--warmup {self.warmup} and --decay {self._decay} exceed the budget together; lower one")
        if self.mask_schedule == "constant" and self.mask_prob_end is not None:
            raise ValueError(
                f"--mask-prob-end {self.mask_prob_end} is never reached with --mask-schedule constant; leave one out"
            )
        for name, usual in (("lr", "1e-4 to 1e-2"), ("embedding_lr", "1")):
            value = getattr(self, name)
            if value is not None and not 0 < value < math.inf:
                raise ValueError(f"--{name.replace('_', '-')} {value} is not positive; {usual} is usual")
        for name, usual in (("weight_decay", "0.01 to 0.1"), ("clip", "1"), ("z_loss", "1e-4")):
            if not 0 <= getattr(self, name) < math.inf:
                raise ValueError(
                    f"--{name.replace('_', '-')} {getattr(self, name)} is below 0 or not finite; {usual} is usual"
                )
        if not 0 <= self.ema < 1:
            raise ValueError(f"--ema {self.ema} is outside [0, 1); 0.99 to 0.9999 is usual, 0 turns averaging off")

    @property
    def _decay(self) -> float:
        return 0.6 if self.decay is None else self.decay

    def learning_rate_factor(self, progress: float) -> float:
        """The learning rate at `progress` in [0, 1], as a share of its peak."""
        return learning_rate_factor(progress, self.warmup, self._decay, shape=self.schedule, final=self.final_lr)

    @property
    def rate(self) -> RateSchedule:
        """The masking rate as a function of progress."""
        end = 0.15 if self.mask_prob_end is None else self.mask_prob_end
        return RateSchedule(self.mask_prob, end, self.mask_schedule)

    @property
    def batch_ramp(self) -> BatchRamp:
        """Packs of a step as a function of progress."""
        return BatchRamp(self.packs_per_step, self.packs_per_step_end, self.ramp)

    def settled(self, **values: Any) -> "TrainConfig":
        """The same with what was left open filled in, and the names of what was, for the run's `config.yaml`."""
        chosen = {name: value for name, value in values.items() if getattr(self, name) is None}
        return dataclasses.replace(self, **chosen, chosen=tuple(sorted(chosen)))

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
        """Fields in which `other` would make another run, as `name: mine -> other's`.

        What was chosen for this run may be left open again.
        """
        pairs = {f.name: (getattr(self, f.name), getattr(other, f.name)) for f in dataclasses.fields(self)}
        open_again = {k for k in self.chosen if pairs[k][1] is None} | {"chosen"}
        return [f"{k}: {a} -> {b}" for k, (a, b) in pairs.items() if k not in MAY_CHANGE | open_again and a != b]
