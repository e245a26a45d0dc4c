"""How fast a training step is: against the machine's own limit, against Hugging Face's Trainer, and as things grow.

    python benchmarks/speed.py share        # useful FLOPs over the measured matmul peak, three shapes: ten minutes
    python benchmarks/speed.py peers        # `mlm train` against Trainer with BERT and ModernBERT: five minutes
    python benchmarks/speed.py growth       # more documents, a larger vocabulary, longer pieces: ten minutes

All on mix10m with its 16k tokenizer (the folder `shared` beside the checkout), 15% of the tokens predicted. What is
compared alternates within one run; a figure is the median of three.

Useful FLOPs are what the loss needs and no more: 6 for each parameter that a real token meets, padding not counted; the
head, and all of the last layer but keys and values, at selected positions only; attention within pieces. What the
optimizer computes is no part of them, so it counts as time lost.

A CPU that does not multiply bfloat16 is measured in float32, peers and peak too, and has results of its own
(`speed_share_float32.json`).
"""

import argparse
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from statistics import median

import torch
from machine import matmul_gflops, versions, write_result

from mlm_pytorch.data.batches import Reader
from mlm_pytorch.data.store import TokenStore
from mlm_pytorch.encoder import Encoder, EncoderConfig
from mlm_pytorch.objective.head import find_head
from mlm_pytorch.objective.packs import MaskedPack, PackMasker, pack_loss
from mlm_pytorch.training.device import native_precision
from mlm_pytorch.training.distributed import World
from mlm_pytorch.training.feed import Batch, Feed
from mlm_pytorch.training.optimizer import build_optimizers
from mlm_pytorch.training.parallel import Parallel
from mlm_pytorch.training.step import StepResult, TrainingStep

CORPUS = Path(__file__).parents[2] / "shared" / "data" / "mix10m"
ROUNDS = 3
MASK_PROB = 150_000  # millionths
# Width, inner width, layers, heads; tokens of a pack, packs of a step; steps timed in a round.
SHAPES = {
    "4x256": ((256, 704, 4, 4), 2048, 1, 40),
    "6x512": ((512, 1408, 6, 8), 4096, 1, 8),
    "12x768": ((768, 1152, 12, 12), 4096, 4, 1),
}
SHARE_BARS = {"4x256": 0.38, "6x512": 0.45, "12x768": 0.50}
VOCABULARY_BARS = {"4x256": 0.60, "6x512": 0.75, "12x768": 0.88}
PRECISION = native_precision(torch.device("cpu"))
# Each peer as it comes and with its best flags; in bfloat16 where the CPU multiplies it.
PEER_BARS = {"bert": 6.0, "bert_bf16": 3.5, "modernbert_bf16": 3.0} if PRECISION else {"bert": 6.0, "modernbert": 3.0}
PEER_MEMORY_BAR = 0.6
# What is put beside the peers: the recipe as it is, with steps of half as many tokens and a dearer optimizer than
# theirs; and with their optimizer and as many tokens a step.
OURS = {"ours": (), "ours_same_step": ("--optimizer", "adamw", "--pack-tokens", "4096")}
PEER_STEPS, OUR_STEPS, WARM = 14, 45, 5


def prepare(folder: Path, seq_len: int = 256, documents: int | None = None) -> Path:
    """A store of mix10m, or of its first documents, made by the command."""
    corpus = CORPUS / "train.jsonl.gz"
    if documents is not None:
        import gzip

        with gzip.open(corpus, "rt", encoding="utf-8") as lines:
            corpus = folder.with_suffix(".jsonl")
            corpus.write_text("".join(line for line, _ in zip(lines, range(documents), strict=False)))
    command = ["prepare", str(corpus), "--out", str(folder), "--seq-len", str(seq_len)]
    command += ["--tokenizer", str(CORPUS / "tokenizer-16k")]
    subprocess.run([sys.executable, "-m", "mlm_pytorch", *command], check=True, capture_output=True)
    return folder


def take(step: TrainingStep, batch: Batch, lr: float = 1e-3) -> StepResult:
    """One optimizer step of a process that trains alone."""
    counts = (sum(getattr(one, name) for one in batch.micro_batches) for name in ("num_targets", "num_tokens"))
    return step(batch.micro_batches, lr, World().agree(*counts, stop=bool, seconds=float))


