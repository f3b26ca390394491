"""Engines that serve requests: transformers or vLLM in this process, or a server."""
