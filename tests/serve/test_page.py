"""The web page in a headless Chromium, against a real server with models that say what a script says."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from picollm.infer.engine import Engine
from picollm.serve.api import ModelHub
from picollm.serve.guard import LOOPBACK_NAMES
from tests.infer.fakes import scripted_engine
from tests.run.conftest import until
from tests.serve.browser import CHROMIUM, Page
from tests.serve.running import Brake, Running

pytestmark = [pytest.mark.slow, pytest.mark.skipif(CHROMIUM is None, reason="no Chromium here")]

EVIL = "**bold** <img src=x onerror=\"document.title='owned'\"> [j](javascript:alert(1)) `<b>`"
CHAT_TOKENS, RAW_TOKENS = 6, 3  # of the prompt "hi"


@pytest.fixture(scope="module")
def slow() -> Engine:
    return scripted_engine(list(b"abcdefghij" * 10), CHAT_TOKENS)


@pytest.fixture(scope="module")
def brake(slow: Engine) -> Iterator[Brake]:
    """Of the model "slow": what is stopped while it answers is still being answered."""
    found = Brake(slow)
    yield found
    found.release()


@pytest.fixture(scope="module")
def server(slow: Engine, brake: Brake, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    hub = ModelHub()
    hub.add("base", scripted_engine(list(b" there **and** there"), RAW_TOKENS), stage="pretrain")
    hub.add("evil", scripted_engine(list(EVIL.encode()), CHAT_TOKENS), stage="sft")
    hub.add("slow", slow, stage="midtrain")
    running = Running(hub, tmp_path_factory.mktemp("s"), token=None, hosts=LOOPBACK_NAMES)
    yield running
    running.end()


def ended(server: Running, brake: Brake) -> None:
    """The model works no more once it has been stopped."""
    until(lambda: server.app.state.gate.active == 0)
    brake.allow(1)
    until(lambda: not server.hub.worker.busy)


@pytest.fixture
def page(server: Running) -> Iterator[Page]:
    with Page(server.tcp) as page:
        page.until("document.querySelectorAll('#model option').length")
        yield page


def choose(page: Page, model: str, select: str = "model") -> None:
    page.run(f"void ({select}.value = '{model}', {select}.dispatchEvent(new Event('change')))")


def texts(page: Page) -> list[str]:
    return page.run("[...document.querySelectorAll('.text')].map((element) => element.textContent)")


def done(page: Page, answers: int = 1) -> None:
    page.until(
        f"document.querySelectorAll('.answer .figures').length >= {answers} && document.getElementById('stop').hidden"
    )


def test_what_a_model_writes_is_only_text(page: Page) -> None:
    assert page.run("model.value") == "evil"  # the furthest stage is the default
    page.enter("hi")
    done(page)
    html = page.run("document.querySelector('.text').innerHTML")
    assert "<strong>bold</strong>" in html and "<code>&lt;b&gt;</code>" in html
    assert "<img" not in html and "href" not in html and "&lt;img src=x" in html
    assert page.run("document.title") == "picollm" and page.errors == []
    # Not even a page that had a mistake could make markup or a script of a text.
    for script in ("document.body.innerHTML = '<b>x</b>'", "document.createElement('script').src = 'data:,1'"):
        with pytest.raises(RuntimeError, match="requires 'Trusted"):
            page.run(script)


def test_conversations_outlive_the_page_and_can_be_deleted(page: Page, server: Running) -> None:
    page.enter("hi")
    done(page)
    page.open(server.tcp + "/")
    page.until("document.querySelector('#conversations .open')")
    assert texts(page) == []
    page.run("document.querySelector('#conversations .open').click()")
    assert len(texts(page)) == 1 and page.run("document.querySelector('.user').textContent") == "hi"
    page.run("document.querySelector('#conversations .drop').click()")
    assert texts(page) == [] and json.loads(page.run("localStorage.getItem('picollm.conversations')")) == []
    page.run("localStorage.setItem('picollm.conversations', '[{\"id\": 1, \"turns\": [{}]}, null, 7')")
    page.open(server.tcp + "/")
    page.until("document.querySelectorAll('#model option').length")
    assert page.errors == []


def test_two_tabs_keep_each_others_conversations(page: Page, server: Running, brake: Brake) -> None:
    page.run("""void (window.other = (id) => {
      const kept = JSON.parse(localStorage.getItem('picollm.conversations') ?? '[]');
      localStorage.setItem('picollm.conversations', JSON.stringify([{ id, title: id, turns: [] }, ...kept]));
      window.dispatchEvent(new StorageEvent('storage', { key: 'picollm.conversations' }));
    })""")
    page.run("other('before')")
    choose(page, "slow")
    brake.allow(5)
    page.enter("hi")
    page.until("document.querySelector('.text')?.textContent.length > 2")
    page.run("other('meanwhile')")
    page.press("Escape", "Escape")
    done(page)
    ended(server, brake)
    kept = [one["title"] for one in json.loads(page.run("localStorage.getItem('picollm.conversations')"))]
    assert sorted(kept) == ["before", "hi", "meanwhile"] and len(texts(page)) == 1 and page.errors == []


def test_stop_and_regenerate_by_key(page: Page, server: Running, brake: Brake) -> None:
    choose(page, "slow")
    brake.allow(5)
    page.enter("hi")
    page.until("document.querySelector('.text')?.textContent.length > 2")
    assert page.run("document.getElementById('send').hidden")
    page.press("Escape", "Escape")
    done(page)
    [text] = texts(page)
    assert "abcdefghij".startswith(text)
    assert "stopped" in page.run("document.querySelector('.figures').textContent")
    ended(server, brake)
    before = brake.made
    brake.allow(5)
    page.press("r", "KeyR", modifiers=1)
    page.until("!document.getElementById('stop').hidden")
    until(lambda: brake.made > before)
    page.run("document.getElementById('stop').click()")
    done(page)
    ended(server, brake)
    assert len(texts(page)) == 1
    page.press("n", "KeyN", modifiers=1)
    assert texts(page) == []


def test_compare_asks_both_with_the_same_seed(page: Page) -> None:
    page.run("document.getElementById('compare').click()")
    assert page.run("second.value") == "base" and not page.run("document.getElementById('second-field').hidden")
    page.enter("hi")
    done(page, 2)
    evil, base = texts(page)
    assert evil.startswith("bold") and base == " there **and** there"  # a base model's text is shown as it is
    seeds = page.run("[...document.querySelectorAll('.figures')].map((it) => /seed (\\d+)/.exec(it.textContent)[1])")
    assert seeds[0] == seeds[1]


def test_settings_reach_the_server_and_stay(page: Page, server: Running) -> None:
    page.run("void (window.sent = [], window.real = fetch, window.fetch = (path, how) => "
             "(sent.push(how?.body), real(path, how)))")  # fmt: skip
    for name, value in {"temperature": "0", "max_tokens": "5", "seed": "77", "system": "Be kind."}.items():
        page.run(f"void (it = document.querySelector('[data-setting={name}]'), it.value = '{value}', "
                 "it.dispatchEvent(new Event('input', {bubbles: true})))")  # fmt: skip
    page.enter("hi")
    done(page)
    body = json.loads(page.run("sent.at(-1)"))
    assert (body["temperature"], body["max_tokens"], body["seed"]) == (0, 5, 77)
    assert body["messages"] == [{"role": "system", "content": "Be kind."}, {"role": "user", "content": "hi"}]
    assert "seed 77" in page.run("document.querySelector('.figures').textContent")
    page.open(server.tcp + "/")
    assert page.run("document.querySelector('[data-setting=max_tokens]').value") == "5"


@pytest.mark.parametrize("dark", [False, True])
def test_phone_width_and_themes(server: Running, dark: bool, tmp_path: Path) -> None:
    with Page(server.tcp, width=360, height=700, dark=dark) as page:
        page.until("document.querySelectorAll('#model option').length")
        page.run("document.getElementById('compare').click()")
        page.enter("hi")
        done(page, 2)
        assert page.run("document.documentElement.scrollWidth") == 360
        assert page.run("document.getElementById('prompt').getBoundingClientRect().bottom") <= 700
        assert page.run("getComputedStyle(sidebar).visibility") == "hidden"
        page.run("document.getElementById('open-sidebar').click()")
        page.until("getComputedStyle(sidebar).visibility === 'visible'")
        brightness = "parseInt(/\\d+/.exec(getComputedStyle(document.body).backgroundColor)[0])"
        assert (page.run(brightness) < 128) == dark
        page.run("theme.click()")  # light
        assert page.run(brightness) > 128
        page.run("theme.click()")  # dark
        assert page.run(brightness) < 128
        page.picture(tmp_path / "page.png")
        assert (tmp_path / "page.png").stat().st_size > 5000 and page.errors == []


def test_a_token_is_asked_for_or_taken_from_the_address(tmp_path: Path) -> None:
    hub = ModelHub()
    hub.add("sft", scripted_engine(list(b"yes"), CHAT_TOKENS))
    server = Running(hub, tmp_path, token="a secret of mine")
    try:
        with Page(server.tcp) as page:
            page.until("document.getElementById('ask-token').open")
            page.run("void (token.value = 'a secret of mine', document.querySelector('#ask-token .main').click())")
            page.until("document.querySelectorAll('#model option').length")
            page.enter("hi")
            done(page)
            assert texts(page) == ["yes"]
        with Page(f"{server.tcp}/#token=a%20secret%20of%20mine") as page:
            page.until("document.querySelectorAll('#model option').length")
            assert page.run("location.hash") == "" and not page.run("document.getElementById('ask-token').open")
    finally:
        server.end()


def test_a_server_that_has_gone_is_said(tmp_path: Path) -> None:
    hub = ModelHub()
    hub.add("sft", scripted_engine(list(b"yes"), CHAT_TOKENS))
    server = Running(hub, tmp_path, token=None, hosts=LOOPBACK_NAMES)
    with Page(server.tcp) as page:
        page.until("document.querySelectorAll('#model option').length")
        server.end()
        page.enter("hi")
        done(page)
        assert "does not answer" in texts(page)[0]


MARKDOWN = {
    "a\nb": "<p>a<br>b</p>",
    "# a # \n## b": "<h1>a</h1><h2>b</h2>",
    "a *b* __c__ `*d*` ~~e~~": "<p>a <em>b</em> <strong>c</strong> <code>*d*</code> <del>e</del></p>",
    "snake_case_name and \\*stars\\*": "<p>snake_case_name and *stars*</p>",
    "``a`b`` ```c`": "<p><code>a`b</code> ```c`</p>",
    "**open *too": "<p>**open *too</p>",
    "```py\nx < 1\n\n# y": '<pre><code data-language="py">x &lt; 1\n\n# y</code></pre>',
    "- a\n  - b\n\n  c\n- d": "<ul><li>a<ul><li>b</li></ul><p>c</p></li><li>d</li></ul>",
    "3. a\n4. b\n\ntext": '<ol start="3"><li>a</li><li>b</li></ol><p>text</p>',
    "> a\n> - b": "<blockquote><p>a</p><ul><li>b</li></ul></blockquote>",
    "---\n<u>x</u> &amp;": "<hr><p>&lt;u&gt;x&lt;/u&gt; &amp;amp;</p>",
    "[a](data:text/html,x) ![b](vbscript:x)": "<p>a b</p>",
    "| a | b |\n|---|:-:|\n| 1 |": "<table><thead><tr><th>a</th><th>b</th></tr></thead>"
                                    "<tbody><tr><td>1</td><td></td></tr></tbody></table>",
}  # fmt: skip


def test_markdown(page: Page) -> None:
    page.run("import('/web/markdown.js').then((it) => void (window.render = it.render))")
    html = "(text) => { const it = document.createElement('div'); it.append(render(text)); return it.innerHTML; }"
    for text, expected in MARKDOWN.items():
        assert (
            page.run(f"({html})({json.dumps(text)})").replace('<div class="wide">', "").replace("</div>", "")
            == expected
        )
    link = page.run(f"({html})('see https://a.example/b_(c)_d, or [e](http://f.example)')")
    assert 'href="https://a.example/b_(c)_d"' in link and link.count("noreferrer noopener nofollow") == 2


def test_any_text_is_rendered_quickly_and_harmlessly(page: Page) -> None:
    page.run("import('/web/markdown.js').then((it) => void (window.render = it.render))")
    page.run("""void (window.hostile = () => {
      const pieces = ['*', '**', '_', '`', '```', '~~', '[', '](', ')', '!', '<', '>', '> ', '- ', '1. ', '#',
        '|', '-', '\\\\', '\\n', '\\n\\n', '    ', 'a', ' ', 'https://x.y', 'javascript:1', '<script>',
        '<img src=x onerror=y>', '&lt;', '☃'];
      let state = 7;
      const next = (n) => (state = (state * 48271) % 2147483647) % n;
      for (let k = 0; k < 3000; k += 1) {
        const text = Array.from({ length: next(60) }, () => pieces[next(pieces.length)]).join('');
        const it = document.createElement('div');
        it.append(render(text));
        if (it.querySelector('script, img, iframe, [onerror], a:not([href^="http"])')) return text;
      }
      for (const piece of pieces) for (const end of ['', 'a']) render(piece.repeat(4000) + end);
      return '';
    })""")
    assert page.run("hostile()") == ""
