"""How long do appends to chats and sessions of agents, and reads, take compared with `RedisSession` of openai-agents?

Both store the same messages of the same conversations. An append is two messages. The handle of a warm append made the
append before, so it knows the last message. A new handle fetches the head first.
"""

from __future__ import annotations

from bench import pairs, stores
from bench.peer_stores import LashOpenAI, OpenAI
from bench.report import Row
from lash_redis.embedded import EmbeddedServer

SIZES = (10, 1000)
PAGE = 20


def measure(server: EmbeddedServer, *, quick: bool) -> list[Row]:
    """On a server with a TCP port. No line may be slower than `RedisSession`; some have a lower budget."""
    not_slower = dict.fromkeys(SIZES, 1.0)
    warm = {0.0: dict.fromkeys(SIZES, 0.5), 0.5: dict.fromkeys(SIZES, 0.4)}
    full = {0.0: {10: 1.0, 1000: 0.7}, 0.5: not_slower}
    equal = dict.fromkeys((0.0, 0.5), not_slower)
    new, page = stores.Chats(is_warm=False), stores.Chats(is_warm=False, limit=PAGE)
    every = [
        pairs.Pair("chat.append, warm", "commit", stores.Chats(), OpenAI(), warm),
        pairs.Pair("chat.append, new handle", "commit", new, OpenAI(), equal),
        pairs.Pair(f"chat.messages(limit={PAGE})", "resume", page, OpenAI(limit=PAGE), equal),
        pairs.Pair("chat.messages()", "resume", new, OpenAI(), full),
        pairs.Pair("LashSession.add_items", "commit", LashOpenAI(), OpenAI(), warm),
        pairs.Pair(f"LashSession.get_items({PAGE})", "resume", LashOpenAI(limit=PAGE), OpenAI(limit=PAGE), equal),
        pairs.Pair("LashSession.get_items()", "resume", LashOpenAI(), OpenAI(), full),
    ]
    return pairs.measure_rows(server, every, SIZES, quick=quick)
