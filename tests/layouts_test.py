"""Every layout on every architecture, against the model's own forward on each row by itself."""

import copy
from functools import cache

import pytest
import torch
from tiny import ALONE, SHARING, SMALL, alone, gradients, odd_rows, tiny, tokenizer, tokens_of
from torch import Tensor, nn
from transformers import PreTrainedModel

from softq.lm.attention import Run, packed, padded, runs
from softq.lm.layouts import LAYOUTS, depths
from softq.lm.load import Loaded, load
from softq.records import Tokens, Tree

TOLERANCE = 1e-10
ROUNDED = {
    "cohere": "rotates queries and keys in float32",
    "mixtral": "routes in float32",
    "qwen2_moe": "routes in float32",
    "gemma2": "its attention's softmax is in float32",
    "bloom": "its attention's softmax is in float32",
    "mamba": "scans in float32, and so do its log-probs",
    "recurrent_gemma": "scans in float32, and so do its log-probs",
}
"""Gradients pass float32 whatever the model's dtype: they agree to rounding there, 1e-6 relative."""

every_layout = pytest.mark.parametrize("layout", LAYOUTS)
Scores = tuple[Tensor, dict[str, Tensor]]


def loaded(model: PreTrainedModel, layout: str = "auto") -> Loaded:
    return load(model, None, tokenizer=tokenizer(), layout=layout)


def in_layout(model: PreTrainedModel, tokens: Tokens, layout: str) -> Scores:
    models = loaded(model, layout).models
    return gradients(model, lambda: models(tokens)["logp"])


def by_rows(model: PreTrainedModel, tokens: Tokens) -> Scores:
    return gradients(model, lambda: alone(model, tokens))


@cache
def expected(name: str) -> Scores:
    return by_rows(tiny(name), odd_rows())


def assert_same(got: Scores, want: Scores, tolerance: float = TOLERANCE, rounded: float | None = None) -> None:
    """Log-probs, and gradients relative to the largest entry of all: a bias of keys has none but rounding."""
    torch.testing.assert_close(got[0], want[0], rtol=tolerance, atol=tolerance, check_dtype=False)
    assert got[1].keys() == want[1].keys()
    within = rounded or tolerance
    largest = max(gradient.abs().max().item() for gradient in want[1].values())
    assert largest > 0.1
    for name, gradient in want[1].items():
        torch.testing.assert_close(
            got[1][name], gradient, rtol=within, atol=within * largest, msg=lambda m, n=name: f"{n}: {m}"
        )


def rounding(name: str) -> float | None:
    return 1e-6 if name in ROUNDED else None


@every_layout
@pytest.mark.parametrize("name", SHARING)
def test_layouts_agree_with_each_row_alone(name: str, layout: str) -> None:
    got = in_layout(tiny(name), odd_rows(), layout)
    assert_same(got, expected(name), rounded=rounding(name))


@pytest.mark.parametrize("name", SHARING)
def test_auto_shares_states_where_it_can(name: str) -> None:
    found = loaded(tiny(name, torch.float32))
    assert (found.policy.layout, found.notes) == ("packed", ())


@pytest.mark.parametrize("name", ALONE)
def test_auto_falls_back_says_so_once_and_is_right(name: str) -> None:
    model = tiny(name)
    attention = model.config._attn_implementation
    found = loaded(model)
    assert found.policy.layout == "plain"
    assert sum("layout plain, because" in note for note in found.notes) == 1
    assert model.config._attn_implementation == attention
    got = gradients(model, lambda: found.models(odd_rows())["logp"])
    tolerance = 1e-6 if "scans" in ROUNDED.get(name, "") else TOLERANCE
    assert_same(got, expected(name), tolerance, rounding(name))


@pytest.mark.parametrize("layout", ["padded", "packed"])
@pytest.mark.parametrize("name", ALONE)
def test_a_layout_that_is_not_valid_is_refused_when_asked_for(name: str, layout: str) -> None:
    with pytest.raises(ValueError, match=f"layout '{layout}' is not valid for this model: .*; use --layout auto"):
        loaded(tiny(name), layout)


@pytest.mark.parametrize("name", ["llama", "qwen2_moe", "mixtral"])
@pytest.mark.parametrize("layout", ["padded", "packed"])
def test_float32_with_the_experts_that_training_uses(name: str, layout: str) -> None:
    """Ten times the weights make rounding ten times as large in each of the layers: 1e-5 here, 1e-15 above."""
    want = by_rows(tiny(name, torch.float32), odd_rows())
    assert_same(in_layout(tiny(name, torch.float32), odd_rows(), layout), want, 1e-5)


