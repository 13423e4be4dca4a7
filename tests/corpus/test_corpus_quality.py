"""Quality by models: the classifier, perplexity and its buckets, and the audit of what steps remove."""

from __future__ import annotations

import json
import math
import pickle
import random
from collections import Counter
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from typer.testing import CliRunner

from lmlab.cli import app
from lmlab.corpus import classify, store
from lmlab.corpus.arrow import buffers
from lmlab.corpus.audit import audit, format_audit, judge
from lmlab.corpus.config import CorpusConfig
from lmlab.corpus.inspect import format_why, why
from lmlab.corpus.ngram import NgramModel
from lmlab.corpus.stage import STAGE
from lmlab.corpus.steps.classifier import draw
from lmlab.corpus.steps.perplexity import BucketStep, NamedScorer, Perplexity, cutoffs
from lmlab.corpus.tokens import tokens
from lmlab.errors import Refused
from tests.corpus.helpers import WORDS, build, prose, table

OFF = {
    "prose_rules": {"enabled": False},
    "near_duplicates": {"enabled": False},
    "exact_duplicates": False,
    "decontamination": {"enabled": False},
    "language": {"enabled": False},
}


def spam(seed: int) -> str:
    draw = random.Random(seed)
    words = ["buy", "cheap", "now", "win", "free", "click", "casino", "bonus", "offer", "deal"]
    return " ".join(draw.choice(words + WORDS[:20]) for _ in range(60))


def slang(seed: int) -> str:
    """Good text in another register: the same words as `prose`, and some of its own."""
    draw = random.Random(seed)
    return " ".join(draw.choice([*WORDS, "gonna", "ain't", "yall", "finna"]) for _ in range(100))


