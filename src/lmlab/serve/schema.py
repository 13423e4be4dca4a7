"""What a request to the API may hold. Anything that would be ignored silently is refused instead."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

from lmlab.errors import nearest
from lmlab.serve.errors import ApiError

# Settings of OpenAI's that are not done here, with the values that ask for nothing.
_NEUTRAL: dict[str, tuple[Any, ...]] = {
    "logit_bias": ({},),
    "best_of": (1,),
    "suffix": ("",),
    "response_format": ({"type": "text"},),
    "tools": ([],),
    "tool_choice": ("none", "auto"),
    "functions": ([],),
    "modalities": (["text"],),
    "parallel_tool_calls": (True, False),
}
# Settings that say nothing about the answer.
_WITHOUT_EFFECT = frozenset(
    {"user", "metadata", "store", "service_tier", "safety_identifier", "prompt_cache_key", "stream_options"}
)


def _encodable(text: str) -> str:
    """JSON can write half of a character (\\ud800), which is no text that could be tokenised."""
    try:
        text.encode()
    except UnicodeEncodeError:
        raise ValueError("holds half of a surrogate pair, which is no Unicode text") from None
    return text


Text = Annotated[str, AfterValidator(_encodable)]
Stop = Annotated[list[Annotated[Text, Field(min_length=1)]], Field(max_length=16)]
Ids = Annotated[list[Annotated[int, Field(ge=0)]], Field(min_length=1)]


class StreamOptions(BaseModel):
    """`include_usage`: one more chunk, without choices, with the counts of tokens."""

    model_config = ConfigDict(strict=True)
    include_usage: bool = False


class Request(BaseModel):
    """What both kinds of request share. `null` stands for the default everywhere, as in OpenAI's API."""

    model_config = ConfigDict(strict=True, extra="allow")
    model: str
    max_tokens: int | None = Field(default=None, ge=0)
    """At most this many new tokens; never more than the context has room for."""
    temperature: float = Field(default=1.0, ge=0, le=2)
    """0 takes the likeliest token each time."""
    top_p: float = Field(default=1.0, gt=0, le=1)
    top_k: int = Field(default=0, ge=0)
    """Of lmlab: choose among the k likeliest tokens; 0 is all."""
    min_p: float = Field(default=0.0, ge=0, le=1)
    """As vLLM has it: only tokens at least this share as likely as the likeliest; 0 is all."""
    repetition_penalty: float = Field(default=1.0, gt=0)
    """As vLLM has it: above 1, what was said is less likely again."""
    frequency_penalty: float = Field(default=0.0, ge=-2, le=2)
    presence_penalty: float = Field(default=0.0, ge=-2, le=2)
    seed: int | None = None
    """The same seed and settings give the same answer; without one, each answer is drawn anew."""
    stop: Stop = []
    n: int = Field(default=1, ge=1, le=64)
    stream: bool = False
    stream_options: StreamOptions = StreamOptions()

    @model_validator(mode="before")
    @classmethod
    def _null_is_default(cls, data: Any) -> Any:
        return {key: value for key, value in data.items() if value is not None} if isinstance(data, dict) else data

    @field_validator("stop", mode="before")
    @classmethod
    def _one_stop(cls, value: Any) -> Any:
        return [value] if isinstance(value, str) else value

    @model_validator(mode="after")
    def _nothing_ignored(self) -> Request:
        for key, value in (self.model_extra or {}).items():
            if key in _WITHOUT_EFFECT or value in _NEUTRAL.get(key, ()):
                continue
            if key in _NEUTRAL:
                raise ValueError(f"{key} is not supported by this server; leave it out")
            raise ValueError(f"unknown setting '{key}'{nearest(key, type(self).model_fields)}")
        return self


class TextPart(BaseModel):
    """A part of a message: text is the only kind that a language model of text takes."""

    model_config = ConfigDict(strict=True)
    type: Literal["text"]
    text: Text


class ChatMessage(BaseModel):
    """One turn. `developer` is OpenAI's newer word for `system`."""

    model_config = ConfigDict(strict=True)
    role: Literal["system", "developer", "user", "assistant"]
    content: Text | list[TextPart]

    def plain(self) -> dict[str, str]:
        """{"role", "content"} as the chat renderer takes them."""
        text = self.content if isinstance(self.content, str) else "".join(part.text for part in self.content)
        return {"role": "system" if self.role == "developer" else self.role, "content": text}


class ChatRequest(Request):
    """POST /v1/chat/completions"""

    messages: list[ChatMessage] = Field(min_length=1)
    max_completion_tokens: int | None = Field(default=None, ge=0)
    """The newer name of `max_tokens`; it wins where both are given."""
    logprobs: bool = False
    top_logprobs: int = Field(default=0, ge=0, le=20)
    truncation: Literal["auto", "disabled"] = "disabled"
    """`auto`: where the conversation is longer than the context, leave out its oldest turns (as in OpenAI's Responses
    API); `disabled`: refuse it."""

    @model_validator(mode="after")
    def _top_of_what(self) -> ChatRequest:
        if self.top_logprobs and not self.logprobs:
            raise ValueError("top_logprobs needs logprobs=true")
        return self

    @property
    def new_tokens(self) -> int | None:
        """The limit on new tokens, or None."""
        return self.max_tokens if self.max_completion_tokens is None else self.max_completion_tokens

    @property
    def top(self) -> int:
        """How many likeliest tokens to report beside each one."""
        return self.top_logprobs


class CompletionRequest(Request):
    """POST /v1/completions"""

    prompt: Text | Annotated[list[Text], Field(min_length=1)] | Ids | Annotated[list[Ids], Field(min_length=1)]
    """A text, several, or token ids (one list, or several)."""
    echo: bool = False
    """Give the prompt back before the new text, with its log-probabilities if `logprobs` is set."""
    logprobs: int | None = Field(default=None, ge=0, le=20)

    @property
    def new_tokens(self) -> int | None:
        """The limit on new tokens; 16 where none is given, as at OpenAI."""
        return 16 if self.max_tokens is None else self.max_tokens

    @property
    def top(self) -> int:
        """How many likeliest tokens to report beside each one."""
        return self.logprobs or 0

    @property
    def prompts(self) -> list[str | list[int]]:
        """The prompts, one by one."""
        if isinstance(self.prompt, str):
            return [self.prompt]
        if isinstance(self.prompt[0], int):
            return [[i for i in self.prompt if isinstance(i, int)]]
        return [p for p in self.prompt if not isinstance(p, int)]


def explain(error: ValidationError | Any) -> ApiError:
    """One message out of pydantic's list of what is wrong with a body (also FastAPI's RequestValidationError)."""
    found = []
    for detail in error.errors():
        place = [str(part) for part in detail["loc"] if part != "body"]
        if detail["type"] == "json_invalid":
            return ApiError(f"the body is not valid JSON: {detail.get('ctx', {}).get('error', '')}")
        message = detail["msg"].removeprefix("Value error, ")
        name = place[0] if place else None
        found.append((name, f"{'.'.join(place)}: {message}" if place else message))
    if not found:
        return ApiError("the body is not what is expected here")
    # The choices of a union are each explained; the first few say enough.
    texts = list(dict.fromkeys(text for _, text in found))
    return ApiError("; ".join(texts[:4]), param=found[0][0])
