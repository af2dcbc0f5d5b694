"""What a server tells over HTTP beside the requests measured: its models, its metrics, and that it made a profile.

Knows a server by its address alone, so any engine's will do. Without a proxy, as the requests measured.
"""

import os
from typing import Any

import httpx

from headrace.errors import ConfigError, HeadraceError

KEY_VARIABLES = ("HEADRACE_API_KEY", "OPENAI_API_KEY", "VLLM_API_KEY")
ASK_SECONDS = 10.0
WORK_SECONDS = 600.0  # for what takes a while: an answer, the trace of many steps


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
    """Where to ask the server whose routes begin with ``url``. Raises ConfigError if that is none."""
    alone = httpx.Limits(max_keepalive_connections=0)  # a connection kept may be one that the server is closing
    settings: dict[str, Any] = {"timeout": ASK_SECONDS, "limits": alone, "trust_env": False}
    try:
        return httpx.Client(base_url=url, headers=headers, verify=not insecure, **settings)
    except httpx.InvalidURL as error:
        raise ConfigError(f"{url!r} is no URL: {error}.") from None


def text_of(server: httpx.Client, path: str) -> str | None:
    """What a route answers; None if it is not there."""
    try:
        answer = server.get(path)
    except httpx.HTTPError:
        return None
    return answer.text if answer.is_success else None


def first_model(server: httpx.Client) -> dict[str, Any]:
    """The card of the first model that is served. Raises HeadraceError if there is none."""
    try:
        card: dict[str, Any] = server.get("/v1/models").raise_for_status().json()["data"][0]
        return card | {"root": card.get("root") or card["id"]}
    except (httpx.HTTPError, ValueError, LookupError, TypeError, AttributeError) as error:
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise HeadraceError(f"{server.base_url} names no model ({reason}).") from None


def profile(server: httpx.Client, action: str) -> None:
    """POST /start_profile or /stop_profile. Raises HeadraceError if the server doesn't take it."""
    try:
        answer = server.post(f"/{action}_profile", timeout=WORK_SECONDS)
    except httpx.HTTPError as error:
        raise HeadraceError(f"/{action}_profile was not answered: {error}.") from None
    if not answer.is_success:
        raise HeadraceError(
            f"the server answered {answer.status_code} to /{action}_profile: start it with --profiler-config."
        )
