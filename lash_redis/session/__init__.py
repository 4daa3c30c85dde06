"""One session: its store, and the reads, commits, leases and watches behind it."""
