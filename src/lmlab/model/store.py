"""Model directories: written so that the ecosystem opens them, read back exactly, found by a short reference."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

import torch
from pydantic import ValidationError
from torch import Tensor

from lmlab.address import is_address
from lmlab.device import machine
from lmlab.errors import Refused, nearest
from lmlab.model.config import ModelConfig
from lmlab.model.hub import Family, SpecialTokens, family_of_config, family_of_file, misfits
from lmlab.model.hub.family import Weights
from lmlab.model.hub.files import LIMIT, names_of, read_weights, write_weights
from lmlab.model.hub.names import empty_state
from lmlab.model.presets import preset
from lmlab.model.transformer import Transformer, with_weights
from lmlab.progress import say
from lmlab.run import write_json


class SavedTokenizer(Protocol):
    """What `save_model` needs of a tokenizer."""

    eos_id: int
    pad_id: int
    end_of_turn_id: int

    def save(self, folder: Path) -> None: ...


MODEL_STAGES = ("pretrain", "sft", "ppo", "reward")
LANGUAGE_MODEL_STAGES = ("pretrain", "sft", "ppo")


def save_model(
    folder: Path,
    model: Transformer,
    tokenizer: SavedTokenizer,
    extra: dict[str, Tensor] | None = None,
    facts: Mapping[str, Any] | None = None,
) -> None:
    """Write a model directory: config.json, model.safetensors, generation_config.json, tokenizer files, lmlab.json.

    With `extra` weights (`score.weight`, a row a label: one of a reward model) the directory opens as a sequence classifier.
    `facts` are added to lmlab.json; the `labels` among them are the classifier's.
    """
    special = SpecialTokens(tokenizer.eos_id, tokenizer.pad_id, tokenizer.eos_id)
    stops = list(dict.fromkeys((tokenizer.eos_id, tokenizer.end_of_turn_id)))
    write_model(folder, model, special, stops, extra, facts=facts)
    tokenizer.save(folder)


def write_model(
    folder: Path,
    model: Transformer,
    special: SpecialTokens,
    stops: Sequence[int],
    extra: dict[str, Tensor] | None = None,
    prefer: str | None = None,
    limit: int = LIMIT,
    facts: Mapping[str, Any] | None = None,
) -> str:
    """The same without a tokenizer; returns the model_type. `stops`: ids that end an answer. `prefer`: the model_type to
    take where the model fits several families. `limit`: bytes of a weight file.

    A model without a home in the ecosystem is written in lmlab's own format, which only lmlab reads; a line says so.
    """
    folder.mkdir(parents=True, exist_ok=True)
    config = model.config
    weights = {name: tensor.detach().float().contiguous() for name, tensor in model.state_dict().items()}
    family = family_of_config(config, prefer)
    hub = None if family is None else family.to_hub(config, special)
    if hub is not None and extra is not None:
        hub = _as_classifier(hub, (facts or {}).get("labels") or ["score"])
        weights = {name: tensor for name, tensor in weights.items() if name not in _HEAD}
    if family is None or hub is None:
        hub = {
            "model_type": OWN,
            "architectures": [OWN],
            "eos_token_id": special.eos_id,
            "pad_token_id": special.pad_id,
        }
        named = {name: tensor.detach().float().contiguous() for name, tensor in model.state_dict().items()}
        say(
            f"no public family has this model{_closest(config)}: written in lmlab's own format, which lmlab alone opens"
        )
    else:
        named = family.weights_to_hub(weights, config)
    write_json(folder / "config.json", hub)
    generation = {
        "bos_token_id": special.bos_id,
        "eos_token_id": list(stops),
        "pad_token_id": special.pad_id,
        "decoder_start_token_id": special.decoder_start_id,
        "do_sample": False,
    }
    kept = {name: value for name, value in generation.items() if value is not None and value != []}
    write_json(folder / "generation_config.json", kept)
    write_weights(folder, named | (extra or {}), limit)
    kind = "reward" if extra is not None else "language-model"
    write_json(folder / "lmlab.json", {"kind": kind, "model": config.model_dump(mode="json"), **(facts or {})})
    return str(hub["model_type"])


OWN = "lmlab"
"""The model_type of our own format: config.json says nothing more, and weights have our names."""
_HEAD = ("head.weight", "head_bias")
_NO_CLASSIFIER = ("codegen",)


def _as_classifier(hub: dict[str, Any], labels: Sequence[str]) -> dict[str, Any] | None:
    """The config.json of the family's sequence classifier of these labels, or None where it has none."""
    name = re.sub("(ForCausalLM|LMHeadModel)$", "ForSequenceClassification", hub["architectures"][0])
    if name == hub["architectures"][0] or hub["model_type"] in _NO_CLASSIFIER:
        return None
    named = {
        "num_labels": len(labels),
        "id2label": {str(i): label for i, label in enumerate(labels)},
        "label2id": {label: i for i, label in enumerate(labels)},
        "problem_type": "regression" if len(labels) == 1 else "single_label_classification",
    }
    return hub | {"architectures": [name], **named}


