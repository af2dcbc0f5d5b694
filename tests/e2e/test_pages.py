"""The examples of the documents' pages run as they stand, against one server of the default model."""

import re
from pathlib import Path
from typing import Any

import pytest

from .server import Server

DOCS = Path(__file__).parents[2] / "docs"
PAGES = (
    *("batch", "beam-search", "messages", "prompt-embeds", "python", "reasoning", "responses", "structured-output"),
    *("tokens", "tools"),
)
EXAMPLES = [
    pytest.param(code, id=f"{page}-{place}")
    for page in PAGES
    for place, code in enumerate(re.findall(r"```python\n(.*?)```", (DOCS / f"{page}.md").read_text(), re.DOTALL))
]


@pytest.mark.parametrize("code", EXAMPLES)
def test_examples_run(server: Server, code: str, capsys: pytest.CaptureFixture[str]) -> None:
    names: dict[str, Any] = {}
    exec(code.replace("http://localhost:8000", server.url), names)
    if "client" in names:
        names["client"].close()
    assert capsys.readouterr().out or "print(" not in code


def test_every_page_has_examples() -> None:
    assert {str(example.id).rpartition("-")[0] for example in EXAMPLES} == set(PAGES)
