"""One pytest run: options, hooks, measuring, and the end of the session."""
