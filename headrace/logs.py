"""Log set-up: one line format for the server, the engine process, uvicorn and the libraries. Knows nothing else."""

import json
import logging
import logging.config
import sys
from pathlib import Path
from typing import TextIO

from headrace.errors import ConfigError

LINE = "%(levelname)s %(asctime)s [%(filename)s:%(lineno)d] %(message)s"
DATE = "%m-%d %H:%M:%S"
CLEAR_LINE = "\r\x1b[2K"  # of ECMA-48: to the first column, erase the line


class StderrHandler(logging.StreamHandler[TextIO]):
    """Writes to whatever ``sys.stderr`` is at that moment, so that lines appear above a live progress bar."""

    def __init__(self) -> None:
        logging.Handler.__init__(self)

    @property
    def stream(self) -> TextIO:  # type: ignore[override]
        return sys.stderr


def configure(level: str = "info", config_file: str | None = None, *, shares_terminal: bool = False) -> None:
    """Send every logger's lines to stderr in one format, or set logging up from a ``dictConfig`` JSON file.

    ``level`` is that of Headrace and uvicorn; other libraries log warnings only. ``shares_terminal``: another process
    may be drawing a progress bar, so on a terminal each line first clears the one that it lands on. Raises ConfigError
    for a bad file.
    """
    if config_file is not None:
        try:
            logging.config.dictConfig(json.loads(Path(config_file).read_text()))
        except (OSError, ValueError, TypeError, AttributeError, ImportError) as error:
            raise ConfigError(f"--log-config-file {config_file} is no logging configuration in JSON: {error}") from None
        return
    handler = StderrHandler()
    clear = CLEAR_LINE if shares_terminal and sys.stderr.isatty() else ""
    handler.setFormatter(logging.Formatter(clear + LINE, DATE))
    logging.basicConfig(level=logging.WARNING, handlers=[handler], force=True)
    number = logging.DEBUG if level == "trace" else logging.getLevelNamesMapping()[level.upper()]
    logging.getLogger("headrace").setLevel(number)
    logging.getLogger("uvicorn").setLevel(number)
