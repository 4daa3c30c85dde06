"""Send commands to a server: one `Request` passes through backend, topology and node to a connection.

The backend retries within one time budget. A topology chooses the server. A node owns the connections to one server. A
connection carries any number of concurrent requests. `failures` classifies errors.
"""
