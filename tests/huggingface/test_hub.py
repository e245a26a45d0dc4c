"""Models by name: what is asked of the Hub, and what goes wrong. A stub stands where the network would be."""

import fnmatch

import huggingface_hub
import pytest
from huggingface_hub import errors
from huggingface_hub.errors import GatedRepoError, LocalEntryNotFoundError, RepositoryNotFoundError
from transformers import BertConfig, BertForMaskedLM

from mlm_pytorch.huggingface import fetch_masked_lm, load_masked_lm
from mlm_pytorch.huggingface.hub import PATTERNS

SIZE = {"vocab_size": 64, "hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 48}


@pytest.fixture
def hub(tmp_path, monkeypatch):
    """A Hub that holds owner/model; names asked for are noted."""
    asked = []
    BertForMaskedLM(BertConfig(**SIZE)).save_pretrained(tmp_path / "model")

    def download(name, allow_patterns):
        asked.append((name, allow_patterns))
        return str(tmp_path / "model")

    monkeypatch.setattr(huggingface_hub, "snapshot_download", download)
    return tmp_path / "model", asked


def test_fetches_what_loads_and_nothing_that_runs(hub):
    folder, asked = hub
    assert fetch_masked_lm("owner/model") == folder
    assert isinstance(load_masked_lm(folder), BertForMaskedLM)
    assert fetch_masked_lm("bert-base-uncased") == folder
    assert [name for name, _ in asked] == ["owner/model", "bert-base-uncased"]
    wanted = ["config.json", "model.safetensors", "model-00001-of-00002.safetensors", "tokenizer.json", "vocab.txt"]
    unwanted = ["pytorch_model.bin", "modeling_mine.py", "model.pt", "x.pkl", "tf_model.h5", "model.onnx", "onnx/a.bin"]
    assert all(any(fnmatch.fnmatch(name, pattern) for pattern in asked[0][1]) for name in wanted)
    assert not any(fnmatch.fnmatch(name, pattern) for pattern in PATTERNS for name in unwanted)


def test_what_no_model_is_made_of(hub):
    folder, _ = hub
    (folder / "model.safetensors").unlink()
    with pytest.raises(ValueError, match=r"owner/model on the Hugging Face Hub has no model.safetensors"):
        fetch_masked_lm("owner/model")
    (folder / "config.json").unlink()
    with pytest.raises(ValueError, match=r"owner/model on the Hugging Face Hub holds no config.json"):
        fetch_masked_lm("owner/model")


@pytest.mark.parametrize("name", ["runs/mine/model", "", "a b", "../x", "owner/", "/x", "a--b", "x" * 200, "a/..", "ü"])
def test_what_is_no_name_is_not_asked_for(hub, name):
    with pytest.raises(ValueError, match="no preset, folder or module:factory, and no name on the Hugging Face Hub"):
        fetch_masked_lm(name)
    assert not hub[1]


# Made without a response, whose class depends on the client's version.
GATED, UNKNOWN = GatedRepoError.__new__(GatedRepoError), RepositoryNotFoundError.__new__(RepositoryNotFoundError)


@pytest.mark.parametrize(
    ("error", "message"),
    [
        (GATED, "owner/model is gated .*accept its terms"),
        (UNKNOWN, "owner/model is no preset or folder, and not on the"),
        (LocalEntryNotFoundError("offline"), "owner/model is no preset or folder, and .* cannot be reached"),
        (
            getattr(errors, "HTTPError", OSError)("no\nproxy"),
            r"owner/model cannot be fetched from the Hugging Face Hub \(no proxy\)",
        ),
        (OSError(28, "No space left on device"), "cannot be fetched .*No space left"),
    ],
)
def test_one_line_for_what_goes_wrong(monkeypatch, error, message):
    def fail(name, allow_patterns):
        raise error

    monkeypatch.setattr(huggingface_hub, "snapshot_download", fail)
    with pytest.raises(ValueError, match=message) as caught:
        fetch_masked_lm("owner/model")
    assert "\n" not in str(caught.value)


def test_offline_by_the_real_client(tmp_path, monkeypatch):
    """The tests run with HF_HUB_OFFLINE: the client itself answers, from an empty cache."""
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path))
    with pytest.raises(ValueError, match="cannot be reached to look for it; connect once"):
        fetch_masked_lm("owner/model")
