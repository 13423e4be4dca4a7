"""`lmlab.load`: text in, text out; without tokenizer files ids still work; padding on either side changes nothing."""

from pathlib import Path

import pytest
import torch

import lmlab
from lmlab.errors import Refused
from lmlab.generate.engine import Sampling
from lmlab.generate.handle import Model
from lmlab.model.config import ModelConfig
from lmlab.model.store import save_model
from lmlab.model.transformer import Transformer
from lmlab.text.tokenizer import train

CONTEXT = 48


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    tokenizer = train(["the cat sat on the mat, 12 + 30 = 42\n"] * 20, 300)
    config = ModelConfig(layers=2, d_model=32, heads=4, vocab_size=tokenizer.vocab_size, context_length=CONTEXT)
    network = Transformer(config).initialise(3)
    with torch.no_grad():
        network.embedding.weight *= 20
    path = tmp_path_factory.mktemp("run") / "model"
    save_model(path, network, tokenizer)
    return path


@pytest.fixture(scope="module")
def model(folder: Path) -> Model:
    return lmlab.load(folder)


def test_generate_takes_one_text_or_many(model: Model) -> None:
    many = model.generate(["the cat", "12 + "], max_new_tokens=8, temperature=1.0, seed=5)
    assert many == [model.generate(text, max_new_tokens=8, temperature=1.0, seed=5) for text in ("the cat", "12 + ")]
    assert model.generate(["the"] * 2, max_new_tokens=8, temperature=2.0, seed=[1, 1])[0] == model.generate(
        "the", max_new_tokens=8, temperature=2.0, seed=1
    )
    with pytest.raises(Refused, match="2 prompts and 1 seeds"):
        model.generate(["a", "b"], seed=[1])
    assert isinstance(model.generate("", max_new_tokens=3), str)


def test_score_is_the_sum_of_the_logits_log_softmax(model: Model) -> None:
    found = model.score([("the cat", " sat"), ("", "the")])
    for (context, continuation), score in zip([("the cat", " sat"), (None, "the")], found):
        before = model.tokenizer.encode(context) if context else [model.tokenizer.eos_id]
        after = model.tokenizer.encode(continuation)
        logprobs = model.logits([[*before, *after]])[0].log_softmax(-1)
        wanted = sum(float(logprobs[len(before) - 1 + i, token]) for i, token in enumerate(after))
        assert score.logprob == pytest.approx(wanted, abs=1e-4)
        assert score.tokens == len(after)


def test_padding_on_either_side_changes_no_real_position(model: Model) -> None:
    rows = [[20, 21, 22, 23, 24], [30, 31], [40]]
    for side in ("left", "right"):
        ids, mask = [], []
        for row in rows:
            pad = [model.tokenizer.pad_id] * (5 - len(row))
            ids.append(pad + row if side == "left" else row + pad)
            mask.append([0] * len(pad) + [1] * len(row) if side == "left" else [1] * len(row) + [0] * len(pad))
        found = model.logits(ids, attention_mask=mask)
        assert (found.dtype, found.device.type, found.shape) == (
            torch.float32,
            "cpu",
            (3, 5, model.network.config.vocab_size),
        )
        for row, logits, seen in zip(rows, found, mask):
            wanted = model.logits([row])[0]
            torch.testing.assert_close(logits[torch.tensor(seen).bool()], wanted, atol=1e-5, rtol=1e-5)


def test_bad_logits_calls_are_refused(model: Model) -> None:
    with pytest.raises(Refused, match="decoder_input_ids belong to encoder-decoder"):
        model.logits([[1]], decoder_input_ids=[[1]])
    with pytest.raises(Refused, match=r"49 tokens are more than the model's context of 48"):
        model.logits([[1] * 49])
    with pytest.raises(Refused, match="outside 0 to"):
        model.logits([[10**6]])
    with pytest.raises(Refused, match=r"shape \(3,\)"):
        model.logits(torch.tensor([1, 2, 3]))
    with pytest.raises(Refused, match="attention_mask has the shape"):
        model.logits([[1, 2]], attention_mask=[[1]])


def test_chat_is_the_template_then_generation(model: Model) -> None:
    messages = [{"role": "user", "content": "the cat"}]
    prompt = model.renderer.encode(messages, add_generation_prompt=True)
    wanted = model.engine.generate([prompt], Sampling(10, temperature=1.0, seed=2))[0]
    assert model.chat(messages, 10, temperature=1.0, seed=2) == wanted.text
    pieces = list(model.chat_stream(messages, 10, temperature=1.0, seed=2))
    assert [piece.token_id for piece in pieces] == wanted.ids
    assert "".join(piece.text for piece in pieces) == wanted.text


def test_a_directory_without_tokenizer_files_takes_ids(folder: Path, model: Model, tmp_path: Path) -> None:
    for name in ("config.json", "model.safetensors", "generation_config.json"):
        (tmp_path / name).write_bytes((folder / name).read_bytes())
    bare = lmlab.load(tmp_path)
    assert torch.equal(bare.logits([[7, 8]]), model.logits([[7, 8]]))
    assert bare.engine.stop_ids == model.engine.stop_ids  # from generation_config.json
    assert bare.engine.generate([[7, 8]])[0].ids == model.engine.generate([[7, 8]])[0].ids
    assert bare.engine.score([([], [9])]) == model.engine.score([([], [9])])
    for call in (
        lambda: bare.generate("the"),
        lambda: bare.score([("the", " cat")]),
        lambda: bare.chat([{"role": "user", "content": "hi"}]),
        lambda: bare.tokenizer,
    ):
        with pytest.raises(Refused, match=r"holds no tokenizer\.json"):
            call()


def test_what_is_no_model_is_refused(tmp_path: Path) -> None:
    with pytest.raises(Refused, match="no such directory"):
        lmlab.load(tmp_path / "none")
    with pytest.raises(Refused, match="neither a model directory nor a run"):
        lmlab.load(tmp_path)
