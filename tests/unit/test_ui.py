"""The pages without a browser: who may read what, their headers, and what the dashboard's stream tells."""

import asyncio
import json
import re

import httpx
import pytest

from headrace.server.ui.live import MAX_STEPS, Live
from headrace.types import Stats

from .app import client_of, make

PAGES = ("/", "/dashboard")
DATA = ("/dashboard/facts", "/dashboard/stream")
KEY = {"Authorization": "Bearer secret"}


@pytest.mark.parametrize("root_path", ["", "/behind/a/proxy"])
async def test_pages_and_all_that_they_name_are_here_and_open_to_everybody(root_path: str) -> None:
    """Follows links of pages, imports of modules: nothing may be missing, come from elsewhere or stand inline."""
    app, _ = make(api_key=["secret"])
    seen: set[str] = set()
    waiting = [httpx.URL(f"http://server{root_path}{page}") for page in PAGES]
    async with client_of(app, root_path) as client:
        while waiting:
            url = waiting.pop()
            if str(url) in seen:
                continue
            seen.add(str(url))
            response = await client.get(url)
            assert response.status_code == 200, url
            policy = response.headers["content-security-policy"]
            assert policy.startswith("default-src 'none'; script-src 'self';")
            assert "unsafe" not in policy
            if "/vendor/" in str(url) or "image" in response.headers["content-type"]:
                continue
            assert not re.search(r"<style|\sstyle=|<script>|\son\w+=\"", response.text), url
            named = re.findall(r"""(?:src|href)="([^"#]+)"|from "([^"]+)";""", response.text)
            waiting += [url.join(name or module) for name, module in named]
        etag = (await client.get(root_path + "/ui/chat.js")).headers["etag"]
        unchanged = await client.get(root_path + "/ui/chat.js", headers={"If-None-Match": etag})
        assert (await client.head(root_path + "/")).status_code == 200
    assert {url.rsplit("/", 1)[1] for url in seen} >= {"chat.js", "charts.js", "marked.esm.js", "purify.es.mjs"}
    assert unchanged.status_code == 304


@pytest.mark.parametrize("path", ["/ui/", "/ui/nothing.js", "/ui/../live.py", "/ui/%2e%2e/live.py", "/ui//etc/passwd"])
async def test_nothing_else_is_served(path: str) -> None:
    async with client_of(make()[0]) as client:
        response = await client.get(httpx.URL(scheme="http", host="server", raw_path=path.encode()))
    assert response.json()["error"]["code"] == 404


async def test_data_needs_the_key() -> None:
    app, _ = make(api_key=["secret"], disable_log_stats=True)
    async with client_of(app) as client:
        assert {(await client.get(path)).status_code for path in DATA} == {401}
        facts = (await client.get("/dashboard/facts", headers=KEY)).json()
        refused = await client.get("/dashboard/stream", headers=KEY)
    assert (facts["models"], facts["ledger"], facts["statistics"]) == (["fake"], [["weights", 1.5, 2**30]], False)
    assert (refused.status_code, "--disable-log-stats" in refused.text) == (409, True)


async def test_disable_ui_leaves_no_route() -> None:
    app, engine = make(disable_ui=True)
    async with client_of(app) as client:
        statuses = {(await client.get(path)).status_code for path in (*PAGES, *DATA, "/ui/chat.js")}
    assert statuses == {404}
    assert not engine.observers


async def test_the_stream_ends_with_the_engine() -> None:
    app, engine = make()
    engine.observers[0].on_stats(Stats(num_running=1, prompt_tokens=7, num_steps=1))
    async with client_of(app) as client:
        asking = asyncio.ensure_future(client.get("/dashboard/stream"))
        await asyncio.sleep(0.1)
        engine.die("gone")
        response = await asyncio.wait_for(asking, 10)
    first, *_, done, _ = response.text.split("\n\n")
    assert json.loads(first.removeprefix("data: "))["steps"] == [[None, 1, 7, 0, 1]]
    assert done == "data: [DONE]"


def test_live_sums_seconds_times_steps_and_forgets() -> None:
    now = 100.0
    live = Live(lambda: now)
    for seconds, stats in (
        (0.2, Stats(num_running=2, prompt_tokens=30, prefix_cache_queries=40, prefix_cache_hits=10, num_steps=1)),
        (0.3, Stats(num_running=2, generation_tokens=2, num_steps=1)),
        (0.6, Stats(num_running=0, num_waiting=0, generation_tokens=2, num_steps=1, kv_cache_usage=0.5)),
        (5.0, Stats()),  # idle: no step
        (0.1, Stats(num_running=1, prompt_tokens=5, num_steps=1)),
    ):
        now += seconds
        live.on_stats(stats)
    report = live.report()
    assert [step.seconds for step in report.steps] == [None, pytest.approx(0.3), pytest.approx(0.6), None]
    busy, idle = report.samples
    assert (busy.seconds, busy.prompt_tokens, busy.generation_tokens) == (pytest.approx(1.1), 30, 4)
    assert (busy.prefix_cache_hits, busy.kv_cache_usage, busy.running) == (10, 0.5, 0)
    assert (idle.seconds, idle.generation_tokens) == (pytest.approx(5.0), 0)

    again = live.report(report.last_sample, report.last_step)
    assert (again.samples, again.steps) == ([], [])
    for _ in range(MAX_STEPS + 10):
        live.on_stats(Stats(num_running=1, generation_tokens=1, num_steps=1))
    assert len(live.report(report.last_sample, report.last_step).steps) == MAX_STEPS
