"""The pages as people use them: real clicks in a headless Chromium, against a server that wants a key."""

import json
import re
import shutil
from collections.abc import Iterator
from typing import Any

import httpx
import pytest

from tests.e2e.server import Server

sync_api = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
pytestmark = pytest.mark.slow

KEY = "correct-horse"
CHATS = "**/v1/chat/completions"
PHONE = {"viewport": {"width": 390, "height": 844}, "has_touch": True, "is_mobile": True, "color_scheme": "dark"}
HARM = """<script>document.title = "hacked"</script><img src="https://elsewhere.example/p.png" alt="a picture">
<b onclick="alert(1)" style="position:fixed" class="drawer" id="draft">bold</b> [link](javascript:alert(1))

```python
print("hello")
```
"""


@pytest.fixture(scope="module")
def server() -> Iterator[Server]:
    with Server("--kv-cache-memory-bytes", "256M", "--max-model-len", "1024", "--api-key", KEY) as running:
        yield running


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    path = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
    with sync_api.sync_playwright() as playwright:
        try:
            browser = playwright.chromium.launch(executable_path=path, args=["--disable-gpu"])
        except sync_api.Error as error:
            pytest.skip(f"there is no Chromium here: {str(error).splitlines()[0]}")
        yield browser
        browser.close()


class Visit:
    """A page in a browser of its own, with the key if ``entered``. Remembers what went wrong, and every address."""

    def __init__(self, browser: Any, server: Server, path: str = "/", entered: bool = True, **options: Any):
        self.context = browser.new_context(**options)
        if entered:
            self.context.add_init_script(f"sessionStorage.setItem('headrace.key', '{KEY}')")
        self.page = self.context.new_page()
        self.page.set_default_timeout(60_000)
        self.complaints: list[str] = []
        self.addresses: list[str] = []
        self.page.on("pageerror", lambda error: self.complaints.append(str(error)))
        self.page.on("console", lambda line: self.complaints.append(line.text) if line.type == "error" else None)
        self.page.on("request", lambda request: self.addresses.append(request.url))
        self.page.on("dialog", lambda dialog: dialog.accept())
        self.page.goto(server.url + path)

    def __enter__(self) -> "Visit":
        return self

    def __exit__(self, *_: object) -> None:
        self.context.close()

    def set(self, **settings: object) -> None:
        self.page.click("#show-settings")
        for name, value in settings.items():
            self.page.fill(f"#set-{name}", str(value))
        self.page.keyboard.press("Escape")

    def ask(self, text: str) -> None:
        self.page.wait_for_selector("#model option", state="attached")
        self.page.fill("#draft", text)
        self.page.keyboard.press("Enter")

    def answer(self) -> str:
        """The last message once it is complete."""
        self.page.wait_for_selector("#send:not([hidden])")
        return str(self.page.locator(".message.assistant .content").last.inner_text())

    def fake(self, *chunks: Any) -> None:
        """Answer chats with these."""
        body = "".join(f"data: {json.dumps(chunk)}\n\n" for chunk in chunks) + "data: [DONE]\n\n"
        self.page.route(CHATS, lambda route: route.fulfill(body=body, content_type="text/event-stream"))


def delta(**fields: str) -> Any:
    return {"choices": [{"index": 0, "delta": fields, "finish_reason": None}]}


def test_the_key_is_asked_for_and_stays_in_the_tab(server: Server, browser: Any) -> None:
    with Visit(browser, server, entered=False) as visit:
        visit.page.fill("#api-key", "wrong")
        visit.page.keyboard.press("Enter")
        visit.page.get_by_text("did not accept this key").wait_for()
        visit.page.fill("#api-key", KEY)
        visit.page.get_by_role("button", name="Continue").click()
        visit.page.get_by_text("tokens of context").wait_for()
        assert not [address for address in visit.addresses if KEY in address]
        assert KEY not in visit.page.evaluate("JSON.stringify(localStorage) + document.cookie")


def test_a_chat_from_settings_to_deletion(server: Server, browser: Any) -> None:
    with Visit(browser, server) as visit:
        page = visit.page
        visit.set(system="Be brief.", temperature=0, max_tokens=24)
        visit.ask("What is 2+2?")
        first = visit.answer()
        assert "4" in first
        stats = page.locator(".message.assistant .stats").inner_text()
        assert re.fullmatch(r"\d+ tokens · [\d.]+ tok/s · first after [\d.]+ m?s · prompt \d+", stats)
        page.locator(".message.assistant").get_by_role("button", name="Regenerate").click()
        assert visit.answer() == first

        page.click("#show-prompt")
        prompt = page.locator("#prompt-text")
        prompt.filter(has_text="What is 2+2?").wait_for()
        assert prompt.inner_text().startswith("<|im_start|>system\nBe brief.<|im_end|>\n<|im_start|>user\n")
        page.keyboard.press("Escape")

        page.locator(".message.user").hover()
        page.locator(".message.user").get_by_role("button", name="Edit").click()
        page.get_by_label("Edit the message").fill("Name a river.")
        page.get_by_role("button", name="Send again").click()
        edited = visit.answer()
        assert (page.locator(".message").count(), edited == first) == (2, False)

        page.reload()
        page.locator("#conversations .open").filter(has_text="Name a river.").wait_for()
        assert visit.answer() == edited
        assert page.input_value("#set-system") == "Be brief."
        page.locator("#conversations li").hover()
        page.get_by_role("button", name="Delete “Name a river.”").click()
        page.get_by_text("What shall we talk about?").wait_for()
        assert page.evaluate("localStorage.length") == 0
        assert not visit.complaints


