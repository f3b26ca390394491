"""Executions of decode: ``generate`` of transformers, a greedy loop, torch.compile, and CUDA graphs."""
