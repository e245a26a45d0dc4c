"""A corpus examined, and what must be found in it."""

import numpy as np

from mlm_pytorch.cli.options import DoctorConfig
from mlm_pytorch.doctor.examination import Report, examine

LEVELS = ("green", "yellow", "red")


def look(*corpus: str, **options) -> Report:
    return examine(DoctorConfig(corpus=corpus, **({"trial_seconds": 0.0} | options)))


def level(report: Report, check: str) -> str:
    return max((f.level for f in report.findings if f.check == check), key=LEVELS.index)


def assert_found(report: Report, check: str, least: str = "yellow") -> None:
    assert LEVELS.index(level(report, check)) >= LEVELS.index(least), [f for f in report.findings if f.check == check]
    finding = next(f for f in report.findings if f.check == check and f.level != "green")
    assert finding.seen
    assert finding.why
    assert finding.remedy


RUSSIAN = (
    "Старый учитель нашёл сломанные часы посреди ночи, и никто не знал почему. Потом пришла зима, и река замёрзла. "
)


def ids(count: int = 300, size: int = 50) -> list[list[int]]:
    draw = np.random.default_rng(0)
    return [draw.integers(5, size, draw.integers(20, 60)).tolist() for _ in range(count)]
