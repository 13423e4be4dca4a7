"""Decontamination: planted leaks of held-out text and of evaluation sets."""

from __future__ import annotations

import gzip
import json
from pathlib import Path

import pyarrow as pa
import pytest

from lmlab.corpus import store
from lmlab.corpus.config import CorpusConfig, Decontamination
from lmlab.corpus.contamination import sets
from lmlab.corpus.contamination.config import EvaluationSet
from lmlab.corpus.contamination.index import Index, build, load, save
from lmlab.corpus.contamination.match import HELDOUT, MatchStep, Overlap, judge, report, seen
from lmlab.corpus.contamination.passes import around
from lmlab.corpus.inspect import format_inspect, format_why, inspect, why
from lmlab.corpus.stage import sources
from lmlab.errors import Refused
from tests.corpus import helpers
from tests.corpus.helpers import WORDS, prose, prose_folder, table


def index_of(heldout: list[str], config: Decontamination) -> Index:
    pairs = [(f"h/{i}", text) for i, text in enumerate(heldout)]
    return build(HELDOUT, pairs, config.ngram, least=config.heldout_share, smallest=config.ngram, shared=False)


def judged(documents: pa.Table, index: Index, config: Decontamination) -> list[Overlap]:
    tables = [MatchStep([index])(documents)]
    return list(judge(tables, [index], seen(tables, [index]), config))


def overlaps(heldout: list[str], training: list[str], **settings) -> dict[int, Overlap]:
    config = Decontamination(**settings)
    return {overlap.row: overlap for overlap in judged(table(*training), index_of(heldout, config), config)}


def test_a_planted_leak_is_dropped_and_its_span_reported() -> None:
    heldout = prose(10, 300)
    leak = " ".join(heldout.split(" ")[40:140])
    training = [prose(11, 200), prose(12, 150) + "\n\n" + leak, prose(13, 20_000) + " " + heldout.upper()]
    found = overlaps([heldout], training)
    assert sorted(found) == [1, 2]
    assert found[1].drop and found[1].share > 0.2 and found[1].heldout == "h/0"
    first, last = found[1].spans[0]
    assert training[1].encode()[first:last].decode() == leak.strip(" .\n")
    # all of a held-out text inside a long document: a small share of the document, all of the held-out text
    assert found[2].share < 0.05 and found[2].heldout_share == 1.0 and found[2].drop
    line = report(found[1], training[1])
    assert line["dropped"] and line["spans"][0]["text"][:40] == training[1].encode()[first:last].decode()[:40]


def test_boilerplate_and_small_overlaps_do_not_empty_the_corpus() -> None:
    licence = (
        "permission is hereby granted free of charge to any person obtaining a copy of this software and more words"
    )
    heldout = licence + "\nElsewhere " + prose(20, 200)
    training = [f"{licence}\nChapter {seed} {prose(seed, 200)}" for seed in range(100, 120)]
    assert overlaps([heldout], training) == {}, "in more than 10 training documents: boilerplate"
    few = overlaps([heldout], training[:5])
    assert len(few) == 5 and not any(overlap.drop for overlap in few.values()), "seen and reported, but a small share"


def test_only_kept_training_documents_are_matched() -> None:
    text = prose(30, 100)
    config = Decontamination()
    index = index_of([text], config)
    assert judged(table(text, split="heldout"), index, config) == []
    assert len(judged(table(text), index, config)) == 1
    assert judged(table(text), index_of([], config), config) == []


@pytest.mark.parametrize("words", [5, 12])
def test_texts_shorter_than_an_ngram_match_nothing(words: int) -> None:
    text = " ".join(WORDS[:words])
    assert overlaps([text], [text]) == {}


# --- evaluation sets ---------------------------------------------------------------------------------------------


def questions(path: Path, texts: list[str]) -> Path:
    lines = [json.dumps({"id": f"q{i}", "question": t, "choices": ["yes", "no"], "n": 1}) for i, t in enumerate(texts)]
    path.write_bytes(
        gzip.compress(("\n".join(lines) + "\n").encode()) if path.suffix == ".gz" else "\n".join(lines).encode()
    )
    return path


