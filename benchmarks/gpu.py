"""Everything that we claim of one GPU, in under nine minutes: speed, the loader, Hugging Face beside it, and equality.

    python benchmarks/gpu.py                    # writes results/gpu.json
    python benchmarks/gpu.py --quick            # a few steps of small shapes: does it run? also on a CPU (--device cpu)

Needs torch and numpy, and transformers for the comparison; neither a corpus nor any other package. Pieces are drawn as
long as those of mix10m at 1,024 tokens (log-normal, mean 150), their ids by Zipf's law over ModernBERT's vocabulary.

Shapes are ModernBERT-base and Ettin's 17M, 32M and 68M. Useful FLOPs are counted as in `speed.py`: 6 for each parameter
that a real token meets, head and end of the last layer at selected positions only, attention within windows and pieces.
"""

import argparse
import contextlib
import time
from collections.abc import Iterator
from statistics import median

import numpy as np
import torch
from machine import matmul_gflops, write_result

from mlm_pytorch.data.batches import Reader
from mlm_pytorch.data.packing import Pack
from mlm_pytorch.encoder import Encoder, EncoderConfig
from mlm_pytorch.masking import flat_scores, select_tokens
from mlm_pytorch.objective.head import find_head
from mlm_pytorch.objective.packs import MaskedPack, PackMasker, pack_loss
from mlm_pytorch.tokens import SpecialTokens
from mlm_pytorch.training.device import native_precision
from mlm_pytorch.training.distributed import World
from mlm_pytorch.training.feed import Batch, Feed
from mlm_pytorch.training.optimizer import build_optimizers
from mlm_pytorch.training.parallel import Parallel
from mlm_pytorch.training.step import StepResult, TrainingStep

VOCABULARY = 50_368
SPECIAL = SpecialTokens(VOCABULARY, mask_token_id=4, pad_token_id=3, ids=(0, 1, 2, 3, 4), prefix=(0,), suffix=(1,))
MASK_PROB = 300_000  # millionths; ModernBERT's and Ettin's rate
# width, inner width, layers, heads; tokens of a step; least tokens per second on an H200
SHAPES = {
    "ettin-17m": ((256, 384, 7, 4), 131_072, 3.0e6),
    "ettin-32m": ((384, 576, 10, 6), 131_072, 1.6e6),
    "ettin-68m": ((512, 768, 19, 8), 131_072, 0.9e6),
    "modernbert-base": ((768, 1152, 22, 12), 131_072, 0.5e6),
}
RUN_TOKENS = {
    "ettin-17m": 8e6,
    "ettin-32m": 4e6,
    "ettin-68m": 2e6,
    "modernbert-base": 1e6,
}  # of one timing, two seconds
SHARE_BAR, PEER_BAR, LOADER_BAR, CURVE_BAR = 0.45, 2.5, 0.97, 0.01


class DrawnPieces:
    """A store in memory: lengths and ids drawn at random, the same each time."""

    def __init__(self, num_pieces: int, longest: int, vocabulary: int = VOCABULARY):
        self.special = SPECIAL
        generator = np.random.default_rng(0)
        lengths = np.clip(generator.lognormal(4.5, 1.0, num_pieces).astype(np.int64), 4, longest - 2)
        ids = np.minimum(generator.zipf(1.2, lengths.sum()) + 4, vocabulary - 1).astype(np.uint16)
        self._ids, self._ends = ids, np.cumsum(lengths)
        self.num_tokens = int(lengths.sum())

    def __len__(self) -> int:
        return len(self._ends)

    def piece(self, index: int) -> np.ndarray:
        """Ids (n,) of a piece, without framing."""
        end = self._ends[index]
        return self._ids[(self._ends[index - 1] if index else 0) : end]

    def lengths(self, indices: np.ndarray) -> np.ndarray:
        """Lengths of pieces, without framing."""
        return np.diff(self._ends, prepend=0)[indices]


def config_of(shape: tuple[int, int, int, int], vocabulary: int = VOCABULARY) -> EncoderConfig:
    """ModernBERT's architecture in a shape."""
    width, inner, layers, heads = shape
    return EncoderConfig(
        vocab_size=vocabulary,
        hidden_size=width,
        intermediate_size=inner,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        pad_token_id=SPECIAL.pad_token_id,
    )


def useful_flops(config: EncoderConfig, pack: MaskedPack) -> float:
    """What the loss of a pack and its gradient need."""
    width, layers, targets, tokens = config.hidden_size, config.num_hidden_layers, pack.num_targets, pack.num_tokens
    project, rest = 3 * width**2, width**2 + 3 * width * config.intermediate_size
    met = layers * project * tokens + rest * ((layers - 1) * tokens + targets)
    met += targets * (width**2 + width * config.vocab_size)
    lengths = pack.cu_seqlens.diff().double()
    if int(lengths.sum()) > tokens:  # the tail of padding is a segment of its own, the last one
        lengths = lengths[:-1]
    kinds = config.layer_types or ()
    full = float(lengths.square().sum())
    near = float((lengths * lengths.clamp(max=config.local_attention + 1)).sum())
    pairs = sum(full if kind == "full_attention" else near for kind in kinds)
    return 6 * met + 12 * width * pairs


