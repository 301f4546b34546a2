"""The page about a run's evaluation. Every figure has a sentence beneath it that says how to read it."""

from evaluation.report.page import render_report

__all__ = ["render_report"]
