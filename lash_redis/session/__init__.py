"""One session's store: what a handle does and what it knows."""
