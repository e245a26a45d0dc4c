"""Find out, before anything depends on it, whether a transformer lets some positions through its head alone.

A guess about someone else's model must be checked, or it would be wrong in silence. ``verify_head`` runs the model on
two rows of the user's batch, dense and sparse, and compares logits and gradients. Starting at the last module that the
model runs, it also moves the place where positions are gathered back, module by module, while nothing changes: a BERT
then gathers before the transform of its head, not only before the last projection.

What is true of today's weights must stay true. A last attention that starts out shut, by a gate or by a factor that
grows, changes nothing yet. So hidden states at all other positions are also made NaN: what looks there at all passes
that on, since zero times NaN is NaN.

The check works on float32 copies of parameters and buffers, so that neither the model nor its gradients are touched.
The copies carry some noise, since weights at zero have nothing to compare. Its cost is a few forward passes and two
backward ones over two rows, once.
"""

# B batch, L length, K selected positions, D width, V vocabulary

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call

from mlm_pytorch.modes import evaluating, full_precision
from mlm_pytorch.objective.head import changed_before, find_head, gathered_before, logits_of, name_of, resolve
from mlm_pytorch.objective.sight import oddities

TOLERANCE = 1e-4  # relative to the largest entry
ROUNDING = 1e-6  # relative to the largest entry of all gradients: what is left of one that is zero
NOISE = 0.02  # the usual scale of initial weights
MIN_TOKENS = 8  # below this, too few positions are left out for a comparison to mean anything

# What a model may raise when its head gets fewer positions than it expects; anything else is not about that.
SHAPE_ERRORS = (RuntimeError, ValueError, TypeError, IndexError, AttributeError, AssertionError, NotImplementedError)


@dataclass(frozen=True)
class Verdict:
    """Where positions may be gathered: ``head``, a dotted name; or None, with the reason.

    oddities: sentences about what the transformer sees and should not, or should and does not (`sight`).
    """

    head: str | None
    reason: str = ""
    oddities: tuple[str, ...] = ()


@dataclass
class _Call:
    """A module's call in a traced run, with the calls made inside it."""

    name: str
    module: nn.Module
    hidden: Tensor | None = None
    children: list[_Call] = field(default_factory=list)


def verify_head(
    transformer: nn.Module,
    input_ids: Tensor,
    kwargs: dict[str, Any],
    *,
    head: str | None = None,
    num_tokens: int | None = None,
    pad_token_id: int | None = None,
) -> Verdict:
    """Where ``transformer(input_ids, **kwargs)`` may gather positions without changing logits or gradients.

    Args:
        transformer: the bare model, not wrapped for compilation or for several devices.
        input_ids: (B, L) int64, of which two rows are used. With fewer than ``MIN_TOKENS`` tokens nothing can be told.
        kwargs: the model's further arguments; tensors with B rows are cut with the ids.
        head: the only place to try, where the user named one.
        num_tokens: the vocabulary's size, where known; else the logits tell it.
        pad_token_id: what is no token among the ids.

    Raises whatever the model raises on this input by itself.
    """
    if _is_sharded(transformer):
        return Verdict(None, "its parameters are sharded already; call mlm.verify(seq) before sharding")
    with torch.inference_mode(False), (bench := _Bench(transformer, input_ids, kwargs)).quiet():
        try:
            calls, counts = bench.measure_dense()
        except SHAPE_ERRORS as error:
            with torch.no_grad():
                logits_of(transformer(bench.input_ids, **bench.kwargs), transformer)  # it may fail by itself
            return Verdict(None, f"it does not run with its weights in float32 ({first_line(error)})")
        if bench.dense.shape[:-1] != bench.input_ids.shape:  # rows of it would meet the labels of other positions
            shapes = f"{tuple(bench.dense.shape)} for ids {tuple(bench.input_ids.shape)}"
            return Verdict(None, f"it returned logits {shapes}, where one row per id is wanted")
        if not bench.dense.isfinite().all():
            return Verdict(None, "its logits are not finite")
        is_token = torch.ones_like(bench.given) if pad_token_id is None else bench.given != pad_token_id
        with torch.no_grad():
            seen = oddities(bench.run, bench.input_ids, is_token.bool(), type(transformer).__name__)
        places, reason = [], "no output head was found"
        if head is None:
            places = _walk_back(bench, _chain(calls), counts)
        if not places:
            guess = head if head is not None else find_head(transformer, num_tokens or bench.dense.shape[-1])
            if guess is not None:
                name = name_of(transformer, guess)
                reason = _obstacle(transformer, name, counts) or bench.difference(name)
                places = [] if reason else [name]
        for place in places:
            reason = bench.gradient_difference(place)
            if not reason:
                return Verdict(place, oddities=seen)
        return Verdict(None, reason, seen)


def _is_sharded(transformer: nn.Module) -> bool:
    """Whether weights are in other hands: those of tensor parallelism, of fully_shard, or of FullyShardedDataParallel,
    be it around the whole. The last two flag each module that they hold, for torch's compiler.
    """
    flags = (getattr(module, "_is_fsdp_managed_module", False) for module in transformer.modules())
    return any(flags) or any(type(p).__name__ == "DTensor" for p in transformer.parameters())


