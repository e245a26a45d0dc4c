"""Training steps against the seed's published class, and against Hugging Face's own loss: tokens/s and peak memory.

Each side runs in a process of its own, the sides take turns, and the median of the runs counts. The seed's package has
our import name, so it is installed into a directory of its own.

    python benchmarks/seed.py small               # writes results/seed_small.json; status 1 where a bar is missed
    python benchmarks/seed.py bert
    python benchmarks/seed.py readme              # a step of the seed's takes half a minute: two runs of two steps
"""

import argparse
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from contextlib import nullcontext
from importlib import import_module
from pathlib import Path
from statistics import median
from typing import Any

SEED = "mlm-pytorch==0.1.0"
ROOT = Path(__file__).parents[1]

# What each comparison runs: a model and a batch; its sides, the first of which is ours; and what must hold.
# A side is (whose class, bf16 autocast, fused optimizer, x-transformers' fused attention). The seed's default has none
# of these. The README's model keeps its own attention on both sides; `small` gives each side its best settings.
# "memory" is a process's peak; "step memory" that peak less what the imported libraries take before either side has
# built anything: parameters, gradients, optimizer state, activations, and what the allocator keeps.
COMPARISONS: dict[str, dict[str, Any]] = {
    "readme": {
        "what": "x-transformers 6x512, 20,000 tokens, batch 8x1024: the seed's README",
        "model": "x-transformers",
        "shape": {"dim": 512, "depth": 6, "heads": 8, "num_tokens": 20_000, "length": 1024, "batch": 8},
        "sides": {"ours": ("ours", True, True, False), "seed float32": ("seed", False, False, False)},
        "bars": {"speed over seed float32": 2.5, "memory over seed float32": 0.80},
        "runs": 2,
        "steps": 2,
    },
    "small": {
        "what": "x-transformers 4x256, 30,000 tokens, batch 16x256",
        "model": "x-transformers",
        "shape": {"dim": 256, "depth": 4, "heads": 4, "num_tokens": 30_000, "length": 256, "batch": 16},
        "sides": {
            "ours": ("ours", True, True, True),
            "seed float32": ("seed", False, False, False),
            "seed bf16": ("seed", True, True, True),
        },
        "bars": {
            "speed over seed float32": 14.0,
            "speed over seed bf16": 8.0,
            "step memory over seed float32": 0.30,
        },
    },
    "bert": {
        "what": "Hugging Face BertForMaskedLM 4x256, 30,522 tokens, batch 16x256, through MLM and by its own labels=",
        "model": "bert",
        "shape": {"dim": 256, "depth": 4, "heads": 4, "num_tokens": 30_522, "length": 256, "batch": 16},
        "sides": {"ours": ("ours", True, True, False), "labels= bf16": ("own", True, True, False)},
        "bars": {"speed over labels= bf16": 2.0},
    },
}


def transformer(model: str, shape: dict[str, int], flash: bool) -> Any:
    if model == "x-transformers":
        from x_transformers import Encoder, TransformerWrapper

        layers = Encoder(dim=shape["dim"], depth=shape["depth"], heads=shape["heads"], attn_flash=flash)
        return TransformerWrapper(num_tokens=shape["num_tokens"], max_seq_len=shape["length"], attn_layers=layers)
    from transformers import BertConfig, BertForMaskedLM

    config = BertConfig(
        vocab_size=shape["num_tokens"],
        hidden_size=shape["dim"],
        num_hidden_layers=shape["depth"],
        num_attention_heads=shape["heads"],
        intermediate_size=4 * shape["dim"],
    )
    return BertForMaskedLM(config)


def loss_function(whose: str, model: Any) -> tuple[Any, Callable[[Any], Any]]:
    """What holds the parameters, and ids -> loss."""
    import torch

    if whose == "own":

        def own(ids: Any) -> Any:
            selected = torch.rand(ids.shape) < 0.15
            return model(ids.masked_fill(selected, 2), labels=ids.masked_fill(~selected, -100)).loss

        return model, own
    if whose == "ours":
        from mlm_pytorch.objective import MLM
    else:
        from mlm_pytorch import MLM
    mlm = MLM(model, mask_token_id=2, pad_token_id=0, mask_prob=0.15, replace_prob=0.90, mask_ignore_token_ids=[])
    return mlm, mlm


