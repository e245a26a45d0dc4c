"""Small random BERT, RoBERTa and ModernBERT models with tokenizers, the same in any version of transformers.

Run as a script where `minicons` is installed (it needs transformers 4), this writes what `minicons` makes of them:

    python tests/minicons_models.py             # writes tests/evaluation/fixtures/minicons.json

`tests/evaluation/test_pseudo_likelihood.py` builds the same models and compares.
"""

import json
import random
from pathlib import Path

import numpy as np
import torch
import transformers
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers

FIXTURE = Path(__file__).parent / "evaluation" / "fixtures" / "minicons.json"
ARCHITECTURES = ("bert", "roberta", "modernbert")
NUM_SENTENCES = 520
WORDS = """the a this that no some every cat dog bird house river teacher engineer philosopher unbelievably quickly
never isn't don't they're Anna's sees saw has seen ran runs thought of with under beyond about it who what Zürich naïve
café antidisestablishmentarianism extraordinary re-elected 1984 3.14 mother-in-law and but or because if very small red
misunderstanding counterintuitive hydroelectric""".split()  # noqa: SIM905
ENDS = (".", "?", "!", "...", " (sic).", "")


def sentences() -> list[str]:
    """`NUM_SENTENCES` lines of 3 to 12 words, drawn from a seed."""
    draw = random.Random(0)
    lines = []
    for _ in range(NUM_SENTENCES):
        words = draw.choices(WORDS, k=draw.randint(3, 12))
        if draw.random() < 0.3:
            words[0] = words[0].capitalize()
        if draw.random() < 0.3:
            words[len(words) // 2] += ","
        lines.append(" ".join(words) + draw.choice(ENDS))
    return lines


def train_tokenizer(architecture: str) -> Tokenizer:
    """WordPiece for BERT, byte-level BPE for the others, on a part of the words, so that the rest is cut into pieces.

    The fixture keeps the result: training need not be the same in every version of `tokenizers`.
    """
    texts = [" ".join(WORDS[:30])] * 20 + sentences()[:40]
    names = ["<s>", "<pad>", "</s>", "<unk>", "<mask>"] if architecture == "roberta" else None
    names = names or ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    cls, sep = ("<s>", "</s>") if architecture == "roberta" else ("[CLS]", "[SEP]")
    if architecture == "bert":
        tokenizer = Tokenizer(models.WordPiece(unk_token="[UNK]"))
        tokenizer.normalizer = normalizers.BertNormalizer(lowercase=True)
        tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
        tokenizer.decoder = decoders.WordPiece()
        trainer = trainers.WordPieceTrainer(vocab_size=180, special_tokens=names, show_progress=False)
    else:
        tokenizer = Tokenizer(models.BPE())
        tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
        tokenizer.decoder = decoders.ByteLevel()
        alphabet = pre_tokenizers.ByteLevel.alphabet()
        trainer = trainers.BpeTrainer(
            vocab_size=360, special_tokens=names, initial_alphabet=sorted(alphabet), show_progress=False
        )
    tokenizer.train_from_iterator(texts, trainer)
    tokenizer.post_processor = processors.TemplateProcessing(
        single=f"{cls} $A {sep}", special_tokens=[(name, tokenizer.token_to_id(name)) for name in (cls, sep)]
    )
    return tokenizer


def tokenizer_config(architecture: str) -> dict:
    """What `tokenizer_config.json` says."""
    if architecture == "roberta":
        roles = {"pad": "<pad>", "unk": "<unk>", "cls": "<s>", "sep": "</s>", "bos": "<s>", "eos": "</s>"}
        roles["mask"] = "<mask>"
    else:
        roles = {role: f"[{role.upper()}]" for role in ("pad", "unk", "cls", "sep", "mask")}
    named = {f"{role}_token": token for role, token in roles.items()}
    return {"tokenizer_class": "PreTrainedTokenizerFast", "clean_up_tokenization_spaces": False} | named


def build(architecture: str, tokenizer: Tokenizer) -> torch.nn.Module:
    """A random masked language model of two layers, its weights drawn by numpy in the order of their names."""
    vocab_size = tokenizer.get_vocab_size()
    ids = {role: tokenizer.token_to_id(token) for role, token in _framing(architecture).items()}
    size = {"vocab_size": vocab_size, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}
    common = size | {"pad_token_id": ids["pad"], "bos_token_id": ids["cls"], "eos_token_id": ids["sep"]}
    if architecture == "modernbert":
        config = transformers.ModernBertConfig(
            **common,
            cls_token_id=ids["cls"],
            sep_token_id=ids["sep"],
            intermediate_size=48,
            max_position_embeddings=128,
            local_attention=8,
            global_attn_every_n_layers=2,
            reference_compile=False,
        )
        model = transformers.ModernBertForMaskedLM(config)
    elif architecture == "roberta":
        config = transformers.RobertaConfig(
            **common, intermediate_size=64, max_position_embeddings=130, type_vocab_size=1
        )
        model = transformers.RobertaForMaskedLM(config)
    else:
        config = transformers.BertConfig(**common, intermediate_size=64, max_position_embeddings=128)
        model = transformers.BertForMaskedLM(config)
    generator = np.random.default_rng(7)
    with torch.no_grad():
        for name, parameter in sorted(model.named_parameters()):
            values = generator.normal(0.0, 0.25, tuple(parameter.shape)).astype(np.float32)
            parameter.copy_(torch.from_numpy(values + (1.0 if "norm" in name.lower() and "weight" in name else 0.0)))
    return model.eval()


def _framing(architecture: str) -> dict[str, str]:
    config = tokenizer_config(architecture)
    return {key.removesuffix("_token"): value for key, value in config.items() if key.endswith("_token")}


def write_folder(folder: Path, architecture: str, tokenizer: Tokenizer) -> None:
    """A Hugging Face folder of the model and its tokenizer."""
    folder.mkdir(parents=True, exist_ok=True)
    build(architecture, tokenizer).save_pretrained(folder, safe_serialization=True)
    tokenizer.save(str(folder / "tokenizer.json"))
    (folder / "tokenizer_config.json").write_text(json.dumps(tokenizer_config(architecture)))


def main() -> None:
    """Score the sentences by minicons and write the fixture."""
    import tempfile
    from importlib.metadata import version

    from minicons import scorer

    texts = sentences()
    result: dict = {
        "versions": {name: version(name) for name in ("minicons", "transformers", "tokenizers", "torch")},
        "sentences": texts,
        "models": {},
    }
    for architecture in ARCHITECTURES:
        tokenizer = train_tokenizer(architecture)
        with tempfile.TemporaryDirectory() as scratch:
            write_folder(Path(scratch), architecture, tokenizer)
            theirs = scorer.MaskedLMScorer(scratch, "cpu")
            entry: dict = {"tokenizer": json.loads(tokenizer.to_str())}
            for variant, metric in (("original", "original"), ("word-l2r", "within_word_l2r")):
                for name, reduction in (("sum", lambda x: x.sum().item()), ("mean", lambda x: x.mean().item())):
                    scores = []
                    for text in texts:
                        scores += theirs.sequence_score([text], reduction=reduction, PLL_metric=metric)
                    entry[f"{variant} {name}"] = [round(score, 5) for score in scores]
        result["models"][architecture] = entry
    FIXTURE.write_text(json.dumps(result, ensure_ascii=False, separators=(",", ":")) + "\n", encoding="utf-8")
    print(f"{FIXTURE}: {FIXTURE.stat().st_size:,} bytes")


if __name__ == "__main__":
    main()
