import pytest
import torch
from torch import nn

from mlm_pytorch.objective import MLM
from mlm_pytorch.objective.verify import verify_head

V = 61


def test_where_each_kind_gathers(make_bert, make_x_transformer, plain, ids):
    assert verify_head(make_bert(), ids, {}).head == "cls"  # before the transform, not only the projection
    assert verify_head(make_x_transformer(), ids, {}).head == "to_logits"
    assert verify_head(make_x_transformer(tie_embedding=True), ids, {}).head == "to_logits"
    assert verify_head(plain, ids, {}).head == "norm"
    assert verify_head(plain, ids, {}, head="out").head == "out"


def test_looks_inside_a_module_that_does_all_the_work(plain, ids):
    class Wrapped(nn.Module):
        def __init__(self):
            super().__init__()
            self.inner = plain

        def forward(self, ids):
            return self.inner(ids)

    assert verify_head(Wrapped(), ids, {}).head == "inner.norm"


def test_attention_that_starts_at_zero_does_not_pass_for_a_head(make_x_transformer, ids):
    model = make_x_transformer(encoder={"zero_init_branch_output": True})
    assert verify_head(model, ids, {}).head == "to_logits"


class Gated(nn.Module):
    """A last layer that mixes positions, behind a gate that is shut at first."""

    def __init__(self, gate):
        super().__init__()
        self.attention, self.gate = nn.MultiheadAttention(8, 2, batch_first=True), gate
        self.weight = nn.Parameter(torch.full((1,), -6.0 if gate == "sigmoid" else 0.0))
        self.register_buffer("ramp", torch.zeros(1))
        self.factor = 0.0

    def forward(self, x):
        opening = {"sigmoid": self.weight.sigmoid(), "weight": self.weight, "buffer": self.ramp, "float": self.factor}
        return x + opening[self.gate] * self.attention(x, x, x, need_weights=False)[0]

    def open(self):
        self.weight.data.fill_(1.0)
        self.ramp.fill_(1.0)
        self.factor = 1.0


@pytest.mark.parametrize("gate", ["sigmoid", "weight", "buffer", "float"])
def test_a_layer_that_is_shut_for_now_does_not_pass_for_a_head(gate, ids):
    model = nn.Sequential(nn.Embedding(V, 8), Gated(gate), nn.LayerNorm(8), nn.Linear(8, V))
    assert verify_head(model, ids, {}, head="1").head is None
    mlm, dense = MLM(model), MLM(model, dense=True)
    assert mlm.verify(ids).head == "2"
    model[1].open()
    losses = []
    for each in (mlm, dense):
        torch.manual_seed(3)
        losses.append(each(ids))
    torch.testing.assert_close(losses[0], losses[1])


@pytest.mark.parametrize(
    "laid_out", [lambda x: x.transpose(0, 1), lambda x: torch.cat([x[:, :1], x], 1), lambda x: x.flatten(0, 1)]
)
def test_logits_laid_out_unlike_the_ids(laid_out, ids):
    class Otherwise(nn.Module):
        def __init__(self):
            super().__init__()
            self.embed, self.out = nn.Embedding(V, 8), nn.Linear(8, V)

        def forward(self, ids):
            return self.out(laid_out(self.embed(ids)))

    verdict = verify_head(Otherwise(), ids, {})
    assert verdict.head is None
    assert "for ids (2, 24), where one row per id is wanted" in verdict.reason
    with pytest.raises(ValueError, match=r"for ids \(4, 24\); return one row of logits per id, \(B, L, V\)"):
        MLM(Otherwise())(ids)


def test_rows_of_one_token_tell_enough(make_x_transformer):
    assert verify_head(make_x_transformer(use_abs_pos_emb=False), torch.full((2, 16), 5), {}).head == "to_logits"