def measure(comparison: str, side: str, steps: int) -> dict[str, float]:
    """Run one side in this process."""
    import torch

    torch.manual_seed(0)
    spec = COMPARISONS[comparison]
    whose, autocast, fused, flash = spec["sides"][side]
    import_module("transformers" if spec["model"] == "bert" else "x_transformers")
    baseline = _peak_memory()
    holder, loss_of = loss_function(whose, transformer(spec["model"], spec["shape"], flash))
    optimizer = (
        torch.optim.AdamW(holder.parameters(), lr=3e-4, fused=True)
        if fused
        else torch.optim.Adam(holder.parameters(), lr=3e-4)
    )
    shape = spec["shape"]
    seconds, cpu_seconds, losses = [], [], []
    for _ in range(steps + 2):  # two to warm up
        ids = torch.randint(3, shape["num_tokens"], (shape["batch"], shape["length"]))
        start, cpu_start = time.perf_counter(), time.process_time()
        with torch.autocast("cpu", torch.bfloat16) if autocast else nullcontext():
            loss = loss_of(ids)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        seconds.append(time.perf_counter() - start)
        cpu_seconds.append(time.process_time() - cpu_start)
        losses.append(loss.item())
    tokens = shape["batch"] * shape["length"]
    return {
        "tokens_per_second": tokens / median(seconds[2:]),
        "cpu_seconds_per_step": median(cpu_seconds[2:]),  # tells something even on a busy machine
        "peak_memory_mib": _peak_memory(),
        "step_memory_mib": _peak_memory() - baseline,
        "last_loss": losses[-1],
    }


def _peak_memory() -> float:
    """The most resident memory of this process so far, in MiB."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (2**20 if sys.platform == "darwin" else 1024)


def run_side(comparison: str, side: str, steps: int, seed_folder: Path) -> dict[str, float]:
    whose = COMPARISONS[comparison]["sides"][side][0]
    env = {**os.environ, "PYTHONPATH": str(seed_folder if whose == "seed" else ROOT), "HF_HUB_OFFLINE": "1"}
    command = [sys.executable, "-W", "ignore", __file__, comparison, "--side", side, "--steps", str(steps)]
    done = subprocess.run(command, env=env, cwd=seed_folder, stdout=subprocess.PIPE, text=True, check=True)
    return json.loads(done.stdout.splitlines()[-1])


def compare(comparison: str, runs: int | None, steps: int | None, seed_folder: Path) -> dict[str, Any]:
    spec = COMPARISONS[comparison]
    runs, steps = runs or spec.get("runs", 3), steps or spec.get("steps", 8)
    figures: dict[str, list[dict[str, float]]] = {side: [] for side in spec["sides"]}
    for run in range(runs):
        for side, taken in figures.items():
            taken.append(run_side(comparison, side, steps, seed_folder))
            print(f"{comparison} run {run + 1} {side}: {taken[-1]}", flush=True)
    medians = {
        side: {key: round(median(one[key] for one in taken), 2) for key in taken[0]} for side, taken in figures.items()
    }
    ratios = {}
    for side in list(spec["sides"])[1:]:
        for what, key in (
            ("speed", "tokens_per_second"),
            ("memory", "peak_memory_mib"),
            ("step memory", "step_memory_mib"),
        ):
            ratios[f"{what} over {side}"] = round(medians["ours"][key] / medians[side][key], 3)
    met = {name: ratios[name] <= bar if "memory" in name else ratios[name] >= bar for name, bar in spec["bars"].items()}
    result = {
        "what": spec["what"],
        "steps": steps,
        "medians": medians,
        "ratios": ratios,
        "bars": spec["bars"],
        "met": met,
    }
    print(json.dumps(result, indent=2), flush=True)
    return result | {"runs": figures}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("comparisons", nargs="*", metavar="|".join(COMPARISONS))
    parser.add_argument("--runs", type=int, help="3, unless the comparison says otherwise")
    parser.add_argument("--steps", type=int, help="8, unless the comparison says otherwise")
    parser.add_argument("--side", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if unknown := set(args.comparisons) - set(COMPARISONS):
        parser.error(f"unknown: {', '.join(unknown)}; choose from {', '.join(COMPARISONS)}")
    if args.side:
        print(json.dumps(measure(args.comparisons[0], args.side, args.steps)))
        return
    chosen = args.comparisons or list(COMPARISONS)
    with tempfile.TemporaryDirectory() as folder:
        pip = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--target", folder, SEED]
        subprocess.run(pip, check=True)
        results = {name: compare(name, args.runs, args.steps, Path(folder)) for name in chosen}
    from machine import versions, write_result

    facts = {"seed": SEED, "versions": versions("torch", "transformers", "x-transformers")}
    for name, result in results.items():
        write_result(f"seed_{name}", facts | result)
    missed = [f"{name}: {bar}" for name, result in results.items() for bar, met in result["met"].items() if not met]
    if missed:
        sys.exit(f"bars missed: {', '.join(missed)}")


if __name__ == "__main__":
    main()
