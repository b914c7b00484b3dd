"""Fine-tune vision foundation models for semantic segmentation and rank them."""

import os

# Read at once, because the launcher may have ended by the time torch is imported.
LAUNCHER = os.getppid()

# GNU's OpenMP reads it when torch is imported. By default a thread that waits for another one keeps its core busy for
# milliseconds, and two runs on the same cores take several times as long as one after the other.
if "OMP_WAIT_POLICY" not in os.environ:
    os.environ.setdefault("GOMP_SPINCOUNT", "1500")