def test_a_weight_without_elements_tells_nothing(plain, ids):
    plain.nothing = nn.Parameter(torch.zeros(0, 4))
    forward = plain.forward
    plain.forward = lambda ids: forward(ids) + plain.nothing.sum()
    assert verify_head(plain, ids, {}).head == "norm"


def test_everything_is_left_as_it_was(make_bert, ids):
    model = make_bert()
    model.cls.eval()
    model(ids).logits.sum().backward()
    state = {name: value.clone() for name, value in model.state_dict().items()}
    grads = {name: value.grad.clone() for name, value in model.named_parameters() if value.grad is not None}
    training = {name: module.training for name, module in model.named_modules()}
    random = torch.get_rng_state()
    precision = torch.get_float32_matmul_precision()

    verify_head(model, ids, {})
    assert torch.equal(torch.get_rng_state(), random)
    assert torch.get_float32_matmul_precision() == precision
    assert {name: module.training for name, module in model.named_modules()} == training
    for name, value in model.state_dict().items():
        assert torch.equal(value, state[name])
    for name, value in model.named_parameters():
        assert value.grad is None or torch.equal(value.grad, grads[name])
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in model.modules())


def test_batch_statistics_are_left_alone(ids):
    model = nn.Sequential(nn.Embedding(V, 8), BatchNormalised(), nn.Linear(8, V))
    mean = model[1].norm.running_mean.clone()
    verify_head(model, ids, {})
    assert torch.equal(model[1].norm.running_mean, mean)


class BatchNormalised(nn.Module):
    def __init__(self):
        super().__init__()
        self.norm = nn.BatchNorm1d(8)

    def forward(self, x):
        return self.norm(x.transpose(1, 2)).transpose(1, 2)


class Head(nn.Module):
    """A head in which something stands against gathering."""

    def __init__(self, what):
        super().__init__()
        self.what = what
        self.linear = nn.Linear(8, V)
        self.norm = nn.BatchNorm1d(8) if what == "batch norm" else nn.Identity()

    def forward(self, x):
        match self.what:
            case "batch norm":
                x = self.norm(x.flatten(0, 1)).view_as(x)
            case "looks around":
                x = x + x.mean(1, keepdim=True)
            case "wants a batch":
                x = x.view(2, -1, 8)
            case "gradient":
                x = Scaled.apply(x)
            case "detached" if x.shape[0] == 1:
                x = x.detach()
        return self.linear(x)


class Scaled(torch.autograd.Function):
    """The identity, with a gradient that depends on how many positions there are."""

    @staticmethod
    def forward(ctx, x):
        ctx.number = x.numel() / x.shape[-1]
        return x.clone()

    @staticmethod
    def backward(ctx, grad):
        return grad * ctx.number


class Model(nn.Module):
    def __init__(self, what):
        super().__init__()
        self.embed = nn.Embedding(V, 8)
        self.head = Head(what)

    def forward(self, ids):
        return self.head(self.embed(ids))


@pytest.mark.parametrize(
    ("what", "reason"),
    [
        ("batch norm", r"normalises over positions \(BatchNorm1d\)"),
        ("looks around", "differ by"),
        ("wants a batch", "does not take some positions alone"),
        ("gradient", "the gradient of embed.weight differ"),
    ],
)
def test_heads_that_do_not_take_positions_alone(what, reason, ids):
    verdict = verify_head(Model(what), ids, {}, head="head")
    assert verdict.head is None
    assert verdict.reason
    import re

    assert re.search(reason, verdict.reason)


def test_a_smaller_part_of_such_a_head_may_do(ids):
    assert verify_head(Model("looks around"), ids, {}).head == "head.linear"


def test_a_later_place_where_gradients_agree(ids):
    class Scaling(nn.Module):
        def forward(self, x):
            return Scaled.apply(x)

    assert verify_head(nn.Sequential(nn.Embedding(V, 8), Scaling(), nn.Linear(8, V)), ids, {}).head == "2"


