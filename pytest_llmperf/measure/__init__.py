"""One measurement from start to end."""
