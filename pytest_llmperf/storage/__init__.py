"""Storage: read and write baselines, journals and profiles."""
