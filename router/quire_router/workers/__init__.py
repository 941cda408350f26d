"""Several processes that are one router: they share a port, their load and their metrics."""
