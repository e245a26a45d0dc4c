"""What is asked over HTTP: answers, refusals, and headers on all of them. No socket is opened."""

import json

import anyio
import httpx
import pytest

from mlm_pytorch.play import app as play_app
from mlm_pytorch.play.app import create_app
from mlm_pytorch.play.guard import HEADERS, Hosts
from mlm_pytorch.play.requests import MOST_BYTES

BASE = "http://127.0.0.1:8000"
TEXT = "the cat sat on the mat"
QUESTION = {"text": TEXT, "models": ["whole", "parts"]}
MASKS = {**QUESTION, "masks": [{"word": 1}], "top_k": 3}


@pytest.fixture
def app(models):
    return create_app(models, Hosts.of("127.0.0.1"))


def talk(app, work, base=BASE):
    """The result of `work`, which is given a client of the application."""

    async def run():
        async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url=base) as client:
            return await work(client)

    return anyio.run(run)


def ask(app, method, path, **request):
    return talk(app, lambda client: client.request(method, path, **request))


def post(app, path, question, **request):
    return ask(app, "POST", path, json=question, **request)


def test_the_page_and_its_parts(app):
    for path, kind, mark in (
        ("/", "text/html", "<!doctype html>"),
        ("/play.css", "text/css", ":root"),
        ("/play.js", "text/javascript", "// The page of `mlm play`"),
        ("/ask.js", "text/javascript", "// Questions to the server"),
        ("/parts.js", "text/javascript", "// Small parts"),
        ("/icon.svg", "image/svg+xml", "<svg"),
    ):
        answer = ask(app, "GET", path)
        assert answer.status_code == 200 and answer.headers["content-type"].startswith(kind)
        assert answer.text.startswith(mark) or mark in answer.text[:600]
        assert "http://" not in answer.text.replace("http://www.w3.org/2000/svg", "") and "https://" not in answer.text
    script = "".join(ask(app, "GET", f"/{name}.js").text for name in ("play", "ask", "parts"))
    assert not [
        word for word in ("innerHTML", "outerHTML", "insertAdjacentHTML", "document.write", "eval(") if word in script
    ]
    assert ask(app, "GET", "/api/models").json() == [
        {"name": "whole", "max_tokens": 64},
        {"name": "parts", "max_tokens": 64},
    ]


def test_words_as_both_models_cut_them(app):
    found = post(app, "/api/words", QUESTION).json()
    assert [TEXT[start:end] for start, end in found["words"]] == TEXT.split()
    whole, parts = found["models"]
    assert whole["pieces"] == [[word] for word in TEXT.split()] and whole["tokens"] == 8
    assert parts["tokens"] > 8 and set(parts["kinds"]) == {"word"}


def test_candidates_of_two_models(app):
    whole, parts = post(app, "/api/candidates", MASKS).json()["models"]
    [[slot]] = [word["slots"] for word in whole]
    assert slot["candidates"][0]["token"] == "cat" and slot["candidates"][0]["probability"] > 0.8
    assert slot["written"]["rank"] == 1 and len(slot["candidates"]) == 3
    assert parts[0]["word"] == 1


def test_surprise_comes_in_lines_that_end(app):
    answer = post(app, "/api/surprise", QUESTION)
    lines = [json.loads(line) for line in answer.text.splitlines()]
    assert answer.headers["content-type"] == "application/x-ndjson" and lines[-1] == {"done": True}
    for model in (0, 1):
        words = [word for line in lines[:-1] if line["model"] == model for word in line["words"]]
        assert [word["word"] for word in words] == list(range(6))
        assert all(word["nats"] < 1.5 for word in words)  # learned by heart
    strange = post(app, "/api/surprise", {**QUESTION, "text": "the cat sat on the deep"}).text.splitlines()
    (at_the_end,) = (word["nats"] for word in json.loads(strange[0])["words"] if word["word"] == 5)
    assert at_the_end > 3  # where "mat" was below 1.5


def test_surprise_ends_early_when_the_server_does(models):
    stopping = create_app(models, Hosts.of("127.0.0.1"), lambda: True)
    assert post(stopping, "/api/surprise", QUESTION).text == '{"done": false}\n'


def test_nothing_to_say_of_a_blank_text(app):
    assert post(app, "/api/words", {**QUESTION, "text": " \n"}).json()["words"] == []
    assert post(app, "/api/surprise", {**QUESTION, "text": ""}).text == '{"done": true}\n'


@pytest.mark.parametrize(
    ("path", "question", "status", "message"),
    [
        ("/api/words", {**QUESTION, "models": ["other"]}, 404, "no model 'other' is served"),
        ("/api/words", {**QUESTION, "text": 1}, 422, "text is a number"),
        ("/api/words", {**QUESTION, "text": "the " * 100}, 422, "takes 64; shorten it"),
        ("/api/words", {**QUESTION, "text": "a" * MOST_BYTES}, 413, "more than 262,144 bytes"),
        ("/api/surprise", {**QUESTION, "text": "the " * 100}, 422, "shorten it"),
        ("/api/candidates", {**MASKS, "masks": [{"word": 6}]}, 422, "there is no word 6; the text has 6"),
        ("/api/candidates", {**MASKS, "text": "[MASK] " * 40}, 422, "40 words are hidden; at most 32"),
        ("/api/candidates", QUESTION, 422, "'masks' is missing"),
        ("/api/nothing", QUESTION, 404, "Not Found"),
        ("/", QUESTION, 405, "Method Not Allowed"),
    ],
)
def test_refusals_are_one_line_of_json(app, path, question, status, message):
    answer = post(app, path, question)
    assert answer.status_code == status and message in answer.json()["error"], answer.text
    assert "\n" not in answer.json()["error"] and len(answer.content) < 400


