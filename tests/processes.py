"""Other processes as /proc shows them. Each may end at any moment: what is gone has no text, and no child."""

import re
import time
from pathlib import Path


def status(pid: int) -> str:
    return _read(Path(f"/proc/{pid}/status"))


def command_line(pid: int) -> str:
    return _read(Path(f"/proc/{pid}/cmdline")).replace("\0", " ")


def children(pid: int) -> list[int]:
    others = (int(entry.name) for entry in Path("/proc").glob("[0-9]*"))
    return [other for other in others if re.search(rf"^PPid:\s+{pid}$", status(other), re.MULTILINE)]


def wait_gone(pid: int, seconds: float = 60) -> None:
    """Fail unless the process is gone (or a zombie nobody reaps here) within ``seconds``."""
    deadline = time.monotonic() + seconds
    while (found := status(pid)) and "State:\tZ" not in found:
        assert time.monotonic() < deadline, f"process {pid} is still there: {command_line(pid)}"
        time.sleep(0.05)


def _read(path: Path) -> str:
    try:
        return path.read_text()
    except OSError:
        return ""
