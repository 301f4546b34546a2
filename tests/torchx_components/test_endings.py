from __future__ import annotations

import signal
import threading
import time

import pytest
from torch.distributed import TCPStore

from torchx_components.endings import Endings, NodeEnd, RankEnd, describe, duration, overall


@pytest.mark.parametrize(
    ("statuses", "status"),
    [
        ([], 0),
        ([0, 0], 0),
        ([0, 1], 1),
        ([1, 4], 1),
        ([143, 4, 1], 143),
        ([143, 130], 130),
        ([130, 3], 3),
        ([4, 2, 3], 2),
    ],
)
def test_the_status_of_several(statuses: list[int], status: int) -> None:
    assert overall(statuses) == status


def test_ranks_in_words() -> None:
    killed = RankEnd(9, 1, "n2", -signal.SIGKILL, 7500)
    assert str(killed) == "rank 9 (local 1) on n2 ended by SIGKILL after 2 h 5 min"
    assert [killed.status, *(RankEnd(0, 0, "n1", code, 1).status for code in (77, -signal.SIGSEGV))] == [4, 1, 1]
    assert "by signal 63 after" in str(RankEnd(0, 0, "n1", -63, 1))
    many = [RankEnd(rank, 0, "n1", 4, 5) for rank in range(9)]
    line = describe([*many, killed])
    assert line.startswith("rank 9 ")  # what the others' loss follows from
    assert line.endswith("rank 6 (local 0) on n1 ended with status 4 after 5 s; and 2 more")
    assert [duration(seconds) for seconds in (0.4, 119, 120, 7200)] == ["0 s", "119 s", "2 min", "2 h 0 min"]


def test_nodes_hear_how_the_others_ended() -> None:
    server = TCPStore("localhost", 0, is_master=True, multi_tenant=True)
    clients = [TCPStore("localhost", server.port, multi_tenant=True) for _ in range(2)]
    first, second = Endings(clients[0], "n1", is_host=True), Endings(clients[1], "n2", is_host=False)
    assert second.told() == []
    ends = [NodeEnd("n1", 0), NodeEnd("n2", 2, (RankEnd(1, 0, "n2", 2, 0.25, "a — fault\nof two lines"),))]
    heard: list[list[NodeEnd]] = []

    def part() -> None:
        second.tell(ends[1])
        heard.append(second.wait(2, lambda: 2, 20))

    first.tell(ends[0])
    other = threading.Thread(target=part)
    other.start()
    assert set(first.wait(2, lambda: 2, 20)) == set(ends)  # told at once, heard in either order
    other.join(20)
    assert [set(told) for told in heard] == [set(ends)]


def test_nobody_waits_for_a_dead_node() -> None:
    store = TCPStore("localhost", 0, is_master=True, multi_tenant=True)
    endings = Endings(store, "n1", is_host=True)
    end = NodeEnd("n1", 4)
    endings.tell(end)
    began = time.monotonic()
    assert endings.wait(2, lambda: 1, 60) == [end]
    assert time.monotonic() - began < 10