class Run:
    """Steps of one shape on one store."""

    def __init__(self, shape: str, store: Path, vocabulary: int = 16_384):
        (width, inner, layers, heads), capacity, per_step, self.steps = SHAPES[shape]
        opened = TokenStore.open(store)
        self.config = EncoderConfig(
            vocab_size=vocabulary,
            hidden_size=width,
            intermediate_size=inner,
            num_hidden_layers=layers,
            num_attention_heads=heads,
            global_attn_every_n_layers=1,
            pad_token_id=opened.special.pad_token_id,
        )
        torch.manual_seed(0)
        encoder = Encoder(self.config)
        head = find_head(encoder)
        self.step = TrainingStep(
            Parallel(encoder, "auto", World()),
            lambda model, pack: pack_loss(model, head, pack),
            build_optimizers(encoder, "muon", 1e-3, 0.05),
            autocast=PRECISION,
            clip=1.0,
        )
        reader = Reader(opened, capacity, seed=0, longest=opened.seq_len)
        masker = PackMasker(opened.special, 0)
        self.batches: Iterator[Batch] = Feed(
            reader, masker, rate=lambda _: MASK_PROB, per_step=lambda _: per_step
        ).batches(0, lambda _: 0.0)
        self.take()  # sets kernels up

    def take(self) -> Batch:
        """One step; returns what it took."""
        batch = next(self.batches)
        take(self.step, batch)
        return batch

    def time(self) -> tuple[float, float]:
        """Tokens per second and useful FLOPs per second over some steps, reading and masking included."""
        start = time.perf_counter()
        batches = [self.take() for _ in range(self.steps)]
        seconds = time.perf_counter() - start
        packs = [pack for batch in batches for pack in batch.micro_batches]
        tokens = sum(pack.num_tokens for pack in packs)
        return tokens / seconds, sum(useful_flops(self.config, pack) for pack in packs) / seconds


def useful_flops(config: EncoderConfig, pack: MaskedPack) -> float:
    """What the loss of a pack and its gradient need."""
    width, layers, targets, tokens = config.hidden_size, config.num_hidden_layers, pack.num_targets, pack.num_tokens
    project, rest = 3 * width**2, width**2 + 3 * width * config.intermediate_size
    met = layers * project * tokens + rest * ((layers - 1) * tokens + targets)
    met -= width**2 * (tokens - targets)  # queries of the last layer, likewise
    met += targets * (width**2 + width * config.vocab_size)
    lengths = pack.cu_seqlens.diff().tolist()
    if sum(lengths) > tokens:  # the tail of padding is a segment of its own, the last one
        lengths = lengths[:-1]
    pairs = sum(length**2 for length in lengths)
    seen = (layers - 1) * pairs + pairs * targets / tokens  # queries of the last layer at selected positions
    return 6 * met + 12 * width * seen


