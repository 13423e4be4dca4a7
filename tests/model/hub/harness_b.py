"""A random tiny checkpoint of transformers, here and back: logits, padding, greedy text, sizes, names."""

from __future__ import annotations

import json
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from lmlab.model.config import ModelConfig
from lmlab.model.hub.family import SpecialTokens
from lmlab.model.transformer import Transformer

VOCABULARY = 61
SPECIAL = SpecialTokens(eos_id=1, pad_id=0, bos_id=2, decoder_start_id=0)
STEPS = 8


def lively(model: Any, seed: int = 0) -> Any:
    """Weights, gains, biases and buffers such as final_logits_bias far from where they start."""
    generator = torch.Generator().manual_seed(seed)
    saved = set(model.state_dict())
    with torch.no_grad():
        for name, tensor in [*model.named_parameters(), *model.named_buffers()]:
            if name in saved and tensor.is_floating_point():
                tensor += 0.2 * torch.randn(tensor.shape, generator=generator)
    model.generation_config.eos_token_id = None
    model.generation_config.forced_eos_token_id = None
    return model.eval()


def imported(module: ModuleType, folder: Path) -> Transformer:
    """What a family's file makes of a saved model; nothing missing, nothing left over."""
    config = module.from_hub(json.loads((folder / "config.json").read_text()))
    problem = module.misfit(config)
    assert problem is None, problem
    weights: dict[str, Tensor] = {}
    for file in sorted(folder.glob("*.safetensors")):
        weights |= load_file(file)
    found, left = module.weights_from_hub(weights, config)
    assert left == []
    model = Transformer(config)
    model.load_state_dict({name: tensor.float() for name, tensor in found.items()})  # strict: every name, every shape
    return model.eval()


def exported(module: ModuleType, ours: Transformer, folder: Path, like: type) -> Any:
    """The model that transformers reads from what a family's file writes; nothing missing, nothing unexpected."""
    folder.mkdir()
    hub = module.to_hub(ours.config, SPECIAL)
    assert hub["architectures"] == [module.MODEL_TYPES[hub["model_type"]]] == [like.__name__]
    (folder / "config.json").write_text(json.dumps(hub))
    weights = {
        name: tensor.contiguous() for name, tensor in module.weights_to_hub(ours.state_dict(), ours.config).items()
    }
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    theirs, report = like.from_pretrained(folder, output_loading_info=True, attn_implementation="eager")
    assert not report["missing_keys"] and not report["unexpected_keys"] and not report["mismatched_keys"]
    return theirs.eval()


def size(theirs: Any) -> int:
    """Numbers in a checkpoint, tied tensors once."""
    return sum({tensor.data_ptr(): tensor.numel() for tensor in theirs.state_dict().values()}.values())


def close(found: Tensor, wanted: Tensor) -> None:
    assert wanted.std() > 0.1, "weights too tame to tell models apart"
    torch.testing.assert_close(found, wanted, atol=1e-4, rtol=0)


@torch.inference_mode()
def same_decoder(ours: Transformer, theirs: Any, greedy: bool = True) -> None:
    """Logits with and without left padding, and greedy text."""
    tokens = torch.randint(3, VOCABULARY, (3, 20), generator=torch.Generator().manual_seed(1))
    close(ours(tokens).logits(), theirs(tokens).logits)
    padding = torch.arange(20)[None] < torch.tensor([[0], [5], [13]])
    places = ((~padding).long().cumsum(1) - 1).clamp_min(0)
    wanted = theirs(tokens, attention_mask=(~padding).long(), position_ids=places).logits
    close(ours(tokens, padding_BT=padding).logits()[~padding], wanted[~padding])
    if greedy:
        prompt = tokens[:1, :6]
        wanted = theirs.generate(prompt, attention_mask=torch.ones_like(prompt), max_new_tokens=STEPS, do_sample=False)
        found = prompt
        for _ in range(STEPS):
            found = torch.cat((found, ours(found).logits()[:, -1:].argmax(-1)), dim=1)
        assert found.tolist() == wanted.tolist()


@torch.inference_mode()
def same_encoder_decoder(ours: Transformer, theirs: Any, greedy: bool = True) -> None:
    """Logits with and without padding of the source, and greedy text."""
    generator = torch.Generator().manual_seed(1)
    source = torch.randint(3, VOCABULARY, (3, 18), generator=generator)
    target = torch.randint(3, VOCABULARY, (3, 11), generator=generator)
    found = ours(target, encoder_tokens_BS=source).logits()
    close(found, theirs(input_ids=source, decoder_input_ids=target, use_cache=False).logits)
    padding = torch.arange(18)[None] >= torch.tensor([[18], [12], [5]])
    found = ours(target, encoder_tokens_BS=source, encoder_padding_BS=padding).logits()
    close(
        found,
        theirs(input_ids=source, attention_mask=(~padding).long(), decoder_input_ids=target, use_cache=False).logits,
    )
    if greedy:
        start = theirs.config.decoder_start_token_id or 0
        wanted = theirs.generate(
            source[:1],
            attention_mask=torch.ones_like(source[:1]),
            max_new_tokens=STEPS,
            do_sample=False,
            decoder_start_token_id=start,
            use_cache=False,
        )
        text = torch.tensor([[start]])
        for _ in range(STEPS):
            text = torch.cat((text, ours(text, encoder_tokens_BS=source[:1]).logits()[:, -1:].argmax(-1)), dim=1)
        assert text.tolist() == wanted.tolist()


def there_and_back(module: ModuleType, theirs: Any, folder: Path) -> tuple[ModelConfig, dict[str, Any]]:
    """All of it, for one model. The config as read, and the `config.json` as written."""
    same = same_encoder_decoder if theirs.config.is_encoder_decoder else same_decoder
    theirs.save_pretrained(folder / "theirs")
    ours = imported(module, folder / "theirs")
    same(ours, theirs)
    assert ours.config.parameters()["total"] == size(theirs)
    again = exported(module, ours, folder / "ours", type(theirs))
    same(ours, again, greedy=False)
    hub = json.loads((folder / "ours" / "config.json").read_text())
    assert module.from_hub(hub) == ours.config
    return ours.config, hub
