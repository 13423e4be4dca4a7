"""A tiny claim end to end through the command line, resumed; what diverged; the zero-shot questions."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from typer.testing import CliRunner

from lmlab.claims import choice, texts
from lmlab.claims.claim import read_claim
from lmlab.claims.measures import MEASURES, beyond
from lmlab.claims.run import compare, describe, judged
from lmlab.cli import app
from lmlab.corpus.shards import Shards
from lmlab.errors import Refused
from lmlab.model.store import load_model
from lmlab.text.tokenizer import Tokenizer

TINY = """\
sentence: Learning is better than not learning.
section: "0"
design: A rate of nothing beside a rate.
switch: [pretrain.optimizer.learning_rate]
arms:
  still: {pretrain.optimizer.learning_rate: 1.0e-12}
  moving: {pretrain.optimizer.learning_rate: 1.0e-2}
compare:
  - {measure: bits, first: still, second: moving, claimed: better}
  - {measure: choice, first: still, second: moving, claimed: as good}
  - {measure: cost, first: still, second: moving, claimed: worse}
  - {measure: copying, first: moving, second: moving, shift: 1, claimed: worse}
seeds: 3
texts: {copies: {kind: copies, documents: 300}}
recipe:
  corpus:
    heldout_fraction: 0.1
    sources: [{name: copies, path: "text:copies", kind: prose}]
    language: {enabled: false}
    prose_rules: {enabled: false}
    exact_duplicates: false
    near_duplicates: {enabled: false}
    decontamination: {enabled: false}
  tokenizer: {vocab_size: 384}
  pretrain:
    steps: 12
    batch_tokens: 256
    kernel: math
    copying: 4
    before: true
    optimizer: {name: adamw}
    model: {layers: 1, d_model: 16, heads: 2, context_length: 64}
"""


@pytest.fixture(scope="module")
def ran(tmp_path_factory):
    place = tmp_path_factory.mktemp("claims")
    (place / "tiny.yaml").write_text(TINY)
    return place, claims_run(place)


def claims_run(place: Path) -> dict:
    arguments = ["claims", "run", str(place / "tiny.yaml"), "--out", str(place / "run"), "--json"]
    outcome = CliRunner().invoke(app, arguments)
    assert outcome.exit_code == 0, outcome.output
    return json.loads(outcome.stdout)


def test_a_claim_runs_and_is_judged(ran):
    place, found = ran
    bits, choices, cost, copying = found["comparisons"]
    assert bits["verdict"] == "supported" and bits["advantage"]["n"] == 3 and bits["advantage"]["low"] > 0
    written = json.loads((place / "run" / "moving" / "seed-1" / "pretrain" / "results.json").read_text())
    assert found["values"]["bits/pretrain"]["moving"][1] == written["bits_per_byte"]["after"]["value"]
    assert 0 <= choices["means"][0] <= 1 and np.isfinite(cost["means"]).all()
    assert copying["advantage"]["n"] == 3  # seeds 1 to 3 beside 0 to 2
    assert found["runs"]["moving"]["steps"] == 12 and found["failed"] == {}
    text = describe(read_claim(place / "tiny.yaml"), found)
    assert "moving beside still, bits per byte of held-out text" in text and f"verdict: {found['verdict']}" in text


def test_a_claim_resumes_with_what_is_missing(ran):
    place, before = ran
    lost, kept = (place / "run" / "moving" / f"seed-{seed}" / "pretrain" for seed in (2, 1))
    written = (kept / "provenance.json").stat().st_mtime_ns
    shutil.rmtree(lost)
    (place / "run" / "claim.json").unlink()
    after = claims_run(place)
    assert (kept / "provenance.json").stat().st_mtime_ns == written and lost.is_dir()
    same = ("bits/pretrain", "choice/pretrain", "copying/pretrain")
    assert [after["values"][key] for key in same] == [before["values"][key] for key in same]


def test_a_run_that_diverged_has_the_bits_from_before_and_one_that_never_began_none(ran, tmp_path):
    place, found = ran
    shutil.copytree(place / "run", tmp_path / "run", symlinks=True)
    lost = tmp_path / "run" / "moving" / "seed-0" / "pretrain"
    before = json.loads((lost / "before.json").read_text())["value"]
    (lost / "results.json").unlink()
    shutil.rmtree(tmp_path / "run" / "still" / "seed-1" / "pretrain")
    values = judged("tiny", read_claim(place / "tiny.yaml"), "small", 3, tmp_path / "run")["values"]["bits/pretrain"]
    kept = found["values"]["bits/pretrain"]
    assert values["moving"][0] == before > kept["moving"][0]
    assert values["still"] == [kept["still"][seed] for seed in (0, 2, 3)]


def test_a_comparison_without_pairs_is_undecided(ran):
    each = read_claim(ran[0] / "tiny.yaml").compare[0]
    assert compare(each, {"still": {0: 1.0}}, range(3))["verdict"] == "undecided"


def test_windows_of_the_trained_length_cost_nothing_beyond(ran):
    runs = {"moving": {0: ran[0] / "run" / "moving" / "seed-0"}}
    assert beyond(runs, "pretrain", "") == {"moving": {0: 0.0}}


def test_what_longer_windows_cost_is_what_the_network_says_window_by_window(ran, tmp_path):
    """The stage's record is changed to a trained length of 16, and every window read by a forward pass of its own."""
    place = tmp_path / "seed-0"
    shutil.copytree(ran[0] / "run" / "moving" / "seed-0", place)
    record = json.loads((place / "pretrain" / "provenance.json").read_text())
    record["config"]["model"]["context_length"] = 16
    (place / "pretrain" / "provenance.json").write_text(json.dumps(record))
    model, tokenizer = load_model(place / "pretrain" / "model"), Tokenizer.load(place / "pretrain" / "model")
    shards = Shards(place / "pretrain" / "tokens" / "heldout")
    nats, size = {16: 0.0, 64: 0.0}, 0
    for index in range(len(shards)):
        ids = [tokenizer.eos_id, *map(int, shards.document(index))]
        size += len(tokenizer.decode(ids[1:]).encode())
        for length in nats:
            for done in range(0, len(ids) - 1, length):
                end = min(done + length, len(ids) - 1)
                begin = max(0, end - length)  # a document's last window is filled up from before
                window = torch.tensor([ids[begin : end + 1]])
                with torch.no_grad():
                    logprobs_TV = model(window[:, :-1]).logits()[0].double().log_softmax(-1)
                nats[length] -= float(logprobs_TV.gather(1, window[0, 1:, None])[done - begin :].sum())
    expected = (nats[64] - nats[16]) / np.log(2) / size
    assert beyond({"a": {0: place}}, "pretrain", "")["a"][0] == pytest.approx(expected, abs=2e-7)
    assert abs(expected) > 1e-5


