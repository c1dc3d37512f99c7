"""Several follows at once, read by one; and the newest of several objects."""

from __future__ import annotations

import queue
import threading
from collections.abc import Mapping, Sequence

from orchestrator.adapters.kube.follow import PATIENCE, News, Object, Patience, Server, follow

WAITING_MAX = 1_000  # changes that wait for the one who reads them


class Streams:
    """Several follows at once, each in a thread, read by one. Enter it, take from it, leave it."""

    def __init__(
        self, access: Server, paths: Mapping[str, tuple[str, Mapping[str, str]]], *, patience: Patience = PATIENCE
    ) -> None:
        """`paths`: a tag -> the path and its query."""
        self._stop = threading.Event()
        self._arrived: queue.Queue[tuple[str, News | BaseException]] = queue.Queue(WAITING_MAX)
        self._threads = [
            threading.Thread(target=self._read, args=(tag, access, path, query, patience), name=f"follow-{tag}", daemon=True)
            for tag, (path, query) in paths.items()
        ]

    def __enter__(self) -> Streams:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()

    def take(self, timeout_s: float) -> tuple[str, News] | None:
        """The next news and its tag, None when the time is up. Raises what ended one of the follows."""
        try:
            tag, news = self._arrived.get(timeout=timeout_s)
        except queue.Empty:
            return None
        if isinstance(news, BaseException):
            raise news
        return tag, news

    def _read(self, tag: str, access: Server, path: str, query: Mapping[str, str], patience: Patience) -> None:
        try:
            for news in follow(access, path, query=query, stop=self._stop, patience=patience):
                self._put(tag, news)
        except Exception as error:  # a bug of ours must end the one who waits, too
            self._put(tag, error)

    def _put(self, tag: str, news: News | BaseException) -> None:
        while not self._stop.is_set():
            try:
                self._arrived.put((tag, news), timeout=1)
                return
            except queue.Full:
                continue


def newest(objects: Sequence[Object], *, key: str) -> Object | None:
    """The object whose label `key` holds the highest number."""
    return max(objects, key=lambda o: int((o["metadata"].get("labels") or {}).get(key, -1)), default=None)
