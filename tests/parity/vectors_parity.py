"""The conformance vectors, odd steps written by hand: TRL gives what they say, or there is a reason."""

import pytest
from trainers import Trainers
from vectors import verdicts


@pytest.fixture(scope="module")
def trainers(tmp_path_factory: pytest.TempPathFactory) -> Trainers:
    return Trainers(str(tmp_path_factory.mktemp("trl")))


def test_every_difference_has_a_reason(trainers: Trainers) -> None:
    found = list(verdicts(trainers))
    assert len(found) > 50
    assert [(each.entry["name"], each.asked, each.off) for each in found if each.says == "UNEXPLAINED"] == []
