"""The eight methods against numbers computed by other code (conformance/golden.json), values and gradients, 1e-12."""

import json
from pathlib import Path

import pytest
import torch
from torch import Tensor

from softq import masked
from softq.mdp import readouts
from softq.mdp.readouts import LOGP, REF_LOGP
from softq.mdp.soft import implicit_reward, maxent, shaped, soft_backup
from softq.mdp.tabular import along, every_trajectory, token_tree
from softq.objectives import METHODS
from softq.objectives.policy_gradient import grpo
from softq.objectives.unpaired import kto
from softq.records import Batch, Labels, Method, Pairs, Tokens

ENTRIES = {
    (e["fixture"], e["name"]): e
    for e in json.loads((Path(__file__).parent.parent / "conformance/golden.json").read_text())["entries"]
}
PAIRED = {
    "sigmoid": METHODS["dpo"](beta=0.5),
    "cdpo": METHODS["dpo"](beta=0.5, label_smoothing=0.1),
    "ipo": METHODS["ipo"](beta=0.5),
    "ipo_sum": METHODS["ipo"](beta=0.5, length_average=False),
    "aot": METHODS["aot"](beta=0.5),
    "aot_eps0.1": METHODS["aot"](beta=0.5, label_smoothing=0.1),
    "stability/sigmoid_m-2000": METHODS["dpo"](beta=0.5),
    "stability/sigmoid_m2000": METHODS["dpo"](beta=0.5),
}


def tensor(values: list) -> Tensor:
    return torch.tensor(values, dtype=torch.float64)


def sums_as_rows(sums: Tensor, lengths: list[int]) -> tuple[Tensor, Tensor]:
    """Sequence sums as rows whose total stands on the first of `len` actions: values and mask [B, T]."""
    mask = torch.arange(max(lengths))[None] < torch.tensor(lengths)[:, None]
    values = torch.zeros(mask.shape, dtype=sums.dtype)
    return torch.cat([sums[:, None], values[:, 1:]], 1), mask


def tokens_for(action: Tensor, records: list[int]) -> Tokens:
    B, T = action.shape
    prompt = torch.tensor(records)
    return Tokens(torch.zeros(B, T + 1, dtype=torch.int64), action, torch.ones(B, dtype=torch.bool), prompt)


def paired(entry: dict, dtype: torch.dtype = torch.float64) -> tuple[dict[str, Tensor], Batch, Tensor, Tensor]:
    inputs = {name: tensor(values).to(dtype) for name, values in entry["inputs"].items() if name.startswith("LP")}
    P = len(inputs["LP_w"])
    lengths = [int(n) for side in ("len_w", "len_l") for n in entry["inputs"].get(side, [3] * P)]
    w, low = inputs["LP_w"].requires_grad_(), inputs["LP_l"].requires_grad_()
    logp, mask = sums_as_rows(torch.cat([w, low]), lengths)
    ref, _ = sums_as_rows(torch.cat([inputs["LPref_w"], inputs["LPref_l"]]), lengths)
    tokens = tokens_for(mask, list(range(P)) * 2)
    return {"logp": logp, "ref_logp": ref}, Batch(tokens, Pairs(torch.arange(P), torch.arange(P, 2 * P))), w, low


def mean_loss(method: Method, scored: dict[str, Tensor], batch: Batch) -> tuple[Tensor, Tensor]:
    (term,) = method.terms
    values = term.loss(scored, batch)
    return values, (values * term.weigh(batch)).sum()


@pytest.mark.parametrize("name", PAIRED)
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=str)
def test_pair_methods(name: str, dtype: torch.dtype) -> None:
    entry = ENTRIES[1, name]
    scored, batch, w, low = paired(entry, dtype)
    values, mean = mean_loss(PAIRED[name], scored, batch)
    tolerance = {"rtol": 1e-12, "atol": 1e-12} if dtype == torch.float64 else {"rtol": 1e-5, "atol": 1e-6}
    expected = entry["expected"]
    torch.testing.assert_close(values.double(), tensor(expected["loss"]), **tolerance)
    torch.testing.assert_close(mean.double(), tensor(expected["mean"]), **tolerance)
    grad_w, grad_l = torch.autograd.grad(mean, [w, low])
    torch.testing.assert_close(grad_w.double(), tensor(expected["grad_mean_wrt_LP_w"]), **tolerance)
    torch.testing.assert_close(grad_l.double(), tensor(expected["grad_mean_wrt_LP_l"]), **tolerance)


