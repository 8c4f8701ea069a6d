"""A real `transformers serve` process for tests, and a loopback gate in front of it that counts, delays and breaks."""

from __future__ import annotations

import atexit
import functools
import http.client
import json
import os
import socket
import subprocess
import sys
import tempfile
import threading
import time
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

COMPLETIONS = "/v1/chat/completions"
_SECONDS_TO_START = 120


@dataclass(frozen=True)
class Server:
    """A running server; it loads any checkpoint whose folder a request names as model."""

    port: int
    log: Path

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}/v1"

    @property
    def completions(self) -> int:
        """Chat completions that its log says it has answered, well or not."""
        return self.log.read_text(encoding="utf-8").count(f'"POST {COMPLETIONS}')


@functools.cache
def server() -> Server:
    """The server of this test session, started when first asked for and stopped at the end."""
    log = Path(tempfile.mkdtemp(prefix="ost-test-")) / "serve.log"
    port = free_port()
    program = "import sys; from transformers.cli.transformers import main; sys.exit(main())"
    command = [sys.executable, "-c", program, "serve", "--host", "127.0.0.1", "--port", str(port), "--device", "cpu"]
    with log.open("w", encoding="utf-8") as stream:
        surroundings = {**os.environ, "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}
        process = subprocess.Popen(command, stdout=stream, stderr=subprocess.STDOUT, env=surroundings)
    atexit.register(_stop, process)
    _wait_until_healthy(port, process, log)
    return Server(port, log)


def free_port() -> int:
    """A port of the loopback interface on which nobody listens."""
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return int(one.getsockname()[1])


def _wait_until_healthy(port: int, process: subprocess.Popen[bytes], log: Path) -> None:
    deadline = time.monotonic() + _SECONDS_TO_START
    while time.monotonic() < deadline and process.poll() is None:
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{port}/health", timeout=5) as answer:
                if answer.status == 200:
                    return
        except OSError:
            time.sleep(0.1)
    raise RuntimeError(f"transformers serve did not start: {log.read_text(encoding='utf-8')[-2000:]}")


def _stop(process: subprocess.Popen[bytes]) -> None:
    process.terminate()
    try:
        process.wait(10)
    except subprocess.TimeoutExpired:
        process.kill()


Fault = int | str | None
"""What happens to a request: a status, "cut" for a broken connection, or nothing."""


@dataclass
class Gate:
    """A reverse proxy on the loopback interface."""

    port: int
    fault: Callable[[int, dict[str, Any]], Fault]
    """What happens to the request of this number, from 0, with this body."""

    requests: list[dict[str, Any]] = field(default_factory=list)
    """Bodies, in the order in which they came."""

    delivered: int = 0
    """Answers of the server that were handed on whole."""

    most_at_once: int = 0
    keys: set[str] = field(default_factory=set)
    _at_once: int = 0
    _lock: threading.Lock = field(default_factory=threading.Lock)

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}/v1"


@contextmanager
def gate(fault: Callable[[int, dict[str, Any]], Fault] = lambda number, body: None) -> Iterator[Gate]:
    """Put a gate in front of the server."""
    behind = server()

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["Content-Length"]))
            with state._lock:
                number = len(state.requests)
                state.requests.append(json.loads(body))
                state.keys.add(self.headers["Authorization"])
                state._at_once += 1
                state.most_at_once = max(state.most_at_once, state._at_once)
            try:
                self._treat(state.fault(number, state.requests[number]), body)
            finally:
                with state._lock:
                    state._at_once -= 1

        def _treat(self, fault: Fault, body: bytes) -> None:
            if fault == "cut":
                self.close_connection = True
                self.connection.shutdown(socket.SHUT_RDWR)
            elif isinstance(fault, int):
                self._answer(fault, b'{"error": {"message": "made to fail"}}')
            else:
                onward = http.client.HTTPConnection("127.0.0.1", behind.port)
                onward.request("POST", self.path, body, {"Content-Type": "application/json"})
                answer = onward.getresponse()
                self._answer(answer.status, answer.read())
                onward.close()
                with state._lock:
                    state.delivered += answer.status == 200

        def _answer(self, status: int, body: bytes) -> None:
            self.send_response(status)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(body)))
            if status == 429:
                self.send_header("Retry-After", "0.01")
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_: object) -> None:
            """Keep the test's output clean."""

    httpd = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    httpd.daemon_threads = True
    state = Gate(httpd.server_address[1], fault)
    thread = threading.Thread(target=httpd.serve_forever, daemon=True)
    thread.start()
    try:
        yield state
    finally:
        httpd.shutdown()
        httpd.server_close()
        thread.join()
