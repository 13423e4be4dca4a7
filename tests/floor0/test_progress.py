"""The line on a terminal: where the work is, how fast it goes, and the time that is left; nothing where there is no terminal."""

import os
import pty
import re
import subprocess
import sys

from lmlab.progress import bar

WORK = """
import time
from lmlab.progress import bar
with bar("pretrain", 40, 10) as advance:
    for step in range(30):
        time.sleep(0.04)
        advance(1, f"loss {step / 10:.3f}")
        if step == 20:
            advance(-15, "back to step 15")
    time.sleep(0.3)
"""


def on_a_terminal(code: str) -> str:
    """What a process writes to its standard error, which is a terminal of 120 columns."""
    leader, follower = pty.openpty()
    environment = {**os.environ, "TERM": "xterm", "COLUMNS": "120"}
    with subprocess.Popen([sys.executable, "-c", code], stderr=follower, env=environment) as child:
        os.close(follower)
        shown = b""
        while True:
            try:
                part = os.read(leader, 65536)
            except OSError:  # the other end is closed
                break
            if not part:
                break
            shown += part
        assert child.wait(60) == 0
    os.close(leader)
    return re.sub(r"\x1b\[[0-9;?]*[a-zA-Z]", "", shown.decode())


def test_the_line_says_how_far_how_fast_and_how_long_yet() -> None:
    lines = [line for line in re.split(r"[\r\n]+", on_a_terminal(WORK)) if "pretrain" in line]
    assert any(re.search(r"pretrain .* \d\d/40 .*\d/s \d:\d\d:\d\d loss \d\.\d{3}", line) for line in lines), lines
    assert any("25/40" in line for line in lines[-5:]), "it went back"


def test_without_a_terminal_nothing_is_shown(capsys) -> None:
    with bar("pretrain", 10) as advance:
        advance(3, "loss 1.0")
    captured = capsys.readouterr()
    assert captured.err == captured.out == ""
