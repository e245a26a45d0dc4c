"""Draw the loss of runs over time; needs the extra `plots`.

python benchmarks/plot.py docs/images/demo.svg runs/demo
"""

import argparse
import json
from pathlib import Path

import matplotlib

matplotlib.use("svg")
import matplotlib.pyplot as plt


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("picture", type=Path)
    parser.add_argument("runs", type=Path, nargs="+")
    arguments = parser.parse_args()
    plt.rcParams |= {"svg.hashsalt": "mlm-pytorch", "axes.spines.top": False, "axes.spines.right": False}
    figure, axes = plt.subplots(figsize=(7, 3), layout="constrained")
    for run in arguments.runs:
        lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
        steps = [line for line in lines if "loss" in line]
        when = {line["step"]: line["seconds"] for line in steps}
        losses, smooth, mean = [line["loss"] for line in steps], [], steps[0]["loss"]
        for loss in losses:
            mean += 0.06 * (loss - mean)
            smooth.append(mean)
        seconds = [line["seconds"] for line in steps]
        (drawn,) = axes.plot(seconds, smooth, label=f"{run.name}, training (smoothed)")
        axes.plot(seconds, losses, color=drawn.get_color(), alpha=0.2, linewidth=0.6)
        held_out = [(when[line["step"]], line["valid_loss"]) for line in lines if "valid_loss" in line]
        if held_out:
            axes.plot(*zip(*held_out, strict=True), "o-", markersize=4, label=f"{run.name}, held out")
    axes.set(xlabel="seconds of training", ylabel="nats per masked token")
    axes.legend(frameon=False)
    figure.savefig(arguments.picture, metadata={"Date": None})


if __name__ == "__main__":
    main()
