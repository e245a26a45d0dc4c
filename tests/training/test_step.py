"""One optimizer step: that of the mean over all targets, clipped as torch clips it, and reported as it was."""

import pytest
import torch
from small_trainer import trainer

from mlm_pytorch.training.device import native_precision
from mlm_pytorch.training.step import StepResult, autocast_dtype


def test_a_step_is_that_of_the_mean_over_all_targets(tmp_path):
    built = trainer(tmp_path, packs_per_step=2, clip=0.0, embedding_lr=3.0)
    step, packs = built.step, [built.feed.mask(pack, 300_000) for pack in built.feed.reader.take(2)]
    number = sum(pack.num_targets for pack in packs)
    found = [step.loss(step.parallel.module, pack) for pack in packs]
    mean = (found[0][0] + found[1][0]) / number
    expected = torch.autograd.grad(mean, step.parameters)

    rates, got = [], []

    def note(optimizer, *_):
        rates.extend((group["lr"], group.get("lr_scale", 1.0)) for group in optimizer.param_groups)

    for optimizer in step.optimizers:
        optimizer.register_step_pre_hook(note)
    step.optimizers[0].register_step_pre_hook(lambda *_: got.extend(p.grad.clone() for p in step.parameters))
    result = step(packs, 1e-3, built.world.agree(number, 77, stop=bool, seconds=float))
    for ours, plain in zip(got, expected, strict=True):
        torch.testing.assert_close(ours, plain, rtol=1e-5, atol=1e-7)
    assert set(rates) == {(1e-3, 1.0), (3e-3, 3.0)}
    assert result.loss == pytest.approx(float(mean.detach()), rel=1e-6) and result.num_tokens == 77
    assert result.accuracy == sum(int(right) for _, right in found) / number
    assert all(p.grad is None for p in step.parameters)


def test_nothing_to_predict_is_no_loss():
    nothing = torch.tensor(0.0)
    result = StepResult(nothing, nothing, 0, 9, nothing, torch.tensor(True))
    assert result.loss == 0 and result.accuracy == 0


@pytest.mark.parametrize(("precision", "products"), [("float32", torch.float32), ("bf16", torch.bfloat16)])
def test_products_are_of_the_precision_that_was_asked_for(tmp_path, precision, products):
    built = trainer(tmp_path, precision=precision)
    (pack,) = built.feed.reader.take(1)
    masked, seen = built.feed.mask(pack, 300_000), set()
    built.model.decoder.register_forward_hook(lambda _, __, output: seen.add(output.dtype))
    built.step([masked], 1e-3, built.world.agree(masked.num_targets, 0, stop=bool, seconds=float))
    assert seen == {products}


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
