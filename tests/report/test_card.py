"""The model card: what the Hub reads, what a person reads, and code that runs."""

import json
import random
import re
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import yaml
from huggingface_hub import ModelCard

from mlm_pytorch.data.prepare import prepare
from mlm_pytorch.report import model_card
from mlm_pytorch.report.card import card_text
from mlm_pytorch.report.card_facts import CardFacts, card_facts, newest


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
    (tmp_path / "mine").mkdir()
    corpus = [
        "data/year=2020/",
        "hub:owner/name:en:train",
        "hub:wikitext",
        f"hub:{tmp_path}/mine",
        "hf://a/model/x.txt",
    ]
    facts = bare(tmp_path, corpus=corpus)
    assert facts.corpus == ("year=2020", "owner/name:en:train", "wikitext", "mine", "x.txt")
    assert facts.datasets == ("owner/name", "wikitext")
    for config in ({"corpus": ["x.fasta.gz"]}, {"tokenizer": "kmer:3"}, {"num_tokens": 500}):
        text = card_text(bare(tmp_path, **config))
        assert "The cat sat" not in text and "pretrained on sequences" in text


def test_signatures_and_passwords_of_addresses_are_not_told(tmp_path):
    """A card is published, and a presigned address lets whoever has it read the bucket."""
    signed = "https://me:secret@host/a.jsonl?X-Signature=secret"
    facts = bare(tmp_path, corpus=[signed], valid=[signed], mix=[f"{signed}=0.5"])
    assert facts.corpus == ("a.jsonl",) and "secret" not in str(facts) and "secret" not in card_text(facts)
    assert facts.config["mix"] == ["https://host/a.jsonl=0.5"]


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
    assert newest(path) == {"step": 20000, "loss": 1.0, "valid_loss": 2.5, "valid_step": 20000}


def test_a_held_out_loss_long_ago_is_found(tmp_path):
    """Ten evaluations of a million steps lie further apart than what is read of training."""
    path = tmp_path / "metrics.jsonl"
    measured = '{"step": 10000, "valid_loss": 2.5, "valid_accuracy": 0.5}\n'
    with path.open("w") as file:
        for i in range(40_000):
            file.write(f'{{"step": {i}, "loss": 1.0}}\n' + (measured if i == 10_000 else ""))
            if i == 5000:
                file.write('{"step": 5000, "valid_loss": 3.5}\n')
    expected = {"loss": 1.0, "valid_loss": 2.5, "valid_accuracy": 0.5, "valid_step": 10_000}
    assert newest(path) == {"step": 39_999} | expected
    begin = path.read_text().index(measured)
    for shift in range(-40, 60, 7):  # wherever a block begins within the line
        assert newest(path, begin + (1 << 18) + len(measured) + shift)["valid_step"] == 10_000
    assert newest(path, 40) == {"step": 0, "loss": 1.0}


def front(card: str) -> dict:
    return yaml.safe_load(card.split("---\n")[1])


def test_a_card_is_of_the_weights_beside_it_whatever_came_later(run, tmp_path):
    """A checkpoint is written while the training goes on, and others follow it."""
    copy = tmp_path / "run"
    shutil.copytree(run, copy, symlinks=True)
    export = next(copy.glob("checkpoints/*/model"))
    before = model_card(copy, export)
    with (copy / "metrics.jsonl").open("a") as file:
        file.write('{"step": 7, "tokens": 9999, "loss": 1.0}\n{"step": 7, "valid_loss": 1.25, "valid_accuracy": 0.5}\n')
    assert model_card(copy, export) == before == model_card(copy)
    (export.parent / "state.json").unlink()  # of a copy without one, what the run says last is all there is to say
    assert "| optimizer steps | 7 |" in model_card(copy, export)


def results(**found: float) -> dict[str, str]:
    table = card_text(CardFacts("mine", results=found)).partition("## Results\n\n")[2].partition("\n\n")[0]
    return dict(re.findall(r"^\| (.*) \| (.*) \|$", table, re.M)[2:])


