"""A small clean corpus of made-up English, and a tokenizer for it."""

import json
import random
from collections.abc import Callable
from pathlib import Path

import pytest

from mlm_pytorch.data.tokenizer import train_tokenizer

SUBJECTS = "the old teacher|a young doctor|my neighbour|the captain of the ship|her brother|the committee|a stray dog"
SUBJECTS += "|the baker|our guide|the last passenger|an engineer|the river|this village|the winter|a letter from home"
VERBS = "found|remembered|carried|looked for|wrote about|asked for|left behind|talked about|waited for|forgot|described"
VERBS += "|could not explain|had always loved|would never sell|was afraid of|sat beside|walked towards|dreamed of"
OBJECTS = "the broken clock|a small garden|the road to the north|an answer|the question|the empty house|some bread"
OBJECTS += "|a map of the islands|the green door|her first winter in the city|the sound of rain|a long story|the bridge"
ENDINGS = "before the sun had risen|and nobody knew why|in the middle of the night|when they came back from the market"
ENDINGS += "|because there was nothing else to do|while the others were asleep|after all these years|with great care"
ENDINGS += (
    "|as if it had been there from the start|although it was late|until the lamp went out|on the way to the station"
)
LINKS = (
    "Then|Later|Even so|In the end|Still|That evening|For a while|At first|Of course|Years ago|Once more|Now and then"
)


def sentence(draw: random.Random) -> str:
    subject, verb, thing, ending = (draw.choice(words.split("|")) for words in (SUBJECTS, VERBS, OBJECTS, ENDINGS))
    text = f"{subject} {verb} {thing} {ending}."
    return f"{draw.choice(LINKS.split('|'))} {text}" if draw.random() < 0.4 else text[0].upper() + text[1:]


def clean_texts(count: int = 800) -> list[str]:
    draw = random.Random(7)
    return [" ".join(sentence(draw) for _ in range(draw.randint(2, 7))) for _ in range(count)]


@pytest.fixture(scope="session")
def texts() -> tuple[str, ...]:
    return tuple(clean_texts())


@pytest.fixture(scope="session")
def tokenizer_folder(tmp_path_factory, texts) -> Path:
    folder = tmp_path_factory.mktemp("tokenizer")
    train_tokenizer(texts, 512, "bpe").save(folder)
    return folder


@pytest.fixture
def write(tmp_path) -> Callable[..., str]:
    """Write texts as JSON lines; returns the path."""

    def write(texts, name: str = "corpus.jsonl") -> str:
        path = tmp_path / name
        lines = [json.dumps({"text": text} if isinstance(text, str) else {"input_ids": text}) for text in texts]
        path.write_text("\n".join(lines) + "\n", encoding="utf-8")
        return str(path)

    return write


@pytest.fixture
def plant(texts, write) -> Callable[..., str]:
    """The clean corpus with every hundredth document, from the 50th on, changed by a function of (text, number)."""

    def plant(change: Callable[[str, int], str]) -> str:
        return write([change(text, i) if i % 100 == 50 else text for i, text in enumerate(texts)])

    return plant