def _chain(calls: list[_Call]) -> list[_Call]:
    """The calls from hidden states to logits: those of the model itself, or of the one module that does it all."""
    while calls and calls[-1].hidden is None and calls[-1].children:
        calls = calls[-1].children
    return calls


def _walk_back(bench: _Bench, calls: list[_Call], counts: Counter[nn.Module]) -> list[str]:
    """Those of the model's last modules before which gathering changes no logits, the earliest first."""
    places = []
    for call in reversed(calls):
        if not bench.takes_positions(call.hidden):
            if not places:
                continue  # such as a second head for whole sequences
            break
        if _obstacle(bench.transformer, call.name, counts) or bench.difference(call.name):
            break
        places.insert(0, call.name)
    return places


def _obstacle(transformer: nn.Module, name: str, counts: Counter[nn.Module]) -> str:
    """Why a module can't be gathered before, whatever numbers say; empty where nothing stands against it."""
    module = resolve(transformer, name)
    if not isinstance(module, nn.Module):
        return ""
    if counts[module] != 1:
        return f"its head {name!r} is called {counts[module]} times"
    for part in module.modules():  # in training, these mix positions: the check in eval mode can't see it
        if isinstance(part, nn.modules.batchnorm._NormBase):
            return f"its head {name!r} normalises over positions ({type(part).__name__})"
    return ""


