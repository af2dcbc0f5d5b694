"""A real ``headrace serve`` in a process of its own, on a free port, for tests."""

import re
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from types import TracebackType

import httpx

from tests.processes import children, command_line, status

ENGINE = "headrace.engine.process"
SECONDS = 120  # for a start, an answer, an end, however busy the machine is


class Server:
    """``with Server("--max-model-len", "512") as server``: ready to serve inside; nothing of it is left afterwards."""

    def __init__(self, *arguments: str):
        self._log = tempfile.NamedTemporaryFile("w+", suffix=".log")  # noqa: SIM115
        command = [sys.executable, "-m", "headrace", "serve", "--port", "0", "--host", "127.0.0.1", *arguments]
        self.process = subprocess.Popen(command, stdout=self._log, stderr=subprocess.STDOUT)
        deadline = time.monotonic() + SECONDS
        while "Application startup complete." not in self.log:
            if self.process.poll() is not None or time.monotonic() > deadline:
                self.process.kill()
                raise RuntimeError(f"the server did not start:\n{self.log}")
            time.sleep(0.1)
        match = re.search(r"serves .* on (http://\S+)", self.log)
        assert match is not None
        self.url = match[1]
        self.engine_pid = next(pid for pid in children(self.process.pid) if ENGINE in command_line(pid))

    @property
    def log(self) -> str:
        return Path(self._log.name).read_text(errors="replace")  # it may be within a character

    def metric(self, name: str) -> float:
        """The sum of a metric's samples."""
        lines = httpx.get(f"{self.url}/metrics", timeout=SECONDS).text.splitlines()
        return sum(float(line.rsplit(" ", 1)[1]) for line in lines if re.match(rf"{re.escape(name)}(\{{|\s)", line))

    def wait_metric(self, name: str, value: float, seconds: float = SECONDS) -> None:
        deadline = time.monotonic() + seconds
        while (found := self.metric(name)) != value:
            assert time.monotonic() < deadline, f"{name} is {found}, not {value}"
            time.sleep(0.2)

    def memory(self) -> int:
        """Bytes resident in both processes."""
        pids = (self.process.pid, self.engine_pid)
        return sum(int(re.search(r"VmRSS:\s+(\d+)", status(pid))[1]) * 1024 for pid in pids)  # type: ignore[index]

    def __enter__(self) -> "Server":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGTERM)
            try:
                self.process.wait(60)
            except subprocess.TimeoutExpired:
                self.process.kill()
                self.process.wait()
        self._log.close()
