"""Look at a corpus and a setup before hours are spent on them.

    examination.examine: DoctorConfig -> Report    all of it; what `mlm doctor` runs
    Finding                                        green, yellow or red, what was seen, why it matters, one remedy

The checks are small pure functions of a sample: see `text`, `corpus`, `languages`, `tokens`, `masks`, `setup`, `trial`
and `ranks`.
"""

from mlm_pytorch.doctor.findings import Finding, Level, worst

__all__ = ["Finding", "Level", "worst"]
