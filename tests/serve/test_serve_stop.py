"""Stopping really stops the work: the double counts what it makes."""

from __future__ import annotations

import asyncio
import socket
import threading
import time

import httpx2
import openai
import pytest

from lmlab.errors import Refused
from lmlab.serve import run
from lmlab.serve.worker import BusyError, Worker

COUNT = {"model": "slow", "messages": [{"role": "user", "content": "count"}], "max_tokens": 100_000}


@pytest.fixture
def slow(make_model):
    return make_model(context=200_000, pause=0.005)


def assert_stopped(model, wait_until):
    wait_until(model.engine.closed.is_set)
    made = model.engine.made
    time.sleep(0.2)
    assert model.engine.made == made < 100_000


def test_a_closed_stream_stops_the_generation(serve_at, slow, wait_until):
    with openai.OpenAI(base_url=f"{serve_at({'slow': slow})}/v1", api_key="none", max_retries=0) as client:
        stream = client.chat.completions.create(**COUNT, stream=True)
        for number, _ in enumerate(stream):
            if number == 3:
                break
        stream.close()
        assert_stopped(slow, wait_until)


def test_a_client_that_gives_up_waiting_stops_the_generation(serve_at, slow, wait_until):
    address = serve_at({"slow": slow})
    with pytest.raises(httpx2.TimeoutException):
        httpx2.post(f"{address}/v1/chat/completions", json=COUNT, timeout=0.5)
    assert slow.engine.made > 0
    assert_stopped(slow, wait_until)


def test_what_waits_for_its_turn_is_dropped_when_its_client_goes(serve_at, slow, make_model, wait_until):
    address = serve_at({"slow": slow})
    first = threading.Thread(target=_give_up, args=(f"{address}/v1/chat/completions", COUNT | {"n": 8}, 1.5))
    first.start()
    wait_until(slow.engine.started.is_set)
    asked = len(slow.engine.prompts)
    _give_up(f"{address}/v1/chat/completions", COUNT, 0.3)
    wait_until(
        lambda: (
            httpx2.get(f"{address}/health").json() | {"models": 0}
            == {
                "status": "ok",
                "models": 0,
                "running": 0,
                "waiting": 0,
            }
        )
    )
    first.join()
    assert asked <= len(slow.engine.prompts) <= 8
    assert_stopped(slow, wait_until)


def _give_up(url, body, seconds):
    with pytest.raises(httpx2.TimeoutException):
        httpx2.post(url, json=body, timeout=seconds)


def test_answers_under_way_take_turns(serve_at, slow):
    address = serve_at({"slow": slow})
    with httpx2.stream("POST", f"{address}/v1/chat/completions", json=COUNT | {"stream": True}) as long:
        next(long.iter_lines())
        short = COUNT | {"messages": [{"role": "user", "content": "hello"}]}
        found = httpx2.post(f"{address}/v1/chat/completions", json=short).json()
        assert found["choices"][0]["message"]["content"] == "HELLO"
        assert not slow.engine.made > 5000


def test_the_queue_has_an_end():
    async def fill():
        worker = Worker(parallel=1, waiting=3)
        release = threading.Event()
        try:
            held = worker.open([lambda: iter(release.wait, None)])
            while worker.load != (1, 0):
                await asyncio.sleep(0.01)
            worker.open([lambda: iter([1])] * 3)
            with pytest.raises(BusyError):
                worker.open([lambda: iter([1])])
            held.cancel()
        finally:
            release.set()
            worker.close()
        with pytest.raises(BusyError):
            worker.open([lambda: iter([1])])

    asyncio.run(fill())


def test_work_delivers_in_order_and_raises_what_a_job_raised():
    async def use():
        worker = Worker()
        found = [item async for item in worker.open([lambda: iter("ab"), lambda: iter("c")])]
        assert [i for at, i in found if at == 0] == ["a", "b"]
        assert (1, "c") in found
        with pytest.raises(ValueError, match="1 // 0"):
            async for _ in worker.open([lambda: map(int, ["1 // 0"])]):
                pass
        worker.close()

    asyncio.run(use())


def test_a_port_in_use_is_refused_with_a_free_one(make_model):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(Refused, match=rf"port {port} on 127.0.0.1 cannot be opened: .*in use.*free now: \d+"):
            run.serve({"m": make_model()}, port=port)


def test_a_host_that_is_not_this_machines_is_refused(make_model):
    with pytest.raises(Refused, match="not an address of this machine"):
        run.serve({"m": make_model()}, host="no.such.host.invalid")
    with pytest.raises(Refused, match="70000"):
        run.serve({"m": make_model()}, port=70000)


def test_serve_prints_its_address_and_answers(make_model, capsys, monkeypatch):
    import uvicorn

    seen = []
    original = uvicorn.Server.run

    def run_until_ready(server, sockets=None):
        def ask():
            while not server.started:
                time.sleep(0.01)
            seen.append(httpx2.get(f"{seen[0]}/v1/models").json()["data"][0]["id"])
            server.should_exit = True

        thread = threading.Thread(target=ask)
        thread.start()
        original(server, sockets=sockets)
        thread.join()

    monkeypatch.setattr(uvicorn.Server, "run", run_until_ready)
    monkeypatch.setattr(uvicorn.Server, "install_signal_handlers", lambda self: None, raising=False)
    run.serve({"m": make_model()}, port=0, on_ready=seen.append)
    assert seen[1] == "m"
    assert f"{seen[0]}/v1" in capsys.readouterr().err
