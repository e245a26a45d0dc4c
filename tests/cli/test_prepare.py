"""`mlm prepare`: what its options come to."""

import json

import pytest

from mlm_pytorch.cli import main
from mlm_pytorch.data.manifest import Manifest


@pytest.fixture
def corpus(tmp_path):
    path = tmp_path / "a.txt"
    path.write_text("".join(f"the cat number {number} sat on the mat\n" for number in range(30)))
    return path


def test_the_vocabulary_of_ids_holds_what_is_held_out(tmp_path, capsys):
    (tmp_path / "a.jsonl").write_text('{"input_ids": [1, 2, 3]}\n' * 5)
    (tmp_path / "valid.jsonl").write_text('{"input_ids": [1, 9]}\n')
    command = ["prepare", str(tmp_path), "--valid", str(tmp_path / "valid.jsonl"), "--add-special-tokens", "--json"]
    main([*command, "--out", str(tmp_path / "store")])
    assert json.loads(capsys.readouterr().out)["num_tokens"] == 12


def test_a_stray_id_is_named_before_a_vocabulary_is_made_for_it(tmp_path, capsys):
    (tmp_path / "a.jsonl").write_text('{"input_ids": [1, 2, 3]}\n' * 5 + '{"input_ids": [1, 2147483647]}\n')
    for command in (["prepare", "--out", str(tmp_path / "store")], ["doctor", "--trial-seconds", "0"]):
        with pytest.raises(SystemExit):
            main([*command, str(tmp_path / "a.jsonl"), "--add-special-tokens"])
        said = capsys.readouterr().err
        assert "holds id 2147483647, and the largest vocabulary has 4,194,304; renumber the ids from 0" in said
        assert "a.jsonl (document 6 of the corpus) holds" in said or command[0] == "doctor"


def test_nothing_is_held_out_on_request(corpus, tmp_path, capsys):
    command = ["prepare", str(corpus), "--tokenizer", "bytes", "--json", "--out"]
    main([*command, str(tmp_path / "store")])
    assert json.loads(capsys.readouterr().out)["valid_documents"] == 1
    main([*command, str(tmp_path / "all"), "--valid", "none"])
    printed = capsys.readouterr()
    assert json.loads(printed.out)["valid_documents"] == 0
    assert "held out" not in printed.err  # which is said where it was not asked for
    assert set(Manifest.read(tmp_path / "all").splits) == {"train"}
    with pytest.raises(SystemExit):
        main([*command, str(tmp_path / "both"), "--valid", "none", "--valid", str(corpus)])
    assert "--valid none holds nothing out, but files are named as well; leave out either" in capsys.readouterr().err
