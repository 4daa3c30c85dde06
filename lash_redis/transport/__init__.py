"""How commands reach a server: one request value passes through backend, topology and node to a connection.

`backend` retries within one time budget, a topology decides which server is asked, a node owns the connections to one
server, and a connection carries any number of requests at once. `failures` decides what an error means.
"""
