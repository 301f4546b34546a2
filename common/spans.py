"""Names of the parts of a training step, as profilers show them beside those of TorchRec's pipeline.

Without a profiler a span costs a few microseconds, so they stand around what takes milliseconds.
"""

from __future__ import annotations

import torch

DATA_WAIT = "segue: data wait"
LOOKUP = "segue: lookup"
"""What tables say of a batch, summed and spread over its tokens."""
PROJECTIONS = "segue: projections"
"""All of an encoder but its attention."""
ATTENTION = "segue: attention"
HEADS = "segue: heads and loss"

span = torch.profiler.record_function
"""`with span(NAME):`"""