@pytest.mark.parametrize("name", ["sigmoid", "cdpo", "ipo", "ipo_sum", "aot"])
def test_loss_at_the_reference(name: str) -> None:
    entry = ENTRIES[1, "at_reference"]
    scored, batch, _, _ = paired(entry)
    values, _ = mean_loss(PAIRED[name], scored, batch)
    torch.testing.assert_close(values, torch.full_like(values, entry["expected"][name]), rtol=1e-12, atol=1e-12)


def test_kto_with_a_given_baseline() -> None:
    """z0 = 0.2 arises from one mismatched completion with that log-ratio."""
    entry = ENTRIES[1, "kto"]
    scored, batch, w, low = paired(entry)
    extra = torch.zeros(1, scored["logp"].shape[1], dtype=torch.float64)
    logp = torch.cat([scored["logp"], extra + tensor([0.2] + [0.0] * (extra.shape[1] - 1))])
    ref = torch.cat([scored["ref_logp"], extra])
    tokens = tokens_for(
        torch.cat([batch.tokens.action, torch.ones_like(extra, dtype=torch.bool)]), [0, 1, 2, 0, 1, 2, 1]
    )
    labels = Labels(torch.arange(6), torch.tensor([True] * 3 + [False] * 3), torch.tensor([6]))
    values, mean = mean_loss(kto(beta=0.5), {"logp": logp, "ref_logp": ref}, Batch(tokens, labels))
    expected = entry["expected"]
    torch.testing.assert_close(values, tensor(expected["loss_w"] + expected["loss_l"]), rtol=1e-12, atol=1e-12)
    grads = torch.autograd.grad(mean, [w, low])
    for grad, side in zip(grads, "wl", strict=True):
        torch.testing.assert_close(grad, tensor(expected[f"grad_mean_wrt_LP_{side}"]), rtol=1e-12, atol=1e-12)


def test_kto_baseline_is_never_negative_and_weights_scale_their_class() -> None:
    ratios = tensor([[0.3], [-0.4], [-5.0]])
    labels = Labels(torch.tensor([0, 1]), torch.tensor([True, False]), torch.tensor([2]))
    batch = Batch(tokens_for(torch.ones(3, 1, dtype=torch.bool), [0, 1, 0]), labels)
    scored = {"logp": ratios, "ref_logp": torch.zeros(3, 1, dtype=torch.float64)}
    values, _ = mean_loss(kto(beta=2.0, desirable_weight=3.0, undesirable_weight=5.0), scored, batch)
    sigma = lambda z: 1 / (1 + torch.exp(-tensor(z)))  # noqa: E731
    torch.testing.assert_close(values, torch.stack([3 * (1 - sigma(0.6)), 5 * (1 - sigma(0.8))]))


def token_level(entry: dict, needs: tuple) -> tuple[dict[str, Tensor], Batch, Tensor, Tensor]:
    """Fixture 2: scores from logits by the readouts themselves; row 0 chosen, row 1 rejected."""
    inputs = entry["inputs"]
    leaves = {side: tensor(inputs[f"logits_pi_{side}"]).requires_grad_() for side in "wl"}
    action = torch.tensor([[True, True, False], [True, True, True]])
    scored = {}
    for readout in (LOGP, REF_LOGP, *needs):
        rows = []
        for side in "wl":
            logits = {"policy": leaves[side], "ref": tensor(inputs[f"logits_ref_{side}"])}
            seen = {name: each.log_softmax(-1) for name, each in logits.items()}
            values = readout.fn(seen, torch.tensor(inputs[f"y_{side}"]))
            rows.append(torch.cat([values, values.new_zeros(3 - len(values))]))
        scored[readout.name] = torch.stack(rows)
    batch = Batch(tokens_for(action, [0, 0]), Pairs(torch.tensor([0]), torch.tensor([1])))
    return scored, batch, leaves["w"], leaves["l"]


@pytest.mark.parametrize(
    ("name", "method"),
    [
        ("dpo", METHODS["dpo"](beta=0.5)),
        ("tdpo2", METHODS["tdpo2"](beta=0.5)),
        ("wpo_official", METHODS["wpo"](beta=0.5)),
        ("sft", METHODS["sft"]()),
    ],
)
def test_token_level_methods(name: str, method: Method) -> None:
    entry = ENTRIES[2, name]
    scored, batch, w, low = token_level(entry, method.needs)
    _, mean = mean_loss(method, scored, batch)
    torch.testing.assert_close(mean, tensor(entry["expected"]["mean"]), rtol=1e-12, atol=1e-12)
    grads = torch.autograd.grad(mean, [w, low], allow_unused=True)
    for grad, side in zip(grads, "wl", strict=True):
        expected = tensor(entry["expected"][f"grad_mean_wrt_logits_pi_{side}"])
        torch.testing.assert_close(
            torch.zeros_like(expected) if grad is None else grad, expected, rtol=1e-12, atol=1e-12
        )


