"""The page and what it asks: a Starlette application over models that were opened beforehand.

    GET  /                 the page, its style, its script
    GET  /api/models       the models by name
    POST /api/words        a text's words, and how each model cuts them
    POST /api/candidates   what the models would put in place of hidden words
    POST /api/surprise     how surprising each word is: lines of JSON, as they are computed

Models compute in one thread, one request's batch at a time, so that the page stays responsive and memory bounded.
"""

import json
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from functools import partial
from importlib.resources import files
from typing import Any, TypeVar

import anyio
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, Response, StreamingResponse
from starlette.routing import Route

from mlm_pytorch.cli.models import OpenedModel
from mlm_pytorch.data.tokenizer import Tokenizer
from mlm_pytorch.evaluation.fill import Candidate, names_apart
from mlm_pytorch.play.guard import App, Guard, Hosts, refusal
from mlm_pytorch.play.reading import (
    Reading,
    Slot,
    SurpriseSum,
    candidates,
    read,
    surprise_batches,
    token_surprises,
)
from mlm_pytorch.play.requests import (
    MOST_BYTES,
    MOST_MASKS,
    MaskRequest,
    RequestError,
    TextRequest,
    mask_request,
    text_request,
)
from mlm_pytorch.play.words import Span

MOST_WAITING = 32  # requests at a time that ask for work
MOST_SLOTS = 256  # mask tokens at a time; each has a row over the whole vocabulary
STATIC = {
    "/": ("index.html", "text/html"),
    "/play.css": ("play.css", "text/css"),
    "/play.js": ("play.js", "text/javascript"),
    "/ask.js": ("ask.js", "text/javascript"),
    "/parts.js": ("parts.js", "text/javascript"),
    "/icon.svg": ("icon.svg", "image/svg+xml"),
}
Result = TypeVar("Result")


def create_app(models: Mapping[str, OpenedModel], hosts: Hosts, stopping: Callable[[], bool] = lambda: False) -> App:
    """The application.

    Args:
        models: what is served, by the name that the page shows. No other model can be reached.
        hosts: the names under which the server may be addressed.
        stopping: whether the server is about to stop; long answers then end.
    """
    desk = _Desk(models, stopping)
    routes = [Route(path, _static(name, kind)) for path, (name, kind) in STATIC.items()]
    routes += [
        Route("/api/models", desk.list_models),
        Route("/api/words", desk.words, methods=["POST"]),
        Route("/api/candidates", desk.candidates, methods=["POST"]),
        Route("/api/surprise", desk.surprise, methods=["POST"]),
    ]
    return Guard(Starlette(routes=routes, exception_handlers={HTTPException: _http, RequestError: _refused}), hosts)


def _static(name: str, kind: str) -> Callable[[Request], Awaitable[Response]]:
    content = files("mlm_pytorch.play").joinpath("static", name).read_bytes()

    async def answer(_request: Request) -> Response:
        return Response(content, media_type=kind)

    return answer


