"""What one worker runs, test after test, where pytest-xdist runs several workers side by side."""

from typing import Any

from xdist.scheduler import LoadScopeScheduling  # type: ignore[import-untyped]

ON_THE_ENGINE = (
    "tests/integration/docker/",
    "tests/unit/sandboxes/",
    "tests/e2e/test_examples.py::test_a_database_in_a_container",
)
"""Their tests look at all that is on the Docker engine, and prune it: one at a time."""


def lane_of(test: str) -> str:
    """Return what of all tests is run by the same worker as one, given by its id."""
    return "docker" if test.startswith(ON_THE_ENGINE) else test.partition("::")[0]


class Lanes(LoadScopeScheduling):  # type: ignore[misc]
    """A file is a lane, for it may have fixtures of its module; what uses the Docker engine is one lane together.

    A test that ends its worker, as one does that takes longer than the limit, is not run again: xdist by itself would
    do so with every new worker, without end.
    """

    def _split_scope(self, nodeid: str) -> str:
        return lane_of(nodeid)

    def remove_node(self, node: Any) -> str | None:
        """Hand on what a worker has left, and return the test in which it ended."""
        lanes: dict[str, dict[str, bool]] = self.assigned_work[node]
        left = [(lane, test) for lane in lanes.values() for test, is_done in lane.items() if not is_done]
        for lane, ended in left[:1]:
            lane[ended] = True
        # A new worker that is given a lane in which all is done would wait for ever.
        self.assigned_work[node] = {name: lane for name, lane in lanes.items() if not all(lane.values())}
        super().remove_node(node)
        return left[0][1] if left else None

    def _reschedule(self, node: Any) -> None:
        if node in self.registered_collections:  # else it is new, and asks for work when it has looked for tests
            super()._reschedule(node)
