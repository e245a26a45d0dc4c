"""Muon (Jordan et al. 2024): momentum, orthogonalized, for matrices.

The same update as `torch.optim.Muon`, for all matrices of one shape at once: a small encoder has dozens of matrices too
small to fill even two cores, and one by one they took a quarter of a training step. Weights that are several
matrices in one are orthogonalized part by part: of attention's projections the part of each head, of gated layers both
halves.

Of matrices that lie in parts on several processes (`DTensor`), each process gathers the momentum once, in the precision
that orthogonalizing takes, orthogonalizes it whole as a process alone would, and keeps its part of the update.
"""

from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator
from typing import Any, overload

import torch
from torch import Tensor
from torch.distributed.tensor import DTensor, Replicate

from mlm_pytorch.training.device import native_precision

# The quintic's coefficients, chosen there for the steepest slope at zero.
_A, _B, _C = 3.4445, -4.7750, 2.0315
_STEPS = 5


def orthogonalize(matrices: Tensor) -> Tensor:
    """Push the singular values of each matrix (N, rows, columns), rows <= columns, to about one; returns bfloat16.

    Five steps of a Newton-Schulz iteration: no decomposition, only matrix products. Singular values end between about
    0.7 and 1.2, which serves as well as exactly one. The products are bfloat16's where the hardware has them: emulated,
    they took half of a training step of `nano` on a CPU without.

    Example:
        >>> spread = torch.linalg.svdvals(orthogonalize(torch.randn(2, 16, 32)).float())
        >>> bool((spread > 0.3).all() and (spread < 1.6).all())
        True
    """
    x = matrices.bfloat16().to(native_precision(matrices.device) or torch.float32)
    x = x / x.norm(dim=(-2, -1), keepdim=True).clamp_min(1e-7)
    for _ in range(_STEPS):
        gram = x @ x.mT
        x = torch.baddbmm(x, torch.baddbmm(gram, gram, gram, beta=_B, alpha=_C), x, beta=_A)
    return x.bfloat16()


