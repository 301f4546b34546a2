from __future__ import annotations

import pytest

from common.errors import InputError
from data.synthetic.catalogue import END_TICK, TICKS_A_DAY
from data.synthetic.config import DIRICHLET, YAMBDA, SynthesizeConfig


def faults_of(**keys: object) -> tuple[str, ...]:
    with pytest.raises(InputError) as caught:
        SynthesizeConfig(**{"kind": YAMBDA, "out": "out", **keys})  # type: ignore[arg-type]
    return caught.value.faults


def test_sizes_follow_from_the_kind() -> None:
    yambda, stream = (SynthesizeConfig(kind=kind, out="out") for kind in (YAMBDA, DIRICHLET))
    assert (yambda.num_items, yambda.num_artists, yambda.users) == (934_057, 133_436, 10_000)
    assert stream.num_items == 20_000
    assert yambda.begin_tick == 0  # 300 days and one reach a little beyond Yambda's origin
    assert SynthesizeConfig(kind=YAMBDA, out="out", days=9, median_history=9).begin_tick == END_TICK - 10 * TICKS_A_DAY
    assert SynthesizeConfig(kind=YAMBDA, out="out", items=3).num_artists == 1


@pytest.mark.parametrize(
    ("keys", "fault"),
    [
        ({"out": ""}, "`out` is empty; name a folder"),
        (
            {"size": "../50m"},
            "`size` is '../50m', must be letters, digits, _ and -, since a folder is named so",
        ),
        ({"users": 100_000_001}, "`users` is 100,000,001, must be at most 100,000,000; raw ids are uint32"),
        ({"items": 10, "artists": 11}, "`artists` is 11, must be at most `items` (10); each artist has an item"),
        ({"kinds": []}, "`kinds` is [], must name one or more, each once"),
        ({"layouts": ["flat", "flat"]}, "`layouts` is ['flat', 'flat'], must name one or more, each once"),
        ({"days": 301}, "`days` is 301, must be at most 300; Yambda's origin is so long before its end"),
        (
            {"days": 9},
            "`median_history` is 3,076: one user in twenty then has over 17,030 listens, and 9 days hold 3,840; "
            "take fewer listens or more `days`",
        ),
        ({"records": 5}, "`records` means nothing to kind=yambda; leave it out"),
        ({"kind": DIRICHLET, "users": 5}, "`users` means nothing to kind=dirichlet; leave it out"),
        ({"kind": DIRICHLET, "kinds": ["likes"]}, "`kinds` means nothing to kind=dirichlet; leave it out"),
        ({"kind": DIRICHLET, "initial_share": 1.5}, "`initial_share` is 1.5, must be above 0 and at most 1"),
        ({"kind": DIRICHLET, "initial_share": 0.0}, "`initial_share` is 0.0, must be above 0 and at most 1"),
        (
            {"kind": DIRICHLET, "items": 2},
            "`initial_share` is 0.4, which leaves no item of 2 for the first record",
        ),
        (
            {"kind": DIRICHLET, "records": 2**32},
            "`records` is 4,294,967,296, must be below 4,294,967,296; records are numbered in uint32",
        ),
        ({"kind": DIRICHLET, "items": 2 * 10**8}, "`items` is 200,000,000, must be at most 100,000,000"),
    ],
)
def test_a_fault_says_what_is_wrong(keys: dict[str, object], fault: str) -> None:
    assert faults_of(**keys) == (fault,)


def test_all_faults_are_told_at_once() -> None:
    assert len(faults_of(out="", size="", records=5, categories=3, days=301, layouts=[])) == 6