def _closest(config: ModelConfig) -> str:
    reasons = misfits(config)
    return f" ({'; '.join(f'{name}: {reason}' for name, reason in list(reasons.items())[:3])})" if reasons else ""


def read_config(folder: Path) -> ModelConfig:
    """The config of a model directory, ours or the ecosystem's, or of a preset. Raises Refused where there is none that
    fits."""
    name = preset_name(folder)
    if name is not None:
        return preset(name)
    own = folder / "lmlab.json"
    try:
        if own.exists():
            return ModelConfig.model_validate(json.loads(own.read_text(encoding="utf-8"))["model"])
        hub = read_hub(folder)
    except (json.JSONDecodeError, ValidationError, KeyError) as error:
        raise Refused(f"{folder}: its config cannot be read: {error}") from None
    if hub is None:
        raise Refused(f"{folder}: holds no model: expected lmlab.json or config.json in it")
    if hub.get("model_type") == OWN:
        raise Refused(f"{folder}: lmlab.json is missing, which holds the config of a model in lmlab's own format")
    if hub.get("quantization_config"):
        raise Refused(
            f"{folder}/config.json: quantization_config: quantised weights are not read; expected floating point"
        )
    try:
        return family_of_file(hub).from_hub(hub)
    except KeyError as error:
        raise Refused(f"{folder}/config.json: names no {error.args[0]}") from None
    except ValueError as error:
        raise Refused(f"{folder}/config.json: {error}") from None


def read_hub(folder: Path) -> dict[str, Any] | None:
    """A directory's config.json, or None where there is none. Raises Refused where it cannot be read."""
    path = folder / "config.json"
    if not path.is_file():
        return None
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise Refused(f"{folder}: its config cannot be read: {error}") from None
    if not isinstance(found, dict):
        raise Refused(f"{path}: expected an object")
    return found


def load_model(folder: Path) -> Transformer:
    """The model of a directory, float32, in evaluation mode. A missing or left-over weight is refused by name.

    A preset has random weights, of seed 0; it says so.
    """
    name = preset_name(folder)
    if name is not None:
        return random_model(name)
    model, left = load_with_extra(folder)
    if left:
        raise Refused(f"{folder}: weights without a place in this model: {names_of(sorted(left))}")
    return model


def load_with_extra(folder: Path) -> tuple[Transformer, dict[str, Tensor]]:
    """As `load_model`, with the weights that are not the Transformer's (a `score` head) returned apart."""
    if preset_name(folder) is not None:
        return load_model(folder), {}
    config, hub = read_config(folder), read_hub(folder)
    weights = read_weights(folder)
    try:
        family = None if hub is None or hub.get("model_type") == OWN else family_of_file(hub)
        state, left = (weights, []) if family is None else family.weights_from_hub(weights, config)
    except (ValueError, RuntimeError) as error:  # torch's own word where a fused weight cannot be cut
        raise Refused(f"{folder}: {error}") from None
    expected = empty_state(config)
    if family is None:
        left = [name for name in weights if name not in expected]
        state = {name: tensor for name, tensor in weights.items() if name in expected}
    missing = [name for name in expected if name not in state]
    if "score.weight" in left:
        missing = [name for name in missing if name not in _HEAD]
    if missing:
        raise Refused(f"{folder}: weights missing: {names_of(_as_in_file(missing, expected, config, family))}")
    for name, tensor in state.items():
        if tensor.shape != expected[name].shape:
            raise Refused(f"{folder}: {name} is {tuple(tensor.shape)}, expected {tuple(expected[name].shape)}")
    extra = {name: weights[name] for name in left}
    del weights
    whole = {name: state.pop(name).to(torch.float32).contiguous() for name in list(state)}
    for name in expected.keys() - whole.keys():  # a language model's head, where the file has a score's instead
        whole[name] = torch.zeros(expected[name].shape)
    return with_weights(config, whole).eval(), extra


