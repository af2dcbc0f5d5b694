"""What stands between the net and the routes: TLS, slow and endless requests, and each caller's quota."""

import json
import os
import re
import socket
import ssl
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any

import httpx
import pytest
import trustme
from pydantic import ValidationError

from headrace.config import OPTIONS, Config
from headrace.errors import ConfigError, QueueFullError, RequestError
from headrace.frontend import grammar, validation
from headrace.frontend.door import Door
from headrace.frontend.tokenizer import Tokenizer
from headrace.server.messages.schema import MessagesRequest
from headrace.server.quota import Quota, address_of
from headrace.server.schema import CompletionRequest
from headrace.server.tls import tls_context
from headrace.types import MAX_N, SamplingParams

from .app import serving
from .fake_engine import CharTokenizer, FakeEngine
from .test_launch import SECONDS, asking, server

AUTHORITY = trustme.CA()


def written(directory: Path, name: str, *, host: str = "127.0.0.1") -> dict[str, str]:
    """A certificate for ``host`` and its key, as the options that name their files."""
    certificate, paths = AUTHORITY.issue_cert(host), (directory / f"{name}.pem", directory / f"{name}.key")
    certificate.cert_chain_pems[0].write_to_path(paths[0])
    certificate.private_key_pem.write_to_path(paths[1])
    return {"ssl_certfile": str(paths[0]), "ssl_keyfile": str(paths[1])}


def client_context() -> ssl.SSLContext:
    context = ssl.create_default_context()
    AUTHORITY.configure_trust(context)
    return context


def serial(url: str) -> int:
    """The number of the certificate that a new connection is shown."""
    host, port = url.removeprefix("https://").split(":")
    with (
        socket.create_connection((host, int(port)), timeout=SECONDS) as plain,
        client_context().wrap_socket(plain, server_hostname=host) as connection,
    ):
        return int(connection.getpeercert()["serialNumber"], 16)  # type: ignore[index, arg-type]


# -- TLS ------------------------------------------------------------------------------------------------------------


def test_tls_serves_and_takes_a_renewed_certificate_without_a_restart(tmp_path: Path) -> None:
    with server(**written(tmp_path, "server"), enable_ssl_refresh=True, ssl_ciphers="ECDHE+AESGCM") as running:
        url = running.url()
        assert url.startswith("https://")
        assert httpx.get(f"{url}/version", verify=client_context(), timeout=SECONDS).status_code == 200
        with pytest.raises(httpx.HTTPError):
            httpx.get(f"{url}/version")  # an unknown authority
        with pytest.raises(httpx.HTTPError):
            httpx.get(url.replace("https", "http"))
        first = serial(url)
        (tmp_path / "server.key").write_text("rubbish")
        running.wait_for("so the old one stays")
        assert serial(url) == first
        written(tmp_path, "server")
        running.wait_for("The TLS certificate was read anew")
        assert serial(url) != first


def test_clients_need_a_certificate_where_it_is_asked_for(tmp_path: Path) -> None:
    AUTHORITY.cert_pem.write_to_path(tmp_path / "ca.pem")
    options = written(tmp_path, "server") | {"ssl_ca_certs": str(tmp_path / "ca.pem"), "ssl_cert_reqs": 2}
    with server(**options) as running:
        url = running.url()
        with pytest.raises(httpx.HTTPError):
            httpx.get(f"{url}/version", verify=client_context())
        known = client_context()
        AUTHORITY.issue_cert("client@example.org").configure_cert(known)
        assert httpx.get(f"{url}/version", verify=known, timeout=SECONDS).status_code == 200


def test_tls_options_that_can_not_work(tmp_path: Path) -> None:
    files, other = written(tmp_path, "server"), written(tmp_path, "other")
    for options, match in (
        (files | {"ssl_keyfile": other["ssl_keyfile"]}, "--ssl-certfile, --ssl-keyfile.*can't be used"),
        (files | {"ssl_cert_reqs": 2}, "--ssl-cert-reqs needs --ssl-ca-certs"),
        (files | {"ssl_ciphers": "none-such"}, "--ssl-ciphers none-such names no cipher"),
    ):
        with pytest.raises(ConfigError, match=match):
            tls_context(Config.from_kwargs(**options).server)


# -- slow requests --------------------------------------------------------------------------------------------------


def answer_to(url: str, *parts: bytes) -> bytes:
    """What comes back on a connection that sends ``parts`` and then waits for its end."""
    host, port = url.removeprefix("http://").split(":")
    with socket.create_connection((host, int(port)), timeout=SECONDS) as connection:
        received = b""
        with suppress(ConnectionResetError, BrokenPipeError):  # it did not wait for all of ``parts``
            for part in parts:
                connection.sendall(part)
        with suppress(ConnectionResetError):
            while data := connection.recv(65_536):
                received += data
        return received


HEAD = b"POST /v1/completions HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n"
BODY = json.dumps({"prompt": "Say", "max_tokens": 5}).encode()
WHOLE = HEAD + b"Content-Length: %d\r\n\r\n" % len(BODY) + BODY


