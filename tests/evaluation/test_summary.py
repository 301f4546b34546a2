from __future__ import annotations

import numpy as np
from hypothesis import given

from evaluation.summary import sharers
from tests.serving.engines.helpers import Case, cases


@given(cases())
def test_sharers_are_counted_as_tuple_by_tuple(case: Case) -> None:
    tuples = [tuple(codes) for codes in case.table.codes_NC.tolist()]
    expected = [tuples.count(codes) for codes in tuples]
    np.testing.assert_array_equal(sharers(case.table), expected)
