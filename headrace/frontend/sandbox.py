"""Chat templates rendered in processes of their own, which the kernel ends when they take too long or too much memory.

For what may do so: templates that a stranger wrote, and conversations of unusual size. Jinja's own sandbox keeps a
template from reaching anything, but not from computing ``"a" * 10**10``, within which no thread can be stopped. Owns
the processes; ``python -m headrace.frontend.sandbox`` is one, which forks another for each job on stdin.
"""

import atexit
import os
import resource
import signal
import subprocess
import sys
from contextlib import suppress

import msgspec

from headrace.errors import RequestError
from headrace.frontend.rendering import Rendering, rendered

SECONDS = 1.0  # of a processor's time for one job
MEMORY = 1 << 30  # bytes of data for a process
LARGE = 128 * 1024  # bytes of a job as JSON: less is rendered in a few milliseconds by any known model's template
MAX_CHARACTERS = 32 * 2**20  # of a rendered text

TOO_MUCH = f"Rendering the chat template takes more than {SECONDS:g} s, or too much memory."


class Answer(msgspec.Struct):
    text: str = ""
    fault: str = ""
    param: str | None = None


_idle: list["subprocess.Popen[bytes]"] = []


def render_bounded(job: Rendering) -> str:
    """``rendered(job)``, in another process if there is so much of it that even a harmless template may take long."""
    return render_apart(job) if len(_encoded(job)) > LARGE else rendered(job)


def render_apart(job: Rendering) -> str:
    """What ``rendered`` returns and raises; ``RequestError`` too if it takes too much. Blocks the calling thread."""
    line = _encoded(job) + b"\n"
    process = _idle.pop() if _idle else _start()
    assert process.stdin is not None and process.stdout is not None  # they are pipes
    answer = b""
    with suppress(BrokenPipeError):
        process.stdin.write(line)
        process.stdin.flush()
        answer = process.stdout.readline()
    if not answer.endswith(b"\n"):
        _end(process)
        raise RequestError("The process that renders chat templates is gone; try again.", "messages")
    _idle.append(process)
    found = msgspec.json.decode(answer, type=Answer)
    if found.fault:
        raise RequestError(found.fault, found.param)
    return found.text


def warm_up() -> None:
    """Have a process ready, so that the first job needs not wait for its start."""
    if not _idle:
        _idle.append(_start())


def _encoded(job: Rendering) -> bytes:
    try:
        return msgspec.json.encode(job)
    except RecursionError:
        raise RequestError("The messages are nested too deeply.", "messages") from None


def _start() -> "subprocess.Popen[bytes]":
    environment = {name: value for name, value in os.environ.items() if name in ("PATH", "HOME", "LANG")}  # no secrets
    environment["PYTHONPATH"] = os.pathsep.join(path or os.getcwd() for path in sys.path)
    command = [sys.executable, "-P", "-m", "headrace.frontend.sandbox"]
    return subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=environment)


def _end(process: "subprocess.Popen[bytes]") -> None:
    process.kill()
    with suppress(BrokenPipeError):
        process.communicate()


@atexit.register
def _end_all() -> None:
    while _idle:
        _end(_idle.pop())


# -- in the process -------------------------------------------------------------------------------------------------


def main() -> None:
    import transformers.utils.chat_template_utils  # noqa: F401  # before there is a job that waits for it

    signal.signal(signal.SIGINT, signal.SIG_IGN)  # of a terminal: the parent decides
    resource.setrlimit(resource.RLIMIT_DATA, (MEMORY, MEMORY))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    for line in sys.stdin.buffer:
        if child := os.fork():
            _, status = os.waitpid(child, 0)
            if status:
                _say(Answer(fault=TOO_MUCH, param="messages"))
            continue
        signal.setitimer(signal.ITIMER_PROF, SECONDS)  # its signal, unhandled, ends the process wherever it is
        answer = _answered(line)
        signal.setitimer(signal.ITIMER_PROF, 0)
        _say(answer)
        os._exit(0)


def _say(answer: Answer) -> None:
    sys.stdout.buffer.write(msgspec.json.encode(answer) + b"\n")
    sys.stdout.buffer.flush()


def _answered(line: bytes) -> Answer:
    try:
        text = rendered(msgspec.json.decode(line, type=Rendering))
        if len(text) > MAX_CHARACTERS:
            raise RequestError(f"The chat template makes {len(text):,} characters of these messages.", "messages")
        text.encode()
    except RequestError as error:
        return Answer(fault=str(error), param=error.param)
    except UnicodeEncodeError:
        return Answer(fault="The messages have half of a character (a lone surrogate).", param="messages")
    except (MemoryError, RecursionError):
        return Answer(fault=TOO_MUCH, param="messages")
    return Answer(text)


if __name__ == "__main__":
    main()
