"""TRL's loss and gradient are ours, or differ by what the case says, as a formula: random logits, masks, uneven lengths."""

import pytest
from cases import CASES, REFUSED, Case, Refused
from measure import AGREES, REALLY, Measured, measured, slope
from steps import loss, pairs
from trainers import Trainers

from softq import METHODS


@pytest.mark.parametrize("case", CASES, ids=lambda case: f"{case.asked} / {case.named}")
def test_the_loss_is_ours_or_what_is_said_of_it(case: Case, trainers: Trainers) -> None:
    found: list[Measured] = [measured(case, trainers, seed) for seed in (1, 2, 3)]
    if case.theirs is None:
        assert max(each.ours for each in found) <= AGREES
    else:
        assert max(each.formula for each in found) <= AGREES
        assert max(each.ours for each in found) >= REALLY


@pytest.mark.parametrize("refused", REFUSED, ids=lambda refused: refused.about)
def test_what_trl_can_not_do(refused: Refused, trainers: Trainers) -> None:
    step = pairs(1)
    if refused.raises == "nan":
        assert not slope(trainers.loss("DPOTrainer", refused.settings, step), step).isfinite().all()
        if refused.ours:
            name, parameters = refused.ours
            assert slope(loss(METHODS[name](**parameters), step), step).isfinite().all()
        return
    with pytest.raises((ValueError, KeyError, NotImplementedError, RuntimeError), match=refused.says) as error:
        trainers.loss("DPOTrainer", refused.settings, step).backward()
    assert error.typename == refused.raises
