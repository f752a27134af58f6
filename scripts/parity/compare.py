"""Compare newly recorded fixtures with the committed ones: `make parity` runs this.

PYTHONPATH=tests python scripts/parity/compare.py FOLDER
"""

from __future__ import annotations

import sys
from pathlib import Path

from parity_cases import CASES
from support import parity


def main() -> None:
    """Print what differs by more than the tolerances of the tests; exit with 1 if anything does."""
    folder, found = Path(sys.argv[1]), []
    for name in CASES:
        old, new = parity.load(name), parity.load(name, folder)
        if old.permutations != new.permutations:
            found.append(f"{name}: other permutations of the mini-batches")
        found += [f"{name}: {line}" for line in parity.compare(old, parity.recorded(new))]
    if found:
        lines = "\n".join(found[:20])
        sys.exit(
            f"{lines}\n{len(found)} differences. If the cases were changed on purpose, copy "
            f"{folder} over {parity.RECORDED.relative_to(Path.cwd())}"
        )
    print(f"{len(CASES)} cases recorded anew: the same as the committed ones")


if __name__ == "__main__":
    main()
