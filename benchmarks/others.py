"""Other people's models: a plain training loop against our step, in real tokens (padding not counted) per second.

The plain loop is what their documentation shows: documents joined and cut to rows of one length ("grouped"), 15%
masked at random, logits at every position, AdamW; in float32 and under bfloat16 autocast. Ours is what `mlm train`
runs: whole pieces in rows of like length, selected positions alone, the native precision, fused AdamW. Same shape,
vocabulary, text, masking rate and tokens per step; the sides take turns.

    python benchmarks/others.py                     # writes benchmarks/results/others.json
    python benchmarks/others.py --steps 3 --rounds 1
"""

import argparse
import gzip
import itertools
import json
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from statistics import median

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))

from mlm_pytorch.data.batches import PADDED, Reader  # noqa: E402
from mlm_pytorch.data.tokenizer import load_tokenizer  # noqa: E402
from mlm_pytorch.objective.packs import PackMasker  # noqa: E402
from mlm_pytorch.objective.padded import inspect_rows, mask_padded, padded_loss  # noqa: E402
from mlm_pytorch.training.device import native_precision  # noqa: E402
from mlm_pytorch.training.distributed import World  # noqa: E402
from mlm_pytorch.training.optimizer import build_optimizers  # noqa: E402
from mlm_pytorch.training.parallel import Parallel  # noqa: E402
from mlm_pytorch.training.step import TrainingStep  # noqa: E402

DATA = ROOT.parent / "shared/data/mix10m"
WIDTH, LAYERS, HEADS, LENGTH, ROWS, DOCUMENTS = 256, 4, 4, 256, 16, 4000


class Pieces:
    """Documents as ids, cut to pieces, as a store holds them."""

    def __init__(self) -> None:
        tokenizer = load_tokenizer(DATA / "tokenizer-16k")
        with gzip.open(DATA / "train.jsonl.gz", "rt") as file:
            texts = [json.loads(line)["text"] for line in itertools.islice(file, DOCUMENTS)]
        longest = LENGTH - 2
        self.special = tokenizer.special
        self.documents = [np.array(ids, dtype=np.int64) for ids in tokenizer.encode_batch(texts)]
        self.pieces = [d[i : i + longest] for d in self.documents for i in range(0, len(d), longest)]
        self.num_tokens = sum(map(len, self.pieces))
        self._lengths = np.array([len(piece) for piece in self.pieces])

    def __len__(self) -> int:
        return len(self.pieces)

    def piece(self, index: int) -> np.ndarray:
        """Ids of a piece."""
        return self.pieces[index]

    def lengths(self, indices: np.ndarray) -> np.ndarray:
        """Lengths of pieces."""
        return self._lengths[indices]


def bert(num_tokens: int) -> nn.Module:
    from transformers import BertConfig, BertForMaskedLM

    shape = {"hidden_size": WIDTH, "num_hidden_layers": LAYERS, "num_attention_heads": HEADS}
    return BertForMaskedLM(BertConfig(vocab_size=num_tokens, intermediate_size=4 * WIDTH, **shape))


def x_transformer(num_tokens: int) -> nn.Module:
    from x_transformers import Encoder, TransformerWrapper

    layers = Encoder(dim=WIDTH, depth=LAYERS, heads=HEADS, attn_dim_head=WIDTH // HEADS)
    return TransformerWrapper(num_tokens=num_tokens, max_seq_len=LENGTH, attn_layers=layers)


MODELS: dict[str, Callable[[int], nn.Module]] = {"HF BertForMaskedLM": bert, "x-transformers": x_transformer}


def plain(make: Callable[[int], nn.Module], pieces: Pieces, autocast: torch.dtype | None) -> Iterator[int]:
    """Steps of the usual loop; yields the tokens of each."""
    torch.manual_seed(0)
    special = pieces.special
    model = make(special.num_tokens).train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4)
    framed = [[*special.prefix, *document, *special.suffix] for document in pieces.documents]
    stream = torch.tensor(list(itertools.chain.from_iterable(framed)))
    rows = stream[: len(stream) // LENGTH * LENGTH].view(-1, LENGTH)
    is_special = special.is_special()
    for start in itertools.cycle(range(0, len(rows) - ROWS, ROWS)):
        ids = rows[start : start + ROWS]
        selected = (torch.rand(ids.shape) < 0.15) & ~is_special[ids]
        labels = torch.where(selected, ids, -100)
        with torch.autocast("cpu", autocast, enabled=autocast is not None):
            output = model(ids.masked_fill(selected, special.mask_token_id))
            logits: Tensor = getattr(output, "logits", output)
            loss = F.cross_entropy(logits.flatten(0, 1), labels.flatten())
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        yield ids.numel()


def ours(make: Callable[[int], nn.Module], pieces: Pieces, autocast: torch.dtype | None) -> Iterator[int]:
    """Steps as `mlm train` takes them; yields the tokens of each, padding not counted."""
    torch.manual_seed(0)
    model = make(pieces.special.num_tokens)
    interface = inspect_rows(model, pieces.special)
    masker = PackMasker(pieces.special, 0)
    optimizers = build_optimizers(model.train(), "adamw", 1e-4, 0.01)
    alone = World()
    step = TrainingStep(
        Parallel(model, "auto", alone),
        lambda m, rows: padded_loss(m, interface, rows),
        optimizers,
        autocast=autocast,
        clip=1.0,
    )
    reader = Reader(pieces, ROWS * LENGTH, seed=0, longest=LENGTH, layout=PADDED)
    while True:
        rows = mask_padded(masker, next(reader.take(1)), 150_000)
        counts = alone.agree(rows.num_targets, rows.num_tokens, stop=bool, seconds=float)
        yield step([rows], 1e-4, counts).num_tokens


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=10, help="of each side in a round")
    parser.add_argument("--rounds", type=int, default=5)
    args = parser.parse_args()
    pieces, native = Pieces(), native_precision(torch.device("cpu"))
    cases = {}
    for name, make in MODELS.items():
        sides = {
            "plain float32": plain(make, pieces, None),
            "plain bfloat16": plain(make, pieces, torch.bfloat16),
            "ours": ours(make, pieces, native),
        }
        rates: dict[str, list[float]] = {side: [] for side in sides}
        for side in sides.values():
            next(side)  # kernels are chosen, optimizers get their state
        for _ in range(args.rounds):
            for side, steps in sides.items():
                start = time.perf_counter()
                tokens = sum(itertools.islice(steps, args.steps))
                rates[side].append(tokens / (time.perf_counter() - start))
        medians = {side: round(median(values)) for side, values in rates.items()}
        ratios = {side: round(medians["ours"] / rate, 2) for side, rate in medians.items() if side != "ours"}
        cases[name] = {"tokens_per_second": medians, "ours_over": ratios}
        print(name, json.dumps(cases[name]), flush=True)
    if (args.steps, args.rounds) == (10, 5):
        from machine import versions, write_result

        shape = {"width": WIDTH, "layers": LAYERS, "heads": HEADS, "length": LENGTH, "tokens_per_step": ROWS * LENGTH}
        write_result("others", {"shape": shape, "cases": cases, "versions": versions("transformers", "x-transformers")})


if __name__ == "__main__":
    main()
