"""Language identification by the kernel: the answers of py3langid itself."""

from __future__ import annotations

import functools
import gzip
import json
import os
import random
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from lmlab.corpus import identify as identification
from lmlab.corpus.arrow import buffers
from lmlab.corpus.identify import identify, identify_text, model, prepare

SIGNS = {
    "zh": "的一是不了人我在有他这中大来上个国到说们为子和你地出道也时年得就那要下以生会自着去之过家学对可",
    "ja": "のはをにがでとたしてれさあいうえおかきくけこアイウエオカキ日本語東京大学時間人ー。、",
    "th": "กขคงจฉชซญดตถทธนบปผฝพฟภมยรลวศษสหอฮะาิีึืุูเแโใไ่้๊๋็์",
    "lo": "ກຂຄງຈສຊຍດຕຖທນບປຜຝພຟມຢຣລວຫອຮະາິີຶືຸູ",
    "km": "កខគឃងចឆជឈញដឋឌឍណតថទធនបផពភមយរលវសហឡអាិីឹឺុូ",
    "my": "ကခဂဃငစဆဇဈညတထဒဓနပဖဗဘမယရလဝသဟအာိီုူေဲံ့း္်",
    "ko": "가나다라마바사아자차카타파하한국어서울\u1112\u1161\u11ab",
    "ar": "ابتثجحخدذرزسشصضطظعغفقكلمنهوي",
    "he": "אבגדהוזחטיכלמנסעפצקרשת",
    "ru": "абвгдежзийклмнопрстуфхцчшщъыьэюя",
    "RU": "АБВГДЕЖЗИЙКЛМНОПРСТУФХЦЧШЩЪЫЬЭЮЯ",
    "el": "αβγδεζηθικλμνξοπρστυφχψωάέήίόύώ",
    "hi": "अआइईउऊएऐओऔकखगघचछजझटठडढणतथदधनपफबभमयरलवशषसह़ािीुूेैोौ्",
    "de": "abcdefghijklmnopqrstuvwxyzäöüßÄÖÜ",
    "DE": "ABCDEFGHIJKLMNOPQRSTUVWXYZÄÖÜ",
    "marks": "aeiouAEIOU\u0301\u0308\u0323\u0300nN\u0303",
    "odd": "ǅǈ\ufb01\u212b\u0958\u2126\x00\x7f\u200b\u202e\ufeff\U0001f600\U000e0041\U0010ffff\U0002f800",
}
SENTENCES = {
    "en": "The library was quiet, and nobody had opened the window since the morning.",
    "de": "In der Bibliothek war es still, und niemand hatte seit dem Morgen das Fenster geöffnet.",
    "fr": "La bibliothèque était silencieuse et personne n'avait ouvert la fenêtre depuis le matin.",
    "es": "La biblioteca estaba en silencio y nadie había abierto la ventana desde la mañana.",
    "it": "La biblioteca era silenziosa e nessuno aveva aperto la finestra dalla mattina.",
    "pl": "W bibliotece było cicho i od rana nikt nie otworzył okna.",
    "ru": "В библиотеке было тихо, и с утра никто не открывал окно.",
    "zh": "图书馆里很安静，从早上起就没有人打开过窗户。他坐在桌子旁边看书。",
    "ja": "図書館は静かで、朝から誰も窓を開けていませんでした。彼は机のそばで本を読んでいた。",
    "th": "ห้องสมุดเงียบมาก และไม่มีใครเปิดหน้าต่างตั้งแต่เช้า เขานั่งอ่านหนังสืออยู่ข้างโต๊ะ",
    "ko": "도서관은 조용했고 아침부터 아무도 창문을 열지 않았다.",
    "ar": "كانت المكتبة هادئة ولم يفتح أحد النافذة منذ الصباح.",
    "he": "הספרייה הייתה שקטה ואיש לא פתח את החלון מאז הבוקר.",
    "el": "Η βιβλιοθήκη ήταν ήσυχη και κανείς δεν είχε ανοίξει το παράθυρο από το πρωί.",
    "hi": "पुस्तकालय शांत था और सुबह से किसी ने खिड़की नहीं खोली थी।",
}


@functools.cache
def library(exact: bool) -> Any:
    """py3langid's own classifier; `exact`: with tables in float64, so that it sums without float32's rounding."""
    from py3langid.langid import MODEL_FILE, LanguageIdentifier

    found = LanguageIdentifier.from_model_file(MODEL_FILE, norm_probs=True)
    if exact:
        found.nb_ptc, found.nb_pc = found.nb_ptc.astype(np.float64), found.nb_pc.astype(np.float64)
    return found


