"""`lash-redis replay`: play conversations through worker processes, and verify what was stored."""