@pytest.fixture(scope="module")
def web(tmp_path_factory: pytest.TempPathFactory) -> dict:
    """Sources `good` and `web` (half like it, half spam), as settings."""
    root = tmp_path_factory.mktemp("web")
    good, rest = [prose(i) for i in range(300)], [prose(i) if i % 2 else spam(i) for i in range(1000, 1400)]
    for name, texts in (("good", good), ("web", rest)):
        (root / f"{name}.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    return {"sources": [{"name": name, "path": str(root / f"{name}.jsonl")} for name in ("good", "web")], **OFF}


def rows(out: Path) -> list[dict]:
    return [row for each in store.tables(out) for row in each.to_pylist()]


def test_a_classifier_is_trained_and_keeps_by_chance(tmp_path: Path, web: dict) -> None:
    out = tmp_path / "out"
    build(out, classifier={"good": ["good"], "bits": 14}, **web)
    found = rows(out)
    assert all(row["keep"] for row in found if row["source"] == "good"), "good sources are not filtered"
    scored = [row for row in found if row["source"] == "web"]
    junk = [row for row in scored if "casino" in row["text"]]
    fine = [row for row in scored if "casino" not in row["text"]]
    assert np.mean([row["classifier_score"] for row in fine]) > 3 * np.mean([row["classifier_score"] for row in junk])
    for row in scored:
        assert row["keep"] == (draw(row["id"], 0, 9) > 1 - row["classifier_score"])
        assert row["keep"] or (row["step"], row["reason"]) == ("classifier", "not drawn (Pareto, alpha 9)")
    expected = [(2 - row["classifier_score"]) ** -9 for row in scored]
    deviation = math.sqrt(sum(p * (1 - p) for p in expected))
    assert abs(sum(row["keep"] for row in scored) - sum(expected)) < 4 * deviation
    report = json.loads((out / "classifier" / "classifier.json").read_text())
    assert report["auc"]["low"] > 0.6 and report["good_documents"] + report["candidate_documents"] > 600
    assert sum(row["documents"] for row in report["reliability"]) == report["auc"]["n"]
    assert "classifier score" in format_why(why(out, scored[0]["id"]))
    again = tmp_path / "again"
    build(again, classifier={"good": ["good"], "model": str(out / "classifier")}, **web)
    assert [row["classifier_score"] for row in rows(again)] == [row["classifier_score"] for row in found]
    assert not (again / "classifier").exists()
    hard = tmp_path / "hard"
    build(hard, classifier={"model": str(out / "classifier"), "alpha": None, "threshold": 0.2}, **web)
    assert {row["reason"] for row in rows(hard) if row["step"] == "classifier"} == {"score < 0.2"}


def test_the_draw_is_numpys_pareto() -> None:
    """Kolmogorov-Smirnov against numpy's sampler: n = 4,000 each, a fixed seed."""
    mine = np.sort([draw(f"web/page{i}#0", 3, 9) for i in range(4000)])
    theirs = np.sort(np.random.default_rng(0).pareto(9, 4000))
    both = np.concatenate([mine, theirs])
    gap = np.abs(np.searchsorted(mine, both, "right") - np.searchsorted(theirs, both, "right")).max() / 4000
    assert gap < 1.95 * math.sqrt(2 / 4000), "the 0.1% point"
    assert draw("a", 3, 9) == draw("a", 3, 9) != draw("a", 4, 9) != draw("b", 4, 9)


MARKS = {0.1: "alpha", 0.3: "bravo", 0.5: "charlie", 0.7: "delta", 0.9: "echo"}


def test_scores_are_probabilities_on_documents_that_were_not_trained_on() -> None:
    """Labels drawn from a known probability that the words show: the reliability table must find it again."""
    chance = random.Random(5)
    ids, texts, labels = [f"d/{i}#0" for i in range(4000)], [], []
    for _ in ids:
        p = chance.choice([0.1, 0.3, 0.5, 0.7, 0.9])
        texts.append(" ".join([MARKS[p]] * 3 + [chance.choice(WORDS) for _ in range(20)]))
        labels.append(chance.random() < p)
    good = np.array(labels)
    found = tokens(*buffers(pa.array(texts)), fold=True)
    settings = classify.Settings(bits=14, ngram=1)
    model, report = classify.train(ids, good, found, settings)
    truth = np.array([next(p for p, mark in MARKS.items() if text.startswith(mark)) for text in texts])
    assert np.abs(model.score(ids, found) - truth).mean() < 0.06
    for row in report["reliability"]:
        if row["documents"] > 100:
            assert row["good"]["low"] - 0.06 <= row["mean_score"] <= row["good"]["high"] + 0.06
    best = np.mean(truth * (1 - truth))
    assert best - 0.01 < report["brier"] < best + 0.02
    same, _ = classify.train(ids, good, found, settings)
    assert np.array_equal(same.weights, model.weights)


def test_auc_counts_ties_as_halves() -> None:
    scores, good = np.array([0.1, 0.5, 0.5, 0.9]), np.array([False, True, False, True])
    pairs = [(a > b) + 0.5 * (a == b) for a in scores[good] for b in scores[~good]]
    assert classify.auc(scores, good)["value"] == pytest.approx(np.mean(pairs))


def test_what_is_wrong_with_a_classifier_is_refused(tmp_path: Path, web: dict) -> None:
    with pytest.raises(Refused, match=r"classifier\.model: .*is no saved classifier"):
        build(tmp_path / "a", classifier={"model": str(tmp_path)}, **web)
    with pytest.raises(Refused, match=r"classifier\.good: 0 documents of \['books'\]"):
        build(tmp_path / "b", classifier={"good": ["books"]}, **web)
    with pytest.raises(ValueError, match="good and a candidate"):
        CorpusConfig.model_validate({"classifier": {"good": ["a"], "candidates": ["a"]}})
    with pytest.raises(ValueError, match="nothing would be dropped"):
        CorpusConfig.model_validate({"classifier": {"good": ["a"], "alpha": None}})


def test_perplexity_puts_spam_into_the_tail(tmp_path: Path, web: dict) -> None:
    out = tmp_path / "out"
    build(out, perplexity={"train": ["good"], "order": 4, "keep": ["head", "middle"]}, **web)
    found = [row for row in rows(out) if row["source"] == "web"]
    tail = [row for row in found if row["perplexity_bucket"] == "tail"]
    assert len(tail) == pytest.approx(0.4 * len(found), abs=3), "percentiles 30 and 60"
    assert np.mean(["casino" in row["text"] for row in tail]) > 0.8
    assert {(row["step"], row["reason"]) for row in tail} == {("perplexity", "perplexity in the tail")}
    assert all(row["keep"] for row in rows(out) if row["source"] == "good")
    model = NgramModel.load(out / "perplexity" / NgramModel.FILE)
    text = found[0]["text"]
    assert found[0]["perplexity"] == pytest.approx(2 ** (model.bits([text])[0] / len(text.encode())), rel=1e-5)
    again = tmp_path / "again"
    build(again, perplexity={"model": str(out / "perplexity"), "maximum": 8}, **web)
    assert {r["reason"] for r in rows(again) if not r["keep"]} == {"perplexity > 8"}
    assert all(r["keep"] == (r["perplexity"] <= 8) for r in rows(again))


def test_cutoffs_are_by_language_where_there_is_enough() -> None:
    values = np.concatenate([np.arange(200.0), 1000 + np.arange(200.0), [5.0]])
    cuts = cutoffs(["en"] * 200 + ["de"] * 200 + ["fr"], values, (30, 60))
    assert set(cuts) == {"", "en", "de"} and cuts["en"][0] < 100 < 1000 < cuts["de"][0]
    both = table("a", "b", "c").append_column("language", pa.array(["en", "de", "fr"]))
    both = both.append_column("perplexity", pa.array([1.0, 1150.0, None], pa.float32()))
    result = BucketStep(Perplexity(model="x", keep=["head"]), cuts)(both)
    assert result["perplexity_bucket"].to_pylist() == ["head", "tail", None]
    assert result["keep"].to_pylist() == [True, False, True]


def test_a_scorer_of_the_users_own_and_what_is_refused(tmp_path: Path, web: dict) -> None:
    out = tmp_path / "out"
    build(out, perplexity={"scorer": "tests.corpus.test_corpus_quality:lengths", "model": "x"}, **web)
    assert {row["perplexity"] for row in rows(out)} == {4.0}
    with pytest.raises(Refused, match="expected module:function"):
        NamedScorer(Perplexity(scorer="nowhere")).open()
    (tmp_path / NgramModel.FILE).write_text("nothing")
    with pytest.raises(Refused, match="is no saved n-gram model"):
        STAGE.sources(CorpusConfig.model_validate({"perplexity": {"model": str(tmp_path)}}))


def lengths(model: str):
    """A scorer that needs two bits a character."""
    assert model == "x"
    return lambda texts: (np.array([2.0 * len(t) for t in texts]), np.array([float(len(t)) for t in texts]))


def test_any_checkpoint_gives_perplexity(tmp_path: Path) -> None:
    from lmlab.generate.handle import load
    from lmlab.model.config import ModelConfig
    from lmlab.model.store import save_model
    from lmlab.model.transformer import Transformer
    from lmlab.text.tokenizer import train as train_tokenizer

    texts = [prose(i) for i in range(30)]
    tokenizer = train_tokenizer(texts, vocab_size=300)
    network = Transformer(ModelConfig(layers=1, d_model=16, heads=2, vocab_size=300, context_length=32))
    save_model(tmp_path / "model", network, tokenizer)
    scorer = pickle.loads(pickle.dumps(NamedScorer(Perplexity(model=str(tmp_path / "model")))))
    bits, units = scorer([texts[0], texts[1], ""])
    model = load(tmp_path / "model")
    ids = model.tokenizer.encode_batch(texts[:2])
    assert units.tolist() == [len(ids[0]), len(ids[1]), 0] and bits[2] == 0
    assert bits[:2] == pytest.approx(np.array(model.engine.score_documents(ids, 32, 16)) / math.log(2))


# --- the audit ---------------------------------------------------------------------------------------------------


def test_a_planted_bias_is_found_and_an_even_hand_is_not(tmp_path: Path) -> None:
    texts = [(prose(i), "formal") for i in range(600)] + [(slang(i), "colloquial") for i in range(600)]
    random.Random(0).shuffle(texts)
    records = [{"text": text, "register": name, "parity": i % 2} for i, (text, name) in enumerate(texts)]
    (tmp_path / "web.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records))
    (tmp_path / "good.jsonl").write_text("".join(json.dumps({"text": prose(i)}) + "\n" for i in range(5000, 5400)))
    sources = [{"name": n, "path": str(tmp_path / f"{n}.jsonl")} for n in ("good", "web")]
    sources[1]["meta_fields"] = ["register", "parity"]
    out = tmp_path / "out"
    build(out, sources=sources, classifier={"good": ["good"], "bits": 14, "epochs": 2}, **OFF)
    found = audit(out, ["register", "parity"])["steps"]["classifier"]
    assert found["slices"]["register"]["colloquial"]["warned"] and len(found["warnings"]) == 1
    assert "removes" in found["warnings"][0] and "colloquial" in found["warnings"][0]
    cell = found["slices"]["register"]["colloquial"]
    assert (
        cell["removed"]["low"] <= cell["removed"]["value"] <= cell["removed"]["high"]
        and cell["kept_ratio"]["high"] < 0.8
    )
    shown = CliRunner().invoke(app, ["corpus", "audit", str(out), "--by", "register", "--json"])
    assert json.loads(shown.stdout)["steps"]["classifier"]["slices"]["register"]["colloquial"]["warned"]
    written = json.loads((out / "audit.json").read_text())
    assert "good" not in written["steps"]["classifier"]["slices"].get("source", {})
    assert written["steps"]["classifier"]["removed"]["n"] == 1200


def test_audit_of_every_step_by_columns_lengths_and_meta(tmp_path: Path) -> None:
    """A corpus written by hand: rules take the short ones, near_duplicates take what is left of dialect `b`."""
    folder = tmp_path / "documents"
    folder.mkdir()
    columns: dict[str, list] = {"source": [], "language": [], "keep": [], "step": [], "bytes_read": [], "meta": []}
    for i in range(800):
        short, dialect = i % 4 == 0, "b" if i % 2 == 0 else "a"
        step = "rules" if short else "near_duplicates" if dialect == "b" and i % 3 else None
        values = ("web", "en", step is None, step, 100 if short else 2000, json.dumps({"dialect": dialect}))
        for column, value in zip(columns.values(), values, strict=True):
            column.append(value)
    pa.parquet.write_table(pa.table(columns), folder / "part-00000.parquet")
    found = audit(tmp_path)
    assert list(found["steps"]) == ["rules", "near_duplicates"]
    rules, near = found["steps"]["rules"], found["steps"]["near_duplicates"]
    assert rules["removed"]["value"] == 0.25 and near["removed"]["n"] == 600, "what rules dropped never came so far"
    assert rules["slices"]["length"]["under 1 kB"]["removed"]["value"] == 1 and "source" not in rules["slices"]
    assert near["slices"]["dialect"]["b"]["warned"] and not near["slices"]["dialect"]["a"]["warned"]
    assert near["slices"]["dialect"]["a"]["ratio"]["value"] < 0.1
    shown = format_audit(found)
    assert "WARNING" in shown and "dialect" in shown
    json.dumps(found, allow_nan=False)
    only = audit(tmp_path, ["dialect"], ["rules"])
    assert list(only["steps"]) == ["rules"] and list(only["steps"]["rules"]["slices"]) == ["dialect"]
    with pytest.raises(Refused, match="--by dialekt.*did you mean 'dialect'"):
        audit(tmp_path, ["dialekt"])
    with pytest.raises(Refused, match="--step rule.*did you mean 'rules'"):
        audit(tmp_path, [], ["rule"])


def test_chance_alone_warns_seldom() -> None:
    """200 corpora whose removals are independent of 20 slices: the two tests may warn in 10% of them together (n = 200)."""
    draw = np.random.default_rng(1)
    warned = 0
    for _ in range(200):
        counts: Counter = Counter()
        for value in range(20):
            gone = int(draw.binomial(100, 0.2))
            for left, n in (("rules", gone), (None, 100 - gone)):
                counts["topic", str(value), "", left] += n
                counts["", "", "", left] += n
        warned += bool(judge(counts, "rules", [], 1.0)["warnings"])
    assert warned <= 27, "the 95% point of a binomial of 200 at 10%"
