"""Each law of what is read of a policy is red where its measure has one thing wrong; that they hold, contract_test says."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from softq.inspection.credit import Actions, split
from softq.inspection.information import Information, exact
from softq.inspection.ranking import idealised, threshold
from softq.inspection.tables import token_table
from softq.inspection.values import Values, prefixes, state
from softq.verify import reading_laws
from softq.verify.law import Finding
from softq.verify.suite import named
from softq.verify.theory import TABLES


def halved(logp: np.ndarray, ref_logp: np.ndarray) -> Information:
    """Log W of a mean in place of a sum."""
    found = exact(logp, ref_logp)
    return found._replace(log_w=found.log_w - np.log(len(logp)))


def one_sided(of: Actions) -> tuple[np.ndarray, np.ndarray]:
    """The rejected completion's end token is left out."""
    reward = np.where(of.end & (of.completion == 1), 0.0, of.reward)
    return split(of._replace(reward=reward))


def late(reward: np.ndarray, row: np.ndarray, ended: np.ndarray) -> Values:
    """The value before a token in place of that behind it."""
    found = prefixes(reward, row, ended)
    return found._replace(prefix=found.prefix - reward)


def swapped(*given: Any) -> dict[str, Any]:
    """Each divergence under the other's name."""
    table = token_table(*given)
    return table | {"kl": table["kl_from_ref"], "kl_from_ref": table["kl"]}


def shifted(*given: Any) -> dict[str, Any]:
    """The divergence behind a token in place of that before it."""
    table = token_table(*given)
    return table | {"kl_from_ref": np.roll(table["kl_from_ref"], -1)}


def without_beta(scored: Any, tokens: Any, pieces: Any, beta: float) -> dict[str, Any]:
    """Rewards in nats."""
    return token_table(scored, tokens, pieces, 1.0)


BROKEN: list[tuple[str, str, Callable]] = [
    *(
        (law, "token_table", wrong)
        for law in ("scored columns", "measured fall")
        for wrong in (swapped, shifted, without_beta)
    ),
    ("exact margins", "half_ties", lambda margin: (margin < 0) * 1.0),
    ("ranking", "idealised", lambda c, beta, alpha: idealised(-c, beta, alpha)),
    ("ranking", "threshold", lambda c, beta: threshold(-c, beta)),
    ("parts of a margin", "split", one_sided),
    ("information", "exact", halved),
    ("information", "exact", lambda logp, ref: exact(logp, ref)._replace(entropy=exact(ref, ref).entropy)),
    ("values", "prefixes", late),
    ("values", "prefixes", lambda reward, row, ended: prefixes(reward, row, ended)._replace(rest=0 * reward)),
    ("values", "state", lambda token, beta: state(token, 1.1 * beta)),
]


@pytest.mark.parametrize(("law", "name", "broken"), BROKEN)
def test_a_measure_with_one_thing_wrong_is_red(
    law: str, name: str, broken: Callable, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(reading_laws, name, broken)
    (one,) = named(reading_laws.READING_LAWS, law)
    found = one.check(TABLES["token rewards"])
    assert isinstance(found, Finding)
    assert not found.green
    assert found.error > 1e-3
    assert not found.raised


def test_every_law_is_held_here() -> None:
    assert {law for law, _, _ in BROKEN} == {law.name for law in reading_laws.READING_LAWS}
