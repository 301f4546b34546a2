"""Which errors are the loss of a peer, and what counts as waiting for the others."""

from __future__ import annotations

import threading
import time
from datetime import timedelta

import pytest
import torch
import torch.distributed as dist
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from sharding.ranks.collectives import Blocked, is_loss
from sharding.world import World
from tests.ranks import run_on_ranks

GLOO = "[/src/third_party/gloo/gloo/transport/tcp/"


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (RuntimeError(f"{GLOO}pair.cc:553] Connection closed by peer [127.0.0.1]:6867."), True),
        (RuntimeError(f"{GLOO}unbound_buffer.cc:78] Timed out waiting 4000ms for recv operation to complete"), True),
        (RuntimeError("Application timeout caused pair closure"), True),
        (dist.DistStoreError("wait timeout after 1000ms, keys: /a"), True),
        (dist.DistNetworkError("Broken pipe"), True),
        (dist.DistBackendError("NCCL error: remote process exited or there was a network error"), True),
        (dist.DistBackendError("NCCL error: invalid usage"), False),
        (
            RuntimeError("[enforce fail at gloo/transport/tcp/pair.cc:446] op.preamble.length <= op.nbytes. 20 vs 10"),
            False,
        ),
        (RuntimeError("mat1 and mat2 shapes cannot be multiplied"), False),
        (ValueError("Connection closed by peer"), False),
        (ConnectionResetError("an object store's"), False),
    ],
)
def test_the_loss_of_a_peer_is_told_from_a_bug(error: Exception, expected: bool) -> None:
    assert is_loss(error) == expected
    wrapped = RuntimeError("the checkpoint failed")
    wrapped.__cause__ = error
    assert is_loss(wrapped) == expected


def wait_for_a_late_rank(world: World) -> dict[str, float]:
    """Seconds that this rank is blocked, at each place where it may be; rank 1 is late to all of them."""
    blocked, found = Blocked(world.device), {}
    blocked.install()

    def late() -> None:
        time.sleep(0.2 * world.rank)

    late()
    dist.all_reduce(torch.ones(3))
    found["collective"] = blocked.take()
    blocked.put_back(0.0)
    work = dist.all_reduce(torch.ones(3), async_op=True)
    late()
    work.wait()
    found["own work meanwhile"] = blocked.take()
    blocked.put_back(0.0)
    model = DistributedDataParallel(nn.Linear(4, 1))
    dist.barrier()
    blocked.put_back(0.0)
    loss = model(torch.ones(2, 4)).sum()
    late()
    blocked.backward(loss)
    found["gradients"] = blocked.take()
    assert model.module.weight.grad is not None
    group = dist.new_group(backend="gloo", timeout=timedelta(seconds=60))
    dist.barrier()
    blocked.put_back(0.0)
    thread = threading.Thread(target=lambda: (late(), dist.barrier(group=group)))
    thread.start()
    thread.join()
    found["another thread's"] = blocked.take()
    blocked.remove()
    late()
    dist.all_reduce(torch.ones(3))
    found["removed"] = blocked.take()
    return found


def test_waiting_is_counted_on_the_rank_that_waits_and_nowhere_else() -> None:
    first, second = run_on_ranks(2, wait_for_a_late_rank)
    for place in ("collective", "gradients"):
        assert 0.12 < first[place] < 1.0, (place, first)
        assert second[place] < 0.1, (place, second)
    assert max(first["own work meanwhile"], second["own work meanwhile"]) < 0.1, "what is under way holds nobody up"
    for place in ("another thread's", "removed"):
        assert first[place] == second[place] == 0.0


def test_gradients_are_those_of_a_plain_backward() -> None:
    weight = torch.ones(3, requires_grad=True)
    Blocked(torch.device("cpu")).backward((weight * torch.arange(3.0)).sum())
    assert weight.grad is not None
    assert weight.grad.tolist() == [0.0, 1.0, 2.0]
