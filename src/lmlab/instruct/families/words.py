"""Word material of the families."""

from __future__ import annotations

import string

# Common English words that text about programs uses often, so that a vocabulary of a few thousand entries trained on
# Python's own library (measured: byte-level BPE of 4,096) holds nearly each as one token, with a space before it and
# without. Longer or rarer words would turn a task about words into a task about spelling.
WORDS: tuple[str, ...] = tuple(
    """
    action add address after all and any arch archive back base before bind bit block body bound break button byte
    cache call cancel cap case change char check child class clear close code color column command comment common
    complete content context control convert copy count create current custom data date day default delete dialog
    digits display doc domain done dot edit element empty end entry error escape event exist exit extra field file
    fill filter final find first fix flag font form format frame from full function future get global group hand
    handle hash head header height help here host idle ignore image import index input insert install instance
    item join key kind label last left length level library like limit line link list load local lock long loop
    low mail main make man map mark master match max member memory menu message method mode module month name need
    new next node normal not number object off offset old one only open option order other output over pack
    package pair parent part pass path pattern pipe place platform point policy port position prefix present print
    process program push put python queue quote range raw read real release remove replace report request reset
    result return right root round row run safe save screen script search second section select send sequence
    server set setup short show side sign signal simple size skip sort source space special split stack standard
    start state stop stream strict string strip sub success system table tag tail take target task test text theme
    this thread time title token top total trace tree try type under update usage use user value variable version
    view wait week widget width window with word work wrap write year zero zip
    """.split()  # noqa: SIM905
)

SHORT_WORDS: tuple[str, ...] = tuple(word for word in WORDS if len(word) <= 4)

LETTERS: tuple[str, ...] = tuple(string.ascii_lowercase)