def test_items_are_read_with_their_fields(tmp_path: Path) -> None:
    path = questions(tmp_path / "quiz.jsonl.gz", ["what is it", "who was it"])
    found = list(sets.items(EvaluationSet(path=str(path))))
    assert found == [("quiz/q0", "q0\nwhat is it\nyes\nno"), ("quiz/q1", "q1\nwho was it\nyes\nno")]
    one = EvaluationSet(path=str(path), fields=["question"], limit=1, name="mine")
    assert list(sets.items(one)) == [("mine/q0", "what is it")]
    with pytest.raises(Refused, match=r"evaluation\.fields: 'qestion' is no field of .*:1; did you mean 'question'"):
        list(sets.items(EvaluationSet(path=str(path), fields=["qestion"])))
    config = CorpusConfig(
        decontamination=Decontamination(evaluation=[EvaluationSet(path=str(tmp_path / "none.jsonl"))])
    )
    with pytest.raises(Refused, match=r"decontamination\.evaluation\[0\]\.path: .* is no file"):
        sources(config)
    with pytest.raises(ValueError, match="two evaluation sets are called 'a'"):
        Decontamination(evaluation=[EvaluationSet(path="x/a.jsonl"), EvaluationSet(path="y/a.jsonl")])


@pytest.mark.parametrize(("lengths", "ngram"), [([5] * 20, 8), ([40] * 20, 13), ([10] * 10 + [50] * 10, 10)])
def test_gpt3_takes_the_ngram_from_the_items_lengths(lengths: list[int], ngram: int) -> None:
    texts = [prose(i, 100).split() for i in range(len(lengths))]
    cut = [" ".join(words[:n]) for words, n in zip(texts, lengths, strict=True)]
    assert sets.size_of_ngram(EvaluationSet(path="x"), cut) == ngram
    assert sets.size_of_ngram(EvaluationSet(path="x", rule="palm"), cut) == 8
    assert sets.size_of_ngram(EvaluationSet(path="x", ngram=5), cut) == 5


def test_an_index_opens_as_it_was_saved(tmp_path: Path) -> None:
    index = build("set", [("a", prose(1, 50)), ("b", prose(1, 50) + prose(2, 60)), ("c", "short")], 8, least=0.5)
    again = load(save(index, tmp_path / "i").folder)
    assert again.identity == index.identity and again.ids == ["a", "b", "c"]
    assert index.sizes[2] == 0 and index.sizes[1] > index.sizes[0]
    owners = [set(index.owners[a:b].tolist()) for a, b in zip(index.starts[:-1], index.starts[1:], strict=True)]
    assert {0, 1} in owners, "an n-gram belongs to each item that holds it"


def leaked(tmp_path: Path, **settings) -> tuple[Path, list[str]]:
    """A build on 60 pages, of which some hold items of a set: q0 whole in one, q1 in twelve, q2 by half, q3 never."""
    root = prose_folder(tmp_path / "books", 60)
    asked = [prose(900 + i, 40).replace("\n", " ") for i in range(4)] + ["too short"]
    half = " ".join(asked[2].split()[:20])
    config = CorpusConfig.model_validate({"sources": [{"name": "books", "path": str(root)}]})
    probe = tmp_path / "probe"
    helpers.build(probe, **config.model_dump(include={"sources"}))
    paths = [each["path"] for each in store.documents(probe)]
    for n, path in enumerate(paths):
        leak = asked[0] if n == 0 else asked[1] if n < 13 else half if n == 13 else None
        if leak:
            text = (root / path).read_text()
            (root / path).write_text(f"{text[:400]} {leak} {text[400:]}")
    path = questions(tmp_path / "quiz.jsonl", asked)
    out = tmp_path / "out"
    one = {"path": str(path), "fields": ["question"], "ngram": 8, **settings.pop("set", {})}
    helpers.build(
        out, sources=[{"name": "books", "path": str(root)}], decontamination={"evaluation": [one], **settings},
        near_duplicates={"enabled": False},
    )  # fmt: skip
    return out, paths


