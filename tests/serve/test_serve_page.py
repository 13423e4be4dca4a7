"""The page's HTML, its headers, and that nothing a model writes becomes active."""

from __future__ import annotations

import re
from html.parser import HTMLParser

import pytest
from hypothesis import given
from hypothesis import strategies as st
from starlette.testclient import TestClient

from lmlab.serve import page
from lmlab.serve.app import create_app


@pytest.fixture
def raw(make_model):
    with TestClient(create_app({"pretrain": make_model(), '<b>"sft"': make_model(), "ppo": make_model()})) as made:
        yield made


def test_the_page_names_its_models_and_escapes_them(raw):
    html = raw.get("/").text
    assert html.count('value="&lt;b&gt;&#34;sft&#34;"') == 2
    assert "<b>" not in html
    assert re.search(r'<option value="pretrain" data-context="256" data-plain="1">', html)
    first, second = html.split('id="model-1"')
    assert re.search(r'value="ppo"[^>]* selected', first)
    assert re.search(r"sft[^>]* selected", second)


def test_nothing_is_loaded_from_outside(raw):
    found = raw.get("/")
    policy = found.headers["content-security-policy"]
    assert "default-src 'none'" in policy
    assert "http" not in policy
    assert "unsafe" not in policy
    urls = re.findall(r'(?:src|href)="([^"]*)"', found.text)
    assert len(urls) == 3
    for url in urls:
        assert url.startswith("/static/")
        assert raw.get(url).status_code == 200
    assert not re.search(r"https?://", raw.get("/static/chat.js").text + raw.get("/static/chat.css").text)
    assert not re.search(r"<script>|\son\w+=|style=", found.text)


def test_every_field_has_a_label(raw):
    html = raw.get("/").text
    fields = re.findall(r"<(?:input|select|textarea)[^>]* id=\"([^\"]+)\"", html)
    assert len(fields) == 8
    assert set(fields) == set(re.findall(r'<label[^>]* for="([^"]+)"', html))


def test_finished_answers_are_markdown(raw):
    found = raw.post(
        "/page/markdown", json={"text": "**bold** and\n\n```python\nx = 1 < 2\n```\n\n| a | b |\n|--|--|\n| 1 | 2 |"}
    )
    html = found.json()["html"]
    assert "<strong>bold</strong>" in html
    assert "<pre><code>x = 1 &lt; 2\n</code></pre>" in html
    assert "<table>" in html


@pytest.mark.parametrize(
    "text",
    ["<script>alert(1)</script>", '<img src=x onerror="alert(1)">', "<b onclick=alert(1)>x</b>", "a <iframe> b"],
)
def test_html_in_an_answer_is_shown_literally(text):
    shown = _Shown()
    shown.feed(page.to_html(text))
    assert "".join(shown.text).strip() == text
    assert {tag for tag, _ in shown.tags} <= {"p"}


@pytest.mark.parametrize(
    "text",
    ["[x](javascript:alert(1))", "![x](http://far.example/x.png)", "<javascript:alert(1)>", "[x](data:text/html,y)"],
)
def test_no_dangerous_link_and_no_picture(text):
    html = page.to_html(text)
    assert "<img" not in html
    assert not re.search(r'href="(?!https?:|mailto:)', html)


class _Shown(HTMLParser):
    """The text and tags that a browser would see."""

    def __init__(self) -> None:
        super().__init__(convert_charrefs=True)
        self.text: list[str] = []
        self.tags: list[tuple[str, list]] = []

    def handle_data(self, data: str) -> None:
        self.text.append(data)

    def handle_starttag(self, tag: str, attrs: list) -> None:
        self.tags.append((tag, attrs))


_SHARP = st.sampled_from(
    [
        "<script>",
        "<img src=x onerror=",
        "[a](",
        "javascript:",
        "`",
        "```\n",
        "&lt;",
        '"',
        "'",
        ">",
        "\n\n",
        "| a |",
        "x",
    ]
)


@given(st.lists(st.one_of(_SHARP, st.text(max_size=8)), max_size=12).map("".join))
def test_no_text_becomes_active(text):
    shown = _Shown()
    shown.feed(page.to_html(text))
    for tag, attributes in shown.tags:
        assert tag in page._TAGS
        for name, value in attributes:
            assert name in {"href", "title", "rel", "start"}
            assert (
                name != "href" or not value or not value.lower().strip().startswith(("javascript", "data", "vbscript"))
            )
