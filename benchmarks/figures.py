"""Draw the figures of `docs/how/` from what the package really does (needs the extra `plots`).

mlm demo --out runs/demo --budget 600steps
python benchmarks/figures.py runs/demo docs/images
python benchmarks/figures.py runs/demo docs/images --only packing order

Nothing in them is invented: masks, packs, cursors and bytes come from the package's own functions on the demo's store,
curves from the demo's metrics.jsonl, and measured bars from `benchmarks/results/`.
"""

import argparse
import itertools
import json
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("svg")
import matplotlib.pyplot as plt
import numpy as np
import pyarrow as pa
import torch
from matplotlib.axes import Axes
from matplotlib.colors import ListedColormap
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from torch import nn

from mlm_pytorch import MLM, masking
from mlm_pytorch.data.batches import Reader
from mlm_pytorch.data.packing import build_pack, sequential_packs
from mlm_pytorch.data.prepare import prepare
from mlm_pytorch.data.store import TokenStore
from mlm_pytorch.data.tokenizer import Tokenizer, load_tokenizer
from mlm_pytorch.objective.head import logits_at
from mlm_pytorch.training.config import TrainConfig

# Readable on paper, on a light page and, since the ground is drawn too, on a dark one.
INK, FAINT, GROUND = "#24292f", "#d6dbe1", "#ffffff"
BLUE, ORANGE, GREEN, RED, GREY = "#2f6fb0", "#e08e2b", "#3c8f5a", "#c0504d", "#8b949e"
STYLE = {
    "svg.hashsalt": "mlm-pytorch",
    "svg.fonttype": "none",  # text stays text: a tenth of the size, and it can be searched
    "font.family": ["DejaVu Sans", "sans-serif"],
    "font.size": 9,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.edgecolor": GREY,
    "axes.titlesize": 9.5,
    "axes.titlelocation": "left",
    "text.color": INK,
    "axes.labelcolor": INK,
    "xtick.color": INK,
    "ytick.color": INK,
    "figure.facecolor": GROUND,
    "savefig.facecolor": GROUND,
}
SENTENCE = "Return the absolute path of a directory; remove the temporary file when an exception is raised."
RATE = 0.30
RESULTS = Path(__file__).parent / "results"


def bare(axes: Axes) -> Axes:
    """Axes without axes: a sheet to draw boxes on."""
    axes.set_axis_off()
    return axes


def box(axes: Axes, x: float, y: float, width: float, height: float = 0.8, **style: Any) -> None:
    axes.add_patch(Rectangle((x, y), width, height, **({"facecolor": FAINT, "edgecolor": GROUND} | style)))


# --- masking ----------------------------------------------------------------------------------------------------------


def _selections(ids: torch.Tensor, tokenizer: Tokenizer) -> dict[str, torch.Tensor]:
    """What each selection takes of one document at RATE, from the scores of visit 0."""
    special = tokenizer.special
    maskable = ~special.is_special()[ids]
    words = masking.derive_words(tokenizer.backend)
    number = torch.zeros(1, 1, dtype=torch.int64)
    scores = masking.hash_scores(0, number, number + 7, torch.arange(ids.shape[1]))
    common = (scores, ids, maskable, masking.millionths(RATE))
    return {
        "tokens": masking.select_tokens(*common),
        "words": masking.select_words(*common, words=words),
        "n-grams": masking.select_ngrams(*common, words=words),
        "spans": masking.select_spans(*common),
        "balanced, visit 0": masking.select_balanced(*common, visits=0),
        "balanced, visit 1": masking.select_balanced(*common, visits=1),
        "scores": scores,
    }


