"""Following a run: what the page is told, served and written, while files are whole, half written or absent."""

from __future__ import annotations

import json
import shutil
import threading
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest
from html_check import Page

from lmlab.errors import Refused
from lmlab.report.live import server
from lmlab.report.live.snapshot import POINTS, snapshot

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")


@pytest.fixture
def run(tmp_path: Path) -> Path:
    place = tmp_path / "mine"
    stage = place / "pretrain"
    stage.mkdir(parents=True)
    (place / "run.json").write_text(json.dumps({"stages": {"pretrain": {"status": "running"}}}))
    (stage / "plan.json").write_text(json.dumps({"steps": 2000}))
    rows = [{"step": i, "loss": 5 - i / 1000, "lr": 1e-3, "seconds": 0.5 * i} for i in range(1000)]
    rows[500] |= {"loss": 9.0, "spike": 1}
    text = "".join(json.dumps(row) + "\n" for row in rows)
    (stage / "metrics.jsonl").write_text(text + '{"step": 1000, "lo')
    (stage / "heldout.jsonl").write_text('{"step": 400, "bits_per_byte": 2.0}\n{"step": 800, "bits_per_byte": 1.5}\n')
    sample = {"step": 800, "prompt": "def ", "text": "</script><script>alert(1)</script>"}
    (stage / "samples.jsonl").write_text(json.dumps(sample) + "\n")
    return place


def test_a_running_stage(run: Path) -> None:
    (stage,) = snapshot(run)["stages"]
    assert (stage["step"], stage["steps"], stage["status"]) == (1000, 2000, "running")
    assert stage["left"] == pytest.approx(500.0) and stage["spikes"] == [500]
    curves = {curve["key"]: curve for curve in stage["curves"]}
    assert list(curves) == ["loss", "bits_per_byte", "lr"]
    assert curves["bits_per_byte"]["value"] == [2.0, 1.5]
    loss = curves["loss"]
    assert len(loss["step"]) <= POINTS and loss["step"][-1] == 999
    assert max(loss["high"]) == 9.0 and max(loss["value"]) < 9.0, "a spike is bounded, not averaged away"


def test_spikes_that_were_taken_back_are_marked_and_overflows_are_none(run: Path) -> None:
    """The log of a run that went back knows nothing of the spike any more; float16 leaves steps out without one."""
    with (run / "pretrain" / "metrics.jsonl").open("a") as file:
        file.write('ss": 4.0, "skipped": 1}\n')
    done = [{"step": 320, "from": 250, "reason": "x", "policy": "rewind", "batches": [250, 260]}]
    (run / "pretrain" / "interventions.json").write_text(json.dumps(done))
    (stage,) = snapshot(run)["stages"]
    assert stage["spikes"] == [320, 500] and stage["interventions"] == done
    assert '"spikes": [320, 500]' in server.page(snapshot(run))


def test_a_stage_without_a_plan_says_how_far_it_has_to_go(run: Path) -> None:
    (run / "pretrain" / "plan.json").write_text(json.dumps({"iterations": 40}))
    assert snapshot(run)["stages"][0]["left"] is None
    (run / "pretrain" / "state.json").write_text(json.dumps({"fingerprint": "x", "seconds": 1.0, "steps": 1500}))
    (stage,) = snapshot(run)["stages"]
    assert stage["steps"] == 1500 and stage["left"] == pytest.approx(250.0)


def test_no_files_no_stage_and_no_run_is_refused(tmp_path: Path) -> None:
    assert snapshot(tmp_path)["stages"] == []
    with pytest.raises(Refused, match="no such run"):
        snapshot(tmp_path / "nowhere")
    (tmp_path / "arm" / "seed-0" / "pretrain").mkdir(parents=True)
    with pytest.raises(Refused, match=r"is a grid; watch one run of it, such as .*arm/seed-0"):
        snapshot(tmp_path)


def test_the_page_as_a_file_ends_no_script_early(run: Path) -> None:
    text = server.page(snapshot(run))
    page = Page(text)
    assert text.count("</script>") == 2 and page.tags >= {"script", "style", "main"}
    data = text.split('type="application/json">')[1].split("</script>")[0]
    assert json.loads(data)["stages"][0]["samples"][0]["text"].startswith("</script>")
    assert "http" not in text.replace("http://www.w3.org/2000/svg", ""), "nothing is fetched from elsewhere"


@pytest.fixture
def address(run: Path) -> Iterator[str]:
    ready = threading.Event()
    found: list[str] = []

    def on_ready(at: str) -> None:
        found.append(at)
        ready.set()

    threading.Thread(target=server.watch, args=(run, 0), kwargs={"on_ready": on_ready}, daemon=True).start()
    assert ready.wait(10)
    yield found[0]


def get(address: str, host: str | None = None) -> tuple[int, str]:
    request = urllib.request.Request(address, headers={"Host": host} if host else {})
    try:
        with urllib.request.urlopen(request, timeout=10) as answer:
            return answer.status, answer.read().decode()
    except urllib.error.HTTPError as error:
        return error.code, error.read().decode()


def test_the_server_follows_the_files(run: Path, address: str) -> None:
    assert get(address)[0] == 200 and ">null</script>" in get(address)[1]
    assert json.loads(get(address + "data")[1])["stages"][0]["step"] == 1000
    with (run / "pretrain" / "metrics.jsonl").open("a") as file:
        file.write('ss": 4.0}\n{"step": 1001, "loss": 3.9}\n')
    assert json.loads(get(address + "data")[1])["stages"][0]["step"] == 1002
    assert get(address + "run.json")[0] == 404
    assert get(address, "evil.example")[0] == 400


def test_a_taken_port_is_refused(run: Path, address: str) -> None:
    port = int(address.rstrip("/").rsplit(":", 1)[1])
    with pytest.raises(Refused, match=f"port {port} cannot be opened"):
        server.watch(run, port)
    with pytest.raises(Refused, match="port 70000 cannot be opened"):
        server.watch(run, 70000)


@pytest.mark.browser
@pytest.mark.skipif(CHROMIUM is None, reason="no Chromium here (Debian: apt-get install chromium)")
def test_in_a_browser(address: str, run: Path) -> None:
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        page = browser.new_page()
        problems: list[str] = []
        page.on("pageerror", lambda error: problems.append(str(error)))
        page.goto(address)
        page.wait_for_selector("svg polyline")
        assert page.locator("figure").count() == 3 and page.locator(".spike").count() >= 1
        assert "step 1,000 of 2,000" in page.inner_text(".live")
        with (run / "pretrain" / "metrics.jsonl").open("a") as file:
            file.write('ss": 4.0}\n{"step": 1001, "loss": 3.9}\n')
        page.wait_for_function("document.querySelector('.live').textContent.includes('1,002')", timeout=10_000)
        page.hover("svg >> nth=0")
        assert "step" in page.inner_text("figure small >> nth=0")
        assert not problems
        browser.close()
