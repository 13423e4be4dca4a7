"""The rule sets as steps: reasons, thresholds, text that changes, keywords, scripts without spaces, datatrove."""

from __future__ import annotations

import gzip
import json
import os
from collections import defaultdict
from pathlib import Path

import pyarrow as pa
import pytest

from lmlab.corpus.build import RULE_SETS, local_steps
from lmlab.corpus.characters import Spaceless
from lmlab.corpus.config import CorpusConfig
from lmlab.corpus.engine import apply
from lmlab.corpus.steps.keywords import Keywords, KeywordsStep
from lmlab.errors import Refused
from tests.corpus.helpers import prose, table

CHINESE = """清晨的河边很安静，老人们在树下打太极拳，孩子们背着书包走过石桥。卖早点的小店已经开门，热气从蒸笼里冒出来。
我买了两个包子和一杯豆浆，坐在门口慢慢吃。店主告诉我，这家店是他爷爷留下来的，到现在已经有六十多年了。
他说以前来的人都是附近工厂的工人，如今工厂搬走了，来的多半是学生和游客。“日子总要过下去的。”他笑着说。"""
JAPANESE = """朝の川辺はとても静かで、老人たちは木の下で体操をし、子どもたちは石の橋を渡って学校へ行きます。
小さな店はもう開いていて、温かい湯気が窓から出ています。私はパンと牛乳を買って、入り口の椅子に座ってゆっくり食べました。
店の主人は、この店は祖父が残してくれたもので、もう六十年以上続いていると教えてくれました。"""
THAI = """ริมแม่น้ำในตอนเช้าเงียบสงบมาก ผู้สูงอายุออกกำลังกายอยู่ใต้ต้นไม้ เด็กๆ สะพายกระเป๋าเดินข้ามสะพานหินไปโรงเรียน
ร้านเล็กๆ เปิดแล้วและมีไอน้ำร้อนลอยออกมาจากหม้อ ฉันซื้อขนมปังสองชิ้นกับนมหนึ่งแก้วแล้วนั่งกินช้าๆ ที่หน้าร้าน
เจ้าของร้านบอกฉันว่าร้านนี้เป็นของคุณปู่ที่ทิ้งไว้ให้และเปิดมานานกว่าหกสิบปีแล้ว"""


def run(*texts: str, sets: tuple[str, ...], kind: str = "prose", **settings) -> pa.Table:
    config = {"rule_sets": list(sets), "prose_rules": {"enabled": False}, "language": {"enabled": False}, **settings}
    return apply(local_steps(CorpusConfig.model_validate(config)), table(*texts, kind=kind))


def outcome(result: pa.Table) -> list[tuple[str | None, str | None]]:
    return list(zip(result["step"].to_pylist(), result["reason"].to_pylist(), strict=True))


def test_sets_are_off_by_default_and_run_in_their_order() -> None:
    names = [step.name for step in local_steps(CorpusConfig())]
    assert names == ["normalise", "language", "rules", "redact"]
    every = CorpusConfig.model_validate({"rule_sets": ["roots", "c4", "gopher", "fineweb"]})
    assert [step.name for step in local_steps(every)] == [
        "normalise", "language", "rules", "gopher", "c4", "fineweb", "roots", "redact",
    ]  # fmt: skip
    assert list(RULE_SETS) == ["gopher", "c4", "fineweb", "roots"]
    assert "gopher_signals" not in apply(local_steps(CorpusConfig()), table(prose(1))).column_names


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        (prose(5), None),
        (prose(5, 40), "words < 50"),
        ("a b of to " * 60, "mean_word_length < 3"),
        (prose(6) + " # hash #" * 20, "hash_ratio > 0.1"),
        (prose(6).replace(".", "..."), "ellipsis_lines > 0.3"),
        (" ".join(f"river and {i * 791900} 12345" for i in range(80)), "alphabetic_words < 0.8"),
        ("\n".join(f"- {line}" for line in prose(6, 200).replace("\n\n", " ").split(". ")), "bullet_lines > 0.9"),
        (" ".join(f"word{chr(97 + i % 26)}{chr(97 + i // 26)}" for i in range(80)), "stop_words < 2"),
        ("\n\n".join([prose(7, 25).replace("\n\n", " ")] * 4 + [prose(8, 20)]), "duplicate_paragraphs > 0.3"),
    ],
)
def test_gopher_names_the_first_rule_that_is_broken(text: str, reason: str | None) -> None:
    assert outcome(run(text, sets=("gopher",))) == [("gopher" if reason else None, reason)]


def test_a_threshold_of_null_is_no_rule_and_code_is_left_alone() -> None:
    short = prose(5, 40)
    assert outcome(run(short, sets=("gopher",), gopher={"min_words": None})) == [(None, None)]
    off = {"code_rules": {"enabled": False}}
    result = run("x = {1: 2}", sets=("gopher", "c4", "fineweb", "roots"), kind="code", **off)
    assert result["keep"].to_pylist() == [True] and result["gopher_signals"].to_pylist() == [None]


