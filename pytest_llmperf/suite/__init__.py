"""Ready-made perf tests: ``pytest --llmperf --pyargs pytest_llmperf.suite``."""
