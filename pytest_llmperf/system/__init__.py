"""Services of the machine: processes, paths, git, interrupts."""