async def _http(_request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    return JSONResponse({"error": error.detail}, error.status_code, headers=error.headers)


async def _refused(_request: Request, error: Exception) -> Response:
    assert isinstance(error, RequestError)
    return refusal(error.status, str(error))


async def _body(request: Request) -> bytes:
    """A request's body, of which no more than `MOST_BYTES` is ever read, whatever its length is said to be."""
    parts, size = [], 0
    try:
        async for chunk in request.stream():
            size += len(chunk)
            if size > MOST_BYTES:
                raise RequestError(413, f"the request has more than {MOST_BYTES:,} bytes; shorten the text")
            parts.append(chunk)
    except ClientDisconnect:
        raise RequestError(400, "the request broke off") from None
    return b"".join(parts)


class _Desk:
    """Answers requests, with the models at hand and one thread to compute in."""

    def __init__(self, models: Mapping[str, OpenedModel], stopping: Callable[[], bool]):
        self._models, self._stopping = models, stopping
        self._one_at_a_time = anyio.CapacityLimiter(1)
        self._waiting = 0

    async def list_models(self, _request: Request) -> Response:
        return JSONResponse([{"name": name, "max_tokens": opened.max_seq_len} for name, opened in self._models.items()])

    async def words(self, request: Request) -> Response:
        asked = text_request(await _body(request), self._models)
        words, readings = await self._compute(partial(self._read, asked))
        return JSONResponse(
            {
                "words": words,
                "models": [
                    {
                        "tokens": reading.num_tokens,
                        "max_tokens": reading.opened.max_seq_len,
                        "kinds": reading.kinds,
                        "pieces": [reading.pieces(word) for word in range(len(words))],
                    }
                    for reading in readings
                ],
            }
        )

    async def candidates(self, request: Request) -> Response:
        asked = mask_request(await _body(request), self._models)
        found = await self._compute(partial(self._candidates, asked))
        return JSONResponse(
            {
                "models": [
                    [
                        {"word": word, "slots": [_slot(slot, self._models[name].tokenizer) for slot in slots]}
                        for word, slots in words.items()
                    ]
                    for name, words in zip(asked.models, found, strict=True)
                ]
            }
        )

    async def surprise(self, request: Request) -> Response:
        asked = text_request(await _body(request), self._models)
        _, readings = await self._compute(partial(self._read, asked))
        return StreamingResponse(self._lines(readings), media_type="application/x-ndjson")

    async def _lines(self, readings: list[Reading]) -> AsyncIterator[str]:
        """A line per batch of rows, the models by turns; then one that says that it was the last."""
        turns = [(i, reading, SurpriseSum(reading), surprise_batches(reading)) for i, reading in enumerate(readings)]
        while turns and not self._stopping():
            model, reading, total, batches = turns.pop(0)
            batch = next(batches, None)
            if batch is None:
                continue
            try:
                tokens = await self._compute(partial(token_surprises, reading, batch))
            except RequestError as error:
                yield json.dumps({"error": str(error)}) + "\n"
                return
            turns.append((model, reading, total, batches))
            words = [
                {
                    "word": each.word,
                    "nats": round(each.nats, 4),
                    "expected": _listed(each.expected, reading.opened.tokenizer),
                }
                for each in total.add(tokens)
            ]
            yield json.dumps({"model": model, "words": words}) + "\n"
        yield json.dumps({"done": not turns}) + "\n"

    async def _compute(self, work: Callable[[], Result]) -> Result:
        """The result of work in the thread for it, when its turn comes."""
        if self._waiting >= MOST_WAITING:
            raise RequestError(429, f"{MOST_WAITING} requests wait for an answer already; try again")
        self._waiting += 1
        try:
            return await anyio.to_thread.run_sync(work, limiter=self._one_at_a_time)
        except RequestError:
            raise
        except ValueError as error:  # the rooms' way to say what is wrong with a text or a model
            raise RequestError(422, " ".join(str(error).split())) from None
        finally:
            self._waiting -= 1

    def _read(self, asked: TextRequest | MaskRequest) -> tuple[list[Span], list[Reading]]:
        return read(asked.text, [self._models[name] for name in asked.models])

    def _candidates(self, asked: MaskRequest) -> list[dict[int, tuple[Slot, ...]]]:
        words, readings = self._read(asked)
        strange = [word for word in asked.masks if word >= len(words)]
        if strange:
            raise RequestError(422, f"there is no word {strange[0]}; the text has {len(words)}, counted from 0")
        for reading in readings:
            hidden = {word for word, kind in enumerate(reading.kinds) if kind == "mask"} | set(asked.masks)
            slots = sum(asked.masks.get(word) or len(reading.tokens[word]) for word in hidden)
            if len(hidden) > MOST_MASKS or slots > MOST_SLOTS:
                raise RequestError(
                    422, f"{len(hidden)} words are hidden; at most {MOST_MASKS} of {MOST_SLOTS} tokens can be at a time"
                )
        return [candidates(reading, asked.masks, asked.top_k) for reading in readings]


def _listed(found: Sequence[Candidate], tokenizer: Tokenizer) -> list[dict[str, Any]]:
    """Candidates as text, and by names that tell those of one list apart."""
    names = names_apart(tokenizer, [each.id for each in found])
    return [
        {"token": each.token, "name": name, "probability": each.probability}
        for each, name in zip(found, names, strict=True)
    ]


def _slot(slot: Slot, tokenizer: Tokenizer) -> dict[str, Any]:
    if slot.written is None:
        return {"candidates": _listed(slot.candidates, tokenizer), "written": None}
    *candidates, written = _listed((*slot.candidates, slot.written), tokenizer)
    return {"candidates": candidates, "written": written | {"rank": slot.rank}}