def test_wpo_weight_below_one() -> None:
    """The published example's product exceeds 1 and is clamped; here the pair's weight is w_l² < 1, by hand."""
    entry = ENTRIES[2, "wpo_official"]
    scored, batch, _, _ = token_level(entry, METHODS["wpo"]().needs)
    swapped = Batch(batch.tokens, Pairs(torch.tensor([1]), torch.tensor([1])))
    values, _ = mean_loss(METHODS["wpo"](beta=0.5), scored, swapped)
    torch.testing.assert_close(
        values, tensor([entry["expected"]["w_l"] ** 2 * 0.6931471805599453]), rtol=1e-12, atol=1e-12
    )


def test_tdpo2_is_dpo_at_alpha_0_and_scores_its_own_margin() -> None:
    entry = ENTRIES[2, "tdpo2"]
    method = METHODS["tdpo2"](beta=0.5)
    scored, batch, _, _ = token_level(entry, method.needs)
    _, dpo = mean_loss(METHODS["dpo"](beta=0.5), scored, batch)
    _, same = mean_loss(METHODS["tdpo2"](beta=0.5, alpha=0.0), scored, batch)
    torch.testing.assert_close(same, dpo, rtol=1e-14, atol=0)
    divergence = scored["kl_from_ref"].sum(-1)
    torch.testing.assert_close(divergence, tensor([entry["expected"]["K_w"], entry["expected"]["K_l"]]))
    w, low = method.reward(scored, batch)
    torch.testing.assert_close(-torch.nn.functional.logsigmoid(0.5 * (w - low)), tensor(entry["expected"]["mean"]))


def test_infonca() -> None:
    entry = ENTRIES[4, "infonca"]
    ratios = tensor(entry["inputs"]["L"])[:, None].requires_grad_()
    batch = Batch(
        tokens_for(torch.ones(3, 1, dtype=torch.bool), [7, 7, 7]), None, {"reward": tensor(entry["inputs"]["rewards"])}
    )
    method = METHODS["infonca"](beta=0.5, alpha=0.5)
    scored = {"logp": ratios, "ref_logp": torch.zeros(3, 1, dtype=torch.float64)}
    _, mean = mean_loss(method, scored, batch)
    torch.testing.assert_close(mean, tensor(entry["expected"]["mean"]), rtol=1e-12, atol=1e-12)
    (grad,) = torch.autograd.grad(mean, ratios)
    torch.testing.assert_close(grad[:, 0], tensor(entry["expected"]["grad_wrt_L"]), rtol=1e-12, atol=1e-12)


def test_infonca_of_two_with_a_one_hot_target_is_dpo() -> None:
    scored, batch, _, _ = paired(ENTRIES[1, "sigmoid"])
    groups = Batch(batch.tokens, None, {"reward": tensor([1.0] * 3 + [0.0] * 3)})
    values, _ = mean_loss(METHODS["infonca"](beta=0.5, alpha=1e-3), scored, groups)
    torch.testing.assert_close(values, tensor(ENTRIES[1, "sigmoid"]["expected"]["loss"]), rtol=1e-12, atol=1e-12)


def test_grpo_by_hand() -> None:
    """Two completions of one prompt, rewards 1 and 0: advantages ±0.5/(√0.5 + 1e-4) = ±0.70701.

    Row 0 has two tokens, ratios 1.5 (clipped at 1.2) and 0.9; row 1 has one, ratio 0.5 (clipped at 0.8), d = 0.3.
    """
    action = torch.tensor([[True, True], [True, False]])
    reward = tensor([1.0, 0.0])
    method = grpo(beta=0.1, epsilon=0.2)
    old = torch.log(tensor([[0.2, 0.4], [0.6, 1.0]]))
    tokens = tokens_for(action, [3, 3])
    credit = method.credit({"logp": old}, Batch(tokens, None, {"reward": reward}))
    a = 0.5 / (0.5**0.5 + 1e-4)
    torch.testing.assert_close(credit["advantage"], tensor([[a, a], [-a, 0.0]]), rtol=1e-12, atol=1e-12)
    logp = (old + torch.log(tensor([[1.5, 0.9], [0.5, 1.0]]))).requires_grad_()
    ref = logp.detach() - tensor([[0.0, 0.0], [0.3, 0.0]])
    batch = Batch(tokens, None, {"reward": reward, **credit})
    _, mean = mean_loss(method, {"logp": logp, "ref_logp": ref}, batch)
    k3 = 0.1 * (2.718281828459045**-0.3 - 1 + 0.3)
    by_hand = 0.5 * (0.5 * (-1.2 * a - 0.9 * a)) + 0.5 * (0.8 * a + k3)
    torch.testing.assert_close(mean, tensor(by_hand), rtol=1e-12, atol=1e-12)
    (grad,) = torch.autograd.grad(mean, logp)
    by_hand = tensor([[0.0, -0.25 * 0.9 * a], [0.5 * 0.1 * (1 - 2.718281828459045**-0.3), 0.0]])
    torch.testing.assert_close(grad, by_hand, rtol=1e-12, atol=1e-12)