def draw_masking(run: Path) -> Figure:
    """A sentence under every selection, and what BERT's 80/10/10 makes of the first."""
    tokenizer = load_tokenizer(str(run / "store" / "tokenizer"))
    ids = torch.tensor([tokenizer.encode(SENTENCE)])
    shown = [(tokenizer.backend.id_to_token(i) or "?").replace("Ġ", "␣") for i in ids[0].tolist()]
    rows = _selections(ids, tokenizer)
    scores = rows.pop("scores")
    special = tokenizer.special
    corrupted = masking.corrupt(
        ids,
        rows["tokens"],
        scores,
        mask_token_id=special.mask_token_id,
        replace_prob=0.9,
        random_token_prob=0.1,
        drawable_ids=special.drawable_ids(),
    )
    widths = [0.62 + 0.2 * max(len(token), 2) for token in shown]
    left = np.concatenate(([0], np.cumsum(widths)))
    figure, axes = plt.subplots(figsize=(11, 3.3), layout="constrained")
    bare(axes)
    for place, token in enumerate(shown):
        axes.text(left[place] + widths[place] / 2, 0.4, token, ha="center", va="center", fontsize=7.5)
    for row, (name, selected) in enumerate(rows.items(), start=1):
        taken = selected[0].tolist()
        axes.text(-0.3, -row + 0.4, name, ha="right", va="center")
        for place, flag in enumerate(taken):
            box(axes, left[place], -row, widths[place], facecolor=BLUE if flag else FAINT)
        axes.text(left[-1] + 0.3, -row + 0.4, f"{sum(taken)}", va="center")
    row = len(rows) + 1
    axes.text(-0.3, -row + 0.4, "seen by the model", ha="right", va="center")
    for place, (seen, original) in enumerate(zip(corrupted.input_ids[0].tolist(), ids[0].tolist(), strict=True)):
        selected = bool(corrupted.selected[0, place])
        token = (tokenizer.backend.id_to_token(seen) or "?").replace("Ġ", "␣")
        token = "[M]" if seen == special.mask_token_id else token
        colour = (
            (BLUE if seen == special.mask_token_id else ORANGE if seen != original else GREEN) if selected else FAINT
        )
        box(axes, left[place], -row, widths[place], facecolor=colour)
        style = {"color": GROUND, "weight": "bold"} if selected else {}
        axes.text(left[place] + widths[place] / 2, -row + 0.4, token, ha="center", va="center", fontsize=7, **style)
    axes.text(left[-1] + 0.3, 0.4, "selected", va="center")
    axes.set(xlim=(-6.2, left[-1] + 3.4), ylim=(-row - 0.2, 1))
    return figure


# --- the sparse head --------------------------------------------------------------------------------------------------


def draw_sparse_head(run: Path) -> Figure:
    """Where in a batch logits exist, and what leaving the others out gives."""
    store = TokenStore.open(run / "store")
    special = store.special
    rows, width = 12, 64
    ids = torch.full((rows, width), special.pad_token_id)
    for row in range(rows):
        piece = build_pack(store, np.array([row * 40 + 11]), np.zeros(1, np.int64)).input_ids[:width]
        ids[row, : len(piece)] = torch.from_numpy(piece)
    transformer = nn.Sequential(nn.Embedding(4096, 32), nn.Linear(32, 32), nn.Linear(32, 4096))
    torch.manual_seed(0)
    mlm = MLM(transformer, mask_token_id=special.mask_token_id, mask_ignore_token_ids=special.ids)
    corrupted = mlm.corrupt(ids)
    positions = corrupted.selected.flatten().nonzero().squeeze(1)
    with torch.no_grad():
        logits = logits_at(transformer, "2", positions, corrupted.input_ids)
    assert logits.shape[0] == len(positions)

    figure, (grid, speed, memory) = plt.subplots(
        1, 3, figsize=(11, 2.7), layout="constrained", width_ratios=(5, 1.6, 1.6)
    )
    bare(grid)
    kinds = torch.where(corrupted.selected, 2, (ids != special.pad_token_id).long())  # padding, token, selected
    grid.imshow(kinds, cmap=ListedColormap(["#f3f5f7", "#c3cad2", BLUE]), aspect="auto", interpolation="nearest")
    grid.vlines(np.arange(-0.5, width), -0.5, rows - 0.5, color=GROUND, linewidth=0.8)
    grid.hlines(np.arange(-0.5, rows), -0.5, width - 0.5, color=GROUND, linewidth=0.8)
    tokens = int((ids != special.pad_token_id).sum())
    grid.set_title(f"{ids.numel()} positions, {tokens} tokens: logits {tuple(logits.shape)} at the blue ones alone")
    measured = json.loads((RESULTS / "seed_bert.json").read_text())["medians"]
    names, colours = ("through MLM", "its own labels="), (BLUE, GREY)
    sides = (measured["ours"], measured["labels= bf16"])
    for axes, key, title in (
        (speed, "tokens_per_second", "tokens/s"),
        (memory, "peak_memory_mib", "peak memory, MiB"),
    ):
        values = [side[key] for side in sides]
        axes.bar(names, values, color=colours, width=0.6)
        for place, value in enumerate(values):
            axes.text(place, value, f"{value:,.0f}", ha="center", va="bottom")
        axes.set_title(title)
        axes.set_yticks([])
        axes.spines["left"].set_visible(False)
        axes.tick_params(axis="x", labelsize=8)
    return figure


# --- packing ----------------------------------------------------------------------------------------------------------


