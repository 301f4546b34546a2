"""Plain item ids in the form of semantic ids."""

from __future__ import annotations

import numpy as np
import pytest

from common.errors import InputError
from semantic_ids.codes.item_ids import WIDTH, item_codes, random_codebook


@pytest.mark.parametrize("items", [1, 2, 300, 65535])
def test_every_item_has_a_code_and_zero_is_nobodys(items):
    codes_NC = item_codes(items)
    assert codes_NC.dtype == np.uint16
    np.testing.assert_array_equal(codes_NC, np.arange(1, items + 1)[:, None])


def test_more_items_than_codes():
    with pytest.raises(InputError, match="has 65,536 items, and a level has at most 65,535 codes"):
        item_codes(65536)


@pytest.mark.parametrize("items", [1, 300])
def test_no_item_is_like_another(items):
    codebook = random_codebook(items, 3)
    assert (codebook.dtype, codebook.shape) == (np.float32, (1, items + 1, WIDTH))
    likeness = codebook[0] @ codebook[0].T
    np.testing.assert_allclose(np.diag(likeness), 1, atol=1e-6)
    assert np.abs(likeness - np.eye(items + 1)).max() < 0.7
    np.testing.assert_array_equal(codebook, random_codebook(items, 3))
    assert (codebook != random_codebook(items, 4)).any()
