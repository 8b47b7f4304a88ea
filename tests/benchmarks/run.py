"""`make bench`: put the tests' directory on the path, and run."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks.bench import main

if __name__ == "__main__":
    sys.exit(main())