def draw_packing(run: Path) -> Figure:
    """A pack of the demo's store, who sees whom in it, and how full packs are."""
    store, capacity = TokenStore.open(run / "store"), 512
    pack = next(Reader(store, capacity, seed=0, longest=store.seq_len).take(1))
    figure = plt.figure(figsize=(11, 3.4), layout="constrained")
    panels = figure.subplot_mosaic([["strip", "mask"], ["fills", "mask"]], width_ratios=(2.1, 1))
    strip, mask, fills = bare(panels["strip"]), panels["mask"], panels["fills"]
    borders = pack.cu_seqlens
    for place, (start, end, piece) in enumerate(zip(borders[:-1], borders[1:], pack.pieces, strict=True)):
        box(strip, start, 0, end - start, facecolor=GREY if piece < 0 else (BLUE, "#5b93c7")[place % 2])
        if end - start > 24:
            middle = (start + end) / 2
            strip.text(middle, 0.4, f"{end - start}", color=GROUND, ha="center", va="center")
            strip.text(middle, 0.95, f"#{piece:,}", ha="center", fontsize=7.5)
    strip.set_title(f"one pack of {capacity} tokens: whole pieces, their lengths, and their numbers in the store")
    strip.set(xlim=(0, capacity), ylim=(-0.2, 1.4))
    for row, (how, fill) in enumerate(_fills(store, capacity).items()):
        fills.barh(row, fill, color=(BLUE, GREY, GREY)[row], height=0.7)
        fills.text(0.01, row, f"{how}: {fill:.2%}", color=GROUND, va="center")
    fills.set_title("share of the slots that hold tokens")
    fills.set(xlim=(0, 1), yticks=[])
    fills.invert_yaxis()
    for start, end in itertools.pairwise(borders):
        box(mask, start, start, end - start, end - start, facecolor=BLUE, linewidth=0.4)
    mask.set(xlim=(0, capacity), ylim=(capacity, 0), aspect="equal", xlabel="key", ylabel="query")
    mask.set_title("who sees whom")
    return figure


def _fills(store: TokenStore, capacity: int) -> dict[str, float]:
    count = 400
    reader = Reader(store, capacity, seed=0, longest=store.seq_len)
    best = sum(pack.num_tokens for pack in reader.take(count)) / (count * capacity)
    packs = zip(range(count), sequential_packs(store, capacity), strict=False)
    plain = sum(pack.num_tokens for _, pack in packs) / (count * capacity)
    framing = len(store.special.prefix) + len(store.special.suffix)
    longest = store.seq_len
    lengths = store.lengths(np.arange(4096)) + framing
    return {
        "filled with the largest that fits of 64 that wait": best,
        "pieces as they come": plain,
        f"a row of {longest} for each": float(lengths.mean() / longest),
    }


# --- order and resume -------------------------------------------------------------------------------------------------


def draw_order(run: Path) -> Figure:
    """Where a reader stands after 120 packs, and that its order is a shuffle."""
    store = TokenStore.open(run / "store")
    reader = Reader(store, 2048, seed=0, longest=store.seq_len)
    for _ in reader.choose(120):
        pass
    figure, (streams, order) = plt.subplots(1, 2, figsize=(11, 3.4), layout="constrained", width_ratios=(1.7, 1))
    for stream, cursor in enumerate(reader.position.cursors):
        streams.barh(stream, cursor.drawn, color="#a9c6e3", height=0.7)
        waiting = cursor.waiting.serials
        runs = np.split(waiting, np.flatnonzero(np.diff(waiting) > 1) + 1)
        streams.broken_barh([(run[0], len(run)) for run in runs if len(run)], (stream - 0.35, 0.7), color=ORANGE)
    size = len(json.dumps(reader.position.to_json()))
    streams.set_title(f"16 streams after 120 packs: served (blue), waiting (orange); {size:,} bytes say it all")
    streams.set(xlabel="pieces of the stream, in its order", ylabel="stream", yticks=range(0, 16, 3))
    streams.invert_yaxis()
    first = np.arange(600)
    pieces, _ = reader.order.serve(0, first)
    order.scatter(first, pieces, s=3, color=BLUE, linewidths=0, rasterized=True)
    order.set(xlabel="piece of stream 0, in its order", ylabel=f"its place in the store of {len(store):,}")
    order.set_title("the order is computed, not stored")
    return figure


# --- the store's bytes ------------------------------------------------------------------------------------------------


def draw_store(run: Path) -> Figure:
    """The bytes of a shard of three short documents."""
    tokenizer = load_tokenizer(str(run / "store" / "tokenizer"))
    with tempfile.TemporaryDirectory() as folder:
        corpus = Path(folder) / "three.txt"
        corpus.write_text("import os\nreturn self.name\nraise ValueError\n")
        prepare([corpus], Path(folder) / "store", tokenizer=tokenizer, seq_len=64, valid_share=0.0)
        content = (Path(folder) / "store" / "train-00000.arrow").read_bytes()
    figure, axes = plt.subplots(figsize=(11, 3.6), layout="constrained")
    bare(axes)
    _draw_bytes(axes, content, tokenizer)
    return figure