def test_group_of_equal_rewards_has_no_advantage() -> None:
    batch = Batch(tokens_for(torch.ones(3, 2, dtype=torch.bool), [0, 0, 5]), None, {"reward": tensor([0.7, 0.7, 4.0])})
    credit = grpo().credit({"logp": torch.zeros(3, 2)}, batch)
    assert credit["advantage"].abs().max() == 0


STATES = ("root", "a", "b")
TREE = token_tree([(5,)], vocabulary=2, horizon=2)


def on_tree(values: dict) -> Tensor:
    return tensor([values[state] for state in STATES])


def test_soft_backup_on_the_fixture() -> None:
    entry = ENTRIES[3, "soft_optimum"]
    reference, reward = on_tree(entry["inputs"]["ref"]).log(), on_tree(entry["inputs"]["reward"])
    optimum = soft_backup(TREE, reward, reference, beta=0.5)
    expected = entry["expected"]
    close = {"rtol": 1e-12, "atol": 1e-12}
    torch.testing.assert_close(optimum.q_kl, on_tree(expected["Q_kl"]), **close)
    torch.testing.assert_close(optimum.v, on_tree(expected["V"]), **close)
    torch.testing.assert_close(optimum.logp.exp(), on_tree(expected["pi_star"]), **close)
    torch.testing.assert_close(maxent(optimum.q_kl, reference, beta=0.5), on_tree(expected["Q_maxent"]), **close)
    advantage = implicit_reward(optimum.logp, reference, beta=0.5)
    torch.testing.assert_close(advantage, on_tree(expected["advantage_kl"]), **close)
    leaves = every_trajectory(TREE)
    torch.testing.assert_close(
        along(TREE, reward, leaves).sum(-1), tensor(ENTRIES[3, "leaves"]["expected"]["R"]), **close
    )
    beta_L = along(TREE, advantage, leaves).sum(-1)
    torch.testing.assert_close(beta_L, tensor(ENTRIES[3, "leaves"]["expected"]["beta_L"]), **close)
    entry = ENTRIES[3, "shaping"]
    potential = tensor([entry["inputs"]["Phi"][state] for state in STATES])
    moved = shaped(TREE, reward, potential)
    torch.testing.assert_close(moved, on_tree(entry["expected"]["shaped_reward"]), **close)
    again = soft_backup(TREE, moved, reference, beta=0.5)
    torch.testing.assert_close(again.v, on_tree(entry["expected"]["V_shaped"]), **close)
    torch.testing.assert_close(again.logp, optimum.logp, **close)


def test_readouts_by_hand() -> None:
    p, q = tensor([[0.5, 0.25, 0.25]]), tensor([[0.8, 0.1, 0.1]])
    forward = 0.5 * torch.log(tensor(0.5 / 0.8)) + 0.5 * torch.log(tensor(2.5))
    torch.testing.assert_close(readouts.kl(p.log(), q.log())[0], forward)
    torch.testing.assert_close(readouts.entropy(p.log())[0], 1.5 * torch.log(tensor(2.0)))
    torch.testing.assert_close(readouts.log_collision(p.log())[0], torch.log(tensor(0.375)))
    seen, action = {"policy": p.log(), "ref": q.log()}, torch.tensor([1])
    torch.testing.assert_close(readouts.LOGP.fn(seen, action)[0], torch.log(tensor(0.25)))
    torch.testing.assert_close(readouts.REF_LOGP.fn(seen, action)[0], torch.log(tensor(0.1)))
    torch.testing.assert_close(readouts.KL.fn(seen, action), readouts.kl(p.log(), q.log()))
    torch.testing.assert_close(readouts.KL_FROM_REF.fn(seen, action), readouts.kl(q.log(), p.log()))


def test_masked_means_ignore_what_is_outside() -> None:
    values = tensor([[1.0, float("nan"), 3.0], [5.0, 6.0, float("inf")]])
    mask = torch.tensor([[True, False, True], [False, True, False]])
    assert masked.mean(values, mask, -1).tolist() == [2.0, 6.0]
    assert masked.total(values, mask).item() == 10.0
    assert masked.share(mask).sum() == 1
