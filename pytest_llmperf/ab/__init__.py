"""Paired A/B comparison of two revisions on one machine, in interleaved blocks: ``llmperf ab``."""
