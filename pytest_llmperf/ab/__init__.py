"""Two revisions, interleaved on one machine until the answer is clear: ``llmperf ab``."""
