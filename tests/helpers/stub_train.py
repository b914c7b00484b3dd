"""Stands in for a launcher and train.py in tests of sweeps: owns a run folder for a while, then writes its results.

    python stub_train.py JOURNAL train.py --recipe ... --output.dir FOLDER

JOURNAL gets a line at each start. The encoder's name says what happens: `fails`, `slow`.
"""

import fcntl
import json
import os
import signal
import sys
import time
from pathlib import Path

journal, _, *arguments = sys.argv[1:]
folder = Path(arguments[arguments.index("--output.dir") + 1])
with open(journal, "a") as file:
    file.write(f"{folder.parent.name}/{folder.name} {os.getpid()} {os.environ.get('OMP_NUM_THREADS')}\n")
folder.mkdir(parents=True, exist_ok=True)
lock = open(folder / ".lock", "a")  # noqa: SIM115
fcntl.lockf(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
(folder / "recipe.yaml").write_text("data: {val: [shapes]}\ntrain: {steps: 10, global_batch_size: 4}\n")


def save(*_):
    (folder / "preempted.json").write_text(json.dumps({"step": 4}))
    sys.exit(75)


signal.signal(signal.SIGTERM, save)
if "fails" in folder.name:
    print("error: the stand-in fails, as it was asked to.")
    sys.exit(2)
(folder / "preempted.json").unlink(missing_ok=True)
end = time.monotonic() + (30 if "slow" in folder.name and not (folder / "hurry").exists() else 0.4)
while time.monotonic() < end:
    time.sleep(0.05)
results = {"train_seconds": 1.0, "eval_seconds": 1.0, "step": 10, "mean_iou": 0.5, "versions": {}}
(folder / "results.json").write_text(json.dumps(results))
