"""`mlm play`: a page on this machine to try models on."""

import sys
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path

import torch

from mlm_pytorch.cli.models import open_model
from mlm_pytorch.cli.options import PlayConfig
from mlm_pytorch.cli.terminal import printable

NEEDS = ("starlette", "uvicorn")
LOOPBACK = ("127.0.0.1", "localhost", "::1")


def play_command(config: PlayConfig) -> None:
    """`mlm play`."""
    missing = [name for name in NEEDS if find_spec(name) is None]
    if missing:
        raise ValueError(f"mlm play needs {' and '.join(missing)}; run pip install '.[play]' in the checkout")
    if not config.models:
        raise ValueError("no model is named; give run folders or Hugging Face folders")
    names = short_names(config.models)
    from mlm_pytorch.play.server import listen, serve

    listener = listen(config.host, config.port)  # before the models are opened, which takes seconds
    try:
        if config.host.lower() not in LOOPBACK:
            _say(f"warning: whoever reaches {config.host} can use this page; there is no password")
        models = dict(zip(names, (open_model(folder, config.factory) for folder in config.models), strict=True))
        device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        for opened in models.values():
            opened.model.to(device)
        serve(models, config.host, listener, lambda address: _say(f"play at {address} (Ctrl-C ends)"))
        _say("ended")
    finally:
        listener.close()


def short_names(folders: Sequence[Path]) -> list[str]:
    """The last parts of each path, as many as tell all of them apart.

    Raises:
        ValueError: a folder that is named twice.

    >>> short_names([Path("runs/a/model"), Path("runs/b/model")])
    ['a/model', 'b/model']
    """
    whole = [folder.resolve() for folder in folders]
    twice = next((folder for i, folder in enumerate(folders) if whole[i] in whole[:i]), None)
    if twice is not None:
        raise ValueError(f"{twice} is named twice; name each model once")
    parts = 1
    while len(names := [str(Path(*path.parts[-parts:])) for path in whole]) > len(set(names)):
        parts += 1
    return [printable(name) for name in names]


def _say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)
