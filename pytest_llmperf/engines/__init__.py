"""What serves requests: transformers in this process, another engine, or a server."""
