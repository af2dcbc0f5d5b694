"""Timing a start, with an engine that is nothing but talkative; measuring again and again."""

import os
import signal
import threading
import time
from pathlib import Path

import pytest

from headrace.bench import startup
from headrace.bench.spread import repeated
from headrace.errors import ConfigError, HeadraceError

TALKATIVE = """
print("much" * 100_000)
print("more" * 100_000, file=sys.stderr)
from types import SimpleNamespace as Space
LLM = lambda: Space(info=Space(ledger=[Space(stage="weights", seconds=1.5)]))
"""


def test_a_talkative_engine_does_not_hold_up_its_start(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(startup, "ONE_START", startup.ONE_START.replace("from headrace import LLM", TALKATIVE))
    seconds, ledger = startup.one_start({}, tmp_path)
    assert seconds > 0 and ledger == {"weights": 1.5}


@pytest.mark.parametrize(
    ("program", "error", "sentence"),
    [
        ("raise SystemExit('no such model')", HeadraceError, "did not start: no such model"),
        ("import os; os.kill(os.getpid(), 9)", HeadraceError, "did not start: its process ended with code -9"),
        ("from headrace.errors import *; raise ConfigError('No.')", ConfigError, "^No.$"),
    ],
)
def test_a_start_that_fails_says_why(
    program: str, error: type[Exception], sentence: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(startup, "ONE_START", program)
    with pytest.raises(error, match=sentence):
        startup.one_start({}, tmp_path)


def test_ctrl_c_ends_a_start(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    place = tmp_path / "pid"
    program = f"import os, time; open({str(place)!r}, 'w').write(str(os.getpid())); time.sleep(60)"
    monkeypatch.setattr(startup, "ONE_START", program)

    def interrupt() -> None:
        while not (place.exists() and place.read_text()):
            time.sleep(0.05)
        os.kill(os.getpid(), signal.SIGINT)

    threading.Thread(target=interrupt).start()
    with pytest.raises(KeyboardInterrupt):
        startup.one_start({}, tmp_path)
    assert not Path(f"/proc/{place.read_text()}").exists()


def test_ctrl_c_keeps_what_was_measured() -> None:
    def one(number: int) -> int:
        if number == 2:
            raise KeyboardInterrupt
        return number

    assert repeated(one, 2) == ([0, 1], False) and repeated(one, 3) == ([0, 1], True)
    with pytest.raises(KeyboardInterrupt):
        repeated(one, 3, alone=False)
    with pytest.raises(KeyboardInterrupt):
        repeated(lambda number: one(2), 1)