# --- odd rows ---

SOME, MANY = [9, 21, 4, 33], [8, 12, 6, 7, 45, 11, 2]
ODD = {
    "one token on both sides": [(0, [5], [9])],
    "one-token prompts": [(0, [5], MANY), (1, [5], SOME), (0, [5], SOME)],
    "one-token completions": [(0, SOME, [5]), (0, SOME, [6]), (1, MANY, [5])],
    "one branch": [(3, SOME, MANY)],
    "sixteen branches": [(0, SOME, [*MANY[: n % 5], 20 + n, *SOME[: n % 3]]) for n in range(16)],
    "branches of branches": [(0, SOME, [1, 2, 3, 4]), (0, SOME, [1, 2, 5]), (0, SOME, [1, 2, 5, 6]), (0, SOME, [1, 7])],
    "rows that are equal": [(0, SOME, MANY), (0, SOME, MANY), (1, SOME, MANY)],
    "nothing shared": [(0, SOME, MANY), (0, [10, 11], [3])],
    "uneven lengths": [(0, MANY * 6, SOME), (1, [4], [2]), (0, MANY * 6, [3]), (2, SOME, MANY * 4), (2, SOME, [3])],
}


@every_layout
@pytest.mark.parametrize("name", ["qwen3", "gpt2"])
@pytest.mark.parametrize("case", ODD)
def test_odd_rows(case: str, name: str, layout: str) -> None:
    tokens = tokens_of(ODD[case])
    assert_same(in_layout(tiny(name), tokens, layout), by_rows(tiny(name), tokens))


@every_layout
def test_actions_with_context_between_them(layout: str) -> None:
    """Several turns: the user's tokens stand between the policy's and are not scored."""
    tokens = tokens_of([(0, SOME, MANY), (0, SOME, [*MANY[:5], 30])])
    tokens.action[:, 4:6] = False
    got, want = in_layout(tiny("llama"), tokens, layout), by_rows(tiny("llama"), tokens)
    assert (got[0] != 0).sum() == tokens.action.sum() == 9
    assert_same(got, want)


@every_layout
@pytest.mark.parametrize("name", ["qwen2", "gpt_neox", "mixtral"])
def test_gradient_checkpointing_changes_nothing(name: str, layout: str) -> None:
    model = tiny(name)
    model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    models = loaded(model, layout).models
    mlp = next(module for path, module in model.named_modules() if path.endswith(".mlp"))
    runs: list[int] = []
    mlp.register_forward_pre_hook(lambda *_: runs.append(1))
    got = gradients(model, lambda: models(odd_rows())["logp"])
    assert len(runs) == 2, "the layer ran once, so nothing was checkpointed"
    assert_same(got, expected(name), rounded=rounding(name))


# --- windows ---


def tokens_seen(body: nn.Module) -> list[int]:
    """How many tokens go through the body, call by call."""
    seen: list[int] = []
    body.get_input_embeddings().register_forward_hook(lambda _module, inputs, _out: seen.append(inputs[0].numel()))
    return seen


@every_layout
@pytest.mark.parametrize(("deepest", "shares"), [(7, True), (8, False)])
def test_a_window_is_shared_up_to_its_edge(deepest: int, shares: bool, layout: str) -> None:
    """A window of 8 sees all of a path whose last state stands at depth 7; longer ones run plainly."""
    tokens = tokens_of([(0, SOME, list(range(10, 10 + deepest - 2))), (0, SOME, [3, 2])])
    model = tiny("mistral", sliding_window=8)
    want = by_rows(copy.deepcopy(model), tokens)
    models = loaded(model, layout).models
    seen = tokens_seen(model)
    assert_same(gradients(model, lambda: models(tokens)["logp"]), want)
    path, branch = deepest + 1, 1
    assert seen == [path + branch if shares and layout != "plain" else 2 * path]


