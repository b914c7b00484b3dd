"""mypy, against a baseline that may only shrink: .ci/types_baseline.txt has the number of errors of each file.

`python .ci/check_types.py --update` writes the baseline; never to let a number grow.
"""

import re
import subprocess
import sys
from collections import Counter
from pathlib import Path

BASELINE = Path(__file__).with_name("types_baseline.txt")


def main() -> int:
    done = subprocess.run([sys.executable, "-m", "mypy"], capture_output=True, text=True)
    errors = [line for line in done.stdout.splitlines() if ": error: " in line]
    if done.returncode not in (0, 1) or not re.search("^(Found|Success)", done.stdout, re.MULTILINE):
        print(done.stdout, done.stderr)
        return done.returncode or 1
    found = Counter(re.match(r"[^:]+", line)[0] for line in errors)
    if sys.argv[1:] == ["--update"]:
        BASELINE.write_text("".join(f"{count} {file}\n" for file, count in sorted(found.items())))
        return 0
    known = Counter({file: int(count) for count, file in map(str.split, BASELINE.read_text().splitlines())})
    for line in errors:
        if found[line.partition(":")[0]] > known[line.partition(":")[0]]:
            print(line)
    grown = [file for file in found if found[file] > known[file]]
    shrunk = [file for file in known if found[file] < known[file]]
    if shrunk and not grown:
        print(f"Fewer errors in {', '.join(shrunk)}: run python .ci/check_types.py --update.")
    print(f"types: {sum(found.values())} errors, {sum(known.values())} in the baseline")
    return int(bool(grown or shrunk))


if __name__ == "__main__":
    sys.exit(main())
