"""The embedded default, shortened: the whole road on the standard library of this Python."""

import json

import pytest

from mlm_pytorch import demo
from mlm_pytorch.cli import main


def test_the_demo_ends_with_filled_masks(tmp_path, monkeypatch, capsys):
    library = demo.standard_library()
    assert any(name.endswith("asyncio") for name in library) and not any("site-packages" in name for name in library)
    monkeypatch.setattr(
        demo, "standard_library", lambda: [n for n in library if n.endswith(("json", "logging", "email"))]
    )
    main(["demo", "--out", str(tmp_path / "demo"), "--budget", "3steps"])
    shown = capsys.readouterr()
    assert "for i in [MASK](10):" in shown.out and "mlm train corpus.jsonl.gz" in shown.out
    main(["fill", str(tmp_path / "demo"), "def __init__([MASK], name):", "--json"])
    assert len(json.loads(capsys.readouterr().out)["masks"][0]["candidates"]) == 5


def test_a_python_without_source_is_told(tmp_path, monkeypatch):
    monkeypatch.setattr(demo.sysconfig, "get_paths", lambda: {"stdlib": str(tmp_path)})
    with pytest.raises(ValueError, match="holds no Python source; run mlm train on a corpus of your own"):
        demo.standard_library()
