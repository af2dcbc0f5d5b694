"""The errors users see. Below every other room; knows nothing of HTTP, engines or tensors."""


class HeadraceError(Exception):
    """Base of every error Headrace raises on purpose."""


class ConfigError(HeadraceError, ValueError):
    """A start-up option or model can't be used; the message is one sentence that names what would work.

    The command line prints it as one line and exits with code 2.
    """


class RequestError(HeadraceError, ValueError):
    """One request is wrong. ``param`` names the offending field in OpenAI's spelling, if one does; ``status`` is the
    HTTP status of the answer.
    """

    def __init__(self, message: str, param: str | None = None, status: int = 400):
        super().__init__(message)
        self.param, self.status = param, status


class ProfilerActiveError(RequestError):
    """A profile is being recorded already (HTTP 409)."""

    def __init__(self, message: str):
        super().__init__(message, status=409)


class ProfilerError(HeadraceError):
    """A profile could not be recorded or written (HTTP 500)."""


class QueueFullError(HeadraceError):
    """The waiting queue is at its limit (HTTP 429 with ``Retry-After``, in seconds)."""

    def __init__(self, message: str, retry_after: int = 1):
        super().__init__(message)
        self.retry_after = retry_after


class ShuttingDownError(HeadraceError):
    """The server drains and takes no new requests (HTTP 503)."""


class EngineDeadError(HeadraceError):
    """The engine process died or hangs; every open request ends with this (HTTP 503)."""