def texts() -> list[str]:
    draw = random.Random(3)
    found = ["", " ", "\x00", "A", "ABC", "\u0301", "e\u0301", "E\u0301", "\U0010ffff", "🙂" * 50, "ǅ" * 5, "a" * 9000]
    for _ in range(800):
        signs = SIGNS[draw.choice(list(SIGNS))] + draw.choice(["", SIGNS[draw.choice(list(SIGNS))]]) + " "
        found.append("".join(draw.choices(signs, k=int(10 ** draw.uniform(0, 3.7)))))
    for _ in range(200):
        points = [draw.choice([draw.randrange(0xD800), draw.randrange(0xE000, 0x110000)]) for _ in range(60)]
        found.append("".join(map(chr, points)))
    return found + [sentence * n for sentence in SENTENCES.values() for n in (1, 7)]


def told(given: list[str], most: int = 4000) -> tuple[list[str], np.ndarray]:
    places, probabilities = identify(*buffers(pa.array(given, pa.string())), np.ones(len(given), bool), most)
    return [model().languages[place] for place in places], probabilities


def test_the_answers_are_the_librarys_in_every_script_and_on_hostile_strings() -> None:
    every = texts()
    languages, probabilities = told(every)
    for text, language, probability in zip(every, languages, probabilities, strict=True):
        wanted, sure = library(True).classify(text[:4000])
        assert (language, probability) == (wanted, pytest.approx(sure, abs=1e-9)), text[:50]
        # The library sums in float32, where a long text's score has an error of some 1e-3.
        wanted, sure = library(False).classify(text[:4000])
        assert (language, probability) == (wanted, pytest.approx(sure, abs=3e-4)), text[:50]


def test_sentences_are_told_as_what_they_are_with_the_librarys_probability() -> None:
    for wanted, sentence in SENTENCES.items():
        language, probability = identify_text(sentence)
        assert (language, probability) == (wanted, pytest.approx(library(False).classify(sentence)[1], abs=1e-6))


def test_translated_news_is_told_as_the_library_does() -> None:
    if "LMLAB_DATA" not in os.environ:
        pytest.skip("LMLAB_DATA is not set: no translated texts")
    path = Path(os.environ["LMLAB_DATA"]) / "ntrex" / "ntrex.jsonl.gz"
    rows = [json.loads(line) for line in gzip.decompress(path.read_bytes()).decode().splitlines()]
    found = [text for row in rows for text in row.values() if isinstance(text, str) and len(text) > 20]
    languages, probabilities = told(found)
    own = [library(False).classify(text[:4000]) for text in found]
    assert languages == [language for language, _ in own]
    exact = [library(True).classify(text[:4000])[1] for text in found]
    assert np.abs(probabilities - exact).max() < 1e-9
    assert np.abs(probabilities - [probability for _, probability in own]).max() < 1e-5, "float32's rounding"


@given(st.lists(st.text(max_size=40), max_size=5), st.integers(1, 50))
@example(["É" * 30, "e\u0301" * 30], 7)
def test_any_text_at_any_sample(given_texts: list[str], most: int) -> None:
    languages, probabilities = told(given_texts, most)
    for text, language, probability in zip(given_texts, languages, probabilities, strict=True):
        assert (language, probability) == pytest.approx(library(True).classify(text[:most]), abs=1e-9)
        assert prepare(text[:most]) == library(True)._encode(text[:most])


def test_what_is_not_wanted_is_not_looked_at() -> None:
    data, offsets = buffers(pa.array(["one text", "another text"]))
    places, _ = identify(data, offsets, np.array([False, True]))
    assert places[0] == -1 and places[1] >= 0
    assert identify(*buffers(pa.array([], pa.string())), np.zeros(0, bool))[0].tolist() == []


def test_no_ngram_of_the_model_is_longer_than_what_a_walk_looks_back() -> None:
    step, rows = model().step.reshape(-1, 256), model().states[:, 0]
    depth = np.full(len(rows), -1)
    front, depth[0] = np.array([0]), 0
    while len(front):
        reached = np.unique(step[rows[front]])
        front = reached[depth[reached] < 0]
        depth[front] = depth.max() + 1
    assert depth.max() <= identification.LOOK
    # After so many bytes the state no longer depends on where the walk began.
    draw = np.random.default_rng(0)
    for _ in range(20):
        states = np.arange(len(rows))
        for byte in draw.choice(np.frombuffer("ein Wort, слово, 一句话 ".encode(), np.uint8), identification.LOOK):
            states = step[rows[states], byte]
        assert len(np.unique(states)) == 1
