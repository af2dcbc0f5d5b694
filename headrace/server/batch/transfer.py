"""Batch files at the other end of an HTTP URL: the input comes by GET, the output goes by PUT."""

import logging
import time
from collections.abc import Iterator
from pathlib import Path

import httpx

from headrace.errors import ConfigError, HeadraceError

logger = logging.getLogger(__name__)
ATTEMPTS = 5
PAUSE = 5.0  # seconds between them
TIMEOUT = httpx.Timeout(60, write=1000)
CHUNK = 1 << 20  # bytes


def is_url(name: str) -> bool:
    return name.startswith(("http://", "https://"))


def download(url: str, target: Path) -> None:
    try:
        with httpx.stream("GET", url, timeout=TIMEOUT, follow_redirects=True) as response, target.open("wb") as file:
            response.raise_for_status()
            for chunk in response.iter_bytes():
                file.write(chunk)
    except httpx.HTTPError as error:
        raise ConfigError(f"--input-file {url} can't be had: {sentence(error)}.") from None


def upload(source: Path, url: str) -> None:
    """PUT ``source``; tried again after a pause if it fails."""
    for attempt in range(1, ATTEMPTS + 1):
        try:
            size = {"Content-Length": str(source.stat().st_size)}
            httpx.put(url, content=pieces(source), headers=size, timeout=TIMEOUT).raise_for_status()
            return
        except httpx.HTTPError as error:
            reason = sentence(error)
        if attempt < ATTEMPTS:
            logger.warning("PUT %s failed (%s); attempt %d follows in %g s.", url, reason, attempt + 1, PAUSE)
            time.sleep(PAUSE)
    raise HeadraceError(f"PUT {url} failed {ATTEMPTS} times ({reason}); the output is in {source}.")


def pieces(path: Path) -> Iterator[bytes]:
    with path.open("rb") as file:
        while piece := file.read(CHUNK):
            yield piece


def sentence(error: httpx.HTTPError) -> str:
    if isinstance(error, httpx.HTTPStatusError):
        return f"the answer is {error.response.status_code} {error.response.reason_phrase}"
    return (str(error) or type(error).__name__).rstrip(".")
