"""Ways to decode: transformers' own loop, a bare one, compiled, and from CUDA graphs."""
