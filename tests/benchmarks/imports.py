"""Import the pytest plugin where pytest is loaded already; tell how long it took, and what has been loaded."""

import json
import sys
import time

import pytest  # noqa: F401 - it is there in every run

if __name__ == "__main__":
    start = time.perf_counter()
    import pytest_sandpoint.plugin  # noqa: F401

    seconds = time.perf_counter() - start
    print(json.dumps({"seconds": seconds, "loaded": sorted({name.partition(".")[0] for name in sys.modules})}))
