"""A chat service on Django with the blocking client. `python app.py runserver` or `gunicorn app:application` starts it.

Without CHAT_REDIS_URL the processes share an embedded server in the directory `chats`. The header X-User stands for
your authentication: a user sees no chat of another user.

Install: pip install '.[embedded]' django, from a checkout.
Try: curl -H 'X-User: alice' -d '{"id": "m1", "content": "Hello"}' localhost:8000/chats/chat-1
"""

import json
import os
import sys
from collections.abc import Callable
from typing import Any

from django.conf import settings
from django.core.management import execute_from_command_line
from django.core.wsgi import get_wsgi_application
from django.http import HttpRequest, HttpResponse, JsonResponse
from django.urls import path
from django.views.decorators.http import require_http_methods

from lash_redis import NodeIdCollision, OwnerMismatch, SessionDeleted, blocking

settings.configure(
    SECRET_KEY=os.environ.get("DJANGO_SECRET_KEY", "for this example only"),
    ALLOWED_HOSTS=["*"],
    ROOT_URLCONF=__name__,
    MIDDLEWARE=[f"{__name__}.Refusals"],
)
URL = os.environ.get("CHAT_REDIS_URL", "embedded://chats")
cache = blocking.connect(URL, namespace="chat-service", ttl=30 * 86_400)
"""One for each process: no I/O and no thread before its first call. It may be made before gunicorn forks."""

STATUS: dict[Any, int] = {OwnerMismatch: 404, SessionDeleted: 404, NodeIdCollision: 409}


class Refusals:
    """Middleware that answers a refused call by its status. Nothing was written."""

    def __init__(self, get_response: Callable[[HttpRequest], HttpResponse]) -> None:
        self.get_response = get_response

    def __call__(self, request: HttpRequest) -> HttpResponse:
        return self.get_response(request)

    def process_exception(self, request: HttpRequest, error: Exception) -> HttpResponse | None:
        return JsonResponse({"detail": str(error)}, status=STATUS[type(error)]) if type(error) in STATUS else None


def call_model(messages: list[dict[str, Any]]) -> dict[str, Any]:
    return {"role": "assistant", "content": f"Echo: {messages[-1]['content']}"}


@require_http_methods(["GET", "POST", "DELETE"])
def chat(request: HttpRequest, chat_id: str) -> HttpResponse:
    """Return the last messages, store one and answer it, or delete the chat."""
    chat = cache.chat(chat_id, owner=request.headers["X-User"])
    if request.method == "GET":
        return JsonResponse({"messages": chat.messages(limit=50)})
    if request.method == "DELETE":
        chat.delete()
        return HttpResponse(status=204)
    asked = json.loads(request.body)
    with chat.store.acquire_lease(ttl=10.0, wait=60.0) as lease, lease.renewing():  # one request at a time
        chat.append({"role": "user", "content": asked["content"], "id": asked["id"]}, lease=lease)
        messages = chat.messages()
        at = [message["id"] for message in messages].index(asked["id"])
        for later in messages[at + 1 :]:
            if later["role"] == "assistant":
                return JsonResponse(later)  # the message was sent before, and answered
        (reply,) = chat.append(call_model(messages), lease=lease)
    return JsonResponse(reply)


def chats(request: HttpRequest) -> HttpResponse:
    """List the user's chats, the most recent first."""
    found = cache.sessions(owner=request.headers["X-User"], limit=20, after=request.GET.get("after"))
    return JsonResponse({"chats": [{"id": info.session_id, "cursor": info.cursor} for info in found]})


urlpatterns = [path("chats", chats), path("chats/<str:chat_id>", chat)]
application = get_wsgi_application()

if __name__ == "__main__":
    execute_from_command_line(sys.argv)
