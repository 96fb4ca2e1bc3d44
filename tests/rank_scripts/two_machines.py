"""One rank, the first of its own machine: reads the machine's copy of a data set; prints what it makes of it."""

import os
import sys
from pathlib import Path

import torch

from trainer.errors import DataError
from trainer.protocol import LogFiles
from trainer.runtime.distributed import Collectives, DistEnv, process_group
from trainer.runtime.heartbeat import HeartbeatWriter
from trainer.runtime.reporter import Reporter
from trainer.training.run_data import load_data

folder, rank = Path(sys.argv[1]), int(os.environ["RANK"])
os.environ |= {"LOCAL_RANK": "0", "XDG_CACHE_HOME": str(folder / f"cache{rank}")}
env = DistEnv.from_environ()
with process_group(env, torch.device("cpu")):
    heartbeat, reporter = HeartbeatWriter(LogFiles(folder), rank), Reporter(enabled=env.is_main)
    try:
        data = load_data(
            sys.argv[2 + rank], single_cls=False, collectives=Collectives(env), reporter=reporter, heartbeat=heartbeat
        )
        print(f"{len(data.train)} and {len(data.val)} images")
    except DataError as error:
        print(error)
