"""Who may influence whom: prefixes, encoders, padding on either side, packed documents; for every position kind."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from model_helpers import make, pairs, random_tokens

from lmlab.model.transformer import prefix_decoder


def source(architecture: str, rows: int, seed: int = 5) -> dict:
    return {"encoder_tokens_BS": random_tokens(rows, 7, seed)} if architecture == "encoder-decoder" else {}


@pytest.mark.parametrize(("architecture", "position"), pairs())
def test_later_tokens_cannot_influence_earlier_ones(architecture: str, position: str) -> None:
    model = make(architecture=architecture, position=position)
    tokens, given = random_tokens(1, 12), source(architecture, 1)
    if architecture == "prefix-decoder":
        given["prefix_B"] = torch.tensor([4])
    with torch.inference_mode():
        whole = model(tokens, **given).logits()
        for cut in (5, 8, 11):
            other = tokens.clone()
            other[:, cut:] = (other[:, cut:] + 7) % 50
            changed = model(other, **given).logits()
            torch.testing.assert_close(changed[:, :cut], whole[:, :cut], atol=1e-6, rtol=0)
            assert not torch.allclose(changed[:, cut], whole[:, cut], atol=1e-3)


@settings(max_examples=25, deadline=None)
@given(prefix=st.integers(1, 12), changed=st.integers(0, 11), seen=st.integers(0, 11))
def test_the_whole_prefix_is_seen_and_nothing_else_ahead(prefix: int, changed: int, seen: int) -> None:
    model = make(architecture="prefix-decoder", layers=1)
    tokens, other = random_tokens(1, 12), random_tokens(1, 12)
    other[0, changed] = (other[0, changed] + 7) % 50
    length = torch.tensor([prefix])
    with torch.inference_mode():
        before, after = (model(each, prefix_B=length).logits()[0, seen] for each in (tokens, other))
    if changed <= seen or changed < prefix:
        assert not torch.allclose(before, after, atol=1e-4)
    else:
        assert torch.equal(before, after)


def test_a_causal_decoder_becomes_a_prefix_decoder() -> None:
    for position in ("rope", "sinusoidal", "alibi", "learned"):
        causal = make(position=position, tie_embeddings=False)
        prefix = prefix_decoder(causal)
        tokens = random_tokens(2, 10)
        with torch.inference_mode():
            assert torch.equal(prefix(tokens).logits(), causal(tokens).logits())
            assert torch.equal(prefix(tokens, prefix_B=torch.tensor([0, 1])).logits(), causal(tokens).logits())
            assert not torch.allclose(prefix(tokens, prefix_B=torch.tensor([5, 5])).logits(), causal(tokens).logits())
        shared = {p.data_ptr() for p in causal.parameters()}
        assert {p.data_ptr() for p in prefix.parameters()} == shared
    with pytest.raises(ValueError, match="this is a prefix-decoder"):
        prefix_decoder(prefix)


def test_a_converted_model_is_trained_on() -> None:
    model = prefix_decoder(make(tie_embeddings=False)).train()
    tokens, prefix = random_tokens(4, 12), torch.full((4,), 6)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    losses = []
    for _ in range(5):
        logits = model(tokens, prefix_B=prefix).logits()[:, 5:-1]
        losses.append(torch.nn.functional.cross_entropy(logits.flatten(0, 1), tokens[:, 6:].flatten()))
        optimizer.zero_grad()
        losses[-1].backward()
        optimizer.step()
    assert losses[-1] < losses[0]


@pytest.mark.parametrize("prefix", [-1, 25])
def test_a_prefix_beyond_the_context_is_refused(prefix: int) -> None:
    model = make(architecture="prefix-decoder")
    with pytest.raises(ValueError, match=f"prefix_B is {prefix}; expected 0 to the model's context of 24"):
        model(random_tokens(1, 10), prefix_B=torch.tensor([prefix]))
    model(random_tokens(1, 10), prefix_B=torch.tensor([24]))


@pytest.mark.parametrize(("architecture", "position"), pairs())
def test_padding_on_either_side_changes_nothing(architecture: str, position: str) -> None:
    model = make(architecture=architecture, position=position)
    lengths, T = (3, 9, 12), 12
    rows = [random_tokens(1, n, seed=n)[0] for n in lengths]
    given = source(architecture, 3)
    if architecture == "prefix-decoder":
        given["prefix_B"] = torch.tensor([2, 4, 0])
    for left in (True, False):
        tokens, padding = torch.full((3, T), 49), torch.ones(3, T, dtype=torch.bool)
        for index, row in enumerate(rows):
            at = slice(T - len(row), T) if left else slice(0, len(row))
            tokens[index, at], padding[index, at] = row, False
        with torch.inference_mode():
            found = model(tokens, padding_BT=padding, **given).logits()
            for index, row in enumerate(rows):
                alone = {name: each[index : index + 1] for name, each in given.items()}
                wanted = model(row[None], **alone).logits()[0]
                torch.testing.assert_close(found[index][~padding[index]], wanted, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("position", ["relative-bias", "rope", "learned", "sinusoidal", "transformer-xl"])
def test_a_padded_source_is_the_source(position: str) -> None:
    model = make(architecture="encoder-decoder", position=position, encoder_layers=3, encoder_d_ff=20)
    tokens, whole = random_tokens(2, 6), random_tokens(2, 9, seed=3)
    padding = torch.zeros(2, 9, dtype=torch.bool)
    padding[0, 5:] = padding[1, :2] = True
    with torch.inference_mode():
        found = model(tokens, encoder_tokens_BS=whole, encoder_padding_BS=padding).logits()
        first = model(tokens[:1], encoder_tokens_BS=whole[:1, :5]).logits()
        second = model(tokens[1:], encoder_tokens_BS=whole[1:, 2:]).logits()
        memory = model.encode(whole, encoder_padding_BS=padding)
        again = model(tokens, memory_BSD=memory, encoder_padding_BS=padding).logits()
    torch.testing.assert_close(found, torch.cat((first, second)), atol=1e-4, rtol=1e-4)
    assert torch.equal(again, found)


@settings(max_examples=30, deadline=None)
@given(
    pair=st.sampled_from(pairs()),
    lengths=st.lists(st.integers(1, 7), min_size=1, max_size=4).filter(lambda each: sum(each) <= 24),
    attention=st.sampled_from(["full", "local(3)", "fixed(4, 1)"]),
)
def test_packed_documents_are_separate_documents(pair: tuple[str, str], lengths: list[int], attention: str) -> None:
    architecture, position = pair
    joint = architecture == "encoder-decoder"
    model = make(architecture=architecture, position=position, attention="full" if joint else attention)
    tokens = random_tokens(1, sum(lengths), seed=len(lengths))
    segments = torch.tensor([[index for index, n in enumerate(lengths) for _ in range(n)]])
    places = torch.tensor([[place for n in lengths for place in range(n)]])
    sources = [random_tokens(1, n + 1, seed=9 + n) for n in reversed(lengths)]
    given: dict = {"segments_BT": segments, "positions_BT": places}
    if architecture == "prefix-decoder":
        given["prefix_B"] = torch.tensor([[n // 2 for n in lengths for _ in range(n)]])
    if joint and sum(map(lambda each: each.shape[1], sources)) > 24:
        return
    if joint:
        given["encoder_tokens_BS"] = torch.cat(sources, 1)
        given["encoder_segments_BS"] = torch.tensor([[i for i, s in enumerate(sources) for _ in range(s.shape[1])]])
        given["encoder_positions_BS"] = torch.tensor([[p for s in sources for p in range(s.shape[1])]])
    with torch.inference_mode():
        packed = model(tokens, **given).logits()[0].split(lengths)
        for index, (document, found) in enumerate(zip(tokens[0].split(lengths), packed)):
            alone = {"encoder_tokens_BS": sources[index]} if joint else {}
            if architecture == "prefix-decoder":
                alone["prefix_B"] = torch.tensor([len(document) // 2])
            torch.testing.assert_close(found, model(document[None], **alone).logits()[0], atol=1e-4, rtol=1e-4)


def test_glm_counts_places_inside_a_span() -> None:
    model = make(architecture="prefix-decoder", position="glm-2d", position_offset=1)
    tokens, inside = random_tokens(1, 8), torch.tensor([[0, 0, 0, 0, 0, 1, 2, 3]])
    places = torch.tensor([[0, 1, 2, 3, 4, 2, 2, 2]])
    with torch.inference_mode():
        one = model(tokens, positions_BT=places, block_positions_BT=inside).logits()
        two = model(tokens, positions_BT=places, block_positions_BT=inside * 0).logits()
        three = model(tokens, positions_BT=places).logits()
    assert torch.equal(two, three)
    assert torch.equal(one[:, :5], two[:, :5]) and not torch.allclose(one[:, 5:], two[:, 5:], atol=1e-3)


@pytest.mark.parametrize(
    ("shape", "given", "message"),
    [
        ({}, {"prefix_B": torch.tensor([1])}, "belongs to a prefix-decoder; this is a causal-decoder"),
        ({}, {"block_positions_BT": torch.zeros(1, 4)}, "belongs to position glm-2d"),
        ({}, {"encoder_tokens_BS": torch.zeros(1, 4)}, "belong to an encoder-decoder"),
        ({"architecture": "encoder-decoder"}, {}, "takes encoder_tokens_BS or memory_BSD"),
        ({"architecture": "encoder-decoder"}, {"encoder_tokens_BS": torch.zeros(1, 25, dtype=torch.long)}, "25 source"),
    ],
)
def test_inputs_of_another_architecture_are_refused(shape: dict, given: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make(**shape)(random_tokens(1, 4), **given)
    with pytest.raises(ValueError, match="has no encoder"):
        make().encode(random_tokens(1, 4))
