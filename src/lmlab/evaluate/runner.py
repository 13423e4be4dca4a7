"""The runner. One unit is one model on one task with one strategy: asked in one call of the engine, so that the
batches are the same whenever it is asked, and written whole. A unit that is on disk under the same key is not asked
again; the key holds the weights themselves, so no model is ever given another's score.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from lmlab.errors import Refused
from lmlab.evaluate.metrics import bits
from lmlab.evaluate.strategy import Strategy, sample_seed
from lmlab.evaluate.task import Messages, Passage, Task, Text, text_hash
from lmlab.generate.answers import Completion, Reply
from lmlab.generate.engine import Sampling
from lmlab.generate.remote import RemoteModel
from lmlab.run import digest, write_atomic
from lmlab.text.chat import conversation_text

VERSION = 1
"""Changes whenever the same model, task and settings would give other rows."""

Row = dict[str, Any]


@dataclass(frozen=True)
class Limits:
    """What bounds the asking. `max_new_tokens` of an answer, `max_new_tokens_steps` of one with its steps; `stride`:
    of a passage longer than the context, each window predicts so many tokens that the window before did not."""

    max_new_tokens: int = 32
    max_new_tokens_steps: int = 96
    stride: int = 128
    seed: int = 0


@dataclass(frozen=True)
class Subject:
    """A model under test: the stage's name, the engine and renderer it answers with, and the identity of its
    weights. Of a model behind an address `remote` is set: it is asked in messages, its weights and tokenizer are not to
    be had, and its identity is its name and address."""

    name: str
    engine: Any
    tokenizer: Any
    renderer: Any
    context: int
    fingerprint: str
    remote: RemoteModel | None = None

    @property
    def tokenizer_fingerprint(self) -> str | None:
        return None if self.remote is not None else self.tokenizer.fingerprint


@dataclass(frozen=True)
class Unit:
    """One model on one task with one strategy (None: text to predict)."""

    subject: Subject
    task: Task | Text
    strategy: Strategy | None
    items: tuple[Any, ...]

    @property
    def name(self) -> str:
        """The task's name in results."""
        if isinstance(self.task, Task) and self.strategy is not None:
            return self.task.key(self.strategy.name(self.task))
        return self.task.name


def weights_fingerprint(network: nn.Module) -> str:
    """sha256 of every weight: names, shapes, types and bits."""
    found = hashlib.sha256()
    for name, tensor in sorted(network.state_dict().items()):
        found.update(f"{name} {tuple(tensor.shape)} {tensor.dtype}\n".encode())
        found.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy())
    return found.hexdigest()


def subject(name: str, model: Any) -> Subject:
    """What `lmlab.load` gives as a subject."""
    if isinstance(model, RemoteModel):
        return Subject(name, None, None, None, 0, digest(str(model.address)), model)
    network = model.network
    fingerprint = digest([weights_fingerprint(network), network.config.model_dump(mode="json")])
    return Subject(name, model.engine, model.tokenizer, model.renderer, network.config.context_length, fingerprint)


@dataclass(frozen=True)
class Prompt:
    """A question as a model gets it: `ids`, or `messages` where the tokens are a server's affair. `shots` is how many
    demonstrations had room."""

    item: Any
    text: str
    ids: list[int]
    shots: int
    messages: Messages | None = None


def prompts(unit: Unit, limits: Limits) -> list[Prompt]:
    """The prompt of each item. Where the demonstrations, the question and the longest answer do not fit the context,
    demonstrations are left out, the last first; the row says how many were shown. Raises Refused where a question alone
    is too long. What fits a model behind an address its server alone knows: there all demonstrations are shown."""
    return [_prompt(unit, item, answer_tokens(unit, limits)) for item in unit.items]


def _prompt(unit: Unit, item: Any, answer: int) -> Prompt:
    assert isinstance(unit.task, Task) and unit.strategy is not None
    if unit.subject.remote is not None:
        shots = unit.strategy.shots.count
        messages = unit.strategy.ask(unit.task, item, shots)
        return Prompt(item, conversation_text(messages), [], shots, messages)
    ids: list[int] = []
    for shots in range(unit.strategy.shots.count, -1, -1):
        messages = unit.strategy.ask(unit.task, item, shots)
        ids = list(unit.subject.renderer.encode(messages, add_generation_prompt=True))
        if len(ids) + answer <= unit.subject.context:
            return Prompt(item, unit.subject.renderer.render(messages, add_generation_prompt=True), ids, shots)
    raise Refused(
        f"{unit.subject.name}: {unit.name}: the question of item '{item.id}' has {len(ids)} tokens, and with {answer} "
        f"for the answer is longer than the context of {unit.subject.context}; set max_new_tokens lower"
    )


def answer_tokens(unit: Unit, limits: Limits) -> int:
    """The most tokens of an output."""
    steps = isinstance(unit.task, Task) and unit.task.has_steps and unit.strategy and unit.strategy.cot
    return limits.max_new_tokens_steps if steps else limits.max_new_tokens


def prompts_hash(rows: Sequence[Row]) -> str:
    """Identity of all prompts of a unit, in their order."""
    return digest([[row["id"], row["prompt_hash"]] for row in rows])


