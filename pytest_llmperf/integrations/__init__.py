"""What joins this plugin to others: loaded only where the other one is there."""
