"""One family against transformers: files there and back, sizes, logits with and without padding, greedy text."""

from __future__ import annotations

import inspect
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import transformers
from torch import Tensor

import lmlab
from lmlab.model.exchange import export_model
from lmlab.model.hub import SpecialTokens, family_of_file
from lmlab.model.store import load_model
from lmlab.model.transformer import Transformer

TOLERANCE = 1e-4
LENGTH, NEW = 17, 8
VOCABULARY = 61
SPECIAL = SpecialTokens(eos_id=1, pad_id=0, bos_id=2, decoder_start_id=0)


def liven(model: Any, seed: int = 0) -> Any:
    """Move every weight well away from its small initialisation: biases, gains and stored buffers too. In place. No token ends
    a text before its full length."""
    generator = torch.Generator().manual_seed(seed)
    saved = set(model.state_dict())
    with torch.no_grad():
        for name, tensor in [*model.named_parameters(), *model.named_buffers()]:
            if name in saved and tensor.is_floating_point():
                scale = 0.25 if tensor.dim() == 1 else 0.5 * tensor.shape[-1] ** -0.5
                tensor += scale * torch.randn(tensor.shape, generator=generator)
    model.generation_config.eos_token_id = None
    model.generation_config.forced_eos_token_id = None
    return model.eval()


def check_family(make_tiny: Callable[[], Any], tmp_path: Path) -> Transformer:
    """`make_tiny` gives one of transformers' language models, tiny, with a context of at least 32. Its files are loaded,
    compared, exported, and opened by transformers again. Returns our model."""
    torch.manual_seed(0)
    theirs = liven(make_tiny())
    theirs.save_pretrained(tmp_path / "theirs")
    ours = load_model(tmp_path / "theirs")
    assert ours.config.parameters()["total"] == size(theirs)
    family = family_of_file({"model_type": theirs.config.model_type})
    assert family.misfit(ours.config) is None
    compare(ours, theirs)
    _greedy(ours, theirs)
    _handle(tmp_path / "theirs", theirs)

    found = export_model(str(tmp_path / "theirs"), tmp_path / "exported")
    assert found["model_type"] == theirs.config.model_type
    assert found["architecture"] == family.MODEL_TYPES[found["model_type"]] == type(theirs).__name__
    assert family.from_hub(json.loads((tmp_path / "exported" / "config.json").read_text())) == ours.config
    auto = transformers.AutoModelForSeq2SeqLM if _encodes(theirs) else transformers.AutoModelForCausalLM
    again, report = auto.from_pretrained(tmp_path / "exported", output_loading_info=True, attn_implementation="eager")
    assert type(again) is type(theirs)
    assert not report["missing_keys"] and not report["unexpected_keys"] and not report["mismatched_keys"]
    compare(load_model(tmp_path / "exported"), again.eval())
    for (name, one), (_, other) in zip(theirs.state_dict().items(), again.state_dict().items(), strict=True):
        torch.testing.assert_close(one, other, msg=lambda text, name=name: f"{name}: {text}")
    (tmp_path / "exported" / "lmlab.json").unlink()  # config.json alone says the same
    assert load_model(tmp_path / "exported").config == ours.config
    return ours


def size(theirs: Any) -> int:
    """Numbers in a checkpoint, tied tensors once."""
    return sum({tensor.data_ptr(): tensor.numel() for tensor in theirs.state_dict().values()}.values())


def _encodes(theirs: Any) -> bool:
    return bool(theirs.config.is_encoder_decoder)


def _tokens(theirs: Any, rows: int, length: int, seed: int) -> Tensor:
    low = 3  # above the special ids of tiny configs
    high = theirs.get_input_embeddings().weight.shape[0]
    return torch.randint(low, high, (rows, length), generator=torch.Generator().manual_seed(seed))


def _padding(rows: int, length: int, left: bool) -> Tensor:
    """A mask (rows, length), 1 at real tokens; the first row is whole."""
    counts = torch.tensor([length - 4 * row for row in range(rows)])
    places = torch.arange(length)
    real = places >= length - counts[:, None] if left else places < counts[:, None]
    return real.long()


def _their_logits(theirs: Any, ids: Tensor, mask: Tensor | None = None, **more: Any) -> Tensor:
    """transformers' logits; positions count real tokens, as its `generate` has them."""
    if mask is not None and not _encodes(theirs) and "position_ids" in inspect.signature(theirs.forward).parameters:
        more["position_ids"] = (mask.cumsum(1) - 1).clamp_min(0)
    with torch.inference_mode():
        return theirs(input_ids=ids, attention_mask=mask, use_cache=False, **more).logits


@torch.inference_mode()
def compare(ours: Transformer, theirs: Any) -> None:
    """Logits: all of them, and those at real tokens."""
    ids, mask = _tokens(theirs, 3, LENGTH, 1), _padding(3, LENGTH, left=not _encodes(theirs))
    if _encodes(theirs):
        targets = _tokens(theirs, 3, LENGTH - 6, 2)
        for each in (None, mask):
            wanted = _their_logits(theirs, ids, each, decoder_input_ids=targets)
            padding = None if each is None else each == 0
            assert wanted.std() > 0.1, "the random model says the same everywhere"
            found = ours(targets, encoder_tokens_BS=ids, encoder_padding_BS=padding).logits()
            torch.testing.assert_close(found, wanted, atol=TOLERANCE, rtol=0)
        return
    wanted = _their_logits(theirs, ids)
    assert wanted.std() > 0.1, "the random model says the same everywhere"
    torch.testing.assert_close(ours(ids).logits(), wanted, atol=TOLERANCE, rtol=0)
    for each in (mask, _padding(3, LENGTH, left=False)):
        found = ours(ids, padding_BT=each == 0).logits()
        torch.testing.assert_close(
            found[each.bool()], _their_logits(theirs, ids, each)[each.bool()], atol=TOLERANCE, rtol=0
        )


@torch.inference_mode()
def _greedy(ours: Transformer, theirs: Any) -> None:
    ids = _tokens(theirs, 2, 9, 3)
    mask = _padding(2, 9, left=not _encodes(theirs))
    ends = {"pad_token_id": 0, "eos_token_id": None, "num_beams": 1, "use_cache": not _encodes(theirs)}
    wanted = theirs.generate(ids, attention_mask=mask, max_new_tokens=NEW, do_sample=False, **ends)
    if _encodes(theirs):
        start = theirs.generation_config.decoder_start_token_id
        memory = {"encoder_tokens_BS": ids, "encoder_padding_BS": mask == 0}
        written, real = torch.full((2, 1), theirs.config.decoder_start_token_id if start is None else start), None
    else:
        memory, written, real = {}, ids, mask
    while written.shape[1] < wanted.shape[1]:
        padding = None if real is None else real == 0
        following = ours(written, padding_BT=padding, **memory).logits()[:, -1].argmax(-1, keepdim=True)
        written = torch.cat((written, following), dim=1)
        real = None if real is None else torch.cat((real, torch.ones_like(following)), dim=1)
    assert written.tolist() == wanted.tolist()


def _handle(folder: Path, theirs: Any) -> None:
    """`lmlab.load` of a directory without tokenizer files."""
    model, ids = lmlab.load(folder), _tokens(theirs, 2, 9, 4)
    if _encodes(theirs):
        wanted = _their_logits(theirs, ids, decoder_input_ids=ids[:, :5])
        found = model.logits(ids, decoder_input_ids=ids[:, :5])
    else:
        wanted, found = _their_logits(theirs, ids), model.logits(ids)
    torch.testing.assert_close(found, wanted, atol=TOLERANCE, rtol=0)
