"""Make blocking methods out of the methods of the async classes, with their signatures and docstrings.

Each function takes the async method, and returns a method for the `Twin` of its class. Type checkers and editors derive
the signature and the docstring from the async method. So does `help`, in the terms of the blocking classes.
"""

from __future__ import annotations

import functools
import inspect
import os
import re
from collections.abc import AsyncIterator, Callable, Coroutine, Generator
from contextlib import AbstractAsyncContextManager
from queue import SimpleQueue
from typing import Any, Concatenate, Final, Generic, NoReturn, ParamSpec, Protocol, TypeVar, cast

from lash_redis.blocking.calls import Call, asking, notifying
from lash_redis.blocking.contexts import BlockingContext
from lash_redis.blocking.loop_thread import LoopThread
from lash_redis.blocking.running import Running
from lash_redis.errors import BackendError

Parameters = ParamSpec("Parameters")
Result = TypeVar("Result")
Made = TypeVar("Made")
Inner = TypeVar("Inner")

Method = Callable[Concatenate[Any, Parameters], Result]
Wrap = Callable[[LoopThread, Any], Made]
"""Makes the blocking object of an async one. The class of a `Twin` is such a function."""

END: Final = object()
"""The value that `next_item` returns at the end of an iteration."""


class HasLoop(Protocol):
    """An object with blocking methods: a `Twin`, or a record such as a lease."""

    @property
    def _loops(self) -> LoopThread: ...

    @property
    def _inner(self) -> Any: ...


class Twin(Generic[Inner]):
    """A blocking object, which delegates to an async one. The loop of a thread runs the coroutines."""

    def __init__(self, loops: LoopThread, inner: Inner) -> None:
        self._loops = loops
        self._inner = inner

    def __init_subclass__(cls) -> None:
        name_methods(cls)

    def __repr__(self) -> str:
        return f"{type(self).__name__}{repr(self._inner).removeprefix(type(self._inner).__name__)}"

    def __reduce__(self) -> NoReturn:
        raise TypeError(
            f"a {type(self).__name__} holds connections and cannot be pickled: pass the URL and the ids to the other "
            "process, and call lash_redis.blocking.connect there"
        )


def name_methods(cls: type) -> None:
    """Give the methods that this module made the names that they have in their class."""
    for name, value in vars(cls).items():
        if getattr(value, "__twin_of__", None) is not None:
            value.__name__, value.__qualname__ = name, f"{cls.__qualname__}.{name}"
            value.__module__ = cls.__module__


# Methods


def call(
    method: Method[Parameters, Coroutine[Any, Any, Result]],
    *,
    undo: Callable[[Result], Coroutine[Any, Any, object]] | None = None,
) -> Method[Parameters, Result]:
    """Return the blocking method of a coroutine method.

    Functions among the arguments run in the thread of the caller. `undo` gets a result that the caller does not,
    because it was interrupted.
    """
    return cast("Method[Parameters, Result]", called(method, None, undo=undo))


def call_and_wrap(
    method: Method[Parameters, Coroutine[Any, Any, Result]],
    wrap: Wrap[Made],
    *,
    undo: Callable[[Result], Coroutine[Any, Any, object]] | None = None,
) -> Method[Parameters, Made]:
    """`call` for a method whose result has coroutine methods. `wrap` makes its blocking object."""
    return cast("Method[Parameters, Made]", called(method, wrap, undo=undo))


def called(method: Any, wrap: Wrap[Any] | None, *, undo: Any) -> Any:
    callbacks = _callbacks_of(method)
    signature = inspect.signature(method)

    def blocking(self: HasLoop, *args: Any, **named: Any) -> Any:
        loops = self._loops
        inbox: SimpleQueue[Any] = SimpleQueue()
        wrapped = None if wrap is None else functools.partial(wrap, loops)
        if callbacks:
            bound = signature.bind(self._inner, *args, **named)
            for name, adapt in callbacks.items():
                if callable(bound.arguments.get(name)):
                    bound.arguments[name] = adapt(inbox, bound.arguments[name])
            work = method(*bound.args, **bound.kwargs)
        else:
            work = method(self._inner, *args, **named)
        return loops.finish(Call(work, inbox=inbox, wrap=wrapped, undo=undo))

    return like(method, blocking)


