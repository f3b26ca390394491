"""Statistics, pure: no records, no torch."""
