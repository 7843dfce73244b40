"""TRL's trainers are made once."""

import pytest
from trainers import Trainers


@pytest.fixture(scope="session")
def trainers(tmp_path_factory: pytest.TempPathFactory) -> Trainers:
    return Trainers(str(tmp_path_factory.mktemp("trl")))
