"""Timing a start, with an engine that is nothing but talkative."""

from pathlib import Path

import pytest

from headrace.bench import startup
from headrace.errors import HeadraceError

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


def test_a_start_that_fails_says_why(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(startup, "ONE_START", "raise SystemExit('no such model')")
    with pytest.raises(HeadraceError, match="did not start: no such model"):
        startup.one_start({}, tmp_path)