def test_a_held_out_result_of_an_earlier_step_says_so(tmp_path):
    path = tmp_path / "metrics.jsonl"
    path.write_text('{"step": 10, "loss": 3}\n{"step": 10, "valid_loss": 2.5}\n{"step": 18, "loss": 2}\n')
    assert newest(path)["valid_step"] == 10
    found = results(**newest(path))
    assert found["held-out masked loss at step 10, nats per predicted token"] == "2.5000"
    assert found["optimizer steps"] == "18"
    assert "held-out masked loss, nats per predicted token" in results(step=18, valid_step=18, valid_loss=2.0)


def test_of_averaged_weights_the_averaged_figures_come_first():
    last = {"valid_loss": 2.0, "valid_accuracy": 0.5, "keep_loss": 4.0}
    found = results(step=3, valid_step=3, **last, ema_valid_loss=1.5, ema_valid_accuracy=0.625)
    others = " of the last weights, not in this folder"
    assert list(found.items())[:5] == [
        ("held-out masked loss, nats per predicted token", "1.5000"),
        ("held-out accuracy, share of predicted tokens", "62.50%"),
        (f"held-out masked loss{others}, nats per predicted token", "2.0000"),
        (f"held-out accuracy{others}, share of predicted tokens", "50.00%"),
        (f"loss on general text{others}, nats per predicted token", "4.0000"),
    ]
    assert not any(others in name for name in results(step=3, **last))


def test_a_continued_model_names_its_base_and_claims_nothing_that_only_a_new_one_may(tmp_path, monkeypatch):
    monkeypatch.setattr("huggingface_hub.try_to_load_from_cache", lambda name, _: name == "owner/bert" and "/cache/x")
    base = {"lr": 2e-4, "optimizer": "adamw", "mask_prob": 0.3, "mask_prob_end": None, "mask_schedule": "linear"}
    for model, shown, hub in (("owner/bert", "owner/bert", "owner/bert"), ("/me/runs/first/model", "first", None)):
        card = card_text(replace(bare(tmp_path, model=model, **base), seq_len=64))
        assert front(card).get("base_model") == hub and ("# base_model:" in card) == (hub is None)
        assert f"continued from `{shown}` on text" in card and f"| weights at the start | `{shown}` |" in card
        assert "were never seen" not in card and "and no others" not in card and "random" not in card.split("##")[3]
        assert "| optimizer | `adamw` |" in card and "| masking rate at the end | `0.15` |" in card
        assert "/me" not in card


def test_the_recipe_tells_what_was_left_open(tmp_path):
    left_open = {"optimizer": None, "warmup": None, "decay": None, "mask_prob_end": None}
    card = card_text(bare(tmp_path, model="nano", first_embeddings="corpus", mask_schedule="linear", **left_open))
    for row in (
        "| optimizer | `muon` |",
        "| masking rate at the end | `0.15` |",
        "warms up | `0.02` |",
        "decays | `0.6` |",
    ):
        assert row in card
    assert "random, preset `nano`; embeddings from which tokens stand beside each other" in card
    card = card_text(bare(tmp_path, model="nano", mask_schedule="constant", **left_open, first_embeddings="random"))
    assert "rate at the end" not in card and "| random, preset `nano` |" in card


def test_what_a_run_on_a_store_says_is_the_stores(tmp_path):
    """Not the options', which say nothing of a store that another command prepared."""
    draw = random.Random(0)
    for name, count in (("corpus.fasta", 60), ("valid.fasta", 9)):
        reads = ("".join(draw.choices("ACGT", k=90)) for _ in range(count))
        (tmp_path / name).write_text("".join(f">r\n{read}\n" for read in reads))
    cutting = {"seq_len": 9, "long_documents": "truncate"}
    prepare([tmp_path / "corpus.fasta"], tmp_path / "reads", valid=[tmp_path / "valid.fasta"], **cutting)
    (tmp_path / "run/model").mkdir(parents=True)
    shutil.copytree(tmp_path / "reads/tokenizer", tmp_path / "run/model", dirs_exist_ok=True)
    config = {"corpus": [str(tmp_path / "reads")], "model": "nano", "valid": [], "long_documents": "split"}
    card = card_text(bare(tmp_path / "run", **config))
    assert "pretrained on sequences" in card and "The cat sat" not in card
    assert "60 longer documents were cut off there. The 480 tokens behind that are of the text" in card
    assert "those that the store holds out" in card and "taken from the same corpus" not in card


def test_what_is_no_run_is_refused(tmp_path):
    with pytest.raises(ValueError, match="is not a run"):
        model_card(tmp_path)
