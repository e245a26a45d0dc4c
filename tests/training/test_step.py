"""One optimizer step: its gradient is clipped as torch clips it, and reported as it was."""

import pytest
import torch
from small_trainer import trainer

from mlm_pytorch.training.device import native_precision
from mlm_pytorch.training.step import autocast_dtype


@pytest.mark.parametrize("share", [0.0, 0.5, 0.999999, 1.0, 1.000001, 3.0])
def test_gradients_are_clipped_as_torch_clips_them(tmp_path, share):
    """`share` is the limit over the norm; 0 sets no limit."""
    built = trainer(tmp_path, packs_per_step=2)
    step, packs = built.step, [built.feed.mask(pack, 300_000) for pack in built.feed.reader.take(2)]
    agreed = built.world.agree(sum(p.num_targets for p in packs), 0, stop=bool, seconds=float)
    step.backward(packs, agreed)
    norm = torch.nn.utils.get_total_norm([p.grad for p in step.parameters])
    step.clip = share * float(norm)
    torch.nn.utils.clip_grad_norm_(step.parameters, step.clip or torch.inf)
    expected = [p.grad.clone() for p in step.parameters]
    step.forget_gradients()

    seen = []
    hook = step.optimizers[0].register_step_pre_hook(lambda *_: seen.extend(p.grad.clone() for p in step.parameters))
    result = step(packs, 1e-3, agreed)
    hook.remove()
    torch.testing.assert_close(result.grad_norm, norm, rtol=1e-6, atol=0)
    for got, wanted in zip(seen, expected, strict=True):
        torch.testing.assert_close(got, wanted, rtol=1e-6, atol=0)


def test_precision_is_what_was_asked_for():
    cpu = torch.device("cpu")
    assert autocast_dtype("float32", cpu) is None
    assert autocast_dtype("bf16", cpu) is torch.bfloat16
    assert autocast_dtype("auto", cpu) is native_precision(cpu)
    assert native_precision(torch.device("mps")) is None
