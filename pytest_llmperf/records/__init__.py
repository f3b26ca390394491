"""What is stored, and where: pure data, no torch."""