def training_step(encoder: Encoder, device: torch.device, autocast: torch.dtype | None) -> TrainingStep:
    """The step that `mlm train` takes."""
    head = find_head(encoder)
    optimizers = build_optimizers(encoder, "muon", 1e-3, 0.05)
    return TrainingStep(
        Parallel(encoder, "auto", World()),
        lambda model, pack: pack_loss(model, head, pack, fused=device.type == "cuda"),
        optimizers,
        autocast=autocast,
        clip=1.0,
    )


def take(step: TrainingStep, batch: Batch, lr: float = 1e-3) -> StepResult:
    """One optimizer step of a process that trains alone."""
    counts = (sum(getattr(one, name) for one in batch.micro_batches) for name in ("num_targets", "num_tokens"))
    return step(batch.micro_batches, lr, World().agree(*counts, stop=bool, seconds=float))


def feed(pieces: DrawnPieces, capacity: int, longest: int, device: torch.device, seed: int = 0) -> Iterator[Batch]:
    """Masked packs, made and moved ahead."""
    reader, masker = Reader(pieces, capacity, seed=seed, longest=longest), PackMasker(SPECIAL, seed)

    def mask(pack: Pack, rate: int) -> MaskedPack:
        return masker(pack, rate).to(device)

    return Feed(reader, mask, rate=lambda _: MASK_PROB, per_step=lambda _: 1).batches(0, lambda _: 0.0)


def wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize()


def timed(step: TrainingStep, batches: Iterator[Batch], steps: int, device: torch.device) -> tuple[float, list[Batch]]:
    """Seconds that some steps take, waiting for the device at both ends only."""
    taken = []
    wait(device)
    start = time.perf_counter()
    for batch in (next(batches) for _ in range(steps)):
        take(step, batch)
        taken.append(batch)
    wait(device)
    return time.perf_counter() - start, taken


def repeat(batch: Batch) -> Iterator[Batch]:
    while True:
        yield batch