def test_a_window_inside_a_larger_configuration_is_seen() -> None:
    """Gemma 3 with an image tower is a causal LM too; the window of its text stands one level down."""
    towers = {"hidden_size": 32, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
    text = {**SMALL, **ALONE["gemma3_text"], "sliding_window": 24}
    model = tiny("gemma3", text_config=text, vision_config={**towers, "image_size": 28, "patch_size": 14})
    model.eval()  # in training it asks for image positions; the oracle has none
    tokens = tokens_of([(0, MANY * 6, SOME), (0, MANY * 6, [3, 2])])
    want = alone(model, tokens)
    found = loaded(model)
    assert found.policy.layout == "plain"
    torch.testing.assert_close(found.models(tokens)["logp"], want, rtol=1e-10, atol=1e-10)


def test_experts_without_a_window_share() -> None:
    """Qwen2-MoE writes a window of 0 for none."""
    model = tiny("qwen2_moe")
    assert loaded(model).policy.window is None
    seen = tokens_seen(model)
    loaded(model).models(tokens_of([(0, SOME, MANY), (0, SOME, [5])]))
    assert seen[-1] == len(SOME) + len(MANY) - 1


@pytest.mark.parametrize("rope", ["dynamic", "longrope"])
def test_positions_that_depend_on_the_longest_row_fall_back(rope: str) -> None:
    scaled = {"rope_type": rope, "rope_theta": 1e4, "factor": 2.0, "original_max_position_embeddings": 64}
    factors = {"short_factor": [1.0] * 4, "long_factor": [2.0] * 4} if rope == "longrope" else {}
    model = tiny("llama", rope_parameters={**scaled, **factors})
    found = loaded(model)
    assert (found.policy.layout, len(found.notes)) == ("plain", 1)
    assert "rotary positions depend on the longest row" in found.notes[0]
    tokens = odd_rows()
    torch.testing.assert_close(found.models(tokens)["logp"], alone(model, tokens), rtol=1e-10, atol=1e-10)


def test_convolutions_fall_back() -> None:
    """A convolution leaks between neighbours; on small weights or in bfloat16 numbers alone might not show it."""
    found = loaded(tiny("lfm2", layer_types=["conv", "full_attention"]))
    assert found.notes == ("layout plain, because it has layers of conv",)


# --- what a layout computes ---

FOREST = Tree(torch.tensor([5, 6, 7, 8, 9, 5]), torch.tensor([-1, 0, 1, 1, 3, -1]))


def test_depths_by_hand() -> None:
    assert depths(FOREST) == [0, 1, 2, 2, 3, 0]


@every_layout
def test_one_state_a_node_in_the_order_of_the_forest(layout: str) -> None:
    """Nodes 2 and 3 are branches under node 1, node 4 continues 3, node 5 is a tree of its own."""
    model = tiny("llama")
    loaded(model, layout)
    with torch.no_grad():
        states = LAYOUTS[layout](model.base_model, FOREST)
        for path, nodes in (([5, 6, 7], [0, 1, 2]), ([5, 6, 8, 9], [0, 1, 3, 4]), ([5], [5])):
            alone_states = model.base_model(input_ids=torch.tensor([path])).last_hidden_state[0]
            torch.testing.assert_close(states[nodes], alone_states, rtol=1e-12, atol=1e-12)


def test_runs_by_hand() -> None:
    """Runs 0-2 and 3-4, which sees 0-1 above itself, and 5."""
    assert runs(FOREST) == [Run(0, 3, ()), Run(3, 5, ((0, 2),)), Run(5, 6, ())]


def test_who_sees_whom_by_hand() -> None:
    """One tree a row. Padding sees itself, so that no row of the softmax is empty."""
    mask = padded(FOREST, [(0, 5), (5, 6)], torch.device("cpu")).mask
    assert mask.shape == (2, 1, 5, 5)
    first = ["x....", "xx...", "xxx..", "xx.x.", "xx.xx"]
    second = ["x....", ".x...", "..x..", "...x.", "....x"]
    assert [["".join("x" if s else "." for s in row) for row in tree[0].tolist()] for tree in mask] == [first, second]


def test_pieces_by_hand() -> None:
    """Pieces 0-1, 2, 3-4 and 5; the second run sees the first piece, then itself, one key of it more a query."""
    found = packed(FOREST, torch.device("cpu"))
    assert (found.sizes, found.pieces, found.keys) == ((3, 2, 1), (2, 1, 2, 1), ((0, 1), (0, 2), (3,)))
    assert found.masks[0] is None is found.masks[2]
    assert found.masks[1].tolist() == [[True, True, True, False], [True, True, True, True]]
