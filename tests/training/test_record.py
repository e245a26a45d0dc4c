import json
from importlib import metadata

import torch

from mlm_pytorch.training.record import RECORD, begin_sitting, end_sitting, read_sittings

CPU = torch.device("cpu")


def test_an_entry_per_sitting(tmp_path):
    said = []
    begin_sitting(tmp_path, CPU, {"parameters": 7, "from_step": 0}, said.append)  # killed
    begin_sitting(tmp_path, CPU, {"parameters": 7, "from_step": 5}, said.append)
    end_sitting(tmp_path, {"to_step": 9})
    killed, ended = read_sittings(tmp_path, said.append)
    assert killed["versions"]["torch"] == metadata.version("torch") and killed["machine"]["device"] == "cpu"
    assert "ended" not in killed and ended["from_step"] == 5 and ended["to_step"] == 9 and ended["ended"]
    assert killed["command"] and said == []
    assert json.loads((tmp_path / RECORD).read_text())["sittings"] == [killed, ended]


def test_a_damaged_record_is_begun_anew_and_said(tmp_path):
    (tmp_path / RECORD).write_text("{")
    said = []
    begin_sitting(tmp_path, CPU, {}, said.append)
    assert len(read_sittings(tmp_path, said.append)) == 1 and "it is begun anew" in said[0] and len(said) == 1
