"""Guardrails: what must hold before figures are believed, and before a model is shipped."""
