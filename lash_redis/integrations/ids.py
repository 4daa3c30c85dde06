"""Ids and owners for the texts of a framework that takes any text.

| framework | its text | becomes |
| --- | --- | --- |
| OpenAI Agents, LangGraph | session id, `thread_id` | the session id as it is; what is no valid id is `InvalidRecord` |
| Pydantic AI | conversation id; scope | `id_of`: the session id; the owner |
| Google ADK | user id | `id_of`: the owner |
| Google ADK | app, user and session id | a path: see `google_adk/names.py` |

An application chooses the ids of the first row itself, and passes them to `cache.chat`, too, so they are not changed.
The stores of Pydantic AI and ADK accept any text, so these adapters do. The names of ADK have to be decoded from the
ids of a list, which a hash does not allow.
"""

from __future__ import annotations

from hashlib import sha256
from typing import Final

from lash_redis._validate import require_id
from lash_redis.errors import InvalidRecord

_HASHED: Final = "sha256:"


def id_of(text: str, reserved: str = _HASHED) -> str:
    """Return the session id or the owner for a text. Different texts have different ids.

    It is the text itself if that is a valid id. Any other text (empty, with lone surrogates, longer than 65,536 bytes)
    becomes `sha256:` and its hash. So does one that begins with `sha256:` or `reserved`.
    """
    plain = str.__str__(text)
    if not plain.startswith((_HASHED, reserved)):
        try:
            return require_id("id", plain)
        except InvalidRecord:
            pass
    return _HASHED + sha256(plain.encode(errors="surrogatepass")).hexdigest()
