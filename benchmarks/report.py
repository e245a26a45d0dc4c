"""The report's page: how large, how soon open, how soon rewritten. In headless Chromium, which must be installed.

Bars: the page of a run of ten minutes has at most 2 MB and opens in 1 s; one of a million metric lines opens in 2 s.

    python benchmarks/report.py --corpus train.jsonl.gz        # trains for ten minutes, then measures
    python benchmarks/report.py --run runs/of-ten-minutes

The million lines are made up, with a loss that falls, spikes and diverges once, and stand in a run with the other's
model, so that both pages have all their sections. Opening is timed in a fresh browser context, from asking for the file
to every chart drawn and painted.
"""

import argparse
import json
import math
import random
import resource
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from statistics import median

from machine import versions, write_result
from playwright.sync_api import Browser, sync_playwright

from mlm_pytorch.huggingface import load_encoder
from mlm_pytorch.report import ReportWriter

BARS = {"page_bytes": 2_000_000, "open_seconds": 1.0, "open_seconds_million_lines": 2.0}
LINES = 1_000_000
REPEATS = 5


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--run", type=Path, help="a run of about ten minutes")
    parser.add_argument("--corpus", help="what to train on for ten minutes where no run is given")
    parser.add_argument("--budget", default="10m")
    parser.add_argument("--chromium", default=shutil.which("chromium") or shutil.which("google-chrome"))
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        run = arguments.run or trained(arguments.corpus, arguments.budget, Path(scratch) / "run")
        long_run = million_lines(run, Path(scratch) / "long")
        with sync_playwright() as playwright:
            browser = playwright.chromium.launch(executable_path=arguments.chromium, args=["--no-sandbox"])
            result = {
                "bars": BARS,
                "chromium": browser.version,
                "versions": versions("torch", "playwright"),
                "ten_minutes": measured(run, Path(scratch) / "ten-minutes.html", browser),
                "million_lines": measured(long_run, Path(scratch) / "million.html", browser),
            }
            browser.close()
    result["peak_memory_mib"] = round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024)
    short, long = result["ten_minutes"], result["million_lines"]
    failed = (
        short["page_bytes"] > BARS["page_bytes"]
        or short["open_seconds"] > BARS["open_seconds"]
        or long["open_seconds"] > BARS["open_seconds_million_lines"]
    )
    result["holds"] = not failed
    print(json.dumps(result, indent=1))
    write_result("report", result)
    return int(failed)


def trained(corpus: str | None, budget: str, out: Path) -> Path:
    if corpus is None:
        raise SystemExit("name a --run, or a --corpus to train on")
    command = [sys.executable, "-m", "mlm_pytorch", "train", corpus, "--model", "tiny", "--budget", budget]
    subprocess.run([*command, "--out", str(out)], check=True)
    return out


def million_lines(run: Path, folder: Path) -> Path:
    """A run with the other's model and store, and a million lines of metrics."""
    folder.mkdir()
    (folder / "config.yaml").write_bytes((run / "config.yaml").read_bytes())
    for name in ("store", "model"):
        if (run / name).exists():
            (folder / name).symlink_to((run / name).resolve())
    draw = random.Random(0)
    with (folder / "metrics.jsonl").open("w") as file:
        for step in range(1, LINES + 1):
            share = step / LINES
            loss = 4 + 5 * math.exp(-8 * share) + draw.gauss(0, 0.15) + 4 * (draw.random() < 1e-4)
            values = {
                "step": step,
                "tokens": 4096 * step,
                "seconds": round(0.08 * step, 3),
                "total_steps": LINES,
                "loss": math.nan if step == 700_000 else loss,
                "accuracy": 0.5 - 0.05 * loss + draw.gauss(0, 0.01),
                "lr": 4e-3 * min(1, 50 * share, 2 * (1 - share)),
                "mask_prob": 0.3 - 0.15 * share,
                "grad_norm": draw.lognormvariate(0, 0.3),
                "fill": 1 - draw.random() / 500,
                "tokens_per_second": draw.gauss(51_000, 900),
                "peak_share": draw.gauss(0.41, 0.01),
                "memory_bytes": 3_000_000_000,
                "num_targets": 1200,
                "skipped_steps": 0,
            }
            file.write(json.dumps(values) + "\n")
            if step % (LINES // 200) == 0:
                file.write(json.dumps({"step": step, "valid_loss": 4 + 5 * math.exp(-8 * share)}) + "\n")
    return folder


def measured(run: Path, out: Path, browser: Browser) -> dict:
    """Seconds and bytes of writing a run's page for the first time, of writing it again, and of opening it."""
    start = time.perf_counter()
    writer = ReportWriter([run], out)
    writer.write()
    seconds = {"write_seconds": round(time.perf_counter() - start, 3)}
    model = load_encoder(run)
    rewrites = []
    for _ in range(REPEATS):  # as training does at each evaluation
        start = time.perf_counter()
        writer.write(model, num_tokens=0, num_samples=3)
        rewrites.append(time.perf_counter() - start)
    writer.write()
    opened = [opening(out, browser) for _ in range(REPEATS + 1)][1:]  # the first one also loads the browser's own parts
    return seconds | {
        "rewrite_seconds": round(median(rewrites), 3),
        "metrics_bytes": (run / "metrics.jsonl").stat().st_size,
        "page_bytes": out.stat().st_size,
        "open_seconds": round(median(opened), 3),
        "open_seconds_each": [round(value, 3) for value in opened],
    }


def opening(page_file: Path, browser: Browser) -> float:
    context = browser.new_context(viewport={"width": 1280, "height": 900})
    page = context.new_page()
    complaints: list[str] = []
    page.on("console", lambda message: complaints.append(message.text))
    page.on("pageerror", lambda error: complaints.append(str(error)))
    start = time.perf_counter()
    page.goto(page_file.as_uri())
    page.wait_for_selector("html[data-ready]", state="attached")
    page.evaluate("new Promise(done => requestAnimationFrame(() => requestAnimationFrame(done)))")
    seconds = time.perf_counter() - start
    assert page.locator("figure.chart path.curve").count() >= 7
    assert not complaints, complaints
    context.close()
    return seconds


if __name__ == "__main__":
    sys.exit(main())
