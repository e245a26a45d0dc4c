"""Ten minutes on ten million words: `mlm train` from raw files to a Hugging Face model, scored from outside.

Trains the `mini` preset on the mix10m corpus with its 16k tokenizer, then lets the corpus' own scorer, which knows
nothing of this package, load the model through transformers and measure its loss on held-out text. Bar: 5.3 nats. For
comparison: the Hugging Face Trainer reaches 7.53 in the same time on the same machine (`peer_hf.py` beside the scorer).

    python benchmarks/text.py                       # needs the folder `shared` beside the checkout
    python benchmarks/text.py --budget 2m --out runs/short
"""

import argparse
import json
import subprocess
import sys
import tempfile
from pathlib import Path

from machine import versions, write_result

SHARED = Path(__file__).parents[2] / "shared"
BAR_NATS = 5.3


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--budget", default="10m")
    parser.add_argument("--out", type=Path, help="keep the run here; by default in a temporary folder")
    parser.add_argument("--model", default="mini")
    arguments, more = parser.parse_known_args()
    corpus = SHARED / "data" / "mix10m"
    if not corpus.is_dir():
        raise SystemExit(f"{corpus} is missing; this benchmark needs that corpus")
    with tempfile.TemporaryDirectory() as scratch:
        out = arguments.out or Path(scratch) / "run"
        train = ["train", str(corpus / "train.jsonl.gz"), "--out", str(out), "--budget", arguments.budget]
        train += ["--tokenizer", str(corpus / "tokenizer-16k"), "--model", arguments.model, *more]
        subprocess.run([sys.executable, "-m", "mlm_pytorch", *train], check=True)
        score = [str(SHARED / "tools" / "masked_loss.py"), str(out / "model"), str(corpus / "valid.jsonl.gz")]
        done = subprocess.run([sys.executable, *score], check=True, capture_output=True, text=True)
        lines = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
        weights = (out / "model" / "model.safetensors").stat().st_size
    steps = [line for line in lines if "loss" in line]
    scored = json.loads(done.stdout.splitlines()[-1])
    result = {
        "command": "mlm " + " ".join(word.replace(f"{corpus}/", "") for word in train if word != str(out)),
        "masked_loss": scored,
        "bar_nats": BAR_NATS,
        "parameters_millions": round(weights / 4e6, 2),
        "steps": len(steps),
        "tokens": steps[-1]["tokens"],
        "seconds": steps[-1]["seconds"],
        "tokens_per_second": round(steps[-1]["tokens"] / steps[-1]["seconds"]),
        "fill": round(sum(line["fill"] for line in steps) / len(steps), 4),
        "versions": versions("torch", "transformers", "tokenizers"),
    }
    print(json.dumps(result, indent=2))
    write_result(f"text_{arguments.budget}", result)
    raise SystemExit(arguments.budget == "10m" and scored["loss"] > BAR_NATS)


if __name__ == "__main__":
    main()
