"""A plan written is the plan read, and the one TorchRec is given; a damaged one is refused with what is wrong."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torchrec.distributed.types import ShardMetadata

from common.errors import InputError
from sharding.planning.placement import Placement, row_wise
from sharding.planning.placement_file import check_matches, read_placement
from sharding.planning.policy import SHARDINGS
from sharding.world import World
from tests.sharding.plan_example import Tables, cluster_of, placement_of, plan_of, use_of

CLUSTER = cluster_of(2, 2)
USES = (
    use_of("event_type", 3, 8),
    use_of("artist_quotient", 6, 8),
    use_of("artist_remainder", 9, 8),
    use_of("rq", 7, 8),
    use_of("item", 9, 4, pooled=False),
)


def one_of_each() -> Placement:
    """All ways to cut a table, a tier below among them."""
    event_type, quotient, remainder, rq, item = USES
    return placement_of(
        CLUSTER,
        plan_of(event_type, "table-wise", (3, 0, 3, 0, 8)),
        plan_of(quotient, "column-wise", (2, 0, 6, 0, 4), (1, 0, 6, 4, 4), kernel="uvm"),
        plan_of(remainder, "table-row-wise", (2, 0, 5, 0, 8), (3, 5, 4, 0, 8)),
        plan_of(rq, "row-wise", (0, 0, 2, 0, 8), (1, 2, 2, 0, 8), (2, 4, 2, 0, 8), (3, 6, 1, 0, 8)),
        plan_of(
            item,
            "row-wise",
            (0, 0, 3, 0, 4),
            (1, 3, 3, 0, 4),
            (2, 6, 3, 0, 4),
            (3, 9, 0, 0, 4),
            kernel="uvm-caching",
            cache=0.25,
        ),
        communication="bfloat16",
    )


def test_a_plan_written_is_the_plan_read(tmp_path: Path) -> None:
    path = tmp_path / "plan.json"
    path.write_text(json.dumps(one_of_each().to_plain() | {"seconds": 1.0}))
    assert read_placement(path) == one_of_each()
    check_matches(read_placement(path), Tables(*USES), [2, 2], "cuda", "plan.json")


def test_torchrec_is_given_every_piece() -> None:
    placement = one_of_each()
    plan: Any = placement.to_torchrec().plan
    assert set(plan) == {"ebc", "item_table"}
    assert set(plan["ebc"]) == {use.name for use in USES[:4]}
    for table in placement.tables:
        sharding = plan[table.module][table.name]
        assert sharding.sharding_type == SHARDINGS[table.sharding]
        assert sharding.ranks == [piece.rank for piece in table.pieces]
        assert sharding.sharding_spec.shards == [
            ShardMetadata(
                [piece.first_row, piece.first_column],
                [piece.rows, piece.columns],
                f"rank:{piece.rank}/cuda:{piece.rank % 2}",
            )
            for piece in table.pieces
        ]
    assert plan["item_table"]["item"].cache_params.load_factor == 0.25
    assert plan["ebc"]["rq"].cache_params is None
    assert plan["ebc"]["artist_quotient"].compute_kernel == "fused_uvm"


def test_on_the_cpu_ranks_have_no_device_of_their_own() -> None:
    placement = row_wise(Tables(USES[3]), World(0, 3, 3, torch.device("cpu")))
    plan: Any = placement.to_torchrec().plan
    placed = [str(shard.placement) for shard in plan["ebc"]["rq"].sharding_spec.shards]
    assert placed == ["rank:0/cpu", "rank:1/cpu", "rank:2/cpu"]


Change = Callable[[dict[str, Any]], Any]


def set_in(index: int, key: str, value: Any) -> Change:
    return lambda plan: plan["tables"][index].__setitem__(key, value)


def set_piece(index: int, piece: int, at: int, value: Any) -> Change:
    def change(plan: dict[str, Any]) -> None:
        pieces = plan["tables"][index]["pieces"]
        pieces[piece] = [*pieces[piece][:at], value, *pieces[piece][at + 1 :]]

    return change


def on_the_cpu(plan: dict[str, Any]) -> None:
    """All in one memory, where the last rank holds no item."""
    plan["device"] = "cpu"
    for table in plan["tables"]:
        table |= {"kernel": "fused", "cache_load_factor": 0.0}


DAMAGED: list[tuple[Change, str]] = [
    (lambda plan: plan.pop("tables"), "not a plan: KeyError 'tables'"),
    (lambda plan: plan.update(tables=[]), "has no tables"),
    (lambda plan: plan.update(tables=7), "not a plan: TypeError"),
    (lambda plan: plan.update(format=2), "format 2, expected 1"),
    (lambda plan: plan.update(device="tpu"), "device is 'tpu', expected cuda or cpu"),
    (lambda plan: plan.update(communication="int4"), "communication is 'int4', expected one of float32"),
    (lambda plan: plan.update(ranks_per_node=[]), r"ranks_per_node is \[\]"),
    (lambda plan: plan.update(ranks_per_node=[5, -1]), r"ranks_per_node is \[5, -1\]"),
    (lambda plan: plan.update(ranks_per_node=[10**9]), r"ranks_per_node is \[1000000000\], expected 1 to 4096"),
    (lambda plan: plan["tables"].append(plan["tables"][3]), "table `rq` stands there 2 times"),
    (set_in(3, "rows", 7.5), "TypeError 7.5 where int is expected"),
    (set_in(3, "rows", "7"), "TypeError '7' where int is expected"),
    (set_in(3, "pooled", "no"), "TypeError 'no' where bool is expected"),
    (set_in(3, "rows", 1e999), "TypeError inf where int is expected"),
    (set_in(3, "pieces", [[0, 0]]), "not a plan: TypeError"),
    (set_in(3, "sharding", "diagonal"), "`rq`: sharding 'diagonal' with kernel 'fused' is not known"),
    (set_in(3, "kernel", "tape"), "`rq`: sharding 'row-wise' with kernel 'tape' is not known"),
    (set_in(4, "cache_load_factor", 0), "`item`: cache_load_factor is 0.0"),
    (set_in(3, "width", 9), "`rq`: its pieces do not make up 7 × 9 numbers, each once"),
    (set_in(3, "rows", 9), "`rq`: row-wise pieces are not ⌈rows / ranks⌉ rows"),
    (set_piece(3, 0, 0, 4), "`rq`: Piece.rank=4, .* lies outside 7 × 8 or 4 ranks"),
    (set_piece(3, 0, 1, -1), "`rq`: .* lies outside"),
    (set_piece(3, 0, 4, 0), "`rq`: .* lies outside"),
    (set_piece(3, 1, 3, 2), "`rq`: .* lies outside"),
    (set_piece(3, 1, 4, 4), "`rq`: its pieces do not make up 7 × 8 numbers, each once"),
    (set_piece(3, 0, 0, 1), "`rq`: row-wise pieces are not"),
    (set_piece(1, 1, 3, 0), "`artist_quotient`: its pieces do not make up 6 × 8 numbers, each once"),
    (set_piece(2, 1, 1, 4), "`artist_remainder`: its pieces do not make up 9 × 8 numbers, each once"),
    (
        set_in(1, "sharding", "table-wise"),
        "`artist_quotient`: its pieces are not those .* cut table-wise",
    ),
    (set_in(2, "sharding", "column-wise"), "`artist_remainder`: its pieces are not those .* cut column-wise"),
    (set_in(3, "sharding", "table-row-wise"), "`rq`: its pieces are not those .* cut table-row-wise"),
    (set_in(2, "pieces", [[2, 4, 5, 0, 8], [3, 0, 4, 0, 8]]), "`artist_remainder`: .* that is cut table-row-wise"),
    (set_piece(2, 1, 0, 1), "`artist_remainder`: its pieces are not those .* cut table-row-wise"),
    (lambda plan: plan.update(device="cpu"), "`artist_quotient`: kernel uvm needs GPUs; the plan is for the cpu"),
    (lambda plan: plan.update(communication="int8"), "`artist_remainder`: cut table-row-wise, .* which int8 cannot do"),
    (lambda plan: on_the_cpu(plan), "table `item` has 9 rows, too few for each of 4 ranks"),
]


@pytest.mark.parametrize(("change", "said"), DAMAGED, ids=[said[:40] for _, said in DAMAGED])
def test_a_damaged_plan_is_refused_with_what_is_wrong(tmp_path: Path, change: Change, said: str) -> None:
    plan = json.loads(json.dumps(one_of_each().to_plain()))
    change(plan)
    path = tmp_path / "plan.json"
    path.write_text(json.dumps(plan))
    with pytest.raises(InputError, match=said) as raised:
        read_placement(path)
    assert all(fault.startswith(f"{path}: ") for fault in raised.value.faults)


def test_every_damaged_table_is_named(tmp_path: Path) -> None:
    plan = one_of_each().to_plain()
    plan["tables"][0]["kernel"] = "tape"
    plan["tables"][3]["rows"] = 9
    (tmp_path / "plan.json").write_text(json.dumps(plan))
    with pytest.raises(InputError) as raised:
        read_placement(tmp_path / "plan.json")
    assert [fault.split("`")[1] for fault in raised.value.faults] == ["event_type", "rq"]


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b"7", b"\xff\xfe", b"[" * 100_000, b'{"format": 1}'])
def test_what_is_no_plan_at_all(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "plan.json"
    path.write_bytes(content)
    with pytest.raises(InputError, match=r"plan\.json: (not a plan|format)"):
        read_placement(path)
    with pytest.raises(InputError, match="no such plan"):
        read_placement(tmp_path / "other.json")


def test_a_plan_of_another_job_says_all_that_differs() -> None:
    placement = one_of_each()
    other = Tables(
        use_of("event_type", 3, 8),
        use_of("artist_remainder", 9, 4, pooled=False),
        use_of("rq", 8, 8),
        use_of("item", 9, 4, pooled=False),
        use_of("mood", 2, 8),
    )
    with pytest.raises(InputError) as raised:
        check_matches(placement, other, [4], "cpu", "p")
    assert list(raised.value.faults) == [
        "p: is for nodes of [2, 2] ranks, this job has [4]",
        "p: is for cuda, this job runs on cpu",
        "p: has a table `artist_quotient`, which this model lacks",
        "p: table `artist_remainder` has 9 rows × 8 there and 9 × 4 in this model",
        "p: has no table `mood`, which this model has",
        "p: table `rq` has 7 rows × 8 there and 8 × 8 in this model",
        "p: plan anew for this job: python -m sharding.plan …, or leave it out",
    ]
    moved = placement_of(CLUSTER, plan_of(USES[3], "table-wise", (3, 0, 7, 0, 8)))
    with pytest.raises(InputError, match="table `rq` lies in `ebc` there and in `item_table` in this model"):
        check_matches(moved, Tables(use_of("rq", 7, 8, pooled=False)), [2, 2], "cuda", "p")
    with pytest.raises(InputError, match="p: is for 4 ranks, this job has 3"):
        check_matches(placement, Tables(*USES), [2, 1], "cuda", "p")
