"""Metrics: functions of what an evaluation found (`evaluation.results`), each with its interval over users."""
