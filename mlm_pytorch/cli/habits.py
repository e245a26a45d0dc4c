"""What people type by habit: the options of transformers' `run_mlm.py`, and what `mlm train` has in their place."""

from collections.abc import Sequence

# What to write instead; the table in docs/moving.md says what differs.
WRITE = {
    "train_file": "the file's name alone",
    "validation_file": "--valid",
    "dataset_name": "hub:NAME as the corpus",
    "dataset_config_name": "hub:NAME:CONFIG as the corpus",
    "model_name_or_path": "--model",
    "model_type": "--model with a preset",
    "config_name": "--model with a preset",
    "config_overrides": "--model with a preset",
    "tokenizer_name": "--tokenizer",
    "max_seq_length": "--seq-len",
    "mlm_probability": "--mask-prob",
    "per_device_train_batch_size": "--pack-tokens (sequences × length)",
    "batch_size": "--pack-tokens (sequences × length)",
    "gradient_accumulation_steps": "--packs-per-step",
    "num_train_epochs": "--budget 3epochs",
    "epochs": "--budget 3epochs",
    "max_steps": "--budget 5000steps",
    "steps": "--budget 5000steps",
    "learning_rate": "--lr",
    "lr_scheduler_type": "--schedule",
    "warmup_steps": "--warmup (a share of the budget)",
    "warmup_ratio": "--warmup",
    "optim": "--optimizer",
    "max_grad_norm": "--clip",
    "bf16": "--precision bf16",
    "fp16": "--precision bf16",
    "gradient_checkpointing": "--recompute",
    "eval_strategy": "--evaluations",
    "eval_steps": "--evaluations",
    "save_strategy": "--checkpoint-every",
    "save_steps": "--checkpoint-every 500steps",
    "save_total_limit": "--keep-checkpoints",
    "fsdp": "--parallel fsdp",
    "output_dir": "--out",
    "overwrite_output_dir": "another --out",
    "report_to": "--track",
    "preprocessing_num_workers": "--workers",
    "max_train_samples": "a smaller file",
    "max_eval_samples": "a smaller --valid",
}
# What has no counterpart because it needs none, and why.
LEAVE_OUT = {
    "validation_split_percentage": "1% is held out",
    "streaming": "hub:NAME always is",
    "line_by_line": "a line of a .txt is a document",
    "pad_to_max_length": "packs have a fixed size",
    "per_device_eval_batch_size": "found by memory",
    "do_train": "it always trains",
    "do_eval": "held-out text is always measured",
    "resume": "the same command goes on",
    "resume_from_checkpoint": "the same command goes on",
    "logging_steps": "every step is in metrics.jsonl",
    "overwrite_cache": "there is no cache",
    "push_to_hub": "mlm export, then hf upload",
}


def explain_habits(arguments: Sequence[str]) -> str | None:
    """One line about options of `run_mlm.py` among the arguments of `mlm train`; None where there are none.

    >>> explain_habits(["train", "corpus.txt", "--epochs", "3"])
    "mlm train has other names for run_mlm.py's options; write --budget 3epochs for --epochs; docs/moving.md has all"
    """
    if list(arguments[:1]) != ["train"]:
        return None
    typed = [argument.partition("=")[0] for argument in arguments if argument.startswith("--")]
    write, leave_out = [], []
    for option in dict.fromkeys(typed):
        name = option[2:].replace("-", "_")
        if name in WRITE:
            write.append(f"{WRITE[name]} for {option}")
        elif name in LEAVE_OUT:
            leave_out.append(f"{option} ({LEAVE_OUT[name]})")
    if not write and not leave_out:
        return None
    told = [f"write {', '.join(write)}"] if write else []
    told += [f"leave out {', '.join(leave_out)}"] if leave_out else []
    return f"mlm train has other names for run_mlm.py's options; {'; '.join(told)}; docs/moving.md has all"
