"""What ranks share of a look at a model."""

import pytest
from torch import nn

from evaluation.together import evaluating


@pytest.mark.parametrize("training", [True, False])
def test_a_model_has_its_mode_again_whatever_happens(training: bool) -> None:
    model = nn.Dropout().train(training)
    with evaluating(model):
        assert not model.training
    assert model.training == training
    with pytest.raises(ValueError, match="in the middle"), evaluating(model):
        raise ValueError("in the middle")
    assert model.training == training
