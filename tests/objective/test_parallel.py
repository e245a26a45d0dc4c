"""Two processes on one machine: gradients are those of both batches, and no rank waits for one without targets."""

import warnings

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from torch import nn

from mlm_pytorch.objective import MLM
from mlm_pytorch.objective.head import bare_module

pytestmark = pytest.mark.skipif(not dist.is_available(), reason="torch is built without distributed")


def make():
    torch.manual_seed(0)
    return nn.Sequential(nn.Embedding(61, 16), nn.Linear(16, 16), nn.GELU(), nn.Linear(16, 61))


def batch(rank):
    ids = torch.randint(3, 61, (2, 12), generator=torch.Generator().manual_seed(rank))
    return ids if rank == 0 else torch.zeros_like(ids)  # the second rank has padding only


def expected():
    model = MLM(make(), dense=True)
    torch.manual_seed(0)
    model(batch(0)).backward()
    return [p.grad / 2 for p in model.parameters()]  # DDP's mean; the other rank adds 0


def worker(rank, meeting_place):
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{meeting_place}", rank=rank, world_size=2)
    try:
        for how in ("outside", "inside", "sharded"):  # in one process: starting one costs more than running it
            run(rank, how)
        for how in ("outside", "inside", "verified"):
            run_in_flat_shards(rank, how)
    finally:
        dist.destroy_process_group()


def run(rank, how):
    if how == "outside":
        model = nn.parallel.DistributedDataParallel(MLM(make()))
    elif how == "inside":
        model = MLM(nn.parallel.DistributedDataParallel(make()))
    else:
        model = sharded()
    for _ in range(2):
        model.zero_grad()
        torch.manual_seed(rank)
        model(batch(rank)).backward()
    for parameter, gradient in zip(model.parameters(), expected(), strict=True):
        grad = parameter.grad
        grad = grad.full_tensor() if hasattr(grad, "full_tensor") else grad
        torch.testing.assert_close(grad, gradient)


def sharded():
    from torch.distributed.fsdp import fully_shard

    model = MLM(make())
    verdict = model.verify(batch(0))
    assert verdict.head is not None
    mesh = dist.device_mesh.init_device_mesh("cpu", (2,))
    fully_shard(model.transformer[3], mesh=mesh)
    fully_shard(model, mesh=mesh)
    late = MLM(model.transformer)
    with pytest.warns(UserWarning, match=r"sharded already; call mlm.verify\(seq\) before sharding"):
        late.verify(batch(0))
    return model


def run_in_flat_shards(rank, how):
    """FullyShardedDataParallel, some blocks in units of their own: the loss is right, and no weight is touched."""
    from torch.distributed.fsdp import FullyShardedDataParallel
    from torch.distributed.fsdp.wrap import ModuleWrapPolicy

    settings = {"use_orig_params": True, "device_id": torch.device("cpu")}

    def shard(module):
        return FullyShardedDataParallel(module, auto_wrap_policy=ModuleWrapPolicy({nn.Linear}), **settings)

    bare = make()
    if how == "inside":
        model = MLM(shard(bare))
        assert bare_module(model.transformer) is bare
    else:
        inner = MLM(bare)
        if how == "verified":
            assert inner.verify(batch(0)).head is not None
        model = shard(inner)
    reference = MLM(make(), dense=True)
    torch.manual_seed(rank)
    refused = warnings.catch_warnings() if how == "verified" else pytest.warns(UserWarning, match="sharded already")
    with refused:
        loss = model(batch(rank))
    torch.manual_seed(rank)
    torch.testing.assert_close(loss, reference(batch(rank)))
    whole = model.transformer if how == "inside" else model
    with FullyShardedDataParallel.summon_full_params(whole):
        for parameter, original in zip(bare.parameters(), make().parameters(), strict=True):
            assert torch.equal(parameter, original)


def test_two_processes(tmp_path):
    mp.spawn(worker, (str(tmp_path / "ranks"),), nprocs=2)  # a file: a free port may be taken before it is used
