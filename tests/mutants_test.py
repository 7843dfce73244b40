"""The mutators of bench/mutations.py: each makes the wrong change it is for, where it says, and leaves the rest alone."""

import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parents[1] / "bench"))
from mutants import equivalents, sets_of
from mutations import mutations

CHANGES = {
    "y = a + b": {"y = a - b"},
    "y = a - b": {"y = a + b", "y = b - a"},
    "y = a * b": {"y = a / b"},
    "y += x": {"y -= x"},
    "y = -x": {"y = x"},
    "y = m & ~n": {"y = m | ~n", "y = m & n"},
    "y = pairs.chosen": {"y = pairs.rejected"},
    "y = models['policy']": {"y = models['ref']"},
    "y = beta * m": {"y = beta / m", "y = 1 * m"},
    "y = x[..., 1:]": {"y = x[..., 2:]", "y = x[..., 0:]"},
    "y = x[:-1]": {"y = x[:-2]", "y = x[:0]"},
    "y = x[:n]": {"y = x[:n - 1]"},
    "y = x[t + 1]": {"y = x[t - 1]", "y = x[t + 2]", "y = x[t + 0]"},
    "y = range(n)": {"y = range(n + 1)", "y = range(n - 1)"},
    "y = x.sum(-1)": {"y = x.mean(-1)", "y = x.sum(0)"},
    "y = masked.mean(x)": {"y = masked.total(x)"},
    "y = a < b": {"y = a <= b"},
    "y = a >= b": {"y = a > b"},
    "y = a < 1e-6": set(),
    "y = x[:, 0]": {"y = x[:, 1]"},
    "y = (a - b) ** 2": {"y = (a + b) ** 2", "y = (a - b) * 2", "y = (a - b) ** 1"},
    "y = (a - b).abs()": {"y = (a + b).abs()", "y = a - b"},
    "y = range(100)": set(),
    "y = 0 <= e < 0.5": {"y = 0 < e < 0.5", "y = 0 <= e <= 0.5", "y = 1 <= e < 0.5", "y = 0 <= e < 1.0"},
    "y = a == b": {"y = a != b"},
    "y = x.detach()": {"y = x"},
    "with torch.no_grad():\n    pass": {"with __import__('contextlib').nullcontext():"},
    "y = x.amax()": {"y = x.amin()"},
    "y = x.clamp(min=3)": {"y = x.clamp(max=3)"},
    "y = torch.minimum(a, b)": {"y = torch.maximum(a, b)"},
    "y = (0, 1.0, 0.5, 2, 3)": {"y = " + text for text in (
        "(1, 1.0, 0.5, 2, 3)", "(0, 0.0, 0.5, 2, 3)", "(0, 1.0, 1.0, 2, 3)", "(0, 1.0, 0.5, 1, 3)",
    )},
    "y = a and b": {"y = a or b"},
    "y = not a": {"y = a"},
    "y = True": {"y = False"},
    "y = x.exp()": {"y = x"},
    "y = torch.log(x)": {"y = x"},
    "y = x.log_softmax(-1)": {"y = x", "y = x.log_softmax(0)"},
    "y = torch.where(c, a, b)": {"y = torch.where(c, b, a)"},
    "y = x.sort().values": {"y = x.sort(descending=True).values"},
    "y = sorted(x)": {"y = sorted(x, reverse=True)"},
    "if a:\n    pass": {"if not a:"},
    "y = [a for a in x if a]": {"y = [a for a in x if not a]"},
    "y = kl(p, q)": {"y = kl(q, p)"},
}  # fmt: skip


@pytest.mark.parametrize("text", CHANGES)
def test_changes(text: str) -> None:
    assert {mutation.new for mutation in mutations(text)} == CHANGES[text]


def test_what_no_test_of_values_sees_stays_as_it_is() -> None:
    assert not mutations('''
"""Sums 1 + 1."""
from a import b
__version__ = "0" + "1"
@cached(1)
def f(x: Literal[1]) -> Literal[0]:
    """0."""
    pairs = zip(x, x, strict=True)
    text = f"{x + 1}"
    raise ValueError("0" if x else "1")
''')


def test_arguments_of_two_kinds_are_not_swapped_and_only_a_tensor_changes_its_sign() -> None:
    text = "def f(a: Tensor, b: Tensor, c: Batch) -> {0}:\n    g(a, c)\n    g(a, b)\n    return a"
    assert [m.new for m in mutations(text.format("Tensor"))] == ["g(b, a)", "return -a"]
    assert [m.new for m in mutations(text.format("Batch"))] == ["g(b, a)"]


def test_a_mutation_says_where_it_is_and_is_the_whole_module() -> None:
    text = "x = 3\n\n\ndef f(a):\n    def g(b):\n        return (a +\n                b.exp())\n    return g\n"
    plus, exp = mutations(text)
    assert (plus.line, plus.function) == (6, "f.g")
    assert (plus.old, plus.new) == ("return a + b.exp()", "return a - b.exp()")
    assert (exp.line, exp.new) == (7, "return a + b")
    found: dict = {}
    exec(plus.source, found)
    assert found["f"](5)(type("B", (), {"exp": lambda self: 3})()) == 2
    assert found["x"] == 3


def test_no_two_mutations_of_a_file_are_the_same_text() -> None:
    sources = [mutation.source for mutation in mutations("y = x[1 - 1]")]
    assert (
        len(set(sources)) == len(sources) == 5
    )  # 1 + 1, 2 - 1, 0 - 1, 1 - 2, 1 - 0; 1 - 1 the other way round is itself


def test_each_source_file_has_tests_and_listed_equivalents_have_reasons(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(Path(__file__).parents[1])
    first, rest = sets_of("softq/mdp/soft.py")
    assert "tests/golden_test.py" in first
    assert "tests/loop_test.py" in rest
    assert sets_of("softq/training/loop.py") == ()
    assert all(reason for reason in equivalents().values())
