"""This repository's own perf tests: the ready-made suite, which `pytest --llmperf` runs here."""

from pytest_llmperf.suite.test_quantization import pytest_generate_tests, test_generate

__all__ = ["pytest_generate_tests", "test_generate"]
