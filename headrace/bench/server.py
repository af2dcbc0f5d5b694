"""A command in a process group of its own, and a server started as one: its log, its readiness, its certain end.

However the ``with`` block is left (its end, an exception, Ctrl-C, SIGTERM, SIGHUP), nothing of the group survives; on
Linux the command even learns of our death by SIGKILL. Knows a server by its URL alone, so any engine's will do.
"""

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO, Any, cast

import httpx

from headrace.command import flag_value, need_command
from headrace.errors import ConfigError, HeadraceError
from headrace.remote import address, api_key

OBITUARY = [  # becomes the command that follows our pid, having asked for SIGTERM at our death (1: PR_SET_PDEATHSIG)
    *(sys.executable, "-ISc"),
    "import ctypes, os, sys; ctypes.CDLL(None).prctl(1, 15); "
    "os.getppid() == int(sys.argv[1]) and os.execvp(sys.argv[2], sys.argv[2:])",  # unless we died before it asked
]
GRACE = ((signal.SIGINT, 30.0), (signal.SIGTERM, 10.0))  # what a group is sent, and its seconds to end; then SIGKILL
POLL_SECONDS = 0.2
TAIL_LINES = 12  # of a log that an error quotes


def key_of(words: Sequence[str]) -> str | None:
    """The key that a server's command asks for, else the environment's."""
    return flag_value(words, "--api-key") or api_key()


def url_of(words: Sequence[str]) -> str:
    """Where the server of a command will be: from its --host and --port, vLLM's defaults otherwise."""
    port = flag_value(words, "--port") or "8000"
    if port == "0":
        raise ConfigError("--port 0 lets the server choose: give it a port, so that the measurement can find it.")
    host = flag_value(words, "--host") or "127.0.0.1"
    if host in ("0.0.0.0", "::", "localhost"):
        host = "127.0.0.1"
    scheme = "https" if flag_value(words, "--ssl-certfile") else "http"
    return address(f"{scheme}://{f'[{host}]' if ':' in host else host}:{port}")


@contextmanager
def serving(
    words: Sequence[str],
    url: str,
    log: Path,
    *,
    ready_seconds: float = 300,
    show: bool = False,
    environment: dict[str, str] | None = None,
) -> Iterator[subprocess.Popen[bytes]]:
    """A server that answers at ``url`` for the time of the ``with`` block; all it prints goes to ``log``.

    Raises HeadraceError, with the end of the log, if it ends or is not ready in ``ready_seconds``; ConfigError if
    somebody serves there already, whom we would measure instead.
    """
    need_free(url)
    with running(words, log, show=show, environment=environment) as process:
        deadline = time.monotonic() + ready_seconds
        while health(url) != 200:
            if process.poll() is not None:
                raise HeadraceError(f"the server ended with code {process.returncode}:\n{tail(log)}")
            if time.monotonic() > deadline:
                late = f"the server was not ready after {ready_seconds:g} s (--server-ready-timeout)"
                raise HeadraceError(f"{late}; {log} ends:\n{tail(log)}")
            time.sleep(POLL_SECONDS)
        yield process


def run_command(
    words: Sequence[str], log: Path, *, show: bool = False, environment: dict[str, str] | None = None
) -> int:
    """Run a command to its end, its output in ``log``; returns its exit code. Ctrl-C is handed on to it."""
    with running(words, log, show=show, environment=environment) as process:
        return process.wait()


@contextmanager
def running(
    words: Sequence[str], log: Path, *, show: bool = False, environment: dict[str, str] | None = None
) -> Iterator[subprocess.Popen[bytes]]:
    """A command that runs for the time of the ``with`` block, its output in ``log`` (and, if ``show``, on ours)."""
    need_command(words)
    log.parent.mkdir(parents=True, exist_ok=True)
    with kept(log, show) as output, Interrupts() as interrupts:
        process = subprocess.Popen(
            [*OBITUARY, str(os.getpid()), *words] if sys.platform == "linux" else words,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            env=os.environ | (environment or {}),
            start_new_session=True,
        )
        try:
            interrupts.release()
            yield process
        finally:
            stop(process)


def stop(process: subprocess.Popen[bytes]) -> None:
    """End a command and whatever it started; the impatient may press Ctrl-C again."""
    try:
        for number, seconds in GRACE:
            if process.poll() is not None:
                return
            signal_group(process, number)
            with suppress(subprocess.TimeoutExpired):
                process.wait(seconds)
    finally:
        signal_group(process, signal.SIGKILL)  # children whose parent ended before them included
        process.wait()


def signal_group(process: subprocess.Popen[bytes], number: signal.Signals) -> None:
    with suppress(ProcessLookupError, PermissionError):  # nobody is left; macOS says the latter of zombies
        os.killpg(process.pid, number)


class Interrupts:
    """Lets SIGTERM and SIGHUP unwind the stack as Ctrl-C does; holds all three back until ``release``.

    An exception in the midst of a process's start would lose the process. Signals that are ignored (nohup) stay so.
    """

    def __init__(self) -> None:
        self._held, self._pending = True, False
        self._before: dict[int, Any] = {}

    def __enter__(self) -> "Interrupts":
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
                if signal.getsignal(number) != signal.SIG_IGN:
                    self._before[number] = signal.signal(number, self._arrived)
        return self

    def __exit__(self, *error: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def release(self) -> None:
        self._held = False
        if self._pending:
            raise KeyboardInterrupt

    def _arrived(self, number: int, frame: Any) -> None:
        self._pending = True
        if not self._held:
            raise KeyboardInterrupt


@contextmanager
def kept(log: Path, show: bool) -> Iterator[IO[bytes]]:
    """What to write to for it to stand in ``log``, and on our stdout if ``show``."""
    if show:
        with subprocess.Popen(["tee", str(log)], stdin=subprocess.PIPE, start_new_session=True) as tee:
            yield cast(IO[bytes], tee.stdin)
    else:
        with log.open("wb") as output:
            yield output


def need_free(url: str) -> None:
    """Raise ConfigError if somebody answers there."""
    if health(url) is not None:
        raise ConfigError(f"something already answers at {url}: stop it, or give the new server another --port.")


def need_server(url: str) -> None:
    """Raise HeadraceError if nobody does."""
    if health(url) is None:
        raise HeadraceError(f"no server answers at {url}.")


def health(url: str) -> int | None:
    """The status of /health there; 0 if it makes no sense, None if nobody listens.

    Certificates don't matter: a probe bears no secret.
    """
    try:
        return httpx.get(f"{url}/health", timeout=5, verify=False, trust_env=False).status_code
    except httpx.ConnectError:
        return None
    except httpx.HTTPError:
        return 0


def tail(log: Path) -> str:
    return "\n".join(log.read_text(errors="replace").splitlines()[-TAIL_LINES:]) or "(it said nothing)"
