"""A loopback relay between a browser and one of several servers, which the test can exchange."""

from __future__ import annotations

import socket
import threading
from contextlib import suppress
from types import TracebackType
from typing import Self


class HttpRelay:
    """Forwards the bytes of each connection to `target`, a port. `switch` cuts all connections and changes the target.

    `received` is what browsers sent to the present target.
    """

    def __init__(self, target: int) -> None:
        self.target = target
        self.received = b""
        self._listener = socket.create_server(("127.0.0.1", 0))
        self._open: set[socket.socket] = set()
        self._threads = [threading.Thread(target=self._accept, daemon=True)]

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self._listener.getsockname()[1]}"

    def switch(self, target: int) -> None:
        self.target, self.received = target, b""
        self._cut()

    def __enter__(self) -> Self:
        self._threads[0].start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        with suppress(OSError):  # not connected
            self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        self._cut()
        for thread in self._threads:
            thread.join(10)

    def _cut(self) -> None:
        for each in list(self._open):
            with suppress(OSError):  # it has ended already
                each.shutdown(socket.SHUT_RDWR)

    def _accept(self) -> None:
        with suppress(OSError):  # the listener was closed
            while True:
                browser, _ = self._listener.accept()
                self._threads.append(threading.Thread(target=self._serve, args=(browser,), daemon=True))
                self._threads[-1].start()

    def _serve(self, browser: socket.socket) -> None:
        """Forward in both directions until one side ends the connection, then end both."""
        with browser, socket.create_connection(("127.0.0.1", self.target)) as server:
            self._open |= {browser, server}
            back = threading.Thread(target=self._pump, args=(server, browser, browser), daemon=True)
            back.start()
            self._pump(browser, server, browser)
            back.join()
            self._open -= {browser, server}

    def _pump(self, source: socket.socket, sink: socket.socket, browser: socket.socket) -> None:
        with suppress(OSError):  # one side has ended the connection
            while data := source.recv(65_536):
                if sink is not browser:
                    self.received += data
                sink.sendall(data)
        for each in (source, sink):
            with suppress(OSError):
                each.shutdown(socket.SHUT_RDWR)
