"""Model directories: written so that the ecosystem opens them, read back exactly, found by a short reference."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, Protocol

import torch
from pydantic import ValidationError
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from lmlab.device import machine
from lmlab.errors import Refused, nearest
from lmlab.model.config import ModelConfig
from lmlab.model.hub import llama
from lmlab.model.hub.family import SpecialTokens
from lmlab.model.hub.names import name_to_hub
from lmlab.model.presets import preset
from lmlab.model.transformer import Transformer
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
    folder: Path, model: Transformer, tokenizer: SavedTokenizer, extra: dict[str, Tensor] | None = None
) -> None:
    """Write a model directory: config.json, model.safetensors, generation_config.json, tokenizer files, lmlab.json.

    With `extra` weights (a reward model's `score.weight`) the directory opens as a sequence classifier of one label.
    """
    folder.mkdir(parents=True, exist_ok=True)
    weights = {name: tensor.detach().float().contiguous() for name, tensor in model.state_dict().items()}
    if llama.misfit(model.config) is None:
        hub = llama.to_hub(model.config, SpecialTokens(tokenizer.eos_id, tokenizer.pad_id, tokenizer.eos_id))
        if extra is not None:
            weights.pop("head.weight", None)
            hub["architectures"] = [hub["architectures"][0].replace("ForCausalLM", "ForSequenceClassification")]
            hub |= {"num_labels": 1, "id2label": {"0": "score"}, "label2id": {"score": 0}, "problem_type": "regression"}
        named = llama.weights_to_hub(weights, model.config) | (extra or {})
    else:
        hub = {"model_type": "lmlab", "architectures": ["lmlab"], "eos_token_id": tokenizer.eos_id}
        named = weights | (extra or {})
    stops = list(dict.fromkeys((tokenizer.eos_id, tokenizer.end_of_turn_id)))
    write_json(folder / "config.json", hub)
    write_json(
        folder / "generation_config.json",
        {
            "bos_token_id": tokenizer.eos_id,
            "eos_token_id": stops,
            "pad_token_id": tokenizer.pad_id,
            "do_sample": False,
        },
    )
    temporary = folder / ".model.safetensors.tmp"
    save_file(named, temporary, metadata={"format": "pt"})
    temporary.replace(folder / "model.safetensors")
    tokenizer.save(folder)
    kind = "reward" if extra is not None else "language-model"
    write_json(folder / "lmlab.json", {"kind": kind, "model": model.config.model_dump(mode="json")})


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
        hub = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise Refused(f"{folder}: holds no model: expected lmlab.json or config.json in it") from None
    except (json.JSONDecodeError, ValidationError, KeyError) as error:
        raise Refused(f"{folder}: its config cannot be read: {error}") from None
    kind = hub.get("model_type", "")
    if kind not in llama.MODEL_TYPES:
        raise Refused(f"{folder}/config.json: model_type '{kind}' is not read yet{nearest(kind, llama.MODEL_TYPES)}")
    try:
        return llama.from_hub(hub)
    except (KeyError, ValueError) as error:
        raise Refused(f"{folder}/config.json: {error}") from None


def read_weights(folder: Path) -> dict[str, Tensor]:
    """All tensors of a directory's safetensors files (one, or sharded with an index), under the files' names."""
    files = sorted(folder.glob("*.safetensors"))
    if not files:
        raise Refused(f"{folder}: holds no weights: expected model.safetensors")
    weights: dict[str, Tensor] = {}
    for file in files:
        try:
            weights |= load_file(file)
        except (SafetensorError, OSError) as error:
            raise Refused(f"{file}: is damaged or not a safetensors file: {error}") from None
    return weights


def load_model(folder: Path) -> Transformer:
    """The model of a directory, float32, in evaluation mode. A missing or left-over weight is refused by name.

    A preset has random weights, of seed 0; it says so.
    """
    name = preset_name(folder)
    if name is not None:
        return random_model(name)
    model, left = load_with_extra(folder)
    if left:
        raise Refused(f"{folder}: weights without a place in this model: {', '.join(sorted(left)[:5])}")
    return model


def load_with_extra(folder: Path) -> tuple[Transformer, dict[str, Tensor]]:
    """As `load_model`, with the weights that are not the Transformer's (a `score` head) returned apart."""
    if preset_name(folder) is not None:
        return load_model(folder), {}
    config = read_config(folder)
    model = Transformer(config)
    weights = read_weights(folder)
    known = llama.misfit(config) is None
    names = {(name_to_hub(name, llama.TABLE) if known else name): name for name in model.state_dict()}
    if config.tie_embeddings:
        weights.pop("lm_head.weight", None)
    missing = sorted(set(names) - set(weights) - {"lm_head.weight"})
    if missing:
        raise Refused(f"{folder}: weights missing: {', '.join(missing[:5])}{' ...' if len(missing) > 5 else ''}")
    state = {ours: weights.pop(theirs) for theirs, ours in names.items() if theirs in weights}
    expected = {name: tensor.shape for name, tensor in model.state_dict().items()}
    for name, tensor in state.items():
        if tensor.shape != expected[name]:
            raise Refused(f"{folder}: {name} is {tuple(tensor.shape)}, expected {tuple(expected[name])}")
    model.load_state_dict({name: tensor.to(torch.float32) for name, tensor in state.items()}, strict=False)
    return model.eval(), weights


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

    try:
        return Path(snapshot_download(name, allow_patterns=["*.json", "*.safetensors", "*.jinja", "*.txt"]))
    except Exception as error:  # the hub client raises many kinds; each means that it is not to be had
        raise Refused(f"model 'hf:{name}': could not be fetched: {type(error).__name__}: {error}") from None
