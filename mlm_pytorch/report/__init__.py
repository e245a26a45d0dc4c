"""The page about runs, and the card of the model that came out of one."""

from mlm_pytorch.report.card import model_card
from mlm_pytorch.report.page import ReportWriter, write_report

__all__ = ["ReportWriter", "model_card", "write_report"]
