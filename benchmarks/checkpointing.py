"""What does saving cost? Training with a checkpoint every 100 steps against training without. Bar: 2% of the time.

Both run in one process on one model, taking turns of 100 steps: one turn with a checkpoint at its end, which is written
while the next turn's steps go on, one without. Only a quiet machine tells anything.

    python benchmarks/checkpointing.py              # needs the folder `shared` beside the checkout
    python benchmarks/checkpointing.py --turns 2 --steps 20 --model tiny
"""

import argparse
import json
import os
import statistics
import sys
import tempfile
import time
from itertools import pairwise
from pathlib import Path

SHARED = Path(__file__).parents[2] / "shared" / "data" / "mix10m"
BAR_SHARE = 0.02


def main() -> None:
    from mlm_pytorch.cli import main as mlm
    from mlm_pytorch.training.trainer import Trainer

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--turns", type=int, default=5, help="of each kind")
    parser.add_argument("--steps", type=int, default=100, help="of a turn")
    parser.add_argument("--model", default="mini")
    parser.add_argument("--corpus", type=Path, default=SHARED / "train.jsonl.gz")
    parser.add_argument("--tokenizer", type=Path, default=SHARED / "tokenizer-16k")
    parser.add_argument("--no-record", action="store_true")
    options = parser.parse_args()
    if not options.corpus.is_file():
        raise SystemExit(f"{options.corpus} is missing; name a corpus with --corpus")

    begun, blocked, written = [], [], []  # seconds: when each turn began, what a save held up, what its writing took
    save = Trainer.checkpoint

    def at_every_second_turn(self: Trainer) -> bool:
        """Turn 0 warms up; the saves at the ends of turns 0, 2, 4, … are written during turns 1, 3, 5 and so on."""
        if self.progress.step % options.steps == 0:
            begun.append(time.perf_counter())
            written.append(self.writer.seconds)
        return self.progress.step % (2 * options.steps) == options.steps

    def timed(self: Trainer) -> None:
        start = time.perf_counter()
        save(self)
        blocked.append(time.perf_counter() - start)

    Trainer._checkpoint_due, Trainer.checkpoint = at_every_second_turn, timed
    total = options.steps * (2 * options.turns + 1)
    with tempfile.TemporaryDirectory() as scratch:
        train = ["train", str(options.corpus), "--out", str(Path(scratch) / "run"), "--model", options.model]
        train += ["--tokenizer", str(options.tokenizer)] if options.tokenizer.is_dir() else []
        mlm([*train, "--budget", f"{total}steps", "--evaluations", "0"])
    turns = [after - before for before, after in pairwise(begun)]
    saving, not_saving = statistics.median(turns[0::2]), statistics.median(turns[1::2])
    share = saving / not_saving - 1
    result = {"share_of_time": round(share, 4), "bar_share": BAR_SHARE, "seconds_per_turn_saving": round(saving, 3)}
    result |= {"seconds_per_turn": round(not_saving, 3), "steps": options.steps, "turns": options.turns}
    result |= {"seconds_held_up": round(statistics.median(blocked), 4), "seconds_written": round(max(written), 3)}
    result |= {"all_turns": [round(turn, 3) for turn in turns], "model": options.model, "load": os.getloadavg()[0]}
    print(json.dumps(result), file=sys.stderr)
    if not options.no_record:
        from machine import write_result

        write_result("checkpointing", result)
    raise SystemExit(share > BAR_SHARE)


if __name__ == "__main__":
    main()