def test_a_request_that_does_not_arrive_ends_its_connection() -> None:
    with server(request_arrival_timeout=1.0) as running:
        url = running.url()
        begun = (
            b"",
            b"GET /version HT",
            HEAD,
            HEAD + b"Content-Length: 100\r\n\r\n{",
            HEAD + b"Transfer-Encoding: chunked\r\n\r\n1\r\n{\r\n",
            HEAD + b"Transfer-Encoding: chunked\r\n\r\n%x\r\n%b\r\n0\r\nX-Trailer: 1\r\n" % (len(BODY), BODY),
        )
        with ThreadPoolExecutor(len(begun)) as pool:
            for part, answer in zip(begun, pool.map(lambda part: answer_to(url, part), begun), strict=True):
                assert answer.startswith(b"HTTP/1.1 408 Request Timeout\r\n"), part
        long = BODY.replace(b"Say", b"x" * 400_000)
        dripping = [HEAD + b"Content-Length: %d\r\n\r\n" % len(long), *[b"x"] * 10]
        assert answer_to(url, *dripping).startswith(b"HTTP/1.1 408")
        log = "\n".join(running.log)
        assert "Traceback" not in log
        # Answers that take longer than a request may, and requests that wait for them, are left alone.
        last = WHOLE.replace(b"Host: x", b"Host: x\r\nConnection: close")
        both = answer_to(url, WHOLE, WHOLE, WHOLE[:-5], WHOLE[-5:] + last)
        assert both.count(b"HTTP/1.1 200 OK") == 4


def test_what_is_no_http_is_refused() -> None:
    with server() as running:
        url = running.url()
        for data in (
            b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + os.urandom(200),
            b"GET / HTTP/1.1\r\nHost: x\r\nX: a\x00b\r\n\r\n",
            b"POST /tokenize HTTP/1.1\r\nHost: x\r\nContent-Length: 3\r\nTransfer-Encoding: chunked\r\n\r\nabc",
            b"POST /tokenize HTTP/1.1\r\nHost: x\r\nContent-Length: -3\r\n\r\nabc",
        ):
            assert answer_to(url, data).startswith(b"HTTP/1.1 400 Bad Request"), data[:40]
        flood = b"".join(b"X-%d: 1\r\n" % i for i in range(100_000))
        assert b" 200 OK" not in answer_to(url, b"GET /version HTTP/1.1\r\n", flood, b"\r\n")
        close = b"Host: x\r\nConnection: close, Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Version: 13\r\n\r\n"
        assert answer_to(url, b"GET /v1/completions HTTP/1.1\r\n" + close).startswith(b"HTTP/1.1 405 ")
        assert httpx.get(f"{url}/version", timeout=SECONDS).status_code == 200


def test_a_million_wrong_entries_are_one_error() -> None:
    many: list[Any] = [{"type": "nonsense"}] * 10_000
    for model, body in (
        (CompletionRequest, {"prompt": "a", "stop_token_ids": many}),
        (CompletionRequest, {"prompt": "a", "vllm_xargs": {str(i): {} for i in range(10_000)}}),
        (CompletionRequest, {"prompt": "a", "logit_bias": {f"x{i}": 1 for i in range(10_000)}}),
        (MessagesRequest, {"max_tokens": 1, "messages": [{"role": "user", "content": many}]}),
        (MessagesRequest, {"max_tokens": 1, "messages": many}),
    ):
        with pytest.raises(ValidationError) as refused:
            model.model_validate(body)
        assert refused.value.error_count() < 10


async def test_bodies_of_too_many_values_and_errors_that_repeat_too_much() -> None:
    async with serving() as (client, _):
        headers = {"content-type": "application/json"}
        lists = await client.post("/tokenize", content=b'{"prompt": [' + b"[]," * 1_000_001 + b"1]}", headers=headers)
        packed = await client.post("/tokenize", json={"prompt": "a"}, headers={"content-encoding": "gzip"})
        unknown = await client.post("/tokenize", json={"prompt": "a", "model": "é" * 1_000_000})
        foreign = await client.get("/v1/models", headers={"origin": "https://elsewhere"})
        preflight = await client.options("/v1/models", headers={"access-control-request-method": "GET"})
    assert [answer.status_code for answer in (lists, packed, unknown)] == [413, 415, 404]
    assert len(unknown.json()["error"]["message"]) == 1000
    assert foreign.status_code == 200 and preflight.status_code == 405
    assert not [name for name in {**foreign.headers, **preflight.headers} if name.startswith("access-control")]


def test_the_handles_without_http_have_the_same_door() -> None:
    config = Config()
    door = Door(config, FakeEngine(config).info, Tokenizer(CharTokenizer().hf))  # of LLM and AsyncLLM alike
    for prompt, params, match in (
        ("x" * 65_537, {}, "65,537 characters"),
        ("\ud800", {}, "half of a character"),
        ("x", {"stop": ["a"] * 65}, "stop can have at most 64"),
        ("x", {"bad_words": ["a" * 257]}, "an? entry of bad_words can have at most 256"),
        ("x", {"logit_bias": {1: 101.0}}, "logit_bias values"),
        ("x", {"logprobs": 21}, "--max-logprobs"),
        ("x", {"seed": 1, "extra_args": {"a": [2**70]}}, "vllm_xargs|64 bits"),
    ):
        with pytest.raises(RequestError, match=f"(?i){match}"):
            door.admit(prompt, SamplingParams(**params))  # type: ignore[arg-type]


