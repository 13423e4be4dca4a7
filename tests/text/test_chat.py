"""The laws of the renderer: one with transformers, users cannot make special tokens, only answers are trained."""

import dataclasses

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lmlab.errors import Refused
from lmlab.text.chat import Renderer
from lmlab.text.tokenizer import SPECIAL_TOKENS, Tokenizer, train

USER, ASSISTANT, END = 3, 4, 5


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return train(["The quick brown fox.\n\nsystem user assistant 123\n", "def f(a, b):\n    return a\n"] * 10, 330)


@pytest.fixture(scope="module")
def renderer(tokenizer: Tokenizer) -> Renderer:
    return Renderer(tokenizer)


def conversation(*turns: str) -> list[dict[str, str]]:
    """Turns of user and assistant by turns."""
    return [{"role": ("user", "assistant")[i % 2], "content": text} for i, text in enumerate(turns)]


def with_template(tokenizer: Tokenizer, template: str | None) -> Tokenizer:
    return Tokenizer(tokenizer._parsing, tokenizer.config, template)


ordinary = st.text(max_size=20)
hostile = st.lists(st.one_of(st.text(max_size=4), st.sampled_from([*SPECIAL_TOKENS, "\ue000", "<|", "|>"]))).map(
    "".join
)


def test_the_format() -> None:
    text = Renderer(train(["a"], 300)).render(
        [{"role": "system", "content": "Be brief."}, *conversation("Hi", "Yo")], True
    )
    assert text == "<|system|>\nBe brief.<|end|>\n<|user|>\nHi<|end|>\n<|assistant|>\nYo<|end|>\n<|assistant|>\n"


@pytest.mark.parametrize("prompt", [False, True])
def test_transformers_gives_equal_ids(renderer: Renderer, tmp_path, prompt) -> None:
    from transformers import AutoTokenizer

    renderer.tokenizer.save(tmp_path)
    theirs = AutoTokenizer.from_pretrained(tmp_path)
    conversations = [
        conversation("Hi"),
        [{"role": "system", "content": "Be brief.\n"}, *conversation("  two  spaces ", "answer 12\n\n", "日本 🙂", "")],
        conversation("<html> {{ 1 }} {% if %}", "\n leading"),
    ]
    for messages in conversations:
        ids = theirs.apply_chat_template(messages, add_generation_prompt=prompt, return_dict=False)
        assert renderer.encode(messages, prompt) == ids
        text = theirs.apply_chat_template(messages, add_generation_prompt=prompt, tokenize=False)
        assert renderer.render(messages, prompt) == text


@given(turns=st.lists(hostile, min_size=1, max_size=4))
def test_text_in_messages_never_becomes_a_special_token(renderer: Renderer, turns) -> None:
    messages = conversation(*turns)
    ids = renderer.encode(messages)
    wanted = [token for i in range(len(turns)) for token in ((USER, ASSISTANT)[i % 2], END)]
    assert [i for i in ids if i < len(SPECIAL_TOKENS)] == wanted
    assert renderer.tokenizer.decode(ids, skip_special=False) == renderer.render(messages)


@given(turns=st.lists(ordinary, min_size=1, max_size=4))
def test_keeping_text_apart_changes_no_ordinary_id(renderer: Renderer, turns) -> None:
    """The piecewise path, taken where a message holds a special token's string, agrees with the whole-text path."""
    messages = conversation(*turns)
    text = renderer.render(messages)
    assert renderer._tokens(text, {"\ue000": "unused"}, [])[0] == renderer.encode(messages)


@given(turns=st.lists(hostile, min_size=2, max_size=6))
def test_answers_and_their_ends_are_trained_and_nothing_else(renderer: Renderer, turns) -> None:
    messages = conversation(*[turn.strip() for turn in turns])
    ids, mask = renderer.encode_trained(messages)
    assert ids == renderer.encode(messages)
    answers = [message["content"] for message in messages if message["role"] == "assistant"]
    trained = renderer.tokenizer.decode([i for i, flag in zip(ids, mask, strict=True) if flag], skip_special=False)
    assert trained == "".join(answer + "<|end|>" for answer in answers)
    ends = [flag for i, flag in zip(ids, mask, strict=True) if i == END]
    assert ends == [message["role"] == "assistant" for message in messages]


def test_a_conversation_without_an_answer_is_an_error(renderer: Renderer) -> None:
    with pytest.raises(Refused, match=r"no token to train.*turns: user"):
        renderer.encode_trained(conversation("Hi"))
    with pytest.raises(Refused, match="turns: none"):
        renderer.encode_trained([])


def test_a_template_that_rewrites_earlier_turns_is_refused(tokenizer: Tokenizer) -> None:
    template = "{% for m in messages %}{{ m.role }}: {{ m.content if loop.last else '...' }}<|end|>{% endfor %}"
    with pytest.raises(Refused, match="rewrites earlier turns"):
        Renderer(with_template(tokenizer, template)).encode_trained(conversation("a", "b", "c", "d"))


def test_templates_with_generation_markers_and_trimming_work(tokenizer: Tokenizer) -> None:
    template = (
        "{{ eos_token }}{% for m in messages %}{% if m.role == 'user' %}Q: {{ m.content | trim }}\n"
        "{% else %}A: {% generation %}{{ m.content | trim }}{% endgeneration %}<|end|>\n{% endif %}{% endfor %}"
        "{% if add_generation_prompt %}A: {% endif %}"
    )
    renderer = Renderer(with_template(tokenizer, template))
    ids, mask = renderer.encode_trained(conversation(" one <|end|>", "two <|end|>"))
    assert renderer.tokenizer.decode(ids, skip_special=False) == "<|endoftext|>Q: one <|end|>\nA: two <|end|><|end|>\n"
    assert renderer.tokenizer.decode([i for i, m in zip(ids, mask) if m], skip_special=False) == "two <|end|><|end|>"
    assert ids.count(END) == 1


@pytest.mark.parametrize(
    ("template", "message"),
    [(None, "no chat template"), ("{% if %}", "not valid Jinja")],
)
def test_a_missing_or_broken_template_is_refused(tokenizer: Tokenizer, template, message) -> None:
    with pytest.raises(Refused, match=message):
        Renderer(with_template(tokenizer, template))


def test_what_the_template_refuses_is_refused(renderer: Renderer) -> None:
    with pytest.raises(Refused, match="role 'tool' is none of"):
        renderer.render([{"role": "tool", "content": "x"}])
    with pytest.raises(Refused, match="cannot render"):
        renderer.encode([{"role": "user"}])


def test_a_template_cannot_reach_out_of_its_sandbox(tokenizer: Tokenizer) -> None:
    renderer = Renderer(with_template(tokenizer, "{{ messages.__class__.__mro__[1].__subclasses__() }}"))
    with pytest.raises(Refused, match="cannot render"):
        renderer.render(conversation("a"))


def test_messages_are_left_as_they_were(renderer: Renderer) -> None:
    @dataclasses.dataclass
    class Kept:
        messages: list

    messages = conversation("a <|end|>", "b")
    before = dataclasses.asdict(Kept(messages))["messages"]
    renderer.encode_trained(messages)
    assert messages == before