def test_differences_count_by_the_size_of_what_differs(ids):
    class Small(Model):
        def forward(self, ids):
            return 1e-5 * super().forward(ids)

    assert "differ by" in verify_head(Small("looks around"), ids, {}, head="head").reason
    assert "gradient of embed.weight differ" in verify_head(Small("gradient"), ids, {}, head="head").reason
    assert verify_head(Small(""), ids, {}).head == "head"


def test_a_head_called_twice(ids):
    class Twice(Model):
        def forward(self, ids):
            return self.head(self.embed(ids)) + self.head(self.embed(ids.flip(1)))

    verdict = verify_head(Twice(""), ids, {}, num_tokens=V)
    assert verdict.head is None
    assert "called 2 times" in verdict.reason


def test_a_gradient_on_one_path_only(ids):
    verdict = verify_head(Model("detached"), ids, {}, head="head")
    assert verdict.reason == "embed.weight gets a gradient on one path only"


def test_no_head_and_no_finite_logits(ids):
    class Bare(nn.Module):
        def __init__(self):
            super().__init__()
            self.weight = nn.Parameter(torch.randn(V, V))

        def forward(self, ids):
            return self.weight[ids]

    assert verify_head(Bare(), ids, {}).reason == "no output head was found"
    broken = Model("")
    broken.embed.weight.data.fill_(float("nan"))
    assert verify_head(broken, ids, {}).reason == "its logits are not finite"


def test_weights_that_do_not_bear_noise(ids):
    class Rooted(Model):
        def __init__(self):
            super().__init__("")
            self.scale = nn.Parameter(torch.full((8,), 1e-6))

        def forward(self, ids):
            return self.head(self.embed(ids) * self.scale.sqrt())

    assert verify_head(Rooted(), ids, {}).head == "head"


def test_mixture_of_softmaxes_is_dense_and_right(make_x_transformer, ids):
    model = make_x_transformer(mixture_of_softmax=True)
    mlm, dense = MLM(model), MLM(model, dense=True)
    with pytest.warns(UserWarning, match="every position of TransformerWrapper passes through its output head"):
        mlm.verify(ids)
    torch.manual_seed(3)
    loss = mlm(ids)
    torch.manual_seed(3)
    assert loss == dense(ids)


def test_where_precision_was_set_for_one_backend(plain, ids):
    torch.backends.cuda.matmul.fp32_precision = "tf32"  # after which torch does not tell the setting for all
    try:
        assert verify_head(plain, ids, {}).head == "norm"
    finally:
        torch.set_float32_matmul_precision("highest")


def test_works_in_inference_mode_and_under_autocast(make_bert, ids):
    with torch.inference_mode(), torch.autocast("cpu", torch.bfloat16):
        assert verify_head(make_bert(), ids, {}).head == "cls"
    assert verify_head(make_bert().bfloat16(), ids, {}).head == "cls"


class InHalves(nn.Module):
    """Computes its trunk in one precision and its head in another, by name."""

    def __init__(self, trunk, head):
        super().__init__()
        self.embed, self.norm = nn.Embedding(V, 16), nn.BatchNorm1d(16)
        self.embed.to(trunk), self.norm.to(trunk)
        self.out = nn.Linear(16, V).to(head)
        self.head = head

    def forward(self, ids):
        return self.out(self.norm(self.embed(ids).mT).mT.to(self.head))


def test_a_model_of_any_precision_is_checked_or_left_dense(ids):
    assert verify_head(InHalves(torch.float64, torch.float32), ids, {}).head == "out"
    verdict = verify_head(InHalves(torch.float32, torch.bfloat16), ids, {})  # which its float32 copies are not
    assert verdict.head is None and verdict.reason.startswith("it does not run with its weights in float32 (RuntimeErr")
    with pytest.raises(RuntimeError, match="same dtype"):  # one that fails by itself
        verify_head(InHalves(torch.float32, torch.bfloat16).float(), ids, {})
