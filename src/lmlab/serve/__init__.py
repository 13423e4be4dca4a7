"""Talking to a model: an OpenAI-compatible server, a chat page, and a chat in the terminal.

`serve` needs the extra [serve]; `chat` needs none. The application alone is `lmlab.serve.app.create_app`.
"""

from lmlab.serve.models import load_models
from lmlab.serve.run import serve
from lmlab.serve.terminal import chat

__all__ = ["chat", "load_models", "serve"]
