"""A Celery worker that answers messages of chats. A task that runs twice stores its question and its answer once.

    celery -A tasks worker
    python tasks.py chat-42 "Hello"

Install: pip install . 'celery[redis]', from a checkout.
Try: the first line in one terminal, in this folder, the second in another. It prints "Echo: Hello".
CHAT_REDIS_URL (default: redis://localhost:6379) is the broker of Celery and the store of the chats; no key is shared.
"""

import os
import sys
import time
from typing import Any

from celery import Celery, Task

from lash_redis import BackendError, LeaseBusy, OutcomeUnknown, blocking

URL = os.environ.get("CHAT_REDIS_URL", "redis://localhost:6379")

app = Celery("tasks", broker=URL, backend=URL)
app.conf.update(
    task_acks_late=True,  # a task whose worker died is delivered again
    task_reject_on_worker_lost=True,
    broker_connection_retry_on_startup=True,
)
cache = blocking.connect(URL, namespace="chat-service", ttl=30 * 86_400)
"""Made before the pool forks. Each process of the pool opens connections of its own at its first call."""


def call_model(messages: list[dict[str, Any]]) -> str:
    time.sleep(float(os.environ.get("CHAT_MODEL_SECONDS", "0")))
    return f"Echo: {messages[-1]['content']}"


@app.task(bind=True, autoretry_for=(BackendError, LeaseBusy, OutcomeUnknown), retry_backoff=True, max_retries=10)
def answer(self: Task, chat_id: str, question: str) -> str:
    """Store a question and answer it. Both messages have ids from the task, so a repeated task changes nothing."""
    chat = cache.chat(chat_id)
    asked, answered = f"{self.request.id}-q", f"{self.request.id}-a"
    with chat.store.acquire_lease(ttl=10.0, wait=30.0) as lease, lease.renewing():  # one task of a chat at a time
        chat.append({"role": "user", "content": question, "id": asked}, lease=lease)
        if chat.store.load_node(answered) is None:
            messages = chat.messages()
            at = [message["id"] for message in messages].index(asked)  # a later task may have been answered meanwhile
            reply = {"role": "assistant", "content": call_model(messages[: at + 1]), "id": answered}
            chat.append(reply, lease=lease)
    return next(message["content"] for message in chat.messages() if message["id"] == answered)


if __name__ == "__main__":
    print(answer.delay(*sys.argv[1:]).get(timeout=60))
