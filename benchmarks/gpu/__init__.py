"""The stages of ``gpu_day.py``."""
