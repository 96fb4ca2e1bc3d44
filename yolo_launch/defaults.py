"""Holds the launcher's numbers that count if the user says nothing; options show them and requests take them."""

MAX_RESTARTS = 3
"""Restarts of a job after a failure."""
STALL_TIMEOUT_S = 300.0
"""Seconds without progress after which a job is stopped."""
JOIN_TIMEOUT_S = 600.0
"""Seconds that machines wait for one another."""
CHECK_JOIN_TIMEOUT_S = 300.0
"""The same of a cluster check."""
REJOIN_TIMEOUT_S = 300.0
"""Seconds that a lost machine is waited for."""
JOIN_GRACE_S = 30.0
"""Seconds that a job of MIN:MAX machines waits for more than MIN."""
RENDEZVOUS_PORT = 1234
"""Where the master listens, unless the scheduler names a port."""
CORES_PER_GPU = 8
"""Cores that a submitted job asks Slurm for, for each GPU."""