def share(scratch: Path) -> tuple[dict, bool]:
    store = prepare(scratch / "store")
    rows = {}
    for shape in SHAPES:
        run = Run(shape, store)
        measured = []
        for _ in range(ROUNDS):
            tokens, flops = run.time()
            measured.append((flops / 1e9 / matmul_gflops(2048, PRECISION or torch.float32, "cpu"), tokens))
        share_of_peak, tokens = sorted(measured)[ROUNDS // 2]
        rows[shape] = {
            "share_of_peak": round(share_of_peak, 3),
            "bar": SHARE_BARS[shape],
            "tokens_per_second": round(tokens),
            "tokens_per_step": SHAPES[shape][1] * SHAPES[shape][2],
        }
        print(shape, rows[shape], flush=True)
    return rows, all(row["share_of_peak"] >= row["bar"] for row in rows.values())


def growth(scratch: Path) -> tuple[dict, bool]:
    """Tokens per second of the grown case over those of the plain one, taking turns."""
    small, full = prepare(scratch / "tenth", documents=8_500), prepare(scratch / "store")
    long = prepare(scratch / "long", seq_len=1024)
    cases = {"documents x10 (4x256)": (Run("4x256", small), Run("4x256", full), 0.98)}
    cases["length 1024 to 256 (4x256)"] = (Run("4x256", full), Run("4x256", long), 0.75)
    rows = {}
    for shape, bar in VOCABULARY_BARS.items():
        cases[f"vocabulary x4 ({shape})"] = (Run(shape, full), Run(shape, full, 65_536), bar)
    for name, (plain, grown, bar) in cases.items():
        pairs = [(plain.time()[0], grown.time()[0]) for _ in range(ROUNDS)]
        rows[name] = {"ratio": round(median(b / a for a, b in pairs), 3), "bar": bar}
        rows[name] |= {"tokens_per_second": [round(median(side)) for side in zip(*pairs, strict=True)]}
        print(name, rows[name], flush=True)
    return rows, all(row["ratio"] >= row["bar"] for row in rows.values())


# ------------------------------------------------------------------------------------------------------- the peers


def train_ours(scratch: Path, *options: str) -> dict:
    """Tokens per second of `mlm train`, and the largest memory that its process takes."""
    out = scratch / f"run-{time.monotonic_ns()}"
    command = ["train", str(scratch / "store"), "--out", str(out), "--budget", f"{OUR_STEPS}steps", "--model", "mini"]
    command += ["--mask-prob", "0.15", "--mask-prob-end", "0.15", "--evaluations", "0", *options]
    memory = _peak_memory([sys.executable, "-m", "mlm_pytorch", *command])
    lines = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    steps = [line for line in lines if "loss" in line]
    first, last = steps[WARM - 1], steps[-1]
    rate = (last["tokens"] - first["tokens"]) / (last["seconds"] - first["seconds"])
    return {"tokens_per_second": round(rate), "peak_memory_mb": memory}


def train_peer(name: str, scratch: Path) -> dict:
    """The same of Hugging Face's Trainer, in a process of its own."""
    report = scratch / "peer.json"
    memory = _peak_memory([sys.executable, __file__, "peer", "--name", name, "--out", str(report)])
    return json.loads(report.read_text()) | {"peak_memory_mb": memory}


def _peak_memory(command: list[str]) -> float:
    """Run a command; the largest resident memory of its process in MB."""
    watch = (
        "import resource, subprocess, sys; subprocess.run(sys.argv[1:], check=True, capture_output=True);"
        "print(resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss)"
    )
    done = subprocess.run([sys.executable, "-c", watch, *command], check=True, capture_output=True, text=True)
    return round(int(done.stdout.split()[-1]) / (1e6 if sys.platform == "darwin" else 1e3), 1)


def peer(name: str, out: Path) -> None:
    """Train as run_mlm.py does: documents joined and cut into rows of 256, Trainer, its collator; write the rate."""
    import gzip

    from transformers import (
        AutoTokenizer,
        BertConfig,
        BertForMaskedLM,
        DataCollatorForLanguageModeling,
        ModernBertConfig,
        ModernBertForMaskedLM,
        Trainer,
        TrainerCallback,
        TrainingArguments,
    )

    tokenizer = AutoTokenizer.from_pretrained(CORPUS / "tokenizer-16k")
    with gzip.open(CORPUS / "train.jsonl.gz", "rt", encoding="utf-8") as lines:
        texts = [json.loads(line)["text"] for line, _ in zip(lines, range(3_000), strict=False)]
    joined = [token for ids in tokenizer(texts)["input_ids"] for token in ids]
    rows = torch.tensor(joined[: len(joined) // 256 * 256]).view(-1, 256)
    shape = {"vocab_size": len(tokenizer), "hidden_size": 256, "num_hidden_layers": 4, "num_attention_heads": 4}
    shape |= {"pad_token_id": tokenizer.pad_token_id, "max_position_embeddings": 512}
    if name.startswith("modernbert"):
        model = ModernBertForMaskedLM(ModernBertConfig(**shape, intermediate_size=704, global_attn_every_n_layers=1))
    else:
        model = BertForMaskedLM(BertConfig(**shape, intermediate_size=1056))  # as many parameters as 704, gated

    times: list[float] = []

    class Clock(TrainerCallback):
        def on_step_end(self, *_: object, **__: object) -> None:
            times.append(time.perf_counter())

    arguments = TrainingArguments(
        output_dir=str(out.parent / "peer"),
        per_device_train_batch_size=16,
        max_steps=PEER_STEPS,
        bf16=name.endswith("bf16"),
        report_to=[],
        save_strategy="no",
        disable_tqdm=True,
        use_cpu=True,
    )
    collator = DataCollatorForLanguageModeling(tokenizer, mlm_probability=0.15)
    data = [{"input_ids": row} for row in rows]
    Trainer(model, arguments, data_collator=collator, train_dataset=data, callbacks=[Clock()]).train()  # type: ignore[arg-type]
    steps = len(times) - WARM
    rate = steps * 16 * 256 / (times[-1] - times[WARM - 1])
    out.write_text(json.dumps({"tokens_per_second": round(rate)}))


def peers(scratch: Path) -> tuple[dict, bool]:
    prepare(scratch / "store")
    measured: dict[str, list[dict]] = {name: [] for name in (*OURS, *PEER_BARS)}
    for _ in range(ROUNDS):
        for name, options in OURS.items():
            measured[name].append(train_ours(scratch, *options))
        for name in PEER_BARS:
            measured[name].append(train_peer(name, scratch))
    middle = {
        name: {key: median(one[key] for one in runs) for key in ("tokens_per_second", "peak_memory_mb")}
        for name, runs in measured.items()
    }
    met = True
    for ours in OURS:
        mine, ratios = middle[ours], {}
        for name, bar in PEER_BARS.items():
            speed = mine["tokens_per_second"] / middle[name]["tokens_per_second"]
            memory = mine["peak_memory_mb"] / middle[name]["peak_memory_mb"]
            ratios[name] = {"tokens_per_second": round(speed, 2), "bar": bar}
            ratios[name] |= {"peak_memory": round(memory, 2), "memory_bar": PEER_MEMORY_BAR}
            met &= speed >= bar and memory <= PEER_MEMORY_BAR
        mine["ratios"] = ratios
    print(json.dumps(middle, indent=1), flush=True)
    return middle | {"versions": versions("torch", "transformers", "accelerate")}, met


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=["share", "peers", "growth", "peer"])
    parser.add_argument("--name", choices=list(PEER_BARS), help="peer: which")
    parser.add_argument("--out", type=Path, help="peer: where its figure goes")
    arguments = parser.parse_args()
    if not CORPUS.is_dir():
        raise SystemExit(f"{CORPUS} is missing; this benchmark needs that corpus")
    if arguments.what == "peer":
        peer(arguments.name, arguments.out)
        return
    with tempfile.TemporaryDirectory() as scratch:
        result, met = {"share": share, "peers": peers, "growth": growth}[arguments.what](Path(scratch))
    write_result(f"speed_{arguments.what}" + ("" if PRECISION else "_float32"), result)
    raise SystemExit(not met)


if __name__ == "__main__":
    main()
