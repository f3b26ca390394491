"""Verdicts from measured figures and baselines: pure, without torch."""
