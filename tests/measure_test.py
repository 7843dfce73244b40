"""softq.training.measure by source, by hand: each source's own pairs, and no other's."""

import pytest
import torch

from softq.data.sources import DataSource
from softq.objectives import METHODS
from softq.records import Batch, Labels, Pairs, Tokens
from softq.training.measure import measured, merged
from softq.training.prepare import Data


def tokens(rows: int) -> Tokens:
    one = torch.ones(rows, dtype=torch.bool)
    return Tokens(torch.ones(rows, 2, dtype=torch.int64), one[:, None], one, torch.arange(rows) // 2)


def scored(*ratio: float) -> dict[str, torch.Tensor]:
    logp = torch.tensor(ratio)[:, None]
    return {"logp": logp, "ref_logp": torch.zeros_like(logp)}


def test_pairs_of_each_source() -> None:
    """Margins 3, -1 and 0 of source 1, and 5 of source 0; β is 2."""
    pairs = Pairs(torch.tensor([0, 2, 4, 6]), torch.tensor([1, 3, 5, 7]))
    batch = Batch(tokens(8), pairs, {"source": torch.tensor([1, 1, 1, 1, 1, 1, 0, 0])})
    found = merged([measured(METHODS["dpo"](beta=2.0), scored(1, -2, 0, 1, 3, 3, 5, 0), batch)])
    assert found["rewards/accuracies"] == 2 / 4
    assert found["source 0/rewards/accuracies"] == 1
    assert found["source 1/rewards/accuracies"] == pytest.approx(1 / 3)
    assert found["source 1/rewards/ties"] == pytest.approx(1 / 3)
    assert (found["source 0/rewards/margins"], found["source 1/rewards/margins"]) == (10, pytest.approx(4 / 3))
    alone = Batch(batch.tokens, pairs)
    assert not any("source" in name for name in measured(METHODS["dpo"](), scored(*range(8)), alone))


def test_labels_and_demonstrations_of_each_source() -> None:
    labels = Labels(torch.arange(4), torch.tensor([True, False, True, False]), torch.arange(4, 4))
    source = {"source": torch.tensor([0, 0, 1, 1])}
    ratio = scored(1, 2, 3, 4)
    found = merged([measured(METHODS["kto"](beta=1.0), ratio, Batch(tokens(4), labels, source))])
    by_source = [found[f"source {n}/rewards/{side}"] for n in (0, 1) for side in ("chosen", "rejected")]
    assert by_source == [1, 2, 3, 4]
    found = merged([measured(METHODS["sft"](), ratio, Batch(tokens(4), None, source))])
    assert (found["source 0/logps/token"], found["source 1/logps/token"]) == (1.5, 3.5)


def test_metrics_bear_the_names_of_the_sources_that_they_are_of() -> None:
    class Known:
        def __init__(self, *names: str) -> None:
            self.sources = tuple(DataSource(name, name) for name in names)

    seen = {"loss": 1.0, "source 0/rewards/accuracies": 0.5, "source 1/rewards/accuracies": 0.25}
    data = Data(Known("a", "b"), None, None, Known("c", "d"), ())
    assert data.named(seen) == {"loss": 1.0, "a/rewards/accuracies": 0.5, "b/rewards/accuracies": 0.25}
    assert data.named(seen, held=True) == {"loss": 1.0, "c/rewards/accuracies": 0.5, "d/rewards/accuracies": 0.25}
    of_train = data._replace(held_out=None)
    assert of_train.named(seen, held=True) == of_train.named(seen)
