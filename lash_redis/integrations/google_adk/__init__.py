"""Sessions of Google's Agent Development Kit: `Runner(agent=..., session_service=LashSessionService(cache))`.

Install the extra `google-adk`.
"""

from lash_redis.integrations.google_adk.importing import import_sessions
from lash_redis.integrations.google_adk.service import LashSessionService

__all__ = ["LashSessionService", "import_sessions"]