def test_the_page_on_security_has_the_limits() -> None:
    page = (Path(__file__).parents[2] / "docs" / "security.md").read_text()
    limits = [value for name, value in vars(validation).items() if name.startswith("MAX_") and "BEAM" not in name]
    numbers = [number for limit in limits for number in (limit.values() if isinstance(limit, dict) else [limit])]
    assert len(numbers) > 12
    assert [number for number in (*numbers, grammar.MAX_CHARACTERS, MAX_N) if str(number) not in page] == []
    options = re.findall(r"--[a-z][a-z-]+", page)
    assert [option for option in options if option[2:].removeprefix("no-").replace("-", "_") not in OPTIONS] == []


# -- quotas ---------------------------------------------------------------------------------------------------------


def test_unfinished_requests_are_counted_by_caller() -> None:
    refused: list[str] = []
    quota = Quota(2, None, refused.append)
    with ExitStack() as requests:
        for _ in range(2):
            requests.enter_context(quota.request("a"))
        with pytest.raises(QueueFullError, match="2 unfinished requests, as many as --max-queued-per-key"):
            requests.enter_context(quota.request("a"))
        requests.enter_context(quota.request("b"))
    with quota.request("a"):
        pass
    assert refused == ["max_queued_per_key"]


def test_a_minutes_requests_may_come_at_once_and_then_one_by_one() -> None:
    now = 1000.0
    quota = Quota(None, 6, lambda reason: None, lambda: now)

    def accepted(caller: str = "a") -> bool | int:
        try:
            with quota.request(caller):
                return True
        except QueueFullError as error:
            return error.retry_after

    assert [accepted() for _ in range(8)] == [True] * 6 + [10, 10]
    assert accepted("b") is True
    now += 9.5
    assert accepted() == 1
    now += 0.5
    assert [accepted(), accepted()] == [True, 10]
    now += 600
    assert [accepted() for _ in range(7)] == [True] * 6 + [10]


@contextmanager
def unfinished(url: str) -> Iterator[None]:
    """A request of the key "first" whose body the server waits for."""
    host, port = url.removeprefix("http://").split(":")
    with socket.create_connection((host, int(port)), timeout=SECONDS) as connection:
        connection.sendall(HEAD + b"Authorization: Bearer first\r\nContent-Length: 9\r\nExpect: 100-continue\r\n\r\n")
        assert connection.recv(100).startswith(b"HTTP/1.1 100 Continue")
        yield
        connection.sendall(b"123456789")
        assert connection.recv(100).startswith(b"HTTP/1.1 400 ")


def test_a_key_or_an_address_has_its_quota() -> None:
    headers = [{"authorization": "bearer first"}, {"x-api-key": "second"}]
    for options, others in (
        ({"max_queued_per_key": 1, "api_key": ["first", "second"]}, [429, 200]),
        ({"max_queued_per_key": 1}, [429, 429]),
        ({"max_requests_per_minute_per_key": 2}, [200, 429]),
    ):
        with server(**options) as running, asking(base_url=running.url()) as client:
            with unfinished(running.url()):
                answers = [client.post("/tokenize", json={"prompt": "a"}, headers=more) for more in headers]
                assert [answer.status_code for answer in answers] == others
                assert client.get("/v1/models", headers=headers[0]).status_code == 200  # costs nothing
            refused = next(answer for answer in answers if answer.status_code == 429)
            assert refused.json()["error"]["type"] == "RateLimitError"
            assert 1 <= int(refused.headers["retry-after"]) <= 60
            reason, *_ = options
            line = next(line for line in client.get("/metrics").text.splitlines() if f'reason="{reason}"' in line)
            assert float(line.split()[-1]) == others.count(429)
            if reason == "max_queued_per_key":
                assert client.post("/tokenize", json={"prompt": "a"}, headers=headers[0]).status_code == 200


def test_a_background_response_counts_until_its_end() -> None:
    with server(max_queued_per_key=1) as running, asking(base_url=running.url()) as client:
        body = {"input": "wait", "background": True}
        made = client.post("/v1/responses", json=body)
        assert made.json()["status"] in ("queued", "in_progress")
        assert client.post("/v1/responses", json=body).status_code == 429
        assert client.get(f"/v1/responses/{made.json()['id']}").status_code == 200
        assert client.post(f"/v1/responses/{made.json()['id']}/cancel").status_code == 200
        assert client.post("/v1/responses", json=body).status_code == 200


def test_callers_without_a_key_are_their_address() -> None:
    assert address_of("10.1.2.3") == address_of("::ffff:10.1.2.3") == "10.1.2.3"
    assert address_of("2001:db8::1") == address_of("2001:db8::2:3%eth0") != address_of("2001:db8:0:1::1")
    assert address_of(None) == address_of("testclient") == ""
