"""Measurements: generation, serving and kernel timing, with their guards."""
