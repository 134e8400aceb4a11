"""The desk over a real HTTP server, in a thread as in a run: who may ask and answer, and what comes of it."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Iterator

import httpx
import pytest
from ray import cloudpickle

from selfplay_ray.errors import ClusterError, EpisodeError
from selfplay_ray.human.desk import Desk
from selfplay_ray.human.page import PAGE, POLICY, SCRIPT
from selfplay_ray.human.person import HttpPerson
from selfplay_ray.human.server import DeskServer
from selfplay_ray.human.service import human_at_hand

TOKEN = "a-token"
HEADERS = {"Authorization": f"Bearer {TOKEN}"}


@pytest.fixture
def desk() -> Desk:
    return Desk(30)


@pytest.fixture
def url(desk: Desk) -> Iterator[str]:
    with DeskServer(desk, TOKEN, "127.0.0.1", 0) as server:
        with httpx.Client(base_url=server.url) as client:
            for _ in range(100):
                try:
                    client.get("/")
                except httpx.ConnectError:
                    continue
                break
        yield server.url


@pytest.fixture
def browser(url: str) -> Iterator[httpx.Client]:
    with httpx.Client(base_url=url, headers=HEADERS) as client:
        yield client


async def test_a_question_travels_to_the_person_and_the_answer_back(url: str, desk: Desk):
    person = cloudpickle.loads(cloudpickle.dumps(HttpPerson(url, TOKEN)))  # as to a worker
    asking = asyncio.create_task(person.ask("k1", "How good?"))
    async with httpx.AsyncClient(base_url=url, headers=HEADERS) as browser:
        while not (waiting := (await browser.get("/waiting")).json()):
            await asyncio.sleep(0.02)
        assert waiting[0]["text"] == "How good?"
        sent = await browser.post("/answers", json={"number": waiting[0]["number"], "answer": "8"})
    assert sent.status_code == 204
    assert await asking == "8"
    assert await person.ask("k1", "How good?") == "8"  # asked again, not put again
    assert desk.waiting() == []


async def test_nobody_in_time_is_none():
    with DeskServer(Desk(0.2), TOKEN, "127.0.0.1", 0) as server:
        assert await HttpPerson(server.url, TOKEN).ask("k", "?") is None


@pytest.mark.parametrize(
    ("method", "path"),
    [("POST", "/questions"), ("GET", "/questions/k"), ("GET", "/waiting"), ("POST", "/answers")],
)
@pytest.mark.parametrize("header", [{}, {"Authorization": "Bearer wrong"}, {"Authorization": TOKEN}])
def test_without_the_token_nothing_is_told_or_taken(
    url: str, desk: Desk, method: str, path: str, header: dict[str, str]
):
    desk.post("k", "secret")
    answer = httpx.request(
        method, url + path, headers=header, json={"number": 1, "answer": "10", "key": "x", "text": "?"}
    )
    assert answer.status_code == 401
    assert "secret" not in answer.text
    assert [question.text for question in desk.waiting()] == ["secret"]


def test_the_page_knows_nothing_and_lets_nothing_in(url: str, desk: Desk):
    desk.post("k", "<script>alert(1)</script>")
    answer = httpx.get(url)
    assert (answer.status_code, answer.text) == (200, PAGE)
    assert answer.headers["content-security-policy"] == POLICY
    assert "default-src 'none'" in POLICY
    assert "innerHTML" not in SCRIPT


def test_what_is_too_late_or_too_long_is_refused(browser: httpx.Client, desk: Desk):
    assert browser.post("/answers", json={"number": 1, "answer": "7"}).status_code == 409
    desk.post("k", "?")
    assert browser.post("/answers", json={"number": 1, "answer": "7" * 3000}).status_code == 422
    assert browser.post("/questions", json={"key": "../k", "text": "?"}).status_code == 422
    assert browser.get("/questions/nobody").status_code == 404
    assert len(desk.waiting()) == 1


async def test_a_desk_that_is_gone_or_refuses_is_an_error_of_one_sentence(url: str):
    with pytest.raises(EpisodeError, match="the desk of the person"):
        await HttpPerson(url, "wrong").ask("k", "?")
    with socket.create_server(("127.0.0.1", 0)) as taken:
        nobody = f"http://127.0.0.1:{taken.getsockname()[1]}"
    with pytest.raises(EpisodeError, match="the desk of the person"):
        await HttpPerson(nobody, TOKEN).ask("k", "?")


def test_a_token_is_not_shown():
    assert TOKEN not in repr(HttpPerson("http://127.0.0.1:1", TOKEN))


def test_a_port_that_is_taken_is_named():
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with (
            pytest.raises(ClusterError, match=f"port {port} on 127.0.0.1 can't be had"),
            human_at_hand("http", 30, port=port),
        ):
            pass


def test_the_address_is_told_with_the_token_in_its_fragment(capsys: pytest.CaptureFixture[str]):
    with human_at_hand("http", 30) as person:
        assert isinstance(person, HttpPerson)
        assert capsys.readouterr().err == f"you are asked at {person.url}/#{person.token}\n"
        assert len(person.token) >= 24


def test_that_nobody_is_asked_is_told(capsys: pytest.CaptureFixture[str]):
    with human_at_hand("none", 30) as person:
        assert person is None
    assert "nobody is asked" in capsys.readouterr().err