def test_stop_ends_the_work(server: Server, browser: Any) -> None:
    with Visit(browser, server) as visit:
        visit.set(temperature=1, seed=3)
        visit.ask("Tell a very long story about a river, with all its towns.")
        visit.page.locator(".message.writing .stats").filter(has_text="tokens").wait_for()
        visit.page.click("#stop")
        visit.page.locator(".note").filter(has_text="Stopped.").wait_for()
        assert visit.answer()
        assert visit.page.evaluate("document.activeElement.id") == "draft"
        server.wait_metric("vllm:num_requests_running", 0)
        assert not visit.complaints


def test_what_was_written_outlives_a_reload(server: Server, browser: Any) -> None:
    with Visit(browser, server) as visit:
        page = visit.page
        visit.set(temperature=1, seed=3)
        visit.ask("Tell a very long story about a river, with all its towns.")
        page.locator(".message.writing .stats").filter(has_text=re.compile(r"\d\d tokens")).wait_for()
        page.reload()
        page.locator(".note").filter(has_text="Stopped.").wait_for()
        assert visit.answer()
        page.get_by_text("connection broke").wait_for(state="detached")
        server.wait_metric("vllm:num_requests_running", 0)
        page.locator(".message.assistant").get_by_role("button", name="Regenerate").click()
        page.locator(".message.writing").wait_for()
        assert not visit.complaints


def test_what_a_model_writes_is_shown_and_does_no_harm(server: Server, browser: Any) -> None:
    with Visit(browser, server, permissions=["clipboard-read", "clipboard-write"]) as visit:
        page = visit.page
        visit.fake(delta(reasoning="First, think."), delta(content=HARM[:40]), delta(content=HARM[40:]))
        visit.ask("Hi")
        visit.answer()
        summary = page.locator(".assistant summary")
        assert summary.is_visible()
        assert not page.get_by_text("First, think.").is_visible()
        summary.click()
        assert page.get_by_text("First, think.").is_visible()
        page.get_by_role("button", name="Copy").filter(has_text="Copy").click()
        page.get_by_text("Copied").wait_for()
        assert page.evaluate("navigator.clipboard.readText()") == 'print("hello")\n'
        bold = page.locator(".content b")
        assert bold.evaluate("element => [...element.attributes].map(attribute => attribute.name)") == []
        assert page.locator(".content a").evaluate_all("all => all.map(a => a.href)") == [
            "https://elsewhere.example/p.png",
            "",
        ]
        assert "hacked" not in page.title()
        assert {httpx.URL(address).netloc for address in visit.addresses} == {httpx.URL(server.url).netloc}

        visit.fake(delta(content="So"), {"error": {"message": "The engine is gone."}})
        visit.ask("And now?")
        page.get_by_role("alert").filter(has_text="The engine is gone.").wait_for()
        # The policy stops handlers and styles even while the sanitizer reads what it is about to remove.
        assert not [line for line in visit.complaints if not re.search("inline .* Content Security Policy", line)]


def test_the_dashboard_shows_what_happens(server: Server, browser: Any) -> None:
    with Visit(browser, server, "/dashboard") as visit:
        page = visit.page
        page.locator("#state.live").wait_for()
        body = {"prompt": "The river", "max_tokens": 60, "ignore_eos": True}
        httpx.post(f"{server.url}/v1/completions", json=body, headers={"Authorization": f"Bearer {KEY}"}, timeout=60)
        page.locator("#steps rect").nth(30).wait_for(state="attached")
        page.locator("#throughput .line").first.wait_for(state="attached")
        page.locator("#latency tbody tr").first.filter(has_not_text=re.compile("–")).wait_for()
        assert page.locator("#ledger tbody th").all_inner_texts()[:2] == ["model configuration", "weights"]
        assert "generated" in page.locator("#steps .frame").get_attribute("aria-label")
        assert not visit.complaints


@pytest.mark.parametrize("path", ["/", "/dashboard"])
def test_a_phone_needs_no_scrolling_sideways(server: Server, browser: Any, path: str) -> None:
    with Visit(browser, server, path, **PHONE) as visit:
        page = visit.page
        page.get_by_text("SmolLM2-135M-Instruct").first.wait_for(state="attached")
        assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")
        if path == "/":
            assert not page.get_by_role("button", name="New chat").is_visible()
            page.click("#menu")
            page.get_by_role("button", name="New chat").click()
            page.locator("#new").wait_for(state="hidden")
        unlabelled = (
            "[...document.querySelectorAll('button, input, select, textarea')].filter(e => !e.textContent.trim() "
        )
        unlabelled += "&& !e.ariaLabel && !e.labels?.length).map(e => e.outerHTML)"
        assert page.evaluate(unlabelled) == []
        assert not visit.complaints
