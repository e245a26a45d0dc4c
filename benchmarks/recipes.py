"""Which recipe learns fastest: `mlm train` with one lever moved at a time, scored from outside, on mix10m.

Each variant is what `mlm train` does by default, with some options changed. Runs go one at a time, each with the whole
machine, so a budget of time compares what matters to a user; a budget of tokens compares what each learns from the
same data. A model is scored on held-out text by the corpus' own script, which knows nothing of this package, and on
demand by minimal pairs (a sample of BLiMP's dev half, spread over all paradigms).

    python benchmarks/recipes.py --list                                     # the levers
    python benchmarks/recipes.py --budget 10m --seeds 0 1 2 final adamw     # some; needs the folder `shared`
    python benchmarks/recipes.py --budget 614Ktokens --options "--model tiny"      # all: a first screening
    python benchmarks/recipes.py --table                                    # writes docs/results/recipes.md

What `results/recipes.json` holds already is not run again, and a run that was stopped continues. The load of the
machine is recorded beside each figure: above about one process per core, a budget of time was not the variant's own.
"""

import argparse
import datetime
import json
import os
import shlex
import shutil
import subprocess
import sys
import tempfile
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median

from machine import RESULTS, machine, processor, write_result

ROOT = Path(__file__).parents[1]
SHARED = ROOT.parent / "shared"
CORPUS = SHARED / "data" / "mix10m"
PAGE = ROOT / "docs" / "results" / "recipes.md"
BEGIN, END = "<!-- results: benchmarks/recipes.py --table -->", "<!-- end of results -->"


@dataclass(frozen=True)
class Variant:
    """A lever: options of `mlm train`, or a shape that no preset has, in the words of `EncoderConfig`."""

    options: str = ""
    shape: dict = field(default_factory=dict)