def test_half_a_character_is_no_text(app):
    content = json.dumps({**QUESTION, "text": "a \ud800"}).encode()
    answer = ask(app, "POST", "/api/words", content=content, headers={"content-type": "application/json"})
    assert answer.status_code == 422 and "not Unicode" in answer.json()["error"]


@pytest.mark.parametrize("sent", [b"", b"{", b"[" * 100_000, b"\xff", b'"text"'])
def test_a_body_that_is_no_json(app, sent):
    answer = ask(app, "POST", "/api/words", content=sent, headers={"content-type": "application/json"})
    assert answer.status_code == 400 and "no JSON" in answer.json()["error"]


def test_a_body_that_never_ends_is_not_read(app):
    sent = 0

    async def endless():
        nonlocal sent
        while True:
            sent += 4096
            yield b" " * 4096

    answer = ask(app, "POST", "/api/words", content=endless(), headers={"content-type": "application/json"})
    assert answer.status_code == 413 and sent <= MOST_BYTES + 2 * 4096


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ({}, 200),
        ({"host": "localhost:8000", "origin": "http://localhost:8000"}, 200),
        ({"host": "localhost:9000", "origin": "http://localhost:9000"}, 200),  # through a tunnel
        ({"host": "[::1]:8000", "sec-fetch-site": "same-origin"}, 200),
        ({"content-type": "Application/JSON; charset=utf-8"}, 200),
        ({"host": "evil.example:8000"}, 421),
        ({"host": "127.0.0.1.evil.example"}, 421),
        ({"host": "127.0.0.1@evil.example"}, 421),
        ({"host": ""}, 421),
        ({"origin": "http://evil.example"}, 403),
        ({"origin": "http://127.0.0.1:9000"}, 403),
        ({"origin": "null"}, 403),
        ({"sec-fetch-site": "cross-site"}, 403),
        ({"sec-fetch-site": "same-site"}, 403),
        ({"content-type": "text/plain"}, 415),
        ({"content-type": "application/x-www-form-urlencoded"}, 415),
        ({"content-type": ""}, 415),
    ],
)
def test_only_the_page_itself_may_ask(app, headers, status):
    content = json.dumps(QUESTION).encode()
    answer = ask(app, "POST", "/api/words", content=content, headers={"content-type": "application/json", **headers})
    assert answer.status_code == status
    assert (status == 200) != ("error" in answer.json())


def test_every_answer_has_the_headers_and_none_is_for_other_origins(app):
    answers = [
        ask(app, "GET", "/"),
        ask(app, "GET", "/nothing"),
        ask(app, "GET", "/", headers={"host": "evil.example"}),
        ask(app, "OPTIONS", "/api/words", headers={"origin": BASE}),
        ask(app, "POST", "/api/words", content=b"{"),
        post(app, "/api/surprise", QUESTION),
    ]
    for answer in answers:
        assert {name: answer.headers[name] for name in HEADERS} == HEADERS
        assert not [name for name in answer.headers if name.startswith("access-control")]
    assert "'unsafe" not in HEADERS["content-security-policy"] and "default-src 'none'" in str(HEADERS)


def test_two_host_headers_and_sockets_are_refused(app):
    answer = ask(app, "GET", "/", headers=[("host", "localhost"), ("host", "evil.example")])
    assert answer.status_code == 421
    sent = []

    async def send(message):
        sent.append(message)

    anyio.run(app, {"type": "websocket"}, None, send)
    anyio.run(app, {"type": "lifespan"}, None, send)
    assert sent == [{"type": "websocket.close", "code": 1008}]


def test_while_models_compute_the_page_answers_and_the_queue_is_short(app, monkeypatch):
    """All that ask at once are answered in turn, one at a time; more than can wait are told so."""
    computing, most, limit = 0, 0, 3
    read = play_app.read

    def watched(*arguments):
        nonlocal computing, most
        computing += 1
        most = max(most, computing)
        found = read(*arguments)
        computing -= 1
        return found

    monkeypatch.setattr(play_app, "read", watched)
    monkeypatch.setattr(play_app, "MOST_WAITING", limit)

    async def crowd(client):
        statuses = []

        async def one():
            statuses.append((await client.post("/api/words", json=QUESTION)).status_code)

        async with anyio.create_task_group() as group:
            for _ in range(8):
                group.start_soon(one)
            statuses.append((await client.get("/api/models")).status_code)
        return statuses, (await client.post("/api/words", json=QUESTION)).status_code

    statuses, afterwards = talk(app, crowd)
    assert most == 1 and statuses.count(200) == limit + 1 and statuses.count(429) == 8 - limit
    assert statuses[0] == 200 and afterwards == 200


def test_who_goes_away_is_computed_for_no_longer(app, models, monkeypatch):
    batches = []

    def counted(reading, batch):
        batches.append(batch)
        return []

    monkeypatch.setattr(play_app, "token_surprises", counted)
    monkeypatch.setattr(play_app, "surprise_batches", lambda reading: iter([[(0, 0)]] * 10_000))
    body = json.dumps(QUESTION).encode()
    received = iter([{"type": "http.request", "body": body}])
    scope = {"type": "http", "method": "POST", "path": "/api/surprise", "query_string": b"", "asgi": {"version": "3.0"}}
    scope["headers"] = [(b"host", b"localhost"), (b"content-type", b"application/json")]

    async def run():
        seen = anyio.Event()

        async def receive():
            for message in received:
                return message
            await seen.wait()
            return {"type": "http.disconnect"}

        async def send(message):
            if message.get("body"):
                seen.set()

        await app(scope, receive, send)

    anyio.run(run)
    assert 0 < len(batches) < 1000