def _draw_bytes(axes: Axes, content: bytes, tokenizer: Tokenizer) -> None:
    """Each buffer of the one record batch on a line: address, values, and what they mean."""
    buffer = pa.py_buffer(content)
    batch = pa.ipc.open_file(buffer).get_batch(0)
    tokens, source = batch.column("tokens"), batch.column("source")
    offsets, values = tokens.buffers()[1], tokens.values.buffers()[1]
    ends, texts = source.buffers()[1:]

    def place(part: Any) -> int:
        return part.address - buffer.address

    ids = tokens.values.to_pylist()
    words = [(tokenizer.backend.id_to_token(i) or "?").replace("Ġ", "␣") for i in ids]
    numbers = tokens.offsets.to_pylist()
    footer = int.from_bytes(content[-10:-6], "little")
    lines = [
        (
            0,
            "magic, schema, and the record batch's own description",
            [f"{content[:6].decode()} … {place(offsets)} bytes"],
        ),
        (place(offsets), "offsets, int64: where each piece begins", list(map(str, numbers))),
        (
            place(values),
            f"values, {tokens.values.type}: the ids themselves",
            [f"{i}\n{w}" for i, w in zip(ids, words, strict=True)],
        ),
        (place(ends), "source, its offsets, int32", [str(n) for n in np.frombuffer(ends, np.int32)[: len(source) + 1]]),
        (place(texts), "source, its text", [source[i].as_py() for i in range(len(source))]),
        (
            len(content) - 10 - footer,
            "footer: where the batch lies; length; magic",
            [f"… {footer} bytes", str(footer), "ARROW1"],
        ),
    ]
    colours = (GREY, ORANGE, BLUE, "#b9a06a", "#7f9f7f", GREY)
    for row, ((address, meaning, cells), colour) in enumerate(zip(lines, colours, strict=True)):
        axes.text(0, -row + 0.38, f"{address:>5}", family="monospace", va="center")
        left = 1.5
        for cell in cells:
            width = max(0.75, 0.17 * max(map(len, cell.split("\n"))) + 0.35)
            box(axes, left, -row, width, facecolor=colour)
            axes.text(left + width / 2, -row + 0.38, cell, color=GROUND, ha="center", va="center", fontsize=7.5)
            left += width
        axes.text(left + 0.3, -row + 0.38, meaning, va="center", fontsize=8.5)
    axes.text(0, 1, f"byte   of a shard of {len(content):,} bytes that holds {len(tokens)} pieces", va="center")
    axes.set(xlim=(0, 22), ylim=(-len(lines) + 0.8, 1.3))


# --- the recipe -------------------------------------------------------------------------------------------------------


def draw_recipe(run: Path) -> Figure:
    """Learning rate, masking rate and loss of the demo over its progress."""
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    steps = [line for line in lines if "loss" in line]
    held_out = [line for line in lines if "valid_loss" in line]
    total = steps[-1]["total_steps"]
    config = TrainConfig.from_yaml((run / "config.yaml").read_text())
    figure, axes = plt.subplots(1, 3, figsize=(11, 2.8), layout="constrained")
    progress = [line["step"] / total for line in steps]
    for panel, key, colour in ((axes[0], "lr", BLUE), (axes[1], "mask_prob", ORANGE)):
        panel.plot(progress, [line[key] for line in steps], color=colour)
        panel.set(xlabel="share of the budget spent", ylim=(0, None))
    axes[0].set_title(
        f"learning rate: {config.schedule}, warm-up {config.warmup_share:.0%}, decay {config.decay_share:.0%}"
    )
    axes[1].set_title("masking rate")
    axes[2].plot(progress, [line["loss"] for line in steps], color=BLUE, linewidth=0.6, alpha=0.6, label="training")
    where = [line["step"] / total for line in held_out]
    axes[2].plot(where, [line["valid_loss"] for line in held_out], "o-", color=RED, markersize=4, label="held out")
    axes[2].set(xlabel="share of the budget spent")
    axes[2].set_title("loss, nats per predicted token")
    axes[2].legend(frameon=False)
    return figure


FIGURES: dict[str, Callable[[Path], Figure]] = {
    "masking": draw_masking,
    "sparse_head": draw_sparse_head,
    "packing": draw_packing,
    "order": draw_order,
    "store": draw_store,
    "recipe": draw_recipe,
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path, help="folder of a demo run")
    parser.add_argument("folder", type=Path, help="where to write the pictures")
    parser.add_argument("--only", nargs="+", choices=FIGURES, default=list(FIGURES))
    arguments = parser.parse_args()
    plt.rcParams |= STYLE
    for name in arguments.only:
        figure = FIGURES[name](arguments.run)
        path = arguments.folder / f"{name}.svg"
        figure.savefig(path, metadata={"Date": None})
        print(f"{path}: {path.stat().st_size:,} bytes")


if __name__ == "__main__":
    main()
