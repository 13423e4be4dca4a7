"""What `lmlab model list` and `lmlab model show` say: shapes, parameters, FLOPs and bytes, from configs alone."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from lmlab.errors import Refused, nearest
from lmlab.model.config import ModelConfig
from lmlab.model.count import BYTES, memory
from lmlab.model.presets import PRESETS
from lmlab.model.store import PRESET, read_config, resolve


def list_presets() -> list[dict[str, Any]]:
    """Every preset: name, architecture, parameters, those active for a token, paper."""
    rows = []
    for name, preset in PRESETS.items():
        config = preset.config()
        parts = config.parameters()
        rows.append(
            {
                "name": name,
                "architecture": config.architecture,
                "parameters": parts["total"],
                "active": parts["active"],
                "paper": preset.paper,
            }
        )
    return rows


def describe_presets(rows: list[dict[str, Any]]) -> str:
    """The list for people."""
    lines = [f"{'name':<20} {'architecture':<16} {'parameters':>18} {'a token':>18}  paper"]
    lines += [
        f"{row['name']:<20} {row['architecture']:<16} {row['parameters']:>18,} {row['active']:>18,}  {row['paper']}"
        for row in rows
    ]
    return "\n".join(lines)


def show(reference: str, batch: int, length: int | None, precision: str) -> dict[str, Any]:
    """A preset's or a MODEL's config, parameters by part, training FLOPs a token and bytes (`count.memory`). A bare name is
    a preset's where no directory has it. Raises Refused for a length beyond the context or a precision that is none."""
    if reference in PRESETS and not Path(reference).is_dir():
        reference = PRESET + reference
    elif "did you mean" in (hint := nearest(reference, PRESETS)) and not Path(reference).exists():
        raise Refused(f"model '{reference}': neither a preset nor a directory{hint}")
    place = resolve(reference)
    config = read_config(place)
    if precision not in BYTES:
        raise Refused(f"precision '{precision}' is not known{nearest(precision, BYTES)}")
    length = config.context_length if length is None else length
    if not 1 <= length <= config.context_length:
        raise Refused(f"length {length}: expected 1 to the model's context of {config.context_length}")
    if batch < 1:
        raise Refused(f"batch {batch}: expected 1 or more")
    return {
        "path": str(place),
        "config": config.model_dump(mode="json"),
        "parameters": config.parameters(),
        "flops_per_token": config.flops_per_token(length),
        "batch": batch,
        "length": length,
        "precision": precision,
        "bytes": memory(config, batch, length, precision),
    }


def describe(found: dict[str, Any]) -> str:
    """The same for people."""
    config = ModelConfig.model_validate(found["config"])
    sizes, encoder = config.sizes(), config.sizes(encoder=True)
    layers = f"{encoder.layers} + {sizes.layers} layers" if config.has_encoder else f"{sizes.layers} layers"
    parts, size = found["parameters"], found["bytes"]
    switches = {name: value for name, value in config.differs(frozenset()).items() if value is not None}
    lines = [
        f"{found['path']}: {config.architecture}, {layers}, d_model {config.d_model}, {sizes.heads} heads of "
        f"{sizes.head_dim} ({sizes.kv_heads} for keys and values), d_ff {sizes.d_ff}, context {config.context_length}",
        "parameters",
        *(f"  {name:<16}{count:>20,}" for name, count in parts.items() if count),
        f"training FLOPs a token at length {found['length']:,}: {found['flops_per_token']:.4g}",
        "bytes",
        f"  to train        {_size(size['training'])}  (float32 weights {_size(size['weights'])}, gradients "
        f"{_size(size['gradients'])}, Adam's moments {_size(size['optimizer'])}; activations not counted)",
        f"  to run          {_size(size['inference'])}  (weights in {found['precision']})",
        f"  KV cache        {_size(size['kv_cache'])}  (batch {found['batch']}, length {found['length']:,}, "
        f"{found['precision']})",
        "switches that are not at their default",
        *(f"  {name:<24}{_word(value)}" for name, value in switches.items()),
    ]
    return "\n".join(lines)


def _word(value: Any) -> str:
    settings = value.model_dump(exclude_defaults=True) if hasattr(value, "model_dump") else None
    return str(value) if settings is None else ", ".join(f"{name} {each}" for name, each in settings.items())


def _size(count: float) -> str:
    for unit in ("B", "KiB", "MiB", "GiB"):
        if count < 1024:
            return f"{count:.3g} {unit}" if unit != "B" else f"{count:.0f} B"
        count /= 1024
    return f"{count:.4g} TiB"
