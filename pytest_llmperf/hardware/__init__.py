"""Hardware access through torch and the drivers: clocks, memory, device facts and monitors."""