class Muon(torch.optim.Optimizer):
    """Orthogonalized Nesterov momentum with decoupled weight decay, scaled to the size of AdamW's updates.

    Args:
        groups: parameter groups; all parameters are matrices. A group's `parts` says into how many equal matrices each
            of its parameters falls, along the rows and along the columns: (3 H, 1) for Wqkv with H heads.
        lr: learning rate; the update's root mean square is 0.2 lr (Liu et al. 2025, arXiv 2502.16982, §2.2).
        weight_decay: decoupled.
        momentum: of the running mean of gradients.
        orthogonalize: the function above, or one that computes the same, divided among processes.

    Raises:
        ValueError: a parameter that is no matrix, or that does not fall into `parts`.
    """

    def __init__(
        self,
        groups: Iterable[dict[str, Any]],
        lr: float,
        weight_decay: float = 0.0,
        momentum: float = 0.95,
        *,
        orthogonalize: Callable[[Tensor], Tensor] = orthogonalize,
    ) -> None:
        self.orthogonalize = orthogonalize
        super().__init__(list(groups), {"lr": lr, "weight_decay": weight_decay, "momentum": momentum, "parts": (1, 1)})
        self._step_supports_amp_scaling = True  # as of torch's fused optimizers: `found_inf` makes a step do nothing
        self.found_inf: Tensor | None = None  # () float32: 1 to leave everything as it is, decided on the device
        for group in self.param_groups:
            for parameter in group["params"]:
                down, across = group["parts"]
                if parameter.ndim != 2 or parameter.shape[0] % down or parameter.shape[1] % across:
                    raise ValueError(
                        f"a parameter of shape {tuple(parameter.shape)} does not fall into {down} x {across} matrices; "
                        "give it to another optimizer"
                    )

    @overload
    def step(self, closure: None = None) -> None: ...
    @overload
    def step(self, closure: Callable[[], float]) -> float: ...
    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> float | None:
        """Take one step with the gradients that are there."""
        assert closure is None, "Muon takes no closure"
        skip = None if self.found_inf is None else self.found_inf.bool()
        waiting: dict[tuple[int, int, float], list[tuple[Tensor, Tensor]]] = defaultdict(list)
        in_parts: list[tuple[DTensor, Tensor]] = []
        for group in self.param_groups:
            for parameter, update in _gathered(self._updates(group, skip)):
                target = parameter
                if isinstance(parameter, DTensor):  # collect the whole update, of which a part is kept below
                    target = torch.zeros_like(update, dtype=parameter.dtype)
                    in_parts.append((parameter, target))
                here, part = (_cut(matrix, *group["parts"]) for matrix in (target, update))
                waiting[part.shape[-2], part.shape[-1], group["lr"]].append((here, part))
        for (_, columns, lr), pairs in waiting.items():
            updates = self.orthogonalize(torch.cat([part.flatten(0, 1) for _, part in pairs]))
            if skip is not None:
                updates = torch.where(skip, 0.0, updates)
            each = updates.split([part.shape[0] * part.shape[1] for _, part in pairs])
            for (target, _), update in zip(pairs, each, strict=True):
                target.add_(update.view(target.shape), alpha=-0.2 * lr * columns**0.5)
        for parameter, target in in_parts:
            mesh = parameter.device_mesh
            whole = DTensor.from_local(target, mesh, [Replicate()] * mesh.ndim, run_check=False)
            parameter.to_local().add_(whole.redistribute(placements=parameter.placements).to_local())
        return None

    def _updates(self, group: dict[str, Any], skip: Tensor | None) -> Iterator[tuple[Tensor, Tensor]]:
        """Each parameter of a group that has a gradient, decayed, with its momentum, yet to be orthogonalized."""
        parameters = [parameter for parameter in group["params"] if parameter.grad is not None]
        if not parameters:
            return
        for parameter in parameters:
            if not self.state[parameter]:
                self.state[parameter]["momentum_buffer"] = torch.zeros_like(parameter)
        averages = [self.state[parameter]["momentum_buffer"] for parameter in parameters]
        gradients = [parameter.grad for parameter in parameters]
        shrunk: float | Tensor = 1 - group["lr"] * group["weight_decay"]
        if skip is not None:  # the mean with itself stays as it is
            gradients = [torch.where(skip, mean, one) for mean, one in zip(averages, gradients, strict=True)]
            shrunk = torch.where(skip, 1.0, shrunk)
        # a launch for all instead of one each, as torch's own optimizers do it
        torch._foreach_lerp_(averages, gradients, 1 - group["momentum"])  # pyright: ignore[reportPrivateImportUsage]
        torch._foreach_mul_(parameters, shrunk)  # pyright: ignore[reportPrivateImportUsage]
        for parameter, gradient, average in zip(parameters, gradients, averages, strict=True):
            yield parameter, gradient.lerp(average, group["momentum"])


def _cut(matrix: Tensor, down: int, across: int) -> Tensor:
    """A view (down, across, rows, columns) of a matrix's equal parts, each turned so that rows <= columns."""
    rows, columns = matrix.shape
    parts = matrix.view(down, rows // down, across, columns // across).transpose(1, 2)
    return parts.mT if parts.shape[-2] > parts.shape[-1] else parts


def _gathered(updates: Iterable[tuple[Tensor, Tensor]]) -> Iterator[tuple[Tensor, Tensor]]:
    """The same, with each update whole. All are on their way before the first is waited for."""
    sent: list[tuple[Tensor, Tensor]] = []
    for parameter, update in updates:
        if isinstance(update, DTensor):
            everywhere = [Replicate()] * update.device_mesh.ndim
            halved = update.to(torch.bfloat16)
            assert isinstance(halved, DTensor)
            update = halved.redistribute(placements=everywhere, async_op=True).to_local()
        sent.append((parameter, update))
    yield from sent
