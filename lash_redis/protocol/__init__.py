"""Requests, replies and stored forms, and their encoding. No I/O."""
