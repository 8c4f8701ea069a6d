"""The report: one HTML page about a scored pool. Reads a run directory and its pool; imports no torch."""

from onesteptrain.reporting.page import ReportOptions, write_report

__all__ = ["ReportOptions", "write_report"]
