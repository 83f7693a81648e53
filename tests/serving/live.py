"""A server on a free port in a thread, for real clients."""

import socket
import threading
import time

import uvicorn

from latentdiff.serving.app import create_app
from latentdiff.serving.server_state import Server


class Live:
    """A running server; `close` stops it as SIGTERM does."""

    def __init__(self, server: Server, port: int = 0) -> None:
        self.server = server
        self.socket = socket.create_server(("127.0.0.1", port))
        self.port: int = self.socket.getsockname()[1]
        self.url = f"http://127.0.0.1:{self.port}"
        config = uvicorn.Config(create_app(server), log_config=None, access_log=False, timeout_graceful_shutdown=20)
        self.uvicorn = uvicorn.Server(config)
        self.thread = threading.Thread(target=self.uvicorn.run, kwargs={"sockets": [self.socket]}, daemon=True)
        self.thread.start()
        deadline = time.monotonic() + 60
        while not (self.uvicorn.started and server.engine.ready) and time.monotonic() < deadline:
            time.sleep(0.02)
        assert server.engine.ready

    def close(self) -> None:
        self.uvicorn.should_exit = True
        self.thread.join(60)
        self.socket.close()