def test_c4_removes_lines_and_keeps_the_text_of_what_it_drops() -> None:
    good = "The river was quiet in the morning. The bridge was old! Was the garden green?"
    lines = [
        "Please enable Javascript to see the whole page.",
        "Read our Privacy Policy here today.",
        "and so on to...",
    ]
    page = "\n".join(["Home | About", f"{good}[12]", *lines])
    result = run(
        page, good + "\n{", "lorem ipsum dolor sit amet consectetur.", "One sentence of five words.", sets=("c4",)
    )
    assert result["text"].to_pylist()[0] == good
    signals = result["c4_signals"].to_pylist()[0]
    assert (signals["lines"], signals["lines_kept"], signals["citations"]) == (5, 1, 1)
    assert (signals["lines_javascript"], signals["lines_policy"], signals["lines_no_terminal"]) == (1, 1, 2)
    assert outcome(result) == [
        (None, None), (None, None), ("c4", "lorem_ipsum > 0"), ("c4", "sentences < 3"),
    ]  # fmt: skip
    assert result["text"].to_pylist()[2:] == ["lorem ipsum dolor sit amet consectetur.", "One sentence of five words."]
    curly = run(good + "\nIf { then there is a line of code.", sets=("c4",))
    assert outcome(curly) == [("c4", "curly_bracket > 0")]
    loose = run("no mark at the end of this line\n" * 3, sets=("c4",), c4={"terminal_marks": [], "min_sentences": 3})
    assert loose["keep"].to_pylist() == [True]


def test_fineweb_and_roots() -> None:
    lists = "\n".join(f"an item {chr(97 + i)}" for i in range(26))
    assert outcome(run(lists, prose(3), sets=("fineweb",))) == [("fineweb", "punctuated_lines < 0.12"), (None, None)]
    repeated = "\n".join(["The same line of the song is sung.", prose(4).replace("\n", " ")] * 2)
    assert outcome(run(repeated, sets=("fineweb",))) == [("fineweb", "duplicate_line_chars > 0.01")]
    text = "This is what they say about it, and we have been there with all of them for so long that I can not go. " * 2
    text += (
        "See https://example.org/page now and " + "x" * 30 + " again, because there is no other way to do it for us."
    )
    loose = {"languages": {"en": {"max_word_repetition": None, "max_character_repetition": None}}}
    result = run(text, "river " * 30, sets=("roots",), roots=loose)
    assert outcome(result) == [(None, None), ("roots", "stop_words < 0.3")]
    cleaned = result["text"].to_pylist()[0]
    assert "example" not in cleaned and "xxxx" not in cleaned and "See  now and  again" in cleaned


def test_flagged_words_of_a_list(tmp_path: Path) -> None:
    (tmp_path / "words.txt").write_text("# a list\nzounds\n")
    text = (
        "This is what they say about it, and we have been there with all of them for so long that I can not go. Zounds!"
    )
    roots = {"flagged_words": str(tmp_path / "words.txt"), "languages": {"en": {"max_character_repetition": None}}}
    assert outcome(run(text, sets=("roots",), roots=roots)) == [("roots", "flagged_words > 0.01")]


# --- keywords ----------------------------------------------------------------------------------------------------


def keywords(*texts: str, **settings) -> tuple[list[str | None], list[dict]]:
    result = KeywordsStep(Keywords.model_validate(settings), Spaceless())(table(*texts))
    return result["reason"].to_pylist(), result["keyword_signals"].to_pylist()


def test_each_keyword_filter_finds_its_own_and_no_other() -> None:
    html = "<div class='x'>Hello</div> <br/> &nbsp; &#39; <!-- note --> and some words of text here to read."
    links = "See https://example.org/a/b and www.example.com or [this](http://x.org/y) for what is said."
    plate = "The story of the river.\nAll rights reserved. Click here\n{{infobox}}\nMore of the story."
    fine = "If a < b and b > c then all is well; AT&T sells 5 > 3 things, he said (see page 12)."
    _, found = keywords(html, links, plate, fine, max_html=0.05)
    assert [row["html"] > 0.4 for row in found] == [True, False, False, False]
    assert [row["links"] > 0.5 for row in found] == [False, True, False, False]
    assert [row["boilerplate"] for row in found] == [0, 0, 0.5, 0]
    assert found[3] == {"html": 0, "links": 0, "boilerplate": 0, "offensive": 0}
    reasons, _ = keywords(html, links, plate, fine, max_html=0.05, max_links=0.2, max_boilerplate=0.3)
    assert reasons == ["html > 0.05", "links > 0.2", "boilerplate > 0.3", None]


