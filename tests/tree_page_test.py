"""The tree of a search: what is drawn is what was thought of, scored in full; the page runs nothing but its own script."""

import base64
import hashlib
import json
import math
import re

import pytest
import torch
from tiny import alone, tiny, tokenizer, tokens_of

from softq.inspection.tree_page import Explored, Given, tree_page
from softq.lm.load import Loaded, load
from softq.records import Tree
from softq.search.decoders import DECODERS
from softq.searching import trees
from softq.searching.opened import Opened
from softq.searching.prompts import Prompt
from softq.searching.run import Found, Method, searched

EVIL = "</script><script>window.hacked = 1</script>"
PROMPTS = ([11, 4, 9, 30, 5], [23, 7])


@pytest.fixture(scope="module")
def loaded() -> Loaded:
    found = load(tiny("llama"), "start", tokenizer=tokenizer(), dtype="float64")
    torch.manual_seed(5)
    with torch.no_grad():
        for parameter in found.policy.parameters():
            parameter.add_(0.05 * torch.randn_like(parameter))
    return found


@pytest.fixture
def of(loaded: Loaded) -> Opened:
    prompts = tuple(Prompt(f"p:{n}", f"prompt {n}", torch.tensor(ids)) for n, ids in enumerate(PROMPTS))
    return Opened(loaded, prompts, frozenset({2}), 10_000, 0.3, ())


@pytest.fixture
def found(of: Opened) -> list[Found]:
    method = Method("beam", DECODERS["beam"], {"beams": 3, "n": 2})
    return sorted(searched(of, method, max_new_tokens=5, stop=(), seed=0), key=lambda each: each.number)


def path(tree: Explored, node: int) -> list[int]:
    nodes = []
    while node >= 0:
        nodes.append(node)
        node = tree.parent[node]
    return nodes[::-1]


def test_a_tree_has_every_node_with_its_full_scores(of: Opened, found: list[Found]) -> None:
    for each, prompt in zip(found, PROMPTS, strict=True):
        tree = trees.explored(of, each)
        assert (
            tree.thought_of
            == len(tree.parent)
            == len(tree.piece)
            == int((each.forest.prompt == each.member).sum()) - len(prompt)
        )
        assert all(parent < node for node, parent in enumerate(tree.parent))
        for answer, given, row in zip(each.answers, tree.answers, each.rows, strict=True):
            nodes = path(tree, given.node)
            tokens = tokens_of([(0, prompt, list(answer.tokens))])
            for name, model in (("logp", of.loaded.policy), ("ref_logp", of.loaded.models["ref"])):
                expected = alone(model.transformer, tokens)[0][tokens.action[0]].tolist()  # pyright: ignore[reportArgumentType]
                assert [tree.columns[name][node] for node in nodes] == pytest.approx(expected, abs=1e-9)
            assert given.logp == pytest.approx(sum(tree.columns["logp"][node] for node in nodes))
            assert given.reward == row["reward"] != 0
            assert tree.columns["score"][given.node] == pytest.approx(given.score)


def test_values_are_in_reward(of: Opened, monkeypatch: pytest.MonkeyPatch) -> None:
    """A tree search's Q, which it has in nats, and what a value model says of a guided sample's tokens, which is in reward."""
    how: dict = {"max_new_tokens": 3, "stop": (), "seed": 0}
    played = Method("mcts", DECODERS["mcts"], {"simulations": 5})
    for each in searched(of, played, **how):
        tree, (answer,) = trees.explored(of, each), each.answers
        nodes = path(tree, len(tree.parent) - 1)
        assert tree.columns["value"][tree.answers[0].node] == pytest.approx(
            0.3 * float(each.forest.column("value")[answer.node])
        )
        assert tree.columns["visits"][nodes[0]] == each.forest.column("visits")[each.forest.answered(answer.node)[0]]
    weighed = Method("guided", DECODERS["guided"], {"values": "policy", "strength": 2.0})
    monkeypatch.setattr("softq.search.decoders.same_tokens", lambda policy, value, name: Even())
    for each in searched(of, weighed, **how):
        tree, (answer,) = trees.explored(of, each), each.answers
        assert tree.columns["value"] == [float(token % 2 == 0) for token in answer.tokens]


