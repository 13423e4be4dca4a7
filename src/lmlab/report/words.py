"""The report's words: what each kind of stage does, names of measures, and the story of a run in one paragraph."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from lmlab.measure import Score
from lmlab.report.scores import at, duration, interval, number, plain, score, value_of

Report = Mapping[str, Any]

TEACH = {
    "corpus": (
        "Raw files become training text: every document is normalised, judged by rules, compared with all others "
        "and stripped of personal data, and whatever is dropped keeps its reason. Part of the text is set aside "
        "by file before anything else, so that later numbers are measured on text that no stage has read."
    ),
    "tokenizer": (
        "Byte-pair encoding starts from the 256 bytes and keeps joining the pair of neighbours that is most "
        "frequent, so common words become one token and nothing is ever unknown. More bytes in a token mean "
        "shorter sequences, so the same compute reads more text."
    ),
    "pretrain": (
        "The model learns to predict the next token of the corpus; nobody labels anything. Its loss, as bits for "
        "each byte of text it has never seen, is the size to which it could compress that text, so real "
        "compressors and counting models are fair rivals."
    ),
    "sft": (
        "Supervised fine-tuning shows the model instructions with good answers in the chat format, and trains on "
        "the answers alone. Families of tasks that it never saw tell learning to follow instructions from "
        "learning answers by heart."
    ),
    "finetune": (
        "Fine-tuning for one task, as GPT-1 did it: the task's texts become one sequence between new start, delimiter "
        "and extract tokens, a linear head reads what the model makes of the last, and the language model's own loss "
        "goes on beside the task's. Always saying the commonest label is the rival to beat."
    ),
    "reward": (
        "Two answers to one prompt are compared, and a copy of the model with a single number as output learns to "
        "score the better one higher (Bradley and Terry's model of a comparison). What counts is whether it ranks "
        "pairs rightly that it was not trained on."
    ),
    "ppo": (
        "Proximal policy optimisation lets the model answer, scores the answers with the reward model, and makes "
        "likely what scored better than its value function expected, held near the fine-tuned model by a penalty "
        "on their KL divergence. The rules behind the preferences are never shown to it: if their score rises "
        "too, the reward model taught what was meant."
    ),
    "abilities": (
        "A model of generated arithmetic is asked for what it may have learnt, on pairs of numbers that no text has shown: "
        "plain problems, worked ones, a symbol whose meaning only examples tell, and instructions. A right answer is a hard "
        "metric; edit distance, log-probability and Brier score are soft ones, which show progress before an answer is right."
    ),
    "evaluate": (
        "The model of every stage answers one and the same suite of held-out tasks, so that each stage's gain and "
        "cost stand side by side. Demonstrations in the prompt, written steps before the answer and a vote of "
        "several samples are ways of asking: they change no weight."
    ),
}

SPLITS = ("train", "heldout")

LABELS = {
    "bits_per_byte": "bits per byte",
    "xz": "xz -9e alone",
    "xz_primed": "xz primed with the training text",
    "ngram": "5-gram byte model",
    "bits_per_byte.excess.xz": "bits per byte more than xz -9e alone",
    "bits_per_byte.excess.xz_primed": "bits per byte more than xz primed",
    "bits_per_byte.excess.ngram": "bits per byte more than the 5-gram byte model",
    "continuation": "this model, a text's second half given its first",
    "exact_match": "exact match",
    "seen": "families tuned on",
    "unseen": "families never seen",
    "accuracy.majority": "accuracy of always the commonest label",
    "accuracy_over_majority": "accuracy above the commonest label's",
    "lm_nats_per_token": "language-model loss on the task's texts, nats a token",
    "pair_accuracy": "held-out pairs ranked rightly",
    "rule_score": "rule score (never trained on)",
    "kl": "KL to the fine-tuned model",
    "bytes_per_token": "bytes per token",
    "bytes_per_token.train": "bytes per token, training text",
    "bytes_per_token.heldout": "bytes per token, held-out text",
    "train": "training",
    "heldout": "held out",
    "response_length": "tokens of an answer",
    "end_rate": "answers that came to an end",
    "correct": "right answers",
    "pair_accuracy_train": "training pairs ranked rightly",
    "pair_accuracy_by_kind": "held-out pairs ranked rightly",
    "pair_accuracy_by_family": "held-out pairs ranked rightly",
    "kendall_tau_b": "Kendall's tau-b with the rules",
    "best_is_best": "best answer scored best",
    "lm": "language-model loss",
    "lr": "learning rate",
    "grad_norm": "norm of the gradient",
}

# Headline numbers: (kind, path to a score or to {before, after}).
HEADLINES: tuple[tuple[str, tuple[str, ...]], ...] = (
    ("tokenizer", ("bytes_per_token", "heldout")),
    ("pretrain", ("bits_per_byte",)),
    ("pretrain", ("bits_per_byte", "xz")),
    ("pretrain", ("bits_per_byte", "xz_primed")),
    ("pretrain", ("bits_per_byte", "ngram")),
    ("sft", ("exact_match", "seen")),
    ("sft", ("exact_match", "unseen")),
    ("finetune", ("accuracy",)),
    ("reward", ("pair_accuracy",)),
    ("ppo", ("reward",)),
    ("ppo", ("rule_score",)),
    ("ppo", ("correct",)),
    ("ppo", ("kl",)),
    ("ppo", ("entropy",)),
)


def label_of(key: str) -> str:
    """A measure's name for people: `exact_match.seen` -> `exact match, families tuned on`."""
    if key in LABELS:
        return LABELS[key]
    return ", ".join(LABELS.get(part, part.replace("_", " ")) for part in key.split(".") if part)


