"""The server process: how it ends."""

import os
import threading
import time
from types import FrameType

import uvicorn

from latentdiff.serving.app import DRAIN_SECONDS
from latentdiff.serving.server_state import Server

COLLECT_SECONDS = 10.0  # during which finished images of our own API can be fetched before the process ends


class DrainingServer(uvicorn.Server):
    """A uvicorn server that, at the first SIGTERM or Ctrl-C, finishes the accepted jobs and answers requests meanwhile.

    New jobs are refused with 503. A second signal ends the process immediately.
    """

    def __init__(self, config: uvicorn.Config, server: Server) -> None:
        super().__init__(config)
        self._server, self._draining = server, False

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """Called by uvicorn for each signal."""
        if self._draining:
            self._server.files.close()
            os._exit(128 + sig)  # a computing thread cannot be interrupted otherwise
        self._draining = True
        threading.Thread(target=self._drain, name="latentdiff-drain", daemon=True).start()

    def _drain(self) -> None:
        self._server.engine.queue.drain(DRAIN_SECONDS)
        end = time.monotonic() + COLLECT_SECONDS
        while self._server.uncollected and time.monotonic() < end:
            time.sleep(0.05)
        self.should_exit = True