class _Bench:
    """Two rows, copies of all weights, and the dense logits to compare with."""

    dense: Tensor  # (2, L, V)

    def __init__(self, transformer: nn.Module, input_ids: Tensor, kwargs: dict[str, Any]):
        self.transformer = transformer
        batch = input_ids.shape[0]
        rows = min(2, batch)
        self.kwargs = {
            name: value[:rows].clone() if isinstance(value, Tensor) and value.shape[:1] == (batch,) else value
            for name, value in kwargs.items()
        }
        generator = torch.Generator().manual_seed(0)
        self.given = input_ids[:rows].clone()
        self.input_ids = _mixed(self.given, transformer, generator)
        num_positions = self.input_ids.numel()
        # An odd number of them, for heads that would take an even one for two rows.
        some = torch.randperm(num_positions, generator=generator)[: num_positions // 3 | 1]
        self.positions_K = some.sort().values.to(input_ids.device)
        self.generator = generator
        self.weights = self._copies(NOISE)

    def _copies(self, noise: float) -> dict[str, Tensor]:
        copies: dict[str, Tensor] = {}
        for name, parameter in self.transformer.named_parameters():
            copy = parameter.detach().clone()
            if copy.is_floating_point():
                copy = copy.float()
                copy += noise * torch.randn(copy.shape, generator=self.generator).to(copy.device)
                copy.requires_grad_()
            copies[name] = copy
        for name, buffer in self.transformer.named_buffers():
            dtype = torch.float32 if buffer.is_floating_point() else buffer.dtype
            copies[name] = buffer.to(dtype, copy=True)
        return copies

    @contextmanager
    def quiet(self) -> Iterator[None]:
        """Evaluation mode, full precision, and everything put back as it was."""
        grads = {parameter: parameter.grad for parameter in self.transformer.parameters()}
        device = self.input_ids.device
        with ExitStack() as stack:
            stack.enter_context(torch.random.fork_rng([device] if device.type == "cuda" else []))
            stack.enter_context(torch.autocast(device.type, enabled=False))
            stack.enter_context(evaluating(self.transformer))
            stack.enter_context(full_precision())
            try:
                for parameter in grads:
                    parameter.grad = None
                yield
            finally:
                for parameter, grad in grads.items():  # Reformer's own backward adds to these, copies or not
                    parameter.grad = grad

    def run(self, input_ids: Tensor | None = None) -> Tensor:
        torch.manual_seed(0)  # models that draw random numbers even in evaluation draw the same ones each time
        ids = self.input_ids if input_ids is None else input_ids
        output = functional_call(self.transformer, self.weights, (ids,), self.kwargs)
        return logits_of(output, self.transformer)

    @torch.no_grad()
    def measure_dense(self) -> tuple[list[_Call], Counter[nn.Module]]:
        """Dense logits, with the tree of module calls and how often each module was called."""
        with _traced(self.transformer) as (calls, counts):
            self.dense = self.run()
        if not self.dense.isfinite().all():  # some weights don't bear noise, such as those under a root
            self.weights = self._copies(0.0)
            self.dense = self.run()
        return calls, counts

    def takes_positions(self, hidden: Tensor | None) -> bool:
        return hidden is not None and hidden.shape[:-1] in (self.input_ids.shape, (self.input_ids.numel(),))

    @torch.no_grad()
    def difference(self, name: str) -> str:
        """How the logits differ where positions are gathered before a module, or that they could; empty otherwise."""
        try:
            with gathered_before(self.transformer, name, self.positions_K):
                sparse = self.run()
            with changed_before(self.transformer, name, self._unknown_elsewhere):
                alone = self._at_positions(self.run())
        except SHAPE_ERRORS as error:
            return f"its head {name!r} does not take some positions alone ({first_line(error)})"
        wanted = self._at_positions(self.dense)
        if sparse.numel() != wanted.numel():
            return f"with positions gathered before {name!r} it returned {tuple(sparse.shape)}"
        reason = _difference(f"logits with positions gathered before {name!r}", sparse.reshape(wanted.shape), wanted)
        if not reason and not alone.isfinite().all():
            reason = f"its head {name!r} looks at other positions, though nothing comes of it yet"
        return reason

    def _unknown_elsewhere(self, hidden: Tensor) -> Tensor:
        rows = hidden.reshape(-1, hidden.shape[-1])
        known = rows.index_select(0, self.positions_K)
        return torch.full_like(rows, float("nan")).index_copy(0, self.positions_K, known).view_as(hidden)

    def gradient_difference(self, name: str) -> str:
        """How the gradients of any weight differ; empty where they don't."""
        try:
            return self._gradient_difference(name)
        except AssertionError:  # Reformer goes backward in training mode only; both paths draw the same dropout
            self.transformer.train()
            return self._gradient_difference(name)

    def _gradient_difference(self, name: str) -> str:
        trained = {key: value for key, value in self.weights.items() if value.requires_grad}
        weights_KV = torch.randn(len(self.positions_K), self.dense.shape[-1], generator=self.generator)
        weights_KV = (weights_KV / len(self.positions_K)).to(self.dense.device)

        def gradients(logits_KV: Tensor) -> tuple[Tensor | None, ...]:
            return torch.autograd.grad((logits_KV * weights_KV).sum(), list(trained.values()), allow_unused=True)

        with torch.enable_grad():
            wanted = gradients(self._at_positions(self.run()))
            with gathered_before(self.transformer, name, self.positions_K):
                got = gradients(self.run().reshape(weights_KV.shape))
        noise = ROUNDING * max((float(b.abs().max()) for b in wanted if b is not None and b.numel()), default=0.0)
        for key, a, b in zip(trained, got, wanted, strict=True):
            if (a is None) != (b is None):
                return f"{key} gets a gradient on one path only"
            if a is not None and b is not None and (reason := _difference(f"the gradient of {key}", a, b, noise)):
                return reason
        return ""

    def _at_positions(self, logits: Tensor) -> Tensor:
        return logits.reshape(-1, logits.shape[-1]).index_select(0, self.positions_K)


@contextmanager
def _traced(transformer: nn.Module) -> Iterator[tuple[list[_Call], Counter[nn.Module]]]:
    root = _Call("", transformer)
    stack, counts = [root], Counter()

    def enter(call: _Call, args: tuple, kwargs: dict) -> None:
        tensors = (x for x in (*args, *kwargs.values()) if isinstance(x, Tensor) and x.is_floating_point())
        call.hidden = next(tensors, None)
        stack[-1].children.append(call)
        stack.append(call)
        counts[call.module] += 1

    with ExitStack() as hooks:
        for name, module in transformer.named_modules():
            if not name:
                continue

            def before(module: nn.Module, args: tuple, kwargs: dict, name: str = name) -> None:
                enter(_Call(name, module), args, kwargs)

            def after(*_: Any) -> None:
                stack.pop()

            hooks.callback(module.register_forward_pre_hook(before, with_kwargs=True).remove)
            hooks.callback(module.register_forward_hook(after, with_kwargs=True).remove)
        yield root.children, counts


def _mixed(input_ids: Tensor, transformer: nn.Module, generator: torch.Generator) -> Tensor:
    """Ids drawn anew from the smallest table that holds those given: rows of one repeated token would tell nothing."""
    highest = int(input_ids.max())
    sizes = [m.num_embeddings for m in transformer.modules() if isinstance(m, nn.Embedding)]
    size = min((size for size in sizes if size > highest), default=0)
    if size < MIN_TOKENS:
        return input_ids
    drawn = torch.randint(0, size, input_ids.shape, generator=generator)
    keep = torch.rand(input_ids.shape, generator=generator) < 0.5  # half of the user's own, with what they stand for
    return torch.where(keep.to(input_ids.device), input_ids, drawn.to(input_ids))


def _difference(what: str, got: Tensor, wanted: Tensor, noise: float = 0.0) -> str:
    if not wanted.numel():  # a weight without elements, as MobileBERT may have
        return ""
    allowed = max(noise, TOLERANCE * float(wanted.abs().max()))
    difference = float((got - wanted).abs().max())
    return "" if difference <= allowed else f"{what} differ by {difference:.2g} (allowed {allowed:.2g})"


def first_line(error: BaseException) -> str:
    """What kind of error it is, and the first line of what it says."""
    lines = str(error).strip().splitlines()
    return f"{type(error).__name__}: {lines[0][:120]}" if lines else type(error).__name__
