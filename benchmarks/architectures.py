"""Every architecture that transformers maps to masked LM: is its head run at selected positions alone, and right?

For each, a small model with random weights goes through `MLM` twice, dense and sparse. Logits at selected positions and
the gradients of all weights must agree to 1e-4.

    python benchmarks/architectures.py          # writes its page in docs/results/ and its JSON
    python benchmarks/architectures.py bert xlm # prints these only
"""

import copy
import inspect
import sys
import time
import warnings
from pathlib import Path
from typing import Any

import torch
import transformers
from torch import Tensor, nn
from transformers import CONFIG_MAPPING, MODEL_FOR_MASKED_LM_MAPPING
from transformers.models.auto.modeling_auto import MODEL_FOR_MASKED_LM_MAPPING_NAMES

from mlm_pytorch.objective import MLM

TOLERANCE = 1e-4
VOCABULARY, LENGTH = 131, 64
PAD, MASK = 1, 4

# One vocabulary of names for one small shape; a configuration takes those that it knows.
SMALL: dict[str, Any] = {
    "vocab_size": VOCABULARY,
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 2,
    "intermediate_size": 48,
    "embedding_size": 32,
    "max_position_embeddings": 130,
    "pad_token_id": PAD,
    "bos_token_id": 2,
    "eos_token_id": 3,
    "cls_token_id": 2,
    "sep_token_id": 3,
    "mask_token_id": MASK,
    # other libraries' words for the same
    "d_model": 32,
    "encoder_layers": 2,
    "decoder_layers": 2,
    "encoder_attention_heads": 2,
    "decoder_attention_heads": 2,
    "encoder_ffn_dim": 48,
    "decoder_ffn_dim": 48,
    "n_layers": 2,
    "n_layer": 2,
    "n_heads": 2,
    "n_head": 2,
    "dim": 32,
    "emb_dim": 32,
    "hidden_dim": 48,
    "d_inner": 48,
    "ffn_dim": 48,
    "num_layers": 2,
}

OMIT = object()

# What a configuration needs beyond that, with the reason.
SPECIAL: dict[str, dict[str, Any]] = {
    "big_bird": {"attention_type": "original_full"},  # as it chooses itself at this length
    "reformer": {  # its attention and positions are made of factors
        "attn_layers": ["local", "lsh"],
        "is_decoder": False,
        "axial_pos_shape": [8, 8],
        "axial_pos_embds_dim": [16, 16],
        "hash_seed": 0,
        "num_buckets": 4,
        "attention_head_size": 16,
        "feed_forward_size": 48,
        "local_attn_chunk_length": 16,
        "lsh_attn_chunk_length": 16,
        "hidden_dropout_prob": 0.0,
        "local_attention_probs_dropout_prob": 0.0,
    },
    "funnel": {
        "num_hidden_layers": OMIT,
        "block_sizes": [1, 1],
        "block_repeats": None,
        "num_decoder_layers": 1,
        "d_head": 16,
    },
    "longformer": {"attention_window": 16},
    "esm": {"position_embedding_type": "rotary", "token_dropout": False, "emb_layer_norm_before": False},
    "luke": {"entity_vocab_size": 11, "entity_emb_size": 16},
    "mobilebert": {"intra_bottleneck_size": 16, "true_hidden_size": 16, "embedding_size": 16},
    "perceiver": {
        "num_latents": 8,
        "d_latents": 32,
        "d_model": 32,
        "num_blocks": 1,
        "num_self_attends_per_block": 1,
        "num_self_attention_heads": 2,
        "num_cross_attention_heads": 2,
        "qk_channels": 16,
        "v_channels": 32,
        "max_position_embeddings": LENGTH,
    },
    "squeezebert": {"embedding_size": 32},
    "xmod": {"languages": ["en_XX"], "default_language": "en_XX"},
    "roc_bert": {
        "pronunciation_vocab_size": 11,
        "pronunciation_embed_dim": 8,
        "shape_vocab_size": 11,
        "shape_embed_dim": 8,
        "concat_input": True,
    },
}

BACKWARD_IN_TRAINING_ONLY = {"reformer"}  # its reversible layers; dropout is off above


def small_model(model_type: str) -> nn.Module:
    """A randomly initialised small model of an architecture, without dropout."""
    config_class = CONFIG_MAPPING[model_type]
    defaults = config_class()
    known = {name: value for name, value in SMALL.items() if hasattr(defaults, name)}
    text_class = getattr(defaults, "text_config", None)
    wanted = {name: value for name, value in (known | SPECIAL.get(model_type, {})).items() if value is not OMIT}
    if text_class is not None:  # a picture's model: only its text half is run
        wanted = _with_text_config(defaults, wanted)
    config = config_class(**wanted)
    torch.manual_seed(0)
    model = MODEL_FOR_MASKED_LM_MAPPING[config_class](config)
    if isinstance(model, tuple):
        model = model[0]
    model = model.float()
    for parameter in model.parameters():  # heads that start at zero would agree whatever happened
        if parameter.dim() == 1:
            parameter.data += 0.02 * torch.randn_like(parameter)
    return model


def _with_text_config(defaults: Any, wanted: dict[str, Any]) -> dict[str, Any]:
    text, vision = (
        {name: value for name, value in SMALL.items() if hasattr(getattr(defaults, part), name)}
        for part in ("text_config", "vision_config")
    )
    vision |= {"image_size": 16, "patch_size": 8}
    return wanted | {"text_config": text, "vision_config": vision}