MINI = {"hidden_size": 256, "intermediate_size": 704, "num_hidden_layers": 4, "num_attention_heads": 4}
NANO = {"hidden_size": 128, "intermediate_size": 384, "num_hidden_layers": 3, "num_attention_heads": 2}
VARIANTS: dict[str, Variant] = {
    "final": Variant(),
    # optimizer
    "adamw": Variant("--optimizer adamw"),
    "adamw lr 4e-3": Variant("--optimizer adamw --lr 4e-3"),
    "lr 2e-3": Variant("--lr 2e-3"),
    "lr 6e-3": Variant("--lr 6e-3"),
    "lr 8e-3": Variant("--lr 8e-3"),
    "random embeddings": Variant("--first-embeddings random"),
    "embeddings x 0.5": Variant("--embedding-lr 0.5"),
    "embeddings x 0.3": Variant("--embedding-lr 0.3"),
    "embeddings x 3": Variant("--embedding-lr 3"),
    "weight decay 0": Variant("--weight-decay 0"),
    "weight decay 0.2": Variant("--weight-decay 0.2"),
    "no clipping": Variant("--clip 0"),
    # schedule
    "decay 0.3": Variant("--decay 0.3"),
    "decay 0.8": Variant("--decay 0.8"),
    "linear": Variant("--schedule linear"),
    "cosine": Variant("--schedule cosine"),
    "final lr 0.1": Variant("--final-lr 0.1"),
    "warm-up 0.1": Variant("--warmup 0.1"),
    # batch
    "1024 a step": Variant("--pack-tokens 1024"),
    "two packs a step": Variant("--packs-per-step 2"),
    "packs of 2048": Variant("--pack-tokens 2048"),
    "packs of 4096": Variant("--pack-tokens 4096"),
    "packs of 8192": Variant("--pack-tokens 8192"),
    "ramp 1024 to 2048": Variant("--pack-tokens 1024 --packs-per-step-end 2"),
    "ramp 1024 to 4096": Variant("--pack-tokens 1024 --packs-per-step-end 4 --ramp 0.8"),
    # masking
    "rate 0.15": Variant("--mask-prob 0.15 --mask-schedule constant"),
    "rate 0.30": Variant("--mask-prob 0.30 --mask-schedule constant"),
    "rate 0.30 to 0.10": Variant("--mask-prob-end 0.10"),
    "rate 0.40 to 0.15": Variant("--mask-prob 0.40"),
    "rate 0.50 to 0.15": Variant("--mask-prob 0.50"),
    "rate 0.40 to 0.10": Variant("--mask-prob 0.40 --mask-prob-end 0.10"),
    "rate 0.20 to 0.15": Variant("--mask-prob 0.20"),
    "rate cosine": Variant("--mask-schedule cosine"),
    "80/10/10": Variant("--replace-prob 0.9 --random-token-prob 0.1"),
    "words": Variant("--selection words"),
    "spans": Variant("--selection spans"),
    "balanced": Variant("--selection balanced"),
    # loss and averaging
    "z-loss 1e-4": Variant("--z-loss 1e-4"),
    "ema 0.99": Variant("--ema 0.99"),
    "ema 0.99, decay 0.3": Variant("--ema 0.99 --decay 0.3"),
    "ema 0.999": Variant("--ema 0.999"),
    # shape
    "nano": Variant("--model nano"),
    "mini": Variant("--model mini"),
    "tiny": Variant("--model tiny"),
    "small": Variant("--model small"),
    "2 x 256": Variant(shape=MINI | {"num_hidden_layers": 2}),
    "3 x 256": Variant(shape=MINI | {"num_hidden_layers": 3}),
    "6 x 192": Variant(shape=MINI | {"hidden_size": 192, "intermediate_size": 512, "num_hidden_layers": 6,
                                     "num_attention_heads": 3}),
    "4 x 320": Variant(shape=MINI | {"hidden_size": 320, "intermediate_size": 896, "num_attention_heads": 5}),
    "6 x 384": Variant(shape=MINI | {"hidden_size": 384, "intermediate_size": 1024, "num_hidden_layers": 6,
                                     "num_attention_heads": 6}),
    "8 heads": Variant(shape=MINI | {"num_attention_heads": 8}),
    "inner 1024": Variant(shape=MINI | {"intermediate_size": 1024}),
    "silu": Variant(shape=MINI | {"hidden_activation": "silu"}),
    "untied": Variant(shape=MINI | {"tie_word_embeddings": False}),
    "first weights 0.02": Variant(shape=MINI | {"initializer_range": 0.02}),
    # the shape of `nano`; compare with that variant
    "nano, theta 10k": Variant(shape=NANO | {"global_rope_theta": 10_000.0}),
    "nano, theta 1k": Variant(shape=NANO | {"global_rope_theta": 1_000.0}),
    "nano, 4 heads": Variant(shape=NANO | {"num_attention_heads": 4}),
    "nano, 4 layers": Variant(shape=NANO | {"num_hidden_layers": 4}),
    "nano, 2 layers": Variant(shape=NANO | {"num_hidden_layers": 2}),
    "nano, inner 256": Variant(shape=NANO | {"intermediate_size": 256}),
    "nano, inner 640": Variant(shape=NANO | {"intermediate_size": 640}),
    "nano, untied": Variant(shape=NANO | {"tie_word_embeddings": False}),
    "nano, first weights 0.02": Variant(shape=NANO | {"initializer_range": 0.02}),
    "nano, first weights 0.09": Variant(shape=NANO | {"initializer_range": 0.09}),
    # data
    "seq_len 128": Variant("--seq-len 128"),
    "seq_len 512": Variant("--seq-len 512"),
}  # fmt: skip
# What a shape of its own is trained with: the folder of a model would be continued with gentler defaults.
AS_NEW = "--optimizer muon --lr 4e-3 --warmup 0.02 --decay 0.6"


def run(command: list[str]) -> str:
    """Standard output of a command that must succeed; what it says meanwhile is shown."""
    return subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout


def mlm(*words: str | Path) -> str:
    return run([sys.executable, "-m", "mlm_pytorch", *map(str, words)])


def prepared(scratch: Path, seq_len: int) -> Path:
    """The corpus as a store, made once for all runs."""
    store = scratch / f"store-{seq_len}"
    if not (store / "manifest.json").is_file():
        options = ["--tokenizer", CORPUS / "tokenizer-16k", "--seq-len", seq_len, "--valid", CORPUS / "valid.jsonl.gz"]
        mlm("prepare", CORPUS / "train.jsonl.gz", "--out", store, *map(str, options))
    return store


