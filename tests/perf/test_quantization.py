"""This repository's own perf tests: the ready-made suite, run by `pytest --llmperf`."""

from pytest_llmperf.suite.test_quantization import pytest_generate_tests, test_generate

__all__ = ["pytest_generate_tests", "test_generate"]
