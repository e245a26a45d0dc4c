"""`mlm demo`: the whole road on text that every machine with Python has, its standard library."""

import sysconfig
from pathlib import Path

from mlm_pytorch.cli.fill import fill_command
from mlm_pytorch.cli.options import FillConfig
from mlm_pytorch.cli.train import train
from mlm_pytorch.training.config import TrainConfig

# Large, and not what people write: tests, generated tables, bundled packages.
LEFT_OUT = frozenset(
    {"test", "tests", "site-packages", "dist-packages", "idlelib", "lib2to3", "ensurepip", "encodings", "pydoc_data"}
)
EXAMPLES = ("def __init__([MASK], name):", "for i in [MASK](10):", 'raise [MASK]("bad value")')


def standard_library() -> tuple[str, ...]:
    """The modules and packages of the standard library, as a corpus.

    Raises:
        ValueError: a Python that brings no source code.
    """
    folder = Path(sysconfig.get_paths()["stdlib"])
    packages = sorted(path.parent for path in folder.glob("*/__init__.py") if path.parent.name not in LEFT_OUT)
    if not any(folder.glob("*.py")):
        raise ValueError(f"{folder} holds no Python source; run mlm train on a corpus of your own")
    return (str(folder / "*.py"), *map(str, packages))


def demo(out: Path, budget: str) -> None:
    """Train a tokenizer and a small encoder on the standard library, then fill in what is masked."""
    config = TrainConfig(
        corpus=standard_library(),
        out=out,
        budget=budget,
        model="tiny",
        vocab_size=4096,
        seq_len=128,
        split_text="paragraph",
        pack_tokens=2048,
    )
    if not train(config):
        return
    print()
    fill_command(FillConfig(out, EXAMPLES, top_k=3))
    print(
        "\nNext:\n"
        f'  mlm fill {out} "import [MASK]"\n'
        "  mlm train corpus.jsonl.gz --out runs/mine --budget 20m\n"
        f"  AutoModelForMaskedLM.from_pretrained('{out}/model')      in Python, with transformers"
    )
