"""The report: a self-contained page about one run or several, and its pictures."""

from fym.report.page import write_index, write_report

__all__ = ["write_index", "write_report"]
