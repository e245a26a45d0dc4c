"""`mlm report`: one page about one run or several."""

from mlm_pytorch.cli.options import ReportConfig
from mlm_pytorch.report import ReportWriter
from mlm_pytorch.training.metrics import Display


def report_command(config: ReportConfig) -> None:
    """`mlm report`."""
    for name in ("samples", "held_out_tokens"):
        if getattr(config, name) < 0:
            raise ValueError(f"--{name.replace('_', '-')} {getattr(config, name)} is negative; give 0 for none")
    writer = ReportWriter(config.runs, config.out)
    with Display() as display:

        def show(name: str, done: int) -> None:
            display.show("looking at the model", min(1.0, done / config.held_out_tokens), f"{name}: {done:,} tokens")

        out = writer.write(num_tokens=config.held_out_tokens, num_samples=config.samples, progress=show)
    print(f"{out}: {out.stat().st_size / 1e6:.2f} MB, opens in any browser without a network")
