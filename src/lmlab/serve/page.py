"""The chat page: rendered on the server, with a small script of ours; finished answers come back as sanitised HTML."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

import jinja2
import nh3
from fastapi import APIRouter
from markdown_it import MarkdownIt
from pydantic import BaseModel, ConfigDict
from starlette.responses import HTMLResponse
from starlette.staticfiles import StaticFiles

from lmlab.serve.generation import context_length
from lmlab.serve.models import continues_text

if TYPE_CHECKING:
    from lmlab.generate.handle import Model

HERE = Path(__file__).parent

# HTML in an answer is text: markdown-it escapes it, and nh3 lets nothing through that Markdown does not make. Pictures
# are left out of both, since they would make the browser fetch what a model wrote.
_MARKDOWN = MarkdownIt("commonmark", {"html": False, "breaks": True}).enable("table").disable("image")
_TAGS = {
    "p", "br", "strong", "em", "code", "pre", "blockquote", "ul", "ol", "li", "hr", "a",
    "h1", "h2", "h3", "h4", "h5", "h6", "table", "thead", "tbody", "tr", "th", "td",
}  # fmt: skip
_ATTRIBUTES = {"a": {"href", "title"}, "ol": {"start"}}

# What a page of ours may load: its own script, style and icon, its own API, and nothing else from anywhere.
CONTENT_SECURITY_POLICY = "; ".join((
    "default-src 'none'", "script-src 'self'", "style-src 'self'", "img-src 'self'", "connect-src 'self'",
    "form-action 'none'", "base-uri 'none'", "frame-ancestors 'none'",
))  # fmt: skip


def to_html(markdown: str) -> str:
    """Markdown as HTML that is safe to put into a page, whatever a model wrote."""
    return nh3.clean(
        _MARKDOWN.render(markdown),
        tags=_TAGS,
        attributes=_ATTRIBUTES,
        url_schemes={"http", "https", "mailto"},
        link_rel="noopener noreferrer nofollow",
    )


class Finished(BaseModel):
    """A finished answer, as Markdown."""

    model_config = ConfigDict(strict=True)
    text: str


def make_router(models: Mapping[str, Model]) -> APIRouter:
    """The page at `/`, and what renders its finished answers."""
    router = APIRouter()
    environment = jinja2.Environment(loader=jinja2.FileSystemLoader(HERE / "templates"), autoescape=True)
    template = environment.get_template("chat.html")
    listed = [
        {"name": name, "context": context_length(model), "plain": continues_text(name, model)}
        for name, model in models.items()
    ]

    @router.get("/", response_class=HTMLResponse)
    async def chat_page() -> str:
        # The last stage is the one that the whole run was for; the one before it is what it is best compared with.
        return template.render(models=listed, first=len(listed) - 1, second=max(0, len(listed) - 2))

    @router.post("/page/markdown")
    async def markdown(finished: Finished) -> dict[str, str]:
        return {"html": to_html(finished.text)}

    return router


def static_files() -> StaticFiles:
    """The page's script, style and icon."""
    return StaticFiles(directory=HERE / "static")