def test_the_report_names_items_that_are_not_clean_and_the_documents(tmp_path: Path) -> None:
    out, paths = leaked(tmp_path)
    found = json.loads((out / "decontamination.json").read_text())["quiz"]
    assert found["items"] == 5 and found["ngram"] == 8 and found["too_short"] == ["quiz/q4"]
    assert [item["id"] for item in found["not_clean"]] == ["quiz/q0", "quiz/q1", "quiz/q2"]
    assert found["clean"] == ["quiz/q3"]
    first, second, third = found["not_clean"]
    assert first["share"] == second["share"] == 1.0 and 0.3 < third["share"] < 0.5
    assert first["documents"] == [f"books/{paths[0]}#0"] and len(second["documents"]) == 12
    dropped = {
        row["path"]: row for each in store.tables(out) for row in each.to_pylist() if row["step"] == "decontamination"
    }
    assert set(dropped) == set(paths[:14]), "an item in more than `common` documents leaks all the same"
    assert dropped[paths[0]]["reason"] == "repeats items of quiz"
    lines = [json.loads(line) for line in (out / "contamination.jsonl").read_text().splitlines()]
    assert {line["set"] for line in lines} >= {"quiz"} and all(line["spans"] for line in lines)


def test_palms_rule_leaves_an_item_of_which_less_is_found(tmp_path: Path) -> None:
    out, _ = leaked(tmp_path, set={"rule": "palm"}, action="report")
    found = json.loads((out / "decontamination.json").read_text())["quiz"]
    assert [item["id"] for item in found["not_clean"]] == ["quiz/q0", "quiz/q1"]
    assert found["clean"] == ["quiz/q2", "quiz/q3"]
    steps = {row["step"] for each in store.tables(out) for row in each.to_pylist()}
    assert "decontamination" not in steps, "only reported"


def test_cutting_as_gpt3_did(tmp_path: Path) -> None:
    out, paths = leaked(tmp_path, action="cut")
    rows = {row["path"]: row for each in store.tables(out) for row in each.to_pylist()}
    row = rows[paths[0]]
    assert row["keep"] and [cut["step"] for cut in row["cuts"]] == ["decontamination"]
    leak = prose(900, 40).replace("\n", " ").strip(".")
    assert leak in row["cuts"][0]["text"] and leak not in row["text"]
    assert len(row["cuts"][0]["text"]) == pytest.approx(400 + len(leak), abs=3)
    whole = row["text"][: row["cuts"][0]["first"]] + row["cuts"][0]["text"] + row["text"][row["cuts"][0]["first"] :]
    assert whole == (tmp_path / "books" / paths[0]).read_text(), "nothing vanishes"


def test_around_a_span_counts_characters() -> None:
    raw = "äöü中文字abcdef".encode()
    a = raw.index(b"a")
    assert [raw[x:y].decode() for x, y in around(raw, [(a, a + 1)], 2)] == ["äöü中", "def"]
    assert around(raw, [(0, len(raw))], 5) == []
    assert around(raw, [(a, a + 1), (a + 2, a + 3)], 1) == [(0, len("äöü中文".encode())), (a + 4, len(raw))]


def test_a_task_of_lmlabs_is_a_set() -> None:
    found = list(sets.items(EvaluationSet(path="task:sort", limit=5)))
    assert len(found) == 5 and len({name for name, _ in found}) == 5
    assert all(name.startswith("sort/") and len(text.split()) > 3 for name, text in found)
    config = CorpusConfig(decontamination=Decontamination(evaluation=[EvaluationSet(path="task:sorted")]))
    with pytest.raises(Refused, match="did you mean 'sort'"):
        sources(config)


def test_inspect_and_why_show_evaluation_sets_and_cuts(tmp_path: Path) -> None:
    out, paths = leaked(tmp_path, action="cut")
    shown = format_inspect(inspect(out))
    assert "evaluation set quiz: 3 of 5 items stand in training documents (8-grams, rule gpt3)" in shown
    assert "16 bands of 8 rows" not in shown, "near duplicates are off in this corpus"
    told = format_why(why(out, f"books/{paths[0]}#0"))
    assert "overlap with quiz: 100.0% of the n-grams of quiz/q0" in told and "cut by decontamination at byte" in told
