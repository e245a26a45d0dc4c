"""What a transformer sees when it fills a mask: all of its row, in order, and nothing of other rows.

Three mistakes change none of these shapes and raise no error, and a model still learns something with each: attention
over the batch (torch's layers take (length, batch) unless `batch_first=True`), attention to the left alone (a decoder),
and no positions. Each is found by changing ids and looking which logits change with them.
"""

# L length, V vocabulary

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

UNSEEN = 1e-5  # of the largest logit: rounding, such as a sum in another order, stays below it
SEEN = 1e-3  # what is not to be mistaken for rounding
NEIGHBOURS = 2  # adjacent positions looked at together: one alone may be the last of its block in blocked attention


def oddities(
    logits_of_ids: Callable[[Tensor], Tensor], input_ids: Tensor, is_token: Tensor, name: str
) -> tuple[str, ...]:
    """Sentences about what a transformer sees and should not, or should and does not; none where all is well.

    Args:
        logits_of_ids: ids (2, L) to logits (2, L, V), the same each time; in evaluation mode, without gradients.
        input_ids: (2, L) int64; one row, or few tokens, tell little, and nothing is said.
        is_token: (2, L) bool, False at padding.
        name: the transformer's, for the sentences.

    A claim needs proof of the opposite: "nothing that follows" is said where what stands before is seen, "no order"
    where changed ids are seen. Four forward passes.
    """
    rows_of_tokens = [row.nonzero().squeeze(1) for row in is_token]
    if len(rows_of_tokens) < 2 or min(map(len, rows_of_tokens)) < 2 * NEIGHBOURS + 2:
        return ()
    generator = torch.Generator().manual_seed(0)
    content = input_ids[is_token]
    wanted = logits_of_ids(input_ids)
    scale = float(wanted.abs().max())

    def change(where: Tensor, ids: Tensor) -> Callable[[Tensor], float]:
        """How far the first row's logits at some positions move with ids put elsewhere, as a share of the largest."""
        changed = input_ids.clone().flatten().index_copy(0, where, ids).view_as(input_ids)
        moved = (logits_of_ids(changed)[0] - wanted[0]).abs().amax(-1) / scale
        return lambda positions: float(moved[positions].max())

    def others(where: Tensor) -> Tensor:
        drawn = torch.randint(len(content), (len(where),), generator=generator)
        return content[drawn.to(content.device)]

    first, second = rows_of_tokens
    middle = first[len(first) // 2 - 1 :][:NEIGHBOURS]
    before, after = first[first < middle[0]], first[first > middle[-1]]
    elsewhere = torch.cat([before, after])
    shuffled = elsewhere[torch.randperm(len(elsewhere), generator=generator).to(elsewhere.device)]

    said = []
    if change(second + input_ids.shape[1], others(second))(first) > UNSEEN:
        said.append(
            f"rows of a batch see each other in {name}: the logits of one change with the ids of another; torch's own "
            "layers take (length, batch) unless they are built with batch_first=True"
        )
    left, right = change(before, others(before))(middle), change(after, others(after))(middle)
    if left > SEEN and right < UNSEEN:
        said.append(
            f"no position of {name} sees what follows it, as in a decoder, so masks are filled from what stands before "
            "them alone; let it attend both ways (causal=False, is_causal=False), or take an encoder"
        )
    if max(left, right) > SEEN and change(elsewhere, input_ids[0, shuffled])(middle[:1]) < UNSEEN:
        said.append(
            f"{name} takes no notice of order: shuffled tokens around a mask give the same logits; add positions to "
            "its embeddings, unless your sequences are sets"
        )
    return tuple(said)
