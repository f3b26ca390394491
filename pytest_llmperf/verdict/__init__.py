"""What may be concluded from two sets of numbers: pure, no torch."""
