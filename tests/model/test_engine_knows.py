"""The engine's decoder computes what the model does, or says which part it does not know: never something else."""

import pytest
import torch
from hypothesis import given, settings
from model_helpers import random_tokens, shaken, small
from test_switches import configs

import lmlab.generate.handle as handle
from lmlab.errors import Refused
from lmlab.generate.decoder import Decoder, unsupported
from lmlab.model.config import ModelConfig
from lmlab.model.transformer import Transformer

CHANGED = [
    {"attention": "local(2)"}, {"attention_scale": 1.0}, {"attention_softcap": 2.0}, {"logit_softcap": 2.0},
    {"embedding_scale": 3.0}, {"logit_scale": 0.5}, {"rope_fraction": 0.5}, {"rope_pairing": "interleaved"},
    {"rope_scaling": {"kind": "linear", "factor": 2}}, {"qk_norm": True, "qk_norm_width": "all"}, {"head_bias": True},
    {"embedding_norm": True}, {"final_norm": False}, {"norm_placement": "parallel"}, {"position": "alibi"},
    {"position": "learned", "position_offset": 2}, {"moe": {"experts": 2}}, {"embedding_dim": 8},
    {"architecture": "prefix-decoder"}, {"initialisation": "mup", "mup_base_width": 16},
]  # fmt: skip


@pytest.mark.parametrize("changed", CHANGED, ids=str)
def test_each_part_that_it_does_not_know_is_refused_by_name(changed: dict) -> None:
    with pytest.raises(Refused, match=f"does not generate or score with .*{list(changed)[-1]}"):
        Decoder(Transformer(small(**changed)))


@settings(max_examples=150, deadline=None)
@given(config=configs())
def test_it_computes_the_model_or_refuses(config: ModelConfig) -> None:
    model = shaken(Transformer(config).initialise(0)).eval()
    if unsupported(config) is not None:
        with pytest.raises(Refused, match="does not generate or score with"):
            Decoder(model)
        return
    decoder, tokens = Decoder(model), random_tokens(1, 6) % 9
    with torch.inference_mode():
        found = decoder.logits(decoder.prefill([tokens[0].tolist()]))
        torch.testing.assert_close(found, model(tokens).logits()[0], atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize(
    "shape", [{"final_norm": True}, {"qkv_bias": True}, {"bias": True, "attention_out_bias": False}]
)
def test_what_it_knows_by_other_names(shape: dict) -> None:
    model = shaken(Transformer(small(**shape)).initialise(0)).eval()
    decoder, tokens = Decoder(model), random_tokens(1, 6)
    with torch.inference_mode():
        found = decoder.logits(decoder.prefill([tokens[0].tolist()]))
        torch.testing.assert_close(found, model(tokens).logits()[0], atol=1e-4, rtol=1e-4)


def test_logits_of_an_encoder_decoder_and_of_parts_the_engine_does_not_know() -> None:
    both = shaken(Transformer(small(architecture="encoder-decoder", position="relative-bias")).initialise(0)).eval()
    source, target = random_tokens(2, 7), random_tokens(2, 5, seed=1)
    mask = torch.ones_like(source)
    mask[1, :3] = 0
    found = handle.Model(both, None).logits(source, mask, target)
    with torch.inference_mode():
        alone = both(target[1:], encoder_tokens_BS=source[1:, 3:]).logits()
    torch.testing.assert_close(found[1:], alone, atol=1e-4, rtol=1e-4)
    with pytest.raises(Refused, match="decoder_input_ids are needed beside input_ids"):
        handle.Model(both, None).logits(source)
    with pytest.raises(Refused, match="decoder_input_ids holds ids outside 0 to 49"):
        handle.Model(both, None).logits(source, mask, target + 50)
    with pytest.raises(Refused, match="2 rows of input_ids and 1 of decoder_input_ids"):
        handle.Model(both, None).logits(source, mask, target[:1])
    alibi = shaken(Transformer(small(position="alibi")).initialise(0)).eval()
    with torch.inference_mode():
        wanted = alibi(target).logits()
    torch.testing.assert_close(handle.Model(alibi, None).logits(target), wanted)
