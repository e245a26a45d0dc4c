import pickle

import pytest
import torch

from mlm_pytorch.objective.checks import LateCheck


def explain(values):
    return f"{values[0]} is bad" if values[0] > 1 else None


def test_on_cpu_every_call_raises_at_once():
    check = LateCheck(explain)
    check(torch.tensor([1]))
    with pytest.raises(ValueError, match="2 is bad"):
        check(torch.tensor([2]))
    check(torch.tensor([0]))


class Event:
    def synchronize(self):
        pass


def test_pending_values_raise_at_the_next_call():
    check = LateCheck(explain)
    check(torch.tensor([1]))
    check._pending = (torch.tensor([5]), Event())
    with pytest.raises(ValueError, match=r"5 is bad \(seen one call late\)"):
        check(torch.tensor([1]))
    check(torch.tensor([1]))


def test_pending_values_stay_in_their_process():
    check = LateCheck(explain)
    check._pending = (torch.tensor([5]), Event())
    assert pickle.loads(pickle.dumps(check))._pending is None


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs CUDA")
def test_on_cuda_the_first_call_raises_at_once_and_others_late():
    with pytest.raises(ValueError, match="2 is bad"):
        LateCheck(explain)(torch.tensor([2], device="cuda"))
    check = LateCheck(explain)
    check(torch.tensor([1], device="cuda"))
    check(torch.tensor([3], device="cuda"))
    with pytest.raises(ValueError, match="3 is bad .seen one call late."):
        check(torch.tensor([1], device="cuda"))
