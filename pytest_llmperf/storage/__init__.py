"""What is stored, and where: baselines, journals, profiles."""
