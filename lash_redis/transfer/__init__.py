"""Export and import of sessions as JSON Lines: streaming, resumable, verified.

The first line is a header. The last line is an end that counts the others, so a file without it is incomplete. A blob
has a line of its own, once, before the first session that names it. A session's line has the JSON shapes of the lash
contract: head with graph and ledger, manifest, meta. It also has what makes it the same session in another namespace:
the id of its last commit, its receipts, its own ttl, the time of its last commit, its owner. Tombstoned nodes are not
exported.
"""

from lash_redis.transfer.exporting import export_sessions
from lash_redis.transfer.importing import import_sessions

__all__ = ["export_sessions", "import_sessions"]