def test_two_seeds_are_refused(ran):
    outcome = CliRunner().invoke(app, ["claims", "run", str(ran[0] / "tiny.yaml"), "--seeds", "2"])
    assert isinstance(outcome.exception, Refused) and "at least 3" in str(outcome.exception)


def test_list_names_every_claim_with_its_verdict():
    rows = json.loads(CliRunner().invoke(app, ["claims", "list", "--json"]).stdout)
    assert len(rows) >= 17 and all(row["verdict"] and row["sentence"] for row in rows)


def test_questions_hold_the_true_continuation_first_and_are_the_same_each_time():
    documents = [np.arange(start, start + 80) for start in (0, 1000, 2000)] + [np.arange(5)]
    asked = choice.questions_of(documents, 50)
    for given, (true, *wrong) in asked:
        assert true[0] == given[-1] + 1 and len(given) == len(true) == choice.PIECE
        assert len(wrong) == choice.WAYS - 1 and all(len(each) == choice.PIECE for each in wrong)
    again = choice.questions_of(documents, 50)
    assert all(np.array_equal(a[0], b[0]) and np.array_equal(a[1], b[1]) for a, b in zip(asked, again, strict=True))
    starts = {int(given[0]) // 1000 for given, _ in asked}
    assert starts == {0, 1, 2}


def test_made_texts_are_the_same_each_time_and_copies_are_copies(tmp_path):
    for kind in texts.MAKERS:
        texts.write(kind, 20, tmp_path / "a.jsonl")
        texts.write(kind, 20, tmp_path / "b.jsonl")
        assert (tmp_path / "a.jsonl").read_bytes() == (tmp_path / "b.jsonl").read_bytes()
    words = texts.copies(np.random.default_rng(0)).split()
    assert words[: len(words) // 2] == words[len(words) // 2 :] and len(set(words)) > 4


def test_every_measure_says_what_matters():
    assert all(measure.matters > 0 and measure.title and measure.unit for measure in MEASURES.values())