def speed(name: str, device: torch.device, peak: float, steps: int | None = None) -> dict:
    """Tokens per second from the store, beside those from one batch again and again."""
    shape, capacity, bar = SHAPES[name]
    steps = steps or round(RUN_TOKENS[name] / capacity)
    config = config_of(shape)
    torch.manual_seed(0)
    torch._dynamo.reset()  # a process compiles for few shapes only before it gives up
    encoder = Encoder(config).to(device)
    if device.type == "cuda":
        encoder.model.compile_layers()
    step = training_step(encoder, device, native_precision(device))
    batches = feed(DrawnPieces(max(2_000, 12 * capacity // 150), 1024), capacity, 1024, device)
    timed(step, batches, 5, device)  # compiles, and sets kernels up
    from_store, repeated, shares = [], [], []
    for _ in range(3):
        seconds, taken = timed(step, batches, steps, device)
        packs = [pack for batch in taken for pack in batch.micro_batches]
        from_store.append(sum(pack.num_tokens for pack in packs) / seconds)
        shares.append(sum(useful_flops(config, pack) for pack in packs) / seconds / 1e9 / peak)
        seconds, again = timed(step, repeat(taken[-1]), steps, device)
        repeated.append(sum(pack.num_tokens for batch in again for pack in batch.micro_batches) / seconds)
    memory = torch.cuda.max_memory_allocated() / 2**30 if device.type == "cuda" else None
    return {
        "tokens_per_second": round(median(from_store)),
        "bar": bar,
        "share_of_peak": round(median(shares), 3),
        "loader_share": round(median(a / b for a, b in zip(from_store, repeated, strict=True)), 3),
        "tokens_per_step": capacity,
        "peak_memory_gib": memory and round(memory, 2),
    }


def peer(name: str, device: torch.device, steps: int) -> dict:
    """Hugging Face's ModernBERT as its Trainer runs it: rows of joined documents, all logits, bf16, compiled, AdamW."""
    from transformers import ModernBertConfig, ModernBertForMaskedLM

    (width, inner, layers, heads), capacity, _ = SHAPES[name]
    length = 1024
    config = ModernBertConfig(
        vocab_size=VOCABULARY,
        hidden_size=width,
        intermediate_size=inner,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        pad_token_id=3,
        attn_implementation="sdpa",
    )
    model = ModernBertForMaskedLM(config).to(device)
    run = torch.compile(model) if device.type == "cuda" else model
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3, fused=True)
    pieces = DrawnPieces(2 * capacity // 100, 1024)
    joined = torch.from_numpy(np.concatenate([pieces.piece(i) for i in range(len(pieces))]).astype(np.int64))
    rows = max(1, min(32_768, capacity) // length)
    best = 0.0
    while rows:  # as many tokens a step as ours, or the largest batch that fits
        try:
            ids = joined[: rows * length].view(rows, length).to(device)
            labels = torch.where(torch.rand(ids.shape, device=device) < 0.3, ids, -100)

            def one(ids: torch.Tensor = ids, labels: torch.Tensor = labels) -> None:
                with torch.autocast(device.type, torch.bfloat16):
                    loss = run(input_ids=ids, labels=labels).loss
                loss.backward()
                torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
                optimizer.step()
                optimizer.zero_grad()

            for _ in range(3):
                one()
            wait(device)
            start = time.perf_counter()
            for _ in range(steps):
                one()
            wait(device)
            best = steps * ids.numel() / (time.perf_counter() - start)
            break
        except torch.OutOfMemoryError:
            optimizer.zero_grad()
            rows //= 2
    return {"tokens_per_second": round(best), "rows": rows}


def selection_is_equal(device: torch.device) -> bool:
    """Whether the device selects the very positions that the CPU does."""
    generator = torch.Generator().manual_seed(0)
    lengths = torch.randint(1, 900, (200,), generator=generator)
    cu_seqlens = torch.cat((torch.zeros(1, dtype=torch.int64), lengths.cumsum(0)))
    ids = torch.randint(0, VOCABULARY, (int(cu_seqlens[-1]),), generator=generator)
    pieces, visits = torch.arange(200), torch.randint(0, 9, (200,), generator=generator)
    selected = []
    for where in (torch.device("cpu"), device):
        moved = [x.to(where) for x in (visits, pieces, cu_seqlens)]
        scores = flat_scores(7, *moved, num_tokens=len(ids))
        maskable = (ids > 4).to(where)
        selected.append(select_tokens(scores, ids.to(where), maskable, MASK_PROB, cu_seqlens=moved[2]).cpu())
    return bool(torch.equal(*selected))


def curve_difference(device: torch.device, steps: int) -> float:
    """Largest relative difference of the loss, averaged over 20 steps, to float32 on the CPU."""
    curves = []
    for where, autocast in ((torch.device("cpu"), None), (device, native_precision(device))):
        torch.manual_seed(0)
        encoder = Encoder(config_of((64, 96, 2, 2), 2048)).to(where)
        step = training_step(encoder, where, autocast)
        batches = feed(DrawnPieces(500, 128, 2048), 1024, 128, where)
        losses = [take(step, batch, 2e-3).loss for batch in (next(batches) for _ in range(steps))]
        curves.append(np.convolve(losses, np.ones(min(20, steps)) / min(20, steps), "valid"))
    return float(np.max(np.abs(curves[1] - curves[0]) / curves[0]))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--quick", action="store_true", help="small and short: only whether it runs")
    arguments = parser.parse_args()
    device = torch.device(arguments.device)
    if device.type == "cuda" and not torch.cuda.is_available():
        raise SystemExit("no CUDA device is there; --quick --device cpu tries the script without one")
    if arguments.quick:
        for name, (shape, _, bar) in list(SHAPES.items()):
            SHAPES[name] = ((shape[0] // 4, 96, 2, shape[3]), 2048, bar)
    steps = 2 if arguments.quick else None
    peak = matmul_gflops(1024 if arguments.quick else 8192, torch.bfloat16, device.type)
    result: dict = {"matmul_bfloat16_gflops": peak, "selection_equals_cpu": selection_is_equal(device)}
    for name in SHAPES:
        result[name] = speed(name, device, peak, steps)
        print(name, result[name], flush=True)
        if device.type == "cuda":
            torch.cuda.empty_cache()
            torch.cuda.reset_peak_memory_stats()
    result["curve_difference"] = round(curve_difference(device, 10 if arguments.quick else 200), 5)
    print("largest difference of the loss curve", result["curve_difference"], flush=True)
    with contextlib.suppress(ImportError):
        result["peer"] = peer("modernbert-base", device, steps or 8)
        result["peer"]["ratio"] = round(
            result["modernbert-base"]["tokens_per_second"] / max(1, result["peer"]["tokens_per_second"]), 2
        )
        print("peer", result["peer"], flush=True)
    if arguments.quick:
        print(result)
        return
    write_result("gpu", result)
    met = [result[name]["tokens_per_second"] >= bar for name, (_, _, bar) in SHAPES.items()]
    met += [result[name]["loader_share"] >= LOADER_BAR for name in SHAPES]
    met += [result["modernbert-base"]["share_of_peak"] >= SHARE_BAR, result["curve_difference"] <= CURVE_BAR]
    met += [result["selection_equals_cpu"], result.get("peer", {}).get("ratio", 0) >= PEER_BAR]
    raise SystemExit(not all(met))


if __name__ == "__main__":
    main()