def make(method: Method[Parameters, Any], wrap: Wrap[Made]) -> Method[Parameters, Made]:
    """Return the method that wraps the result of a method that does no I/O."""

    def blocking(self: HasLoop, *args: Any, **named: Any) -> Any:
        return wrap(self._loops, method(self._inner, *args, **named))

    return cast("Method[Parameters, Made]", like(method, blocking))


def call_in_loop(method: Method[Parameters, Result]) -> Method[Parameters, Result]:
    """Return the method that runs a plain method in the thread of the loop, whose objects it changes."""

    async def run(*args: Any, **named: Any) -> Any:
        return method(*args, **named)

    def blocking(self: HasLoop, *args: Any, **named: Any) -> Any:
        return self._loops.run(run, self._inner, *args, **named)

    return cast("Method[Parameters, Result]", like(method, blocking))


def iterate(method: Method[Parameters, AsyncIterator[Result]]) -> Method[Parameters, Generator[Result, None, None]]:
    """Return the method that makes a generator of what an async generator yields. Closing one closes the other."""

    def blocking(self: HasLoop, *args: Any, **named: Any) -> Any:
        return _items(self._loops, cast(Any, method(self._inner, *args, **named)))

    return cast("Method[Parameters, Generator[Result, None, None]]", like(method, blocking))


def hold(
    method: Method[Parameters, AbstractAsyncContextManager[Any]], wrap: Wrap[Made]
) -> Method[Parameters, BlockingContext[Made]]:
    """Return the method that makes a context manager of an async one. `wrap` makes what `with` binds."""
    bind = inspect.signature(method).bind

    def blocking(self: HasLoop, *args: Any, **named: Any) -> Any:
        bind(self._inner, *args, **named)
        loops = self._loops
        enter = functools.partial(method, self._inner, *args, **named)
        return BlockingContext(loops, enter, functools.partial(wrap, loops))

    like(method, blocking)
    value = re.sub(r"^\w+\[(\w+).*\]$", r"\1", inspect.signature(blocking).return_annotation)
    _set_return(blocking, f"BlockingContext[{value}]")
    return cast("Method[Parameters, BlockingContext[Made]]", blocking)


def described_by(method: Callable[..., Any]) -> Callable[[Made], Made]:
    """Give a method that is written by hand the docstring of the async one."""

    def describe(blocking: Any) -> Any:
        blocking.__doc__ = blocking_text(method.__doc__ or "")
        return blocking

    return describe


def function(original: Callable[Parameters, Any], blocking: Callable[..., Made]) -> Callable[Parameters, Made]:
    """Return `blocking` with the signature and the docstring of `original`."""
    return cast("Callable[Parameters, Made]", like(original, blocking))


def next_item(loops: LoopThread, running: Running, items: Any) -> Any:
    """Return the next item of an async iterator that began in the loop `running`, or `END`.

    Raises:
        BackendError: this process is a child that was forked since.
    """
    if running.process != os.getpid():
        raise BackendError("this iteration began before the process forked; begin another one in the child")

    async def step() -> Any:
        # `__anext__` is called here, because its first call binds an async generator to the loop of its thread.
        try:
            return await items.__anext__()
        except StopAsyncIteration:
            return END

    return loops.finish(Call(step(), is_open_ended=True))


def _items(loops: LoopThread, items: Any) -> Generator[Any, None, None]:
    async def close() -> None:
        await items.aclose()

    running = loops.started()
    running.note_open(items, close)
    try:
        while True:
            item = next_item(loops, running, items)
            if item is END:
                return
            yield item
    finally:
        running.note_closed(items)
        loops.clean_up(running, close())