def headlines(report: Report) -> Iterator[tuple[str, tuple[str, ...], Score | None, Score | None]]:
    """(stage, path, before, after) for each headline number that is there; `before` is None where there is none."""
    for name, stage in report["stages"].items():
        for kind, path in HEADLINES:
            if stage["kind"] == kind:
                found = at(stage, *path)
                after = score(found) or score(at(found, "after"))
                before = score(at(found, "before"))
                if after is not None or before is not None:
                    yield name, path, before, after


def story(report: Report) -> str:
    """What happened, in one paragraph made of what was measured."""
    stages = report["stages"]
    said = [said for name, stage in stages.items() if stage["status"] == "done" for said in _said(name, stage)]
    cores, total = at(report, "machine", "cores"), number(report["seconds"]) or 0.0
    where = f" on {cores} core{'' if cores == 1 else 's'}" if isinstance(cores, int) else ""
    took = f"The stages took {duration(total)}{where}. " if total else ""
    done = sum(stage["status"] == "done" for stage in stages.values())
    if done < len(stages):
        took += f"Of {len(stages)} stages {done} {'is' if done == 1 else 'are'} finished. "
    holds = [claim["holds"] for claim in report["claims"]]
    verdict = (
        f" Of {len(holds)} claims, {holds.count(True)} held, {holds.count(False)} did not, "
        f"and {holds.count(None)} stayed undecided or unmeasured."
        if holds
        else ""
    )
    return took + " ".join(said) + verdict


def _said(name: str, stage: Mapping[str, Any]) -> Iterator[str]:
    kind = stage["kind"]
    if kind == "corpus":
        documents = corpus_total(stage)
        if documents:
            yield f"The corpus kept {documents:,.0f} documents."
    elif kind == "tokenizer" and (it := score(at(stage, "bytes_per_token", "heldout"))):
        yield f"A token of its tokenizer covers {it.value:.2f} bytes of held-out text."
    elif kind == "pretrain":
        yield from _said_pretrain(name, stage)
    elif kind == "sft":
        sides = [(label, at(stage, "exact_match", key)) for key, label in (("seen", "seen"), ("unseen", "unseen"))]
        parts = [f"{_from_to(pair, True)} on {label} families" for label, pair in sides if _from_to(pair, True)]
        if parts:
            yield f"Fine-tuning ({name}) moved exact match {' and '.join(parts)}."
    elif kind == "finetune" and (it := score(at(stage, "accuracy", "after"))):
        base = score(at(stage, "accuracy", "majority"))
        against = f" (always the commonest label: {value_of(base, True)})" if base else ""
        yield f"Fine-tuned for {stage.get('task')}, the model ({name}) is right in {value_of(it, True)}{against}."
    elif kind == "reward" and (it := score(at(stage, "pair_accuracy"))):
        yield f"The reward model ({name}) ranks {value_of(it, True)} of held-out pairs rightly."
    elif kind == "ppo":
        parts = [
            (_from_to(at(stage, key)), label) for key, label in (("reward", "reward"), ("rule_score", "rule score"))
        ]
        told = [f"the {label} {text}" for text, label in parts if text]
        if told:
            yield f"PPO ({name}) moved {' and '.join(told)}."


def _said_pretrain(name: str, stage: Mapping[str, Any]) -> Iterator[str]:
    size, tokens = number(stage.get("parameters")), number(stage.get("tokens"))
    after = score(at(stage, "bits_per_byte", "after"))
    model = f"A model of {_big(size)} parameters" if size else f"The model of {name}"
    read = f", after {_big(tokens)} tokens of training" if tokens else ""
    rivals = (("xz", "xz -9e"), ("ngram", "a 5-gram model"))
    others = [f"{label} {it.value:.3f}" for key, label in rivals if (it := score(at(stage, "bits_per_byte", key)))]
    if after:
        against = f" ({', '.join(others)})" if others else ""
        yield f"{model}{read}, needs {after.value:.3f} bits per byte of held-out text{against}."


def corpus_total(stage: Mapping[str, Any]) -> float:
    """Documents kept, over all sources and splits; 0 where they are not counted."""
    sources = at(stage, "sources")
    counts = [
        kept_of(split) or 0.0
        for splits in (sources.values() if isinstance(sources, Mapping) else ())
        for split in (at(splits, part) for part in SPLITS)
    ]
    return sum(counts)


def kept_of(split: Any) -> float | None:
    """Documents kept of one source's split; where only `documents` is counted, those."""
    kept = number(at(split, "kept"))
    return number(at(split, "documents")) if kept is None else kept


def _from_to(pair: Any, percent: bool = False) -> str:
    before, after = score(at(pair, "before")), score(at(pair, "after"))
    if after is None:
        return ""
    start = f"from {value_of(before, percent)} " if before is not None else ""
    return f"{start}to {value_of(after, percent)} (95% {interval(after, percent)})"


def _big(value: float | None) -> str:
    if value is None:
        return "an unknown number of"
    for size, word in ((1e9, " billion"), (1e6, " million"), (1e4, " thousand")):
        if value >= size:
            return f"{value / (1e3 if size == 1e4 else size):.3g}{word}"
    return plain(value)