class Even:
    """A value: whether the last token is even."""

    def values(self, tree: Tree) -> torch.Tensor:
        return (tree.token % 2 == 0).double()


def test_pieces_make_the_text(of: Opened, found: list[Found]) -> None:
    tree = trees.explored(of, found[0])
    given = tree.answers[0]
    assert "".join(tree.piece[node] for node in path(tree, given.node)).strip().startswith(given.text.strip())


def test_what_is_too_much_is_left_out_but_no_answer(of: Opened, found: list[Found], monkeypatch) -> None:
    whole = trees.explored(of, found[0])
    monkeypatch.setattr(trees, "MOST", 2)
    tree = trees.explored(of, found[0])
    assert tree.thought_of == whole.thought_of > len(tree.parent)
    assert set(range(2)) | {n for given in tree.answers for n in path(tree, given.node)} == set(range(len(tree.parent)))
    assert [given.text for given in tree.answers] == [given.text for given in whole.answers]
    for given, before in zip(tree.answers, whole.answers, strict=True):
        assert [tree.piece[n] for n in path(tree, given.node)] == [whole.piece[n] for n in path(whole, before.node)]


def made(nodes: int = 6) -> Explored:
    """Two answers that part, and a token that leads nowhere; every text is markup."""
    return Explored(
        where=f"{EVIL}:1",
        prompt=f"Is {EVIL} safe?",
        parent=[-1, 0, 0, 1, 2, -1],
        piece=[f" {EVIL}", " one", " two", " end", " stop", "\n"],
        columns={
            "logp": [-0.1, -0.7, -1.2, -0.2, -0.3, -3.0],
            "ref_logp": [-0.2, -0.2, -1.2, -1.2, -0.3, -1.0],
            "visits": [9.0, 5.0, 3.0, 4.0, 2.0, math.nan],
            "odd_name": [0.5] * nodes,
        },
        answers=[Given(3, f"{EVIL} one end", -1.0, True, -1.0, 0.3), Given(4, " two stop", -1.6, False, -1.6, None)],
        thought_of=6,
        evaluations=11.0,
        seconds=0.25,
    )


def test_the_page_runs_its_own_script_alone() -> None:
    page = tree_page([made()], policy=EVIL, method="beam", settings={"note": EVIL}, beta=0.5)
    assert page.count("<script") == page.count("</script>") == 2
    assert "window.hacked = 1</script>" not in page
    rules = re.search(r'Content-Security-Policy" content="([^"]+)"', page)
    assert rules is not None
    for kind, body in (
        ("script", re.findall(r"<script>(.*?)</script>", page, re.S)[0]),
        ("style", re.findall(r"<style>(.*?)</style>", page, re.S)[0]),
    ):
        digest = base64.b64encode(hashlib.sha256(body.encode()).digest()).decode()
        assert f"{kind}-src &#39;sha256-{digest.replace('+', '+')}&#39;" in rules[1]
    assert "http://" not in page.replace("http://www.w3.org/2000/svg", "")
    assert "https://" not in page


def test_the_page_carries_the_numbers() -> None:
    page = tree_page([made()], policy="p", method="beam", settings={}, beta=None)
    found = re.search(r'<script type="application/json" id="data">(.*?)</script>', page, re.S)
    assert found is not None
    data = json.loads(found[1])
    assert (data["beta"], data["unit"]) == (1.0, "nats")
    (tree,) = data["trees"]
    assert tree["columns"]["visits"] == [9.0, 5.0, 3.0, 4.0, 2.0, None]
    assert tree["columns"]["logp"] == [-0.1, -0.7, -1.2, -0.2, -0.3, -3.0]
    assert tree["piece"][0] == f" {EVIL}"
    assert tree["answers"][1] == {
        "node": 4,
        "text": " two stop",
        "score": -1.6,
        "ended": False,
        "logp": -1.6,
        "reward": None,
    }
