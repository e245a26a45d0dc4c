"""What a training run is made of: one frozen record, saved as YAML in the run's folder."""

import dataclasses
import math
import typing
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import tyro
import yaml

from mlm_pytorch.data.options import CorpusOptions
from mlm_pytorch.training.schedule import BatchRamp, Budget, learning_rate_factor
from mlm_pytorch.training.trackers import TrackerName, choose_trackers

if TYPE_CHECKING:  # with torch, which `mlm --help` does without
    from mlm_pytorch.masking import RateSchedule

# What may change when a run is continued: how long, and how it is run, but not what is learned from.
MAY_CHANGE = frozenset({"out", "budget", "checkpoint_every", "keep_checkpoints", "keep_every", "threads", "device"})
MAY_CHANGE |= {"encoding_errors", "engine", "workers", "parallel", "shard_ranks", "stop_before", "track", "recompute"}

SelectionName = Literal["tokens", "words", "spans", "ngrams", "balanced"]
OptimizerName = Literal["muon", "adamw"]
Precision = Literal["auto", "bf16", "float32"]

# What is left open is this, unless the model calls for something else (`training.gentle`).
FROM_SCRATCH: dict[str, Any] = {"optimizer": "muon", "warmup": 0.02, "decay": 0.6}


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
    """A preset (nano, tiny, mini, small, base, large); a masked language model to continue from, as a folder or by its
    name on the Hugging Face Hub; or module:factory, a function of yours that returns a module. By default a preset
    that fits budget, device and corpus."""
    seq_len: int | None = None
    """Longest piece in tokens; longer documents are split. By default the preset's."""

    pack_tokens: int | None = None
    """Tokens of one pack of whole pieces. By default chosen by preset, budget and device: 2,048 or 4,096 for small
    presets on a CPU, 16,384 to 131,072 on a GPU."""
    packs_per_step: int = 1
    """Packs of one optimizer step, at the start."""
    packs_per_step_end: int | None = None
    """The same from --ramp on; in between it moves in equal treads. By default as many as at the start."""
    ramp: float = 0.5
    """Share of the budget over which the number of packs moves."""
    selection: SelectionName = "tokens"
    """What is predicted together: single tokens, whole words, spans, n-grams of words, or each token in its turn."""
    mask_prob: float = 0.30
    """Share of tokens to predict at the start."""
    mask_prob_end: float | None = None
    """The same at the end. By default 0.15, also where --mask-prob is lower; for one rate throughout add
    --mask-schedule constant."""
    mask_schedule: Literal["constant", "linear", "cosine", "step"] = "linear"
    """How the share moves from one to the other: not at all, straight, in half a wave, in four steps."""
    replace_prob: float = 1.0
    """Among the selected tokens, the share that is not shown as it is."""
    random_token_prob: float = 0.0
    """Among the selected tokens, the share shown as a random token."""
    first_embeddings: Literal["corpus", "random"] = "corpus"
    """What the embeddings of a preset begin with: vectors that tell from the corpus which tokens have like neighbours,
    which takes seconds and saves thousands of steps, or random ones."""
    optimizer: OptimizerName | None = None
    """Muon for the matrices with AdamW for the rest, or AdamW for all. By default Muon for a preset, AdamW for all
    other models."""
    lr: float | None = None
    """Peak learning rate. By default the optimizer's; a lower one for a model that is continued."""
    embedding_lr: float = 1.0
    """Learning rate of the embeddings, as a multiple of --lr."""
    weight_decay: float = 0.05
    """Decoupled weight decay of the matrices."""
    schedule: Literal["wsd", "linear", "cosine"] = "wsd"
    """How the learning rate moves: rise, plateau and straight fall, or no plateau, or half a wave."""
    warmup: float | None = None
    """Share of the budget over which the learning rate rises. By default 0.02; 0.06 for a model that is continued."""
    decay: float | None = None
    """Share of the budget, at its end, over which the learning rate falls, with --schedule wsd. By default 0.6; for a
    model that is continued, all that is left after the rise."""
    final_lr: float = 0.0
    """Share of the peak learning rate that is left at the end."""
    clip: float = 1.0
    """Largest norm of the gradient; beyond it the gradient is scaled down. 0 turns it off."""
    z_loss: float = 0.0
    """Weight of the squared log-normaliser in the training loss; 1e-4 keeps logits from drifting."""
    ema: float = 0.0
    """Keep an exponential mean of the weights with this decay (0.999, say), measure it as well, and export it in place
    of the last weights. 0 turns it off."""
    precision: Precision = "auto"
    """Precision of matrix products. auto: bf16 where the hardware computes it natively."""
    seed: int = 0
    """Seed of weights, order and masks."""
    evaluations: int = 10
    """How often the held-out loss is measured during training."""
    checkpoint_every: str = "5m"
    """How often the run is saved: 5m, 500steps."""
    keep_checkpoints: int = 2
    """Newest checkpoints to keep."""
    keep_every: str | None = None
    """Besides these, checkpoints at the multiples of so many steps, which stay while this is given: 1000steps."""
    stop_before: str | None = None
    """Save and stop when so much time has passed since the command's start: 3h50m. The same command continues."""
    track: tuple[TrackerName, ...] = ()
    """Where curves are drawn: tensorboard (by default, where it is installed), wandb, none."""
    recompute: bool = False
    """Compute each layer's activations again in the backward pass instead of keeping them: about a third slower, and
    long contexts take less memory. For the built-in encoder."""
    threads: int | None = None
    """CPU threads. By default as many as there are cores."""
    parallel: Literal["auto", "ddp", "fsdp", "hybrid"] = "auto"
    """How several processes (torchrun) share the model: each has a copy (ddp, auto), a part (fsdp), or a part within
    its machine (hybrid)."""
    shard_ranks: int | None = None
    """With --parallel hybrid: processes that share one copy of the model. By default those of a machine."""

    chosen: tyro.conf.Suppress[tuple[str, ...]] = ()
    """Options that were left open, and settled by `training.recipe` when the run began."""

    device: str = "auto"
    """Where to train: auto (CUDA where there is one), cpu, cuda, cuda:1, mps."""
    keep: tuple[str, ...] = ()
    """Files of general text, to see what a continued model forgets: their loss is measured with the held-out one."""
    extend_vocabulary: int | None = None
    """Add so many tokens to the vocabulary of a model that is continued: those that shorten this corpus most."""

    def check(self) -> None:
        """Find what contradicts itself or cannot be, before anything starts.

        Not done at construction, since the command line's parser would frame the message as a fault of its own.

        Raises:
            ValueError: a value outside its range, or two that exclude each other.
        """
        from mlm_pytorch.encoder import PRESETS
        from mlm_pytorch.training.device import find_device

        if not self.corpus and not self.mix:
            raise ValueError("no corpus is named; give files, globs, folders, a store, or - for standard input")
        Budget.parse(self.budget)
        if Budget.parse(self.checkpoint_every, "--checkpoint-every").unit not in ("seconds", "steps"):
            raise ValueError(
                f"--checkpoint-every {self.checkpoint_every} is neither a time nor steps; write it like 5m or 500steps"
            )
        if self.keep_every is not None and Budget.parse(self.keep_every, "--keep-every").unit != "steps":
            raise ValueError(f"--keep-every {self.keep_every} is no number of steps; write it like 1000steps")
        if self.stop_before is not None and Budget.parse(self.stop_before, "--stop-before").unit != "seconds":
            raise ValueError(f"--stop-before {self.stop_before} is no time; write it like 3h50m")
        choose_trackers(self.track)
        self._check_learning()
        for name in ("replace_prob", "random_token_prob"):
            if not 0 <= getattr(self, name) <= 1:
                raise ValueError(f"--{name.replace('_', '-')} {getattr(self, name)} is outside [0, 1]; it is a share")
        if self.random_token_prob > self.replace_prob:
            raise ValueError(
                f"--random-token-prob {self.random_token_prob} exceeds --replace-prob {self.replace_prob}, "
                "of which it is a part; lower the one or raise the other"
            )
        counts = ("pack_tokens", "packs_per_step", "packs_per_step_end", "seq_len", "vocab_size", "keep_checkpoints")
        for name in (*counts, "threads", "shard_ranks", "extend_vocabulary", "evaluations"):
            value = getattr(self, name)
            least = {"evaluations": 0, "seq_len": 3}.get(name, 1)  # a token has context only beside another
            if value is not None and value < least:
                raise ValueError(f"--{name.replace('_', '-')} {value} is too small; give at least {least}")
        if self.shard_ranks is not None and self.parallel != "hybrid":
            raise ValueError(
                f"--shard-ranks {self.shard_ranks} is for --parallel hybrid, but --parallel is {self.parallel}; "
                "change one of them"
            )
        find_device(self.device)
        if self.extend_vocabulary and (self.model is None or self.model in PRESETS):
            raise ValueError(
                f"--extend-vocabulary {self.extend_vocabulary} is for a model that has a vocabulary already, but "
                f"--model {self.model or 'is left out and'} starts anew; pass --vocab-size instead"
            )

        if self.first_embeddings != "corpus" and self.model is not None and self.model not in PRESETS:
            raise ValueError(
                f"--first-embeddings {self.first_embeddings} is for presets, and --model {self.model} brings its own; "
                "leave it out"
            )

    def _check_learning(self) -> None:
        """What concerns rates and schedules."""
        for name in ("mask_prob", "mask_prob_end", "ramp"):
            value = getattr(self, name)
            if value is not None and not 0 < value <= 1:
                usual = "0.5" if name == "ramp" else "0.15 to 0.4"
                raise ValueError(f"--{name.replace('_', '-')} {value} is outside (0, 1]; {usual} is usual")
        if self.ramp != TrainConfig.ramp and self.packs_per_step_end is None:
            raise ValueError(
                f"--ramp {self.ramp} is for --packs-per-step-end, which is left out; give it too, or leave out --ramp"
            )
        for name in ("warmup", "decay", "final_lr"):
            value = getattr(self, name)
            if value is not None and not 0 <= value <= 1:
                raise ValueError(f"--{name.replace('_', '-')} {value} is outside [0, 1]; it is a share")
        if self.schedule != "wsd" and self.decay is not None:
            raise ValueError(f"--decay {self.decay} is of --schedule wsd, not {self.schedule}; leave one of them out")
        if self.schedule == "wsd" and self.warmup_share + self.decay_share > 1:
            raise ValueError(
                f"--warmup {self.warmup_share} and --decay {self.decay_share} exceed the budget together; lower one"
            )
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
        if self.ema and self.parallel in ("fsdp", "hybrid"):
            raise ValueError(
                f"--ema {self.ema} keeps whole weights, and --parallel {self.parallel} parts of them; leave out one"
            )
        if not 0 <= self.ema < 1:
            raise ValueError(f"--ema {self.ema} is outside [0, 1); 0.99 to 0.9999 is usual, 0 turns averaging off")

    @property
    def warmup_share(self) -> float:
        """`warmup`, or its default."""
        return FROM_SCRATCH["warmup"] if self.warmup is None else self.warmup

    @property
    def decay_share(self) -> float:
        """`decay`, or its default; a long rise leaves less to the fall."""
        return min(FROM_SCRATCH["decay"], 1 - self.warmup_share) if self.decay is None else self.decay

    def learning_rate_factor(self, progress: float) -> float:
        """The learning rate at `progress` in [0, 1], as a share of its peak."""
        return learning_rate_factor(
            progress, self.warmup_share, self.decay_share, shape=self.schedule, final=self.final_lr
        )

    @property
    def rate(self) -> "RateSchedule":
        """The masking rate as a function of progress."""
        from mlm_pytorch.masking import RateSchedule

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
        try:
            values, trouble = yaml.safe_load(text), "holds no fields, or not all"
        except yaml.YAMLError as error:
            values, trouble = None, f"cannot be read ({' '.join(str(error).split())})"
        if not isinstance(values, dict) or not {"corpus", "out"} <= values.keys():
            raise ValueError(
                f"config.yaml {trouble}, so the run folder is damaged; "
                "restore config.yaml from a copy, or choose another --out"
            )
        known = {f.name for f in dataclasses.fields(cls)}
        if set(values) - known:
            raise ValueError(
                f"config.yaml has fields unknown to this version: {', '.join(sorted(set(values) - known))}; "
                "go on with the version that wrote it"
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
        if pairs["packs_per_step_end"] == (None, None):
            open_again |= {"ramp"}  # which then says nothing
        changed = {k: both for k, both in pairs.items() if k not in MAY_CHANGE | open_again and both[0] != both[1]}
        return [f"{k}: {_as_typed(a)} -> {_as_typed(b)}" for k, (a, b) in changed.items()]


def _as_typed(value: object) -> str:
    if isinstance(value, tuple):
        return " ".join(map(str, value)) or "nothing"
    return "left open" if value is None else str(value)
