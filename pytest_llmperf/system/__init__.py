"""System services: processes, paths, git, interrupts."""
