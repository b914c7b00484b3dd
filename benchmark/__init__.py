"""Fine-tune vision foundation models for semantic segmentation and rank them."""

import os

# Read at once, because the launcher may have ended by the time torch is imported.
LAUNCHER = os.getppid()
