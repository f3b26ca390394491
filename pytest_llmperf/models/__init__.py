"""Which model to measure, and getting it into memory and out again. torch and transformers live here."""
