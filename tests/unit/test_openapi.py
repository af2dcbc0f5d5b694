"""The routes as they describe themselves: whatever fits the schema, or just doesn't, gets an answer and never a 5xx."""

import os
from typing import Any

import pytest
import schemathesis
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from prometheus_client import CollectorRegistry
from schemathesis import GenerationMode
from schemathesis.checks import not_a_server_error
from schemathesis.specs.openapi.checks import response_schema_conformance

from headrace.config import Config
from headrace.frontend.validation import settled
from headrace.server.app import build_app

from .fake_engine import FakeEngine

EXAMPLES = int(os.environ.get("HEADRACE_SCHEMA_EXAMPLES", "6"))  # of each route; by hand, some hundreds


class Engine(FakeEngine):
    """Refuses to pool, as a model that writes does."""

    async def prepare_pooling(self, prompts: Any, params: Any, add_special_tokens: bool = True) -> Any:
        settled(params, self.info)

    async def abort(self, request_ids: list[str]) -> None:
        self.aborted += request_ids


def make() -> Any:
    config = Config.from_kwargs(trust_request_chat_template=True)
    return build_app(config, Engine(config), CollectorRegistry())  # type: ignore[arg-type]


schema = schemathesis.openapi.from_asgi("/openapi.json", make()).exclude(path_regex="/dashboard/stream")
OPERATIONS = [found.ok() for found in schema.get_all_operations()]


# Not schemathesis' own decorator: all its tests have one id, under which xdist hands out files with only one of them.
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("operation", OPERATIONS, ids=lambda operation: operation.label)
def test_no_request_is_answered_with_a_5xx(operation: Any) -> None:
    @settings(max_examples=EXAMPLES, phases=[Phase.generate], suppress_health_check=list(HealthCheck))
    @given(st.one_of([operation.as_strategy(generation_mode=mode) for mode in GenerationMode]))
    def ask(case: schemathesis.Case) -> None:
        response = case.call_and_validate(checks=[not_a_server_error, response_schema_conformance])
        if response.status_code >= 400 and case.method != "HEAD":
            error = response.json()["error"]
            assert error["type"]
            assert error["message"].endswith((".", "?")), error

    ask()
