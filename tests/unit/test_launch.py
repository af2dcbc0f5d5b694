"""The server as a process, with a scripted engine: start, drain, stop and the engine's death."""

import json
import os
import re
import signal
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest

from headrace.config import Config
from headrace.errors import ConfigError
from headrace.server.launch import bind
from headrace.server.tls import tls_context
from tests.unit.launched import FORKS, serve

SECONDS = 60  # for anything to happen, however busy the machine is


class Server:
    """A running process; ``log`` collects what it writes."""

    def __init__(self, options: dict[str, Any]):
        received, sent = FORKS.Pipe(duplex=False)
        self.process = FORKS.Process(target=serve, args=({"host": "127.0.0.1", "port": 0} | options, sent))
        self.process.start()
        sent.close()
        self._lines = os.fdopen(os.dup(received.fileno()))
        self.log: list[str] = []
        self._arrived = threading.Condition()
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def _read(self) -> None:
        with self._lines as lines:
            for line in lines:
                with self._arrived:
                    self.log.append(line.rstrip("\n"))
                    self._arrived.notify_all()

    def wait_for(self, pattern: str) -> str:
        def found() -> str | None:
            return next((line for line in self.log if re.search(pattern, line)), None)

        with self._arrived:
            assert self._arrived.wait_for(lambda: found() is not None, SECONDS), self.log
        line = found()
        assert line is not None
        return line

    def url(self) -> str:
        """Where it serves, once it is ready."""
        self.wait_for("Application startup complete")
        return self.wait_for("serves fake on ").split(" on ")[-1]

    def signal(self, number: int) -> None:
        assert self.process.pid is not None
        os.kill(self.process.pid, number)

    def exit_code(self) -> int | None:
        self.process.join(SECONDS)
        self._reader.join(SECONDS)
        return self.process.exitcode


@contextmanager
def server(**options: Any) -> Iterator[Server]:
    running = Server(options)
    try:
        yield running
    finally:
        running.process.kill()
        running.exit_code()


def asking(**options: Any) -> httpx.Client:
    return httpx.Client(timeout=SECONDS, **options)


STREAM = {"prompt": "wait", "stream": True}


def test_a_chat_template_that_is_not_there_is_told_before_the_model_is_loaded() -> None:
    with server(model="slow", chat_template="/nowhere") as running:
        assert running.exit_code() == 1
        assert "--chat-template /nowhere is neither Jinja text nor a readable file" in running.log[-1]


def test_it_is_ready_when_it_says_so_and_drains_on_sigterm() -> None:
    with server(shutdown_timeout=60) as running:
        url = running.url()
        line = running.wait_for("^curl ")
        body = json.loads(re.search(r"-d '(.*)'$", line).group(1))  # type: ignore[union-attr]
        with asking() as client:
            assert client.post(f"{url}/v1/completions", json=body).json()["choices"][0]["text"] == "Hello"
            assert "vllm:num_requests_running" in client.get(f"{url}/metrics").text
        log_line = r"^INFO \d\d-\d\d \d\d:\d\d:\d\d \[\w+\.py:\d+\] "
        for expected in ("version ", "non-default args: .*'port': 0", "Loading weights took", "weights .*1.50 .*1.00",
                         "Route: /v1/models, Methods: GET", log_line):  # fmt: skip
            running.wait_for(expected)
        with asking() as client, client.stream("POST", f"{url}/v1/completions", json=STREAM) as stream:
            lines = stream.iter_lines()
            first = next(lines)
            running.signal(signal.SIGTERM)
            running.wait_for("1 running requests get 60 s")
            refused = client.post(f"{url}/v1/completions", json=STREAM)
            assert (refused.status_code, refused.json()["error"]["code"]) == (503, 503)
            assert client.get(f"{url}/health").status_code == 503
            running.signal(signal.SIGUSR1)
            rest = [line for line in lines if line]
        texts = [json.loads(line.removeprefix("data: "))["choices"][0]["text"] for line in [first, *rest[:-1]]]
        assert "".join(texts) == "Hello"
        assert rest[-1] == "data: [DONE]"
        assert running.exit_code() == 0


def test_a_head_without_an_end_ends_the_connection() -> None:
    with server() as running:
        url = running.url()
        with asking() as client:
            fits = client.get(f"{url}/version", headers={"X-Long": "x" * 60_000})
            large = client.post(f"{url}/tokenize", json={"prompt": "x", "unknown": "x" * 200_000})
        assert (fits.status_code, large.status_code) == (200, 200)
        host, port = url.removeprefix("http://").split(":")
        with socket.create_connection((host, int(port)), timeout=SECONDS) as endless:
            endless.sendall(b"GET /version HTTP/1.1\r\nX-Long: ")
            with pytest.raises(ConnectionError):
                endless.sendall(b"x" * 10_000_000)
        with asking() as client:
            assert client.get(f"{url}/version").status_code == 200


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_without_a_timeout_a_signal_ends_running_requests_with_an_error(number: signal.Signals) -> None:
    with server() as running:
        url = running.url()
        with asking() as client, client.stream("POST", f"{url}/v1/completions", json=STREAM) as stream:
            lines = stream.iter_lines()
            next(lines)
            running.signal(number)
            rest = [line for line in lines if line]
        assert json.loads(rest[-2].removeprefix("data: "))["error"]["code"] == 503
        assert rest[-1] == "data: [DONE]"
        assert running.exit_code() == 0


def test_a_second_signal_ends_the_drain() -> None:
    with server(shutdown_timeout=600) as running:
        url = running.url()
        body = STREAM | {"prompt": ["wait"] * 1000}
        with asking() as client, client.stream("POST", f"{url}/v1/completions", json=body) as stream:
            lines = stream.iter_lines()
            next(lines)
            running.signal(signal.SIGTERM)
            running.wait_for("running requests get 600 s")
            running.signal(signal.SIGTERM)
            assert [line for line in lines if line][-1] == "data: [DONE]"
        assert running.exit_code() == 0


def test_the_engines_death_ends_everything() -> None:
    with server() as running:
        url = running.url()
        with (
            asking() as client,
            client.stream("POST", f"{url}/v1/completions", json=STREAM | {"prompt": "die"}) as s,
        ):
            lines = [line for line in s.iter_lines() if line]
            health = client.get(f"{url}/health")
        assert json.loads(lines[-2].removeprefix("data: "))["error"]["message"] == "It was killed."
        assert (health.status_code, health.json()["error"]["message"]) == (503, "It was killed.")
        assert running.exit_code() == 1
        running.wait_for("ERROR .*It was killed. Exiting.")


def test_a_signal_while_starting() -> None:
    with server(model="slow") as running:
        running.wait_for("^starting")
        running.signal(signal.SIGTERM)
        assert running.exit_code() == 0


def test_a_busy_port_is_one_sentence(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(ConfigError, match=f"--port {port} of --host 127.0.0.1: Address already in use"):
            bind(Config.from_kwargs(host="127.0.0.1", port=port).server)
    (tmp_path / "file").touch()
    with pytest.raises(ConfigError, match=r"--uds .*file: Address already in use"):
        bind(Config.from_kwargs(uds=str(tmp_path / "file")).server)
    with bind(Config.from_kwargs(uds=str(tmp_path / "socket")).server):
        assert (tmp_path / "socket").is_socket()


def test_a_certificate_that_cannot_be_read_is_found_at_once(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="--ssl-certfile"):
        tls_context(Config.from_kwargs(ssl_certfile=str(tmp_path / "none.pem")).server)