def unit_key(unit: Unit, limits: Limits, asked: Sequence[Prompt]) -> str:
    """Identity of a unit's rows: the weights, the tokenizer, the token ids of every prompt, how they are sampled and
    batched, and the versions of the task and of this code."""
    engine = unit.subject.engine
    return digest(
        {
            "code": VERSION,
            "weights": unit.subject.fingerprint,
            "tokenizer": unit.subject.tokenizer_fingerprint,
            "task": [unit.name, unit.task.version],
            "strategy": None if unit.strategy is None else asdict(unit.strategy),
            "prompts": [[prompt.item.id, prompt.item.answer, prompt.messages or prompt.ids] for prompt in asked],
            "passages": [[item.id, text_hash(item.text)] for item in unit.items if isinstance(item, Passage)],
            "limits": asdict(limits),
            "batch": getattr(engine, "max_batch", None),
            "precision": getattr(engine, "precision", None),
        }
    )


def run_unit(unit: Unit, limits: Limits, folder: Path) -> list[Row]:
    """The rows of a unit, an item each: from `folder` if they are there under the unit's key, else asked and
    written."""
    asked = prompts(unit, limits) if isinstance(unit.task, Task) else []
    key = unit_key(unit, limits, asked)
    path = folder / f"{key[:32]}.json"
    rows = _stored(path, key)
    if rows is None:
        rows = list(_answers(unit, limits, asked) if isinstance(unit.task, Task) else _bits(unit, limits))
        write_atomic(path, json.dumps({"key": key, "rows": rows}, ensure_ascii=True, allow_nan=False))
    head = {"stage": unit.subject.name, "task": unit.name}
    return [{"id": row["id"], **head, **{k: v for k, v in row.items() if k != "id"}} for row in rows]


def _stored(path: Path, key: str) -> list[Row] | None:
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
        return found["rows"] if found["key"] == key else None
    except (OSError, ValueError, KeyError, TypeError):
        return None  # absent or damaged: asked again


def _answers(unit: Unit, limits: Limits, asked: Sequence[Prompt]) -> Iterator[Row]:
    """Ask every prompt, `vote.samples` times where there is a vote, all in one call; judge what comes back."""
    task, strategy = unit.task, unit.strategy
    assert isinstance(task, Task) and strategy is not None
    count, temperature = (strategy.vote.samples, strategy.vote.temperature) if strategy.vote else (1, 0.0)
    tokens = answer_tokens(unit, limits)
    seeds = [[sample_seed(limits.seed, prompt.item.id, n) for n in range(count)] for prompt in asked]
    settings = [Sampling(max_new_tokens=tokens, temperature=temperature, seed=seed) for row in seeds for seed in row]
    completions = _completions(unit.subject, [prompt for prompt in asked for _ in range(count)], settings)
    for index, prompt in enumerate(asked):
        samples = [
            {
                "output": completion.text,
                "parsed": task.parse(completion.text),
                "tokens": completion.tokens,
                "finish_reason": completion.finish_reason,
                "seed": seed,
            }
            for completion, seed in zip(completions[index * count : (index + 1) * count], seeds[index], strict=True)
        ]
        winner = 0 if strategy.vote is None else strategy.vote.reduce([sample["parsed"] for sample in samples])
        chosen = samples[winner or 0]
        parsed, answer = chosen["parsed"], prompt.item.answer
        row: Row = {
            "id": prompt.item.id,
            "strategy": strategy.name(task),
            "prompt": prompt.text,
            "prompt_hash": text_hash(prompt.text),
            "prompt_tokens": getattr(completions[index * count], "prompt_tokens", len(prompt.ids)),
            "shots": prompt.shots,
            "answer": answer,
            **chosen,
            "score": 0.0 if parsed is None else task.metric(parsed, answer),
        }
        yield row if strategy.vote is None else {**row, "samples": samples}


def _completions(
    subject: Subject, asked: Sequence[Prompt], settings: Sequence[Sampling]
) -> Sequence[Completion | Reply]:
    if subject.remote is None:
        return subject.engine.generate([prompt.ids for prompt in asked], settings)
    return subject.remote.converse([prompt.messages or [] for prompt in asked], settings)


def _bits(unit: Unit, limits: Limits) -> Iterator[Row]:
    """Bits of each passage, predicted in sliding windows, all in one call."""
    subject = unit.subject
    encoded = subject.tokenizer.encode_batch([passage.text for passage in unit.items])
    stride = min(limits.stride, subject.context)
    nats = subject.engine.score_documents(encoded, window=subject.context, stride=stride)
    for passage, ids, each in zip(unit.items, encoded, nats, strict=True):
        total = bits(each)
        size = len(
            subject.tokenizer.decode(ids).encode("utf-8")
        )  # what was predicted: less than the text, if it loses some
        yield {
            "id": passage.id,
            "strategy": "",
            "prompt": "",
            "prompt_hash": text_hash(passage.text),
            "output": "",
            "parsed": None,
            "score": total / max(size, 1),
            "bits": total,
            "bytes": size,
            "tokens": len(ids),
            "finish_reason": "scored",
            "seed": limits.seed,
        }
