"""The model card: what the Hub reads, what a person reads, and code that runs."""

import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from huggingface_hub import ModelCard

from mlm_pytorch.report import model_card
from mlm_pytorch.report.card import CardFacts, card_facts, card_text, newest


@pytest.fixture(scope="module")
def card(run) -> str:
    return model_card(run)


def test_the_front_matter_is_the_hubs_and_leaves_the_licence_open(card):
    front = card.split("---\n")[1]
    fields = yaml.safe_load(front)
    assert fields["library_name"] == "transformers" and fields["pipeline_tag"] == "fill-mask"
    assert {"modernbert", "mlm-pytorch"} <= set(fields["tags"]) and fields["mask_token"] == "[MASK]"
    assert "license" not in fields and "# license:" in front and "## Licence" in card
    assert ModelCard(card).data.pipeline_tag == "fill-mask"


def test_it_tells_data_recipe_results_and_limits(card, run):
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    score = next(line for line in reversed(lines) if "valid_loss" in line)
    for title in ("How to use", "Data", "Recipe", "Results", "Limits", "Licence"):
        assert f"\n## {title}\n" in card
    assert f"{score['valid_loss']:.4f}" in card and "| optimizer steps | 6 |" in card
    assert "| training | 400 |" in card and "| held out | 60 |" in card
    assert "random, preset `tiny`" in card and "at most 160 tokens" in card


def test_names_are_told_without_their_folders_and_are_no_markdown(card, corpus, run):
    assert "`corpus <b>&amp;'¦.jsonl`" in card and "Held out: `valid.jsonl`" in card
    assert str(corpus.parent) not in card and str(run.parent) not in card
    assert "\n# a\\_b \\<i\\>\n" in card_text(CardFacts("a_b <i>"))


def test_the_code_runs(run, tmp_path):
    (code,) = re.findall(r"```python\n(.*?)```", model_card(run), re.DOTALL)
    script = tmp_path / "use.py"
    script.write_text(code.replace("path/to/this/folder", str(run / "model")))
    done = subprocess.run([sys.executable, script], capture_output=True, text=True, check=True)
    assert done.stdout.count("(") == 5


def test_it_is_written_before_the_run_points_to_a_model(run, tmp_path):
    copy = tmp_path / "run"
    shutil.copytree(run, copy, symlinks=True)
    (copy / "model").unlink()
    export = next(copy.glob("checkpoints/*/model"))
    assert card_facts(copy, export).num_parameters == card_facts(run).num_parameters
    assert card_facts(copy).num_parameters is None and "## How to use" in model_card(copy)


def bare(tmp_path: Path, **config) -> CardFacts:
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(config))
    return card_facts(tmp_path)


def test_corpora_of_all_kinds(tmp_path):
    facts = bare(tmp_path, corpus=["hf://datasets/owner/name/train", "/secret/place/a.txt", "-"])
    assert facts.corpus == ("train", "a.txt", "standard input") and facts.datasets == ("owner/name",)
    assert yaml.safe_load(card_text(facts).split("---\n")[1])["datasets"] == ["owner/name"]
    facts = bare(tmp_path, mix=["/x/one.jsonl=0.7", "/x/two.jsonl=3"], model="/home/me/models/bert")
    assert facts.corpus == ("one.jsonl", "two.jsonl") and "/home/me" not in card_text(facts)
    assert "`bert`" in card_text(facts)
    for config in ({"corpus": ["x.fasta.gz"]}, {"tokenizer": "kmer:3"}, {"num_tokens": 500}):
        text = card_text(bare(tmp_path, **config))
        assert "The cat sat" not in text and "pretrained on sequences" in text


@pytest.mark.parametrize(("lstrip", "blank"), [(True, " "), (False, "")])
def test_a_blank_before_the_mask_only_where_it_is_not_encoded_twice(tmp_path, lstrip, blank):
    (tmp_path / "model").mkdir()
    content = {"pre_tokenizer": {"type": "ByteLevel"}, "added_tokens": [{"content": "<mask>", "lstrip": lstrip}]}
    (tmp_path / "model" / "tokenizer.json").write_text(json.dumps(content))
    (tmp_path / "model" / "tokenizer_config.json").write_text('{"mask_token": {"content": "<mask>"}}')
    facts = bare(tmp_path, model="tiny")
    assert facts.mask_token == "<mask>"
    assert f"on the{blank}{{tokenizer.mask_token}}." in card_text(facts)


def test_only_the_end_of_long_metrics_is_read(tmp_path):
    path = tmp_path / "metrics.jsonl"
    assert newest(path) == {}
    with path.open("w") as file:
        file.writelines(json.dumps({"step": i, "loss": 1.0, "odd": 1, "lr": None}) + "\n" for i in range(20_000))
        file.write('{"step": 20000, "valid_loss": 2.5}\n{"step": 20001, "lo')
    assert newest(path) == {"step": 20000, "loss": 1.0, "valid_loss": 2.5}


def test_what_is_no_run_is_refused(tmp_path):
    with pytest.raises(ValueError, match="is not a run"):
        model_card(tmp_path)
