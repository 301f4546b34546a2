from __future__ import annotations

import logging
import warnings

from common.noise import quiet_known_warnings


def test_known_warnings_are_silent_and_others_are_not() -> None:
    with warnings.catch_warnings(record=True) as seen:
        warnings.simplefilter("always")
        quiet_known_warnings()
        warnings.warn("torch.distributed._sharded_tensor will be deprecated", UserWarning, stacklevel=1)
        warnings.warn("Please use DTensor instead and we are deprecating ShardedTensor.", FutureWarning, stacklevel=1)
        warnings.warn("this array is not writable", UserWarning, stacklevel=1)
        warnings.warn("`broadcast_buffers` is deprecated. Use `forward_sync_buffers`", FutureWarning, stacklevel=1)
        warnings.warn("a metric is deprecated", FutureWarning, stacklevel=1)
    assert [str(warning.message) for warning in seen] == ["this array is not writable", "a metric is deprecated"]


def test_info_logs_of_torchrec_are_silent_and_its_errors_are_not() -> None:
    quiet_known_warnings()
    assert not logging.getLogger("torchrec.distributed").isEnabledFor(logging.WARNING)
    assert logging.getLogger("torchrec.distributed").isEnabledFor(logging.ERROR)
    assert logging.getLogger("torch.distributed").isEnabledFor(logging.WARNING)
