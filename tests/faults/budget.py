"""How many kills the slow tests make, and from which seed; a full run is ``YOLO_FAULT_KILLS=100``."""

from __future__ import annotations

import os
import random

SEED = int(os.environ.get("YOLO_FAULT_SEED", random.SystemRandom().randrange(10**6)))
KILLS = int(os.environ.get("YOLO_FAULT_KILLS", "12"))
"""Of all slow tests together."""
WORKER_KILLS = KILLS // 4
"""Of bare workers, with one rank and again with two."""
LAUNCHER_KILLS = KILLS - 2 * WORKER_KILLS
"""Of what the launcher started, and of the launcher."""