def _as_in_file(missing: list[str], expected: Weights, config: ModelConfig, family: Family | None) -> list[str]:
    """Names of missing weights as the file would have them, where the family can say them."""
    try:
        named = {} if family is None else family.weights_to_hub({name: expected[name] for name in missing}, config)
    except (KeyError, RuntimeError):
        named = {}
    return sorted(named or missing)


PRESET = "preset:"


def preset_name(place: Path) -> str | None:
    """NAME where a place is `preset:NAME`."""
    text = str(place)
    return text[len(PRESET) :] if text.startswith(PRESET) else None


def random_model(name: str, seed: int = 0) -> Transformer:
    """A preset with random weights. Raises Refused where they cannot fit this machine's memory."""
    config = preset(name)
    total = config.parameters()["total"]
    need, free = 2 * 4 * total, machine.memory()["available"]  # the engine lays the weights out a second time
    if free is not None and need > free:
        raise Refused(
            f"preset:{name} has {total:,} parameters and needs about {need / 2**30:.1f} GiB of memory in float32; "
            f"{free / 2**30:.1f} GiB are free; `lmlab model list` names smaller ones"
        )
    say(f"preset:{name}: RANDOM weights (seed {seed}), nothing has been learnt: what this model writes means nothing")
    return Transformer(config).initialise(seed).eval()


def stages(run: Path) -> dict[str, Path]:
    """The finished language models of a run directory: {stage name: model directory}, in the recipe's order."""
    try:
        listed: dict[str, Any] = json.loads((run / "run.json").read_text(encoding="utf-8"))["stages"]
    except (OSError, json.JSONDecodeError, KeyError):
        return {}
    found = {}
    for name, entry in listed.items():
        if entry["kind"] in LANGUAGE_MODEL_STAGES and (run / name / "provenance.json").exists():
            found[name] = run / name / "model"
    return found


def resolve(reference: str | Path) -> Path:
    """The directory of a MODEL: a model directory, a stage's, or a run's (its last trained language model).

    `preset:NAME` is returned as it is: it has no directory. Raises Refused with what was looked for.
    """
    text = str(reference)
    if text.startswith(PRESET):
        preset(text[len(PRESET) :])
        return Path(text)
    if is_address(text):
        raise Refused(f"model '{text}': a model behind an address gives text and scores; its weights are needed here")
    if text.startswith("hf:"):
        return _download(text[3:])
    path = Path(text)
    if not path.is_dir():
        beside = [p.name for p in path.parent.iterdir() if p.is_dir()] if path.parent.is_dir() else []
        raise Refused(f"model '{text}': no such directory{nearest(path.name, beside)}")
    if (path / "config.json").exists() or (path / "lmlab.json").exists():
        return path
    if (path / "model").is_dir():
        return path / "model"
    trained = stages(path)
    if trained:
        return list(trained.values())[-1]
    raise Refused(f"model '{text}': is neither a model directory nor a run with a finished model")


def _download(name: str) -> Path:
    from huggingface_hub import snapshot_download

    wanted = ["*.json", "*.safetensors", "*.jinja", "*.txt"]
    try:
        folder = Path(snapshot_download(name, allow_patterns=wanted))
        if not any(folder.glob("*.safetensors")):
            folder = Path(snapshot_download(name, allow_patterns=[*wanted, "pytorch_model*.bin"]))
        return folder
    except Exception as error:  # the hub client raises many kinds; each means that it is not to be had
        raise Refused(f"model 'hf:{name}': could not be fetched: {type(error).__name__}: {error}") from None
