"""What a command line leaves open: chosen once, when a run begins, and kept in its configuration."""

import dataclasses
from pathlib import Path

import torch
from torch import nn

from mlm_pytorch.cli.learners import Learning, RowsLearner
from mlm_pytorch.cli.starting import preset_as_wide, width_of
from mlm_pytorch.cli.store import named_store
from mlm_pytorch.data.store import Manifest
from mlm_pytorch.encoder import PRESETS
from mlm_pytorch.training.config import FROM_SCRATCH, TrainConfig
from mlm_pytorch.training.distributed import World
from mlm_pytorch.training.gentle import gentle_values
from mlm_pytorch.training.metrics import Display
from mlm_pytorch.training.recipe import choose
from mlm_pytorch.training.run import CONFIG
from mlm_pytorch.training.schedule import Budget
from mlm_pytorch.training.step import autocast_dtype
from mlm_pytorch.training.throughput import measure_peak


def settle_by_budget(config: TrainConfig, folder: Path, display: Display, world: World) -> TrainConfig:
    """The configuration of a preset with what it leaves open: as the run began with it, or chosen now.

    Any other model is left as it is, until it is there and `settle_by_model` can look at it.
    """
    before = (
        TrainConfig.from_yaml((folder / CONFIG).read_text(encoding="utf-8")) if (folder / CONFIG).is_file() else None
    )
    if before is not None:
        config = config.settled(**{name: getattr(before, name) for name in before.chosen})
        # what is typed this time as it was chosen may be left open again the next time
        config = dataclasses.replace(config, chosen=tuple(sorted({*before.chosen, *config.chosen})))
    if config.model is not None and config.model not in PRESETS:
        return config
    device, budget, store = world.device, Budget.parse(config.budget), named_store(config)
    facts = Manifest.read(store) if store else None
    precision = autocast_dtype(config.precision, device) or torch.float32
    recipe = choose(
        budget,
        device,
        peak=world.from_main(lambda: measure_peak(device, precision)) if budget.unit == "seconds" else 0.0,
        processes=world.size,
        corpus_tokens=facts.splits["train"].tokens if facts else None,
        optimizer=config.optimizer or FROM_SCRATCH["optimizer"],
        model=config.model,
        seq_len=facts.seq_len if facts else config.seq_len,
    )
    values = recipe.values()
    if store:
        del values["seq_len"]  # the store settles it, and the run need not know
    config = config.settled(**values)
    if before is not None:
        return dataclasses.replace(config, chosen=tuple(sorted({*before.chosen, *config.chosen})))
    if "model" in config.chosen:
        options = " ".join(f"--{name.replace('_', '-')} {getattr(config, name)}" for name in config.chosen)
        display.say(f"chosen for a budget of {config.budget} on this {device.type}: {options}")
    return config


def settle_by_model(config: TrainConfig, learner: Learning, display: Display | None) -> TrainConfig:
    """The configuration of any other model with what it leaves open; said on the display, where there is one."""
    if config.model in PRESETS:
        return config
    continued = not (isinstance(learner, RowsLearner) and learner.factory)
    values = FROM_SCRATCH | gentle_values(width_of(learner.model), continued=continued)
    if config.schedule != "wsd":
        del values["decay"]
    if display is not None and not config.chosen:  # by an earlier sitting, which said so
        chosen = [
            f"--{name.replace('_', '-')} {value}" for name, value in values.items() if getattr(config, name) is None
        ]
        why = "gentle on a model that is continued" if continued else "for a module of your own"
        display.say(f"chosen, {why}: {' '.join(chosen)}" if chosen else "nothing was left open")
    settled = config.settled(**values)
    return dataclasses.replace(settled, chosen=tuple(sorted({*config.chosen, *settled.chosen})))


def pack_tokens_of(config: TrainConfig, model: nn.Module) -> int:
    """Tokens of a pack: as the command says, or as the preset has it that the model is, or that is nearest to it."""
    shape = PRESETS[config.model] if config.model in PRESETS else preset_as_wide(width_of(model))
    return config.pack_tokens or max(shape.pack_tokens, config.seq_len or 0)
