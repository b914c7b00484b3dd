"""train.py in a launched process that is interrupted at an event; it writes the status with which it ends.

accelerate launch tests/helpers/interrupted_train.py FOLDER INTERRUPTION [flags of train.py]

The status is written to FOLDER/status-RANK.
"""

import json
import os
import runpy
import sys
from pathlib import Path

from interruption import Interruption, interrupt_at

folder, interruption = Path(sys.argv[1]), Interruption(**json.loads(sys.argv[2]))
rank = int(os.environ.get("RANK", 0))
sys.argv = ["train.py", *sys.argv[3:]]
if rank == interruption.rank:
    interrupt_at(interruption)
try:
    runpy.run_path("train.py", run_name="__main__")
    status = 0
except SystemExit as end:
    status = end.code
(folder / f"status-{rank}").write_text(str(status))
sys.exit(status)