def inputs(model: nn.Module) -> tuple[Tensor, dict[str, Tensor]]:
    """A batch with a padded row, and what the model cannot do without."""
    input_ids = torch.randint(5, VOCABULARY, (4, LENGTH), generator=torch.Generator().manual_seed(1))
    input_ids[1, -9:] = PAD
    parameters = inspect.signature(model.forward).parameters
    kwargs = {}
    if "langs" in parameters and getattr(model.config, "n_langs", 1) > 1:
        kwargs["langs"] = torch.zeros_like(input_ids)
    return input_ids, kwargs


def compare(model_type: str) -> dict[str, Any]:
    """Run one architecture both ways. `status` is sparse, dense (the check refused), wrong, or error."""
    model = small_model(model_type).train(model_type in BACKWARD_IN_TRAINING_ONLY)
    input_ids, kwargs = inputs(model)
    started = time.perf_counter()
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        mlm = MLM(model, mask_token_id=MASK, pad_token_id=PAD, mask_ignore_token_ids=[2, 3])
        verdict = mlm.verify(input_ids, **kwargs)
    seconds = time.perf_counter() - started
    assert (verdict.head is None) == any("every position" in str(w.message) for w in caught)
    reference = MLM(
        copy.deepcopy(model), mask_token_id=MASK, pad_token_id=PAD, mask_ignore_token_ids=[2, 3], dense=True
    )

    outputs = []
    for either in (mlm, reference):
        torch.manual_seed(2)
        output = either(input_ids, return_output=True, **kwargs)
        output.loss.backward()
        outputs.append(output)
    logits, gradients = largest_difference(outputs, mlm, reference)
    right = logits <= TOLERANCE and gradients <= TOLERANCE
    status = "wrong" if not right else "dense" if verdict.head is None else "sparse"
    return {
        "architecture": model_type,
        "class": type(model).__name__,
        "status": status,
        "head": verdict.head,
        "reason": verdict.reason,
        "logits_difference": logits,
        "gradient_difference": gradients,
        "check_seconds": round(seconds, 2),
    }


def largest_difference(outputs: list[Any], ours: nn.Module, theirs: nn.Module) -> tuple[float, float]:
    """Of logits at selected positions, and of any weight's gradient."""
    sparse, dense = outputs
    assert torch.equal(sparse.positions, dense.positions)
    gradients = 0.0
    for (name, a), (_, b) in zip(ours.named_parameters(), theirs.named_parameters(), strict=True):
        if (a.grad is None) != (b.grad is None):
            raise AssertionError(f"{name} has a gradient on one path only")
        if a.grad is not None:
            gradients = max(gradients, float((a.grad - b.grad).abs().max()))
    return float((sparse.logits - dense.logits).detach().abs().max()), gradients


def table(rows: list[dict[str, Any]]) -> str:
    """The page of the documentation."""
    count = {status: sum(row["status"] == status for row in rows) for status in ("sparse", "dense", "wrong", "error")}
    lines = [
        "# Which Hugging Face architectures run their head at selected positions alone",
        "",
        "Written by `benchmarks/architectures.py`; not edited by hand.",
        "",
        f"Of the {len(rows)} architectures that transformers {transformers.__version__} maps to masked LM,",
        f"{count['sparse']} run their output head at the selected positions alone, {count['dense']} at every position",
        f"(the check at the first call refused the shortcut), {count['wrong']} are wrong, {count['error']} do not run.",
        "Differences are the largest between sparse and dense: of logits at selected positions, and of the gradient of",
        "any weight; in float32, at most 1e-4 allowed. `gathered before` names the module that receives selected",
        "positions only.",
        "",
        "| architecture | model | | gathered before | logits | gradients |",
        "| --- | --- | --- | --- | --- | --- |",
    ]
    for row in rows:
        where = f"`{row['head']}`" if row["head"] else row["reason"].replace("|", "/")
        lines.append(
            f"| {row['architecture']} | {row['class']} | {row['status']} | {where} "
            f"| {row['logits_difference']:.1e} | {row['gradient_difference']:.1e} |"
        )
    return "\n".join(lines) + "\n"


def main(names: list[str]) -> None:
    transformers.logging.set_verbosity_error()
    torch.set_num_threads(1)
    rows = []
    for model_type in names or sorted(MODEL_FOR_MASKED_LM_MAPPING_NAMES):
        try:
            row = compare(model_type)
        except Exception as error:  # noqa: BLE001 -- one architecture that does not run must not hide the others
            row = {
                "architecture": model_type,
                "class": "",
                "status": "error",
                "head": None,
                "reason": repr(error)[:200],
            }
            row |= {"logits_difference": float("nan"), "gradient_difference": float("nan"), "check_seconds": 0.0}
        rows.append(row)
        print(f"{row['architecture']:22} {row['status']:7} {row['head'] or row['reason']}", flush=True)
    print({status: sum(row["status"] == status for row in rows) for status in ("sparse", "dense", "wrong", "error")})
    if not names:
        from machine import versions, write_result

        write_result("architectures", {"versions": versions("torch", "transformers"), "architectures": rows})
        page = Path(__file__).parents[1] / "docs" / "results" / "architectures.md"
        page.parent.mkdir(exist_ok=True)
        page.write_text(table(rows))


if __name__ == "__main__":
    main(sys.argv[1:])
