"""Shards are fetched and indexed before they are needed, in the background."""

import logging
import threading
from collections.abc import Sequence
from typing import Any

from t2i.data.shard_index import ShardIndex

log = logging.getLogger(__name__)


class ShardPrefetcher:
    """Fetches and indexes shards in a thread of the process that reads: of the main one, or of a worker."""

    def __init__(self, index: ShardIndex):
        self.index = index
        self.requested: Sequence[int] = ()
        self.thread: threading.Thread | None = None

    def __getstate__(self) -> dict[str, Any]:
        return vars(self) | {"thread": None}  # each process starts its own

    def request(self, shards: Sequence[int]) -> None:
        """Prefetch some shards in this order, and until the next request evict others in favour of them."""
        self.index.protect(shards)
        self.requested = shards
        if self.thread is None or not self.thread.is_alive():  # a forked process has only a copy, which is not alive
            self.thread = threading.Thread(target=self._prefetch, daemon=True)
            self.thread.start()

    def _prefetch(self) -> None:
        done = None
        while (shards := self.requested) is not done:
            for shard in shards:
                if shards is not self.requested:  # there is a newer request
                    break
                try:
                    self.index.fetch(shard)
                except Exception as error:  # the reader that needs the shard meets the error again, and reports it
                    log.debug("%s can't be prefetched: %s", self.index.shards[shard].name, error)
            done = shards