def test_offensive_words_are_whole_words_or_parts_where_words_are_not_separated(tmp_path: Path) -> None:
    (tmp_path / "list.txt").write_text("ass\nbad word\nÄrsch\n混蛋\n", encoding="utf-8")
    settings = {"max_offensive": 0, "offensive_words": str(tmp_path / "list.txt")}
    texts = ["A class of assets.", "You ASS, you ass!", "a bad word, said", "ärsch", "他是个混蛋吗", "Ärschen"]
    reasons, found = keywords(*texts, **settings)
    assert [reason is not None for reason in reasons] == [False, True, True, True, True, False]
    assert found[1]["offensive"] == pytest.approx(2 / 4)
    with pytest.raises(Refused, match=r"keywords\.max_offensive: needs keywords\.offensive_words"):
        keywords("x", max_offensive=0)
    (tmp_path / "empty.txt").write_text("# nothing\n")
    with pytest.raises(Refused, match="holds no word"):
        keywords("x", max_offensive=0, offensive_words=str(tmp_path / "empty.txt"))
    with pytest.raises(Refused, match="cannot be read"):
        keywords("x", max_offensive=0, offensive_words=str(tmp_path / "absent.txt"))


# --- scripts without spaces --------------------------------------------------------------------------------------


@pytest.mark.parametrize("text", [CHINESE, JAPANESE, THAI], ids=["zh", "ja", "th"])
def test_good_text_without_spaces_passes_and_repeated_text_does_not(text: str) -> None:
    flat, terminal = text.replace("\n", ""), {"terminal_marks": [], "min_sentences": 1}
    assert outcome(run(text, sets=("gopher", "c4"), c4=terminal)) == [(None, None)]
    cut = flat[: len(flat) // 2]
    assert outcome(run(cut + cut, sets=("gopher",)))[0][1] == "duplicate_5gram > 0.15"
    short = flat[:40]
    assert outcome(run(short, sets=("gopher",)))[0][1] == "words < 50"


def test_c4_and_fineweb_read_full_width_marks() -> None:
    result = run(CHINESE, sets=("c4", "fineweb"))
    assert outcome(result) == [(None, None)] and result["c4_signals"].to_pylist()[0]["sentences"] == 7
    assert outcome(run("点击\n首页\n登录\n注册\n" + CHINESE[:20], sets=("c4",))) == [("c4", "sentences < 3")]
    menu = "\n".join(["首页", "新闻", "体育", "财经", "娱乐", "关于我们。"])
    assert outcome(run(menu, sets=("fineweb",))) == [("fineweb", "short_lines > 0.67")]


def _titles(language: str) -> list[str]:
    """XQuAD's paragraphs, a document a title."""
    found: dict[str, dict[str, None]] = defaultdict(dict)
    with gzip.open(Path(os.environ["LMLAB_DATA"]) / "xquad" / f"{language}.jsonl.gz", "rt", encoding="utf-8") as file:
        for line in file:
            row = json.loads(line)
            found[row["title"]][row["context"]] = None
    return ["\n".join(paragraphs) for paragraphs in found.values()]


@pytest.mark.skipif("LMLAB_DATA" not in os.environ, reason="LMLAB_DATA does not name the benchmark data")
def test_real_chinese_text_fares_as_its_english_original() -> None:
    """XQuAD (CC-BY-SA-4.0), 36 titles of edited text and their translations: hardly any may be dropped in either."""
    for language in ("en", "zh"):
        texts = _titles(language)
        for name in ("gopher", "c4", "fineweb"):
            dropped = [r for r in run(*texts, sets=(name,))["reason"].to_pylist() if r]
            assert len(texts) == 36 and len(dropped) <= 1, (language, name, dropped)


def test_the_chinese_readme_passes() -> None:
    text = (Path(__file__).parents[2] / "README.zh-CN.md").read_text(encoding="utf-8")
    assert outcome(run(text, sets=("gopher", "fineweb"))) == [(None, None)]


# --- datatrove ---------------------------------------------------------------------------------------------------


def test_decisions_equal_datatroves() -> None:
    """On 300 documents of Python's own documentation, with datatrove's word and sentence splitters replaced by those
    that our definitions are of; benchmarks/corpus.py does the same on thousands."""
    pytest.importorskip("datatrove", reason="needs the extra [bench]")
    import sys

    sys.path.insert(0, str(Path(__file__).parents[2] / "benchmarks"))
    try:
        import corpus as benchmark
    finally:
        sys.path.pop(0)
    found = benchmark.agreement(0.6, benchmark.library_texts())
    assert found["documents"] > 150 and 20 < found["kept by datatrove"] < found["documents"] - 20
    assert found["agreement"] >= 0.995 and found["both keep, same text"] >= 0.995 * found["kept by datatrove"]
