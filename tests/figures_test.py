"""Figures and findings: their intervals, and as JSON."""

import json
import math

import numpy as np
import pytest

from softq.inspection.figures import Figure, Finding, as_json, bootstrapped


def test_a_bootstrap_interval_is_that_of_the_mean_where_that_is_known() -> None:
    values = np.random.default_rng(0).normal(2.0, 3.0, 400)
    low, high = bootstrapped(lambda rows: float(values[rows].mean()), 400) or (0.0, 0.0)
    half = 1.96 * values.std() / math.sqrt(400)
    assert low == pytest.approx(values.mean() - half, abs=0.05)
    assert high == pytest.approx(values.mean() + half, abs=0.05)
    assert bootstrapped(lambda rows: float(values[rows].mean()), 400) == (low, high)
    assert bootstrapped(lambda rows: 1.0, 1) is None


def test_what_is_not_defined_is_null() -> None:
    figure = Figure("accuracy/strict", math.nan, "", 0, "nothing", (0.1, math.nan))
    assert json.loads(json.dumps(as_json(figure), allow_nan=False)) == {
        "name": "accuracy/strict",
        "value": None,
        "unit": "",
        "of": 0,
        "meaning": "nothing",
        "interval": [0.1, None],
    }
    assert as_json(Finding("displacement", "act", "it falls", "add an anchor", (3, 1)))["records"] == [3, 1]
