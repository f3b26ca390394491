"""Models to measure: specs, quantizations, synthetic models, loading and release."""
