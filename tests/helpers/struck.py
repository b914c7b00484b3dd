"""train.py in a launched process that strikes at an event, and that writes down with which status it ends.

accelerate launch tests/helpers/struck.py FOLDER BLOW [flags of train.py]; the status goes to FOLDER/status-RANK.
"""

import json
import os
import runpy
import sys
from pathlib import Path

from interrupted import Blow, strike

folder, blow = Path(sys.argv[1]), Blow(**json.loads(sys.argv[2]))
rank = int(os.environ.get("RANK", 0))
sys.argv = ["train.py", *sys.argv[3:]]
if rank == blow.rank:
    strike(blow)
try:
    runpy.run_path("train.py", run_name="__main__")
    status = 0
except SystemExit as end:
    status = end.code
(folder / f"status-{rank}").write_text(str(status))
sys.exit(status)
