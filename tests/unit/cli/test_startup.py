import gc

import pytest

from sandpoint.cli.startup import loaded, loading


@pytest.mark.parametrize("ends_early", [False, True])
def test_garbage_is_collected_again_afterwards(ends_early: bool) -> None:
    assert gc.isenabled()
    with loading():
        assert not gc.isenabled()
        if ends_early:
            loaded()
            assert gc.isenabled()
    assert gc.isenabled()