def untrained(variant: Variant, store: Path, seed: int, folder: Path) -> Path:
    """A folder with the first weights of a shape, as `mlm train` begins a preset."""
    import torch

    from mlm_pytorch.data.batches import count_tokens
    from mlm_pytorch.data.cooccurrence import count_neighbours, token_vectors
    from mlm_pytorch.data.store import TokenStore
    from mlm_pytorch.data.tokenizer import load_tokenizer
    from mlm_pytorch.encoder import Encoder, EncoderConfig
    from mlm_pytorch.huggingface import export_encoder

    opened = TokenStore.open(store)
    torch.manual_seed(seed)
    common = {"max_position_embeddings": 2048, "global_attn_every_n_layers": 1, "initializer_range": 0.05}
    vocab_size = -(-opened.special.num_tokens // 64) * 64
    encoder = Encoder(
        EncoderConfig(vocab_size=vocab_size, pad_token_id=opened.special.pad_token_id, **common | variant.shape)
    )
    encoder.start_at_frequencies(torch.from_numpy(count_tokens(opened)))
    encoder.start_at_vectors(token_vectors(count_neighbours(opened), encoder.config.hidden_size))
    if folder.exists():
        shutil.rmtree(folder)
    export_encoder(encoder, opened.special, folder, load_tokenizer(opened.tokenizer_folder).save)
    return folder


def sample_of_pairs(scratch: Path, count: int) -> Path:
    """Every so many-th of BLiMP's dev half, which lists paradigm after paradigm."""
    from mlm_pytorch.evaluation.minimal_pairs import read_minimal_pairs

    path = scratch / f"pairs-{count}.jsonl"
    pairs = read_minimal_pairs(SHARED / "data" / "blimp" / "blimp_dev.jsonl.gz")
    path.write_text("".join(json.dumps(vars(pair)) + "\n" for pair in pairs[:: max(1, len(pairs) // count)]))
    return path


def pack_tokens(budget: str) -> int:
    """What `mlm train` chooses for the small presets, of which the shapes here are relatives."""
    import torch

    from mlm_pytorch.training.recipe import choose
    from mlm_pytorch.training.schedule import Budget
    from mlm_pytorch.training.step import autocast_dtype
    from mlm_pytorch.training.throughput import measure_peak

    cpu = torch.device("cpu")
    peak = measure_peak(cpu, autocast_dtype("auto", cpu) or torch.float32)
    return choose(Budget.parse(budget), cpu, peak=peak, model="nano").pack_tokens


def measure(name: str, arguments: argparse.Namespace, seed: int, scratch: Path) -> dict:
    """Train and score one variant."""
    variant = VARIANTS[name]
    words = shlex.split(f"{arguments.options} {variant.options}")
    seq_len = 256
    if "--seq-len" in words:  # a property of the store
        at = words.index("--seq-len")
        seq_len = int(words[at + 1])
        del words[at : at + 2]
    store = prepared(scratch, seq_len)
    out = scratch / f"{arguments.budget}-{name.replace(' ', '_').replace('/', '-')}-{seed}"
    if variant.shape:
        model = scratch / f"{out.name}.untrained"
        if not (out / "config.yaml").is_file():
            untrained(variant, store, seed, model)
        chosen = ["--pack-tokens", str(pack_tokens(arguments.budget))]
        words = ["--model", str(model), *shlex.split(AS_NEW), *chosen, *words]
    load = os.getloadavg()[0]
    mlm("train", store, "--out", out, "--budget", arguments.budget, "--seed", str(seed), *words)
    load = max(load, os.getloadavg()[0])
    scorer = [str(SHARED / "tools" / "masked_loss.py"), str(out / "model"), str(CORPUS / "valid.jsonl.gz")]
    scored = json.loads(run([sys.executable, *scorer, "--docs", str(arguments.docs)]).splitlines()[-1])
    lines = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    steps, held_out = ([line for line in lines if key in line] for key in ("loss", "valid_loss"))
    row = {
        "variant": name,
        "budget": arguments.budget,
        "options": arguments.options,
        "lever": variant.options or variant.shape,
        "seed": seed,
        "docs": arguments.docs,
        "masked_loss": round(scored["loss"], 4),
        "accuracy": round(scored["accuracy"], 4),
        "last_weights_valid_loss": round(held_out[-1]["valid_loss"], 4),
        "ema_valid_loss": held_out[-1].get("ema_valid_loss"),
        "steps": len(steps),
        "tokens": steps[-1]["tokens"],
        "seconds": steps[-1]["seconds"],
        "megabytes": round((out / "model" / "model.safetensors").stat().st_size / 1e6, 1),
        "load": round(load, 1),
        "date": datetime.datetime.now(datetime.UTC).date().isoformat(),
        "processor": processor(),
    }
    if arguments.pairs:
        pairs = sample_of_pairs(scratch, arguments.pairs)
        found = json.loads(mlm("evaluate", out, "--minimal-pairs", pairs, "--json"))["minimal_pairs"]["overall"]
        row |= {"pairs": found["num_pairs"], "pair_accuracy": round(found["accuracy"], 4)}
    if not arguments.keep:
        shutil.rmtree(out)
    return row


def identity(row: dict) -> tuple:
    """What makes two runs the same."""
    return tuple(
        json.dumps(row[key], sort_keys=True) for key in ("budget", "options", "variant", "lever", "seed", "docs")
    )


def known() -> list[dict]:
    path = RESULTS / "recipes.json"
    return json.loads(path.read_text())["runs"] if path.is_file() else []


def table(rows: list[dict]) -> str:
    """One table per budget: medians over seeds, the range, and the distance to `final` under the same options.

    >>> print(table([{"budget": "1m", "options": "", "variant": v, "lever": v, "seed": 0, "masked_loss": x, "steps": 9,
    ...     "tokens": 100, "seconds": 10, "load": 1.0} for v, x in (("final", 5.0), ("adamw", 5.5))]).splitlines()[-1])
    | adamw | `adamw` | 5.500 | +0.500 | 1 |  | 9 | 10 | 1.0 |
    """
    lines = []
    for budget, options in dict.fromkeys((row["budget"], row["options"]) for row in rows):
        here = [row for row in rows if (row["budget"], row["options"]) == (budget, options)]
        base = [row["masked_loss"] for row in here if row["variant"] == "final"]
        lines += ["", f"**{budget}**" + (f", all with `{options}`" if options else ""), ""]
        lines.append("| variant | lever | nats | to final | seeds | BLiMP % | steps | tokens/s | load |")
        lines.append("| --- | --- | --- | --- | --- | --- | --- | --- | --- |")
        names = dict.fromkeys(row["variant"] for row in here)
        losses = {name: [row["masked_loss"] for row in here if row["variant"] == name] for name in names}
        for name in sorted(names, key=lambda name: median(losses[name])):
            of_it, values = [row for row in here if row["variant"] == name], losses[name]
            spread = f" ({min(values):.3f} to {max(values):.3f})" if len(values) > 1 else ""
            pairs = [100 * row["pair_accuracy"] for row in of_it if "pair_accuracy" in row]
            lever = of_it[0]["lever"]
            said = (
                lever if isinstance(lever, str) else " ".join(f"{k}={v}" for k, v in lever.items() if MINI.get(k) != v)
            )
            cells = [
                name,
                f"`{said}`" if said else "",
                f"{median(values):.3f}{spread}",
                f"{median(values) - median(base):+.3f}" if base else "",
                str(len(values)),
                f"{median(pairs):.1f}" if pairs else "",
                f"{median(row['steps'] for row in of_it):,.0f}",
                f"{median(row['tokens'] / row['seconds'] for row in of_it):,.0f}",
                f"{max(row['load'] for row in of_it):.1f}",
            ]
            lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines).strip()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("variants", nargs="*", help="by default all")
    parser.add_argument("--budget", default="10m")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument("--options", default="", help="options of mlm train that all variants get")
    parser.add_argument("--pairs", type=int, default=0, help="about how many minimal pairs to score; 0 for none")
    parser.add_argument("--docs", type=int, default=1500, help="held-out documents to score")
    parser.add_argument("--scratch", type=Path, default=Path(tempfile.gettempdir()) / "mlm-recipes")
    parser.add_argument("--keep", action="store_true", help="keep the runs in --scratch")
    parser.add_argument("--list", action="store_true", help="show the variants")
    parser.add_argument("--table", action="store_true", help="write the results into docs/results/recipes.md")
    arguments = parser.parse_args()
    unknown = set(arguments.variants) - set(VARIANTS)
    if unknown:
        raise SystemExit(f"no variant is called {', '.join(sorted(unknown))}; --list shows them")
    if arguments.list:
        for name, variant in VARIANTS.items():
            print(f"{name:22} {variant.options or variant.shape or 'mlm train as it is'}")
    elif arguments.table:
        before, _, rest = PAGE.read_text(encoding="utf-8").partition(BEGIN)
        PAGE.write_text(f"{before}{BEGIN}\n{table(known())}\n{END}{rest.partition(END)[2]}", encoding="utf-8")
    else:
        if not CORPUS.is_dir():
            raise SystemExit(f"{CORPUS} is missing; this benchmark needs that corpus")
        sweep(arguments)


def sweep(arguments: argparse.Namespace) -> None:
    """Run what is not known yet, seed by seed, so that a sweep that is stopped has compared all with as many seeds."""
    arguments.scratch.mkdir(parents=True, exist_ok=True)
    print(json.dumps(machine()))
    for seed in arguments.seeds:
        for name in arguments.variants or VARIANTS:
            asked = {
                "budget": arguments.budget,
                "options": arguments.options,
                "variant": name,
                "lever": VARIANTS[name].options or VARIANTS[name].shape,
                "seed": seed,
                "docs": arguments.docs,
            }
            if identity(asked) in map(identity, known()):
                continue
            print(f"-- {name}, seed {seed}", flush=True)
            row = measure(name, arguments, seed, arguments.scratch)
            print(json.dumps(row), flush=True)
            write_result("recipes", {"runs": [*known(), row]})
    print(table([row for row in known() if row["budget"] == arguments.budget]))


if __name__ == "__main__":
    main()
