"""What a run says when it ends."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import pytest

from trainer.errors import DiskError
from trainer.protocol import LAST_WEIGHTS
from trainer.runtime.distributed import Collectives, DistEnv
from trainer.training.summary import keep_weights


@pytest.mark.parametrize(
    ("finished", "ended"), [(True, "the training came to its end, but"), (False, "the training was stopped, but")]
)
def test_weights_that_could_not_be_written_are_named_with_how_the_training_ended(finished, ended):
    checkpoints = SimpleNamespace(
        close=lambda: None, unwritten=[LAST_WEIGHTS], last_error="No space left on device", weights_dir=Path("weights")
    )
    run = SimpleNamespace(collectives=Collectives(DistEnv()), checkpoints=checkpoints)
    with pytest.raises(DiskError) as caught:
        keep_weights(run, finished=finished)
    assert caught.value.what == f"{ended} last.pt could not be written"
    assert caught.value.seen == "weights: No space left on device"