# Signatures and docstrings

NAMES: Final = {
    "RedisSessionStore": "BlockingSessionStore",
    "SessionCache": "BlockingSessionCache",
    "SessionWatch": "BlockingSessionWatch",
    "Chat": "BlockingChat",
    "Lease": "BlockingLease",
    "StreamWriter": "BlockingStreamWriter",
}
"""The blocking classes by the names of the async ones."""

TYPES: Final[list[tuple[re.Pattern[str], Any]]] = [
    (re.compile(r"\bAsyncGenerator\[(\w+), None\]"), r"Generator[\1, None, None]"),
    (re.compile(r"\bAsyncIterator\["), "Iterator["),
    (re.compile(rf"\b({'|'.join(NAMES)})\b"), lambda found: NAMES[found[1]]),
]
"""Types in annotations, and their replacements."""
CLASS_IN_TEXT: Final = re.compile(
    r"(?<=`)(?:async |await )?(RedisSessionStore|SessionCache|SessionWatch|Chat|Lease|StreamWriter)\b"
)
WORDS: Final[list[tuple[re.Pattern[str], str]]] = [
    (re.compile(r"\basync (with|for)\b"), r"\1"),
    (re.compile(r"\basync (context|iterator|generator)"), r"\1"),
    (re.compile(r"\bAn? (context|iterator|generator)"), r"A \1"),
    (re.compile(r"\ban (context|iterator|generator)\b"), r"a \1"),
    (re.compile(r"\bawaited call\b"), "call"),
    (re.compile(r"\bawait (?=\w)"), ""),
    (re.compile(r"\baclos(e|ing)\b"), r"clos\1"),
]


def blocking_text(text: str) -> str:
    """Return a docstring in the terms of the blocking classes."""
    text = CLASS_IN_TEXT.sub(lambda found: NAMES[found[1]], text)
    for pattern, instead in WORDS:
        text = pattern.sub(instead, text)
    return text


def blocking_type(annotation: Any) -> Any:
    """Return the text of an annotation with the blocking classes."""
    if isinstance(annotation, str):
        for pattern, instead in TYPES:
            annotation = pattern.sub(instead, annotation)
    return annotation


def blocking_signature(method: Callable[..., Any]) -> inspect.Signature:
    """Return the signature of the blocking twin of a method."""
    signature = inspect.signature(method)
    parameters = [each.replace(annotation=blocking_type(each.annotation)) for each in signature.parameters.values()]
    return signature.replace(parameters=parameters, return_annotation=blocking_type(signature.return_annotation))


def like(original: Any, blocking: Any) -> Any:
    """Give a blocking function the signature, the annotations and the docstring of an async one."""
    functools.update_wrapper(blocking, original)
    del blocking.__wrapped__  # for callers it wraps nothing, and no coroutine function
    signature = blocking_signature(original)
    blocking.__signature__ = signature
    blocking.__annotations__ = {
        each.name: each.annotation for each in signature.parameters.values() if each.annotation is not each.empty
    }
    _set_return(blocking, signature.return_annotation)
    blocking.__doc__ = blocking_text(original.__doc__ or "")
    blocking.__twin_of__ = original
    return blocking


def _set_return(blocking: Any, annotation: Any) -> None:
    blocking.__signature__ = blocking.__signature__.replace(return_annotation=annotation)
    blocking.__annotations__["return"] = annotation


def _callbacks_of(method: Any) -> dict[str, Callable[[Any, Any], Any]]:
    """Return how each function among the parameters of a method runs in the thread of the caller.

    The coroutine waits for the results of a function whose result may be an awaitable.
    """
    return {
        name: asking if "Awaitable" in parameter.annotation else notifying
        for name, parameter in inspect.signature(method).parameters.items()
        if isinstance(parameter.annotation, str) and "Callable[" in parameter.annotation
    }
