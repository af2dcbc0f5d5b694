"""A server that runs, asked over HTTP: its address and key, its models and metrics, and to record a profile.

Knows a server by its address alone, so any engine's will do. Asks without a proxy, as benchmarks send their requests.
"""

import json
import os
from typing import Any
from urllib.parse import urlsplit

import httpx

from headrace.errors import ConfigError, HeadraceError

KEY_VARIABLES = ("HEADRACE_API_KEY", "OPENAI_API_KEY", "VLLM_API_KEY")
ASK_SECONDS = 10.0
WORK_SECONDS = 600.0  # for what takes a while: an answer, the trace of many steps


def address(text: str) -> str:
    """What a server's routes begin with: ``text`` without a slash, or routes' /v1, at its end.

    Raises ConfigError if it is no such address.
    """
    url = text.rstrip("/").removesuffix("/v1")
    try:
        httpx.URL(url)
        parts = urlsplit(url)
        good = parts.scheme in ("http", "https") and parts.hostname and parts.port != 0
    except (ValueError, httpx.InvalidURL):  # the first: of the port, or of an IPv6 address
        good = False
    if not good:
        raise ConfigError(
            f"{text!r} is no server's address: it must be like http://localhost:8000 or https://host, with no port "
            "above 65535."
        )
    return url


def api_key() -> str | None:
    """The key that the environment has for servers."""
    return next((os.environ[name] for name in KEY_VARIABLES if os.environ.get(name)), None)


def bearer(key: str | None) -> dict[str, str]:
    """The headers that show ``key``."""
    return {"Authorization": f"Bearer {key}"} if key else {}


def key_environment(key: str | None) -> dict[str, str]:
    """Variables by which a benchmark's command finds ``key``."""
    return dict.fromkeys(KEY_VARIABLES, key) if key else {}


def connected(url: str, headers: dict[str, str], insecure: bool = False) -> httpx.Client:
    """Where to ask the server whose routes begin with ``url``."""
    alone = httpx.Limits(max_keepalive_connections=0)  # a connection kept may be one that the server is closing
    settings: dict[str, Any] = {"timeout": ASK_SECONDS, "limits": alone, "trust_env": False}
    return httpx.Client(base_url=url, headers=headers, verify=not insecure, **settings)


def text_of(server: httpx.Client, path: str) -> str | None:
    """What a route answers; None if it is not there."""
    try:
        answer = server.get(path)
    except httpx.HTTPError:
        return None
    return answer.text if answer.is_success else None


def json_of(server: httpx.Client, path: str) -> Any:
    """The same of a route that answers with JSON."""
    return parsed(text_of(server, path))


def parsed(text: str | None) -> Any:
    """The JSON in ``text``; None if there is none."""
    try:
        return json.loads(text or "null")
    except ValueError:
        return None


def first_model(server: httpx.Client) -> dict[str, Any]:
    """The card of the first model that is served. Raises HeadraceError if there is none, or no server."""
    try:
        card: dict[str, Any] = server.get("/v1/models").raise_for_status().json()["data"][0]
        return card | {"root": card.get("root") or card["id"]}
    except httpx.TransportError as error:
        raise HeadraceError(f"no server answers at {server.base_url} ({error or type(error).__name__}).") from None
    except (httpx.HTTPError, ValueError, LookupError, TypeError, AttributeError) as error:
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise HeadraceError(f"{server.base_url} names no model ({reason}).") from None


def profile(server: httpx.Client, action: str) -> list[str]:
    """POST /start_profile or /stop_profile; returns the files that the server says it wrote (vLLM says nothing).

    Raises ConfigError if it records no profiles, HeadraceError if it can't now.
    """
    path = f"/{action}_profile"
    try:
        answer = server.post(path, timeout=WORK_SECONDS)
    except httpx.HTTPError as error:
        raise HeadraceError(f"{server.base_url} does not answer {path}: {error}.") from None
    if answer.status_code == 404:
        raise ConfigError(
            f"the server at {server.base_url} records no profiles: start it with --profiler-config "
            """'{"profiler": "torch", "torch_profiler_dir": "…"}'."""
        )
    told = parsed(answer.text)
    told = told if isinstance(told, dict) else {}
    if answer.is_success:
        return list(told.get("files", []))
    fault = told.get("error", answer.text.strip())
    reason = fault.get("message") if isinstance(fault, dict) else fault
    raise HeadraceError(f"{answer.url} answered {answer.status_code}: {reason}")
