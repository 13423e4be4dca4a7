"""Tokenizers side by side, from the command line and as a stage that takes an existing one."""

import json

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from typer.testing import CliRunner

from lmlab.cli import app
from lmlab.corpus.passages import passages
from lmlab.errors import Refused
from lmlab.progress import Metrics
from lmlab.run import Context, fingerprint
from lmlab.text.algorithms import SPECIAL_TOKENS
from lmlab.text.compare import Passage, compare
from lmlab.text.stage import STAGE, TokenizerConfig
from lmlab.text.tokenizer import Tokenizer, extended, find_tokenizer, train

ENGLISH = "The quick brown fox doesn't jump over the lazy dog, and nobody is surprised by what it does instead. " * 3
GERMAN = (
    "Der schnelle braune Fuchs springt nicht über den faulen Hund, und niemand wundert sich darüber, was er tut. " * 3
)
CODE = "def add(first, second):\n    return first + second  # 12 and 345\n" * 3


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    place = tmp_path_factory.mktemp("tokenizers")
    train([ENGLISH, CODE], 330).save(place / "run" / "tokenizer")
    train([ENGLISH, CODE], 200, algorithm="wordpiece", normalisation="lowercase").save(place / "words")
    rows = [
        {"id": f"{i}", "source": s, "split": split, "kind": kind, "language": language, "text": text, "keep": i != 5}
        for i, (s, split, kind, language, text) in enumerate(
            [
                ("web", "heldout", "prose", "en", ENGLISH),
                ("web", "heldout", "prose", "de", GERMAN),
                ("code", "heldout", "code", None, CODE),
                ("web", "train", "prose", "en", "not measured"),
                ("web", "heldout", "prose", None, "short"),
                ("web", "heldout", "prose", "en", "dropped"),
            ]
        )
    ]
    (place / "run" / "corpus" / "documents").mkdir(parents=True)
    pq.write_table(pa.Table.from_pylist(rows), place / "run" / "corpus" / "documents" / "part-00000.parquet")
    return place


def test_the_command_says_what_each_costs_and_loses(folder) -> None:
    places = [str(folder / "run"), str(folder / "words" / "tokenizer.json")]
    line = ["tokenizer", "compare", *places, "--text", str(folder / "run"), "--rounds", "1"]
    result = CliRunner().invoke(app, [*line, "--json"])
    assert result.exit_code == 0, result.output
    first, second = json.loads(result.stdout)["tokenizers"]
    assert [first["name"], second["name"]] == places
    tokenizer = Tokenizer.load(folder / "run" / "tokenizer")
    texts = [ENGLISH, GERMAN, CODE, "short"]
    tokens = sum(len(tokenizer.encode(text)) for text in texts)
    assert first["bytes_per_token"]["value"] == pytest.approx(sum(len(t.encode()) for t in texts) / tokens)
    assert first["bytes_per_token"]["n"] == 4 and first["tokens_relative"]["value"] == 1
    assert set(first["by_source"]) == {"web", "code"} and set(first["by_language"]) == {"en", "de", "code", "und"}
    assert first["by_language"]["de"]["value"] < first["by_language"]["en"]["value"], "it was trained on English"
    assert first["round_trip"]["restored"]["value"] == 1 and first["round_trip"]["bytes_lost"] == 0
    assert second["round_trip"]["restored"]["value"] < 1 < second["round_trip"]["bytes_lost"]
    assert first["speed"]["path"] == "tiktoken" and second["speed"]["path"] == "tokenizers"
    assert 0 < first["vocabulary_used"]["share"] <= 1
    text = CliRunner().invoke(app, line).stdout
    assert "wordpiece" in text and "documents restored" in text and "MB a CPU second" in text


def test_files_and_folders_are_read_and_their_language_is_found(folder, tmp_path) -> None:
    (tmp_path / "texts").mkdir()
    (tmp_path / "texts" / "a.txt").write_text(GERMAN * 400, encoding="utf-8")
    (tmp_path / "texts" / "b.txt").write_text("short", encoding="utf-8")
    found = passages([str(tmp_path / "texts"), str(tmp_path / "texts" / "b.txt")])
    assert [each.source for each in found[-2:]] == ["texts", "b.txt"]
    assert found[0].language == "de" and found[-1].language == "und"
    assert "".join(each.text for each in found) == GERMAN * 400 + "short" * 2
    (tmp_path / "binary").write_bytes(b"\xff\xfe")
    for place, message in ((tmp_path / "binary", "is not UTF-8"), (tmp_path / "none", "no such file")):
        with pytest.raises(Refused, match=message):
            passages([str(place)])
    with pytest.raises(Refused, match="no text"):
        compare({"a": Tokenizer.load(folder / "words")}, [Passage("s", "en", "")])


def test_what_is_no_tokenizer_is_refused_with_what_was_looked_for(folder, tmp_path) -> None:
    with pytest.raises(Refused, match="no such directory; did you mean 'words'"):
        find_tokenizer(folder / "word")
    with pytest.raises(Refused, match=r"it holds no tokenizer\.json"):
        find_tokenizer(tmp_path)
    with pytest.raises(Refused, match=r"hf:no/such.*could not be fetched"):
        find_tokenizer("hf:no/such")


def take(folder, out, **settings):
    out.mkdir()
    config = TokenizerConfig(**settings)
    context = Context("tokenizer", "tokenizer", config, {"corpus": folder / "run" / "corpus"}, out, 0, Metrics(out))
    STAGE.run(context)
    context.metrics.close()
    return Tokenizer.load(out), json.loads((out / "results.json").read_text())


def test_an_existing_tokenizer_becomes_the_stage(folder, tmp_path) -> None:
    foreign = tmp_path / "foreign"
    made = train([ENGLISH], 300)
    bare = Tokenizer(made._parsing, {"eos_token": "<|endoftext|>"}, None)
    bare.save(foreign)
    (tmp_path / "plain").mkdir()
    raw = json.loads((foreign / "tokenizer.json").read_text())
    raw["added_tokens"] = raw["added_tokens"][:1]
    (foreign / "tokenizer.json").write_text(json.dumps(raw))
    taken, results = take(folder, tmp_path / "out", from_path=str(foreign), sentinels=2)
    assert results["taken_from"] == str(foreign) and results["bytes_per_token"]["heldout"]["n"] == 4
    assert set(taken.special_tokens) == {*SPECIAL_TOKENS, "<extra_id_0>", "<extra_id_1>"} - {"<|pad|>"}
    assert taken.chat_template is not None and taken.encode(ENGLISH) == made.encode(ENGLISH)
    kept, _ = take(folder, tmp_path / "other", from_path=str(foreign), add_chat=False)
    assert kept.chat_template is None and kept.vocab_size == made.vocab_size
    config = TokenizerConfig(from_path=str(foreign))
    before = fingerprint("tokenizer", STAGE, config, 0, {})
    (foreign / "tokenizer.json").write_text(json.dumps(raw) + " ")
    assert fingerprint("tokenizer", STAGE, config, 0, {}) != before, "its files belong to the stage's identity"
    assert extended(made) is made, "nothing is missing"


def test_a_loss_is_said_and_counted(folder, tmp_path, capsys) -> None:
    _, results = take(folder, tmp_path / "out", algorithm="wordpiece", vocab_size=120)
    assert results["round_trip"]["heldout"]["restored"]["value"] < 1
    assert "do not come back as they were" in capsys.readouterr().err
    with pytest.raises(ValueError, match="bpe begins with 262 entries"):
        TokenizerConfig(algorithm="bpe", vocab_size=100)
