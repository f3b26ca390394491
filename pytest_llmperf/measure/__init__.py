"""Measuring: clocks, warm-up, generation, memory and counters. torch lives here."""

METHOD = 2
"""Version of how numbers come about. Runs of different versions are not compared."""
