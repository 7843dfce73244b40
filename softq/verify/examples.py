"""Laws of small examples: KL estimators, an environment that draws, and where reward models and values end."""

import torch
from torch import Tensor

from softq.mdp.chance import (
    Chance,
    chance_backup,
    every_episode,
    luck,
    minimum,
    regularised_return,
    step_dpo,
    totals,
    trajectory_dpo,
    two_states,
)
from softq.mdp.divergence import corrected, k1, k2, k3, straight_through
from softq.mdp.soft import mean_backup, soft_backup
from softq.mdp.tabular import at_the_end, gradient, random_table, token_tree
from softq.objectives.links import group_mean
from softq.objectives.reward_model import rm
from softq.objectives.values import soft_value, value
from softq.records import Method
from softq.verify.law import EXACT, Finding, Law, apart
from softq.verify.populations import Population, reference_groups, soft_pairs
from softq.verify.tables import Slope, filled, slope, table

CHOICE = token_tree([(0,)], vocabulary=5, horizon=1)
POLICY, REFERENCE = 2 * random_table(CHOICE, 31)[0], random_table(CHOICE, 32)[0].log_softmax(-1)


def _log_ratio(logits: Tensor) -> Tensor:
    return logits.log_softmax(-1) - REFERENCE


def _kl(logits: Tensor) -> Tensor:
    return (logits.softmax(-1) * _log_ratio(logits)).sum()


def _mirror(logits: Tensor) -> Tensor:
    return -(REFERENCE.exp() * _log_ratio(logits)).sum()


def _estimators(_: None) -> Finding:
    """Value: the exact mean over actions. Gradient as a loss: of that mean with how often each action is drawn held fixed."""
    often = POLICY.softmax(-1)
    value, wanted, other = _kl(POLICY), gradient(_kl, POLICY), gradient(_mirror, POLICY)

    def pull(estimate: object) -> Tensor:
        return gradient(lambda logits: (often * estimate(_log_ratio(logits))).sum(), POLICY)  # pyright: ignore[reportCallIssue]

    def repaired(logits: Tensor) -> Tensor:
        ratio = (logits.log_softmax(-1) - POLICY.log_softmax(-1)).exp()
        return (often * corrected(k3(_log_ratio(logits)), ratio)).sum()

    d = _log_ratio(POLICY)
    off = [
        apart((often * k1(d)).sum(), value),
        apart((often * k3(d)).sum(), value),
        apart(pull(k1), torch.zeros(5, dtype=torch.float64)),
        apart(pull(k2), wanted),
        apart(pull(k3), other),
        apart(gradient(repaired, POLICY), wanted),
        apart(pull(lambda d: straight_through(k3(d), k2(d))), wanted),
    ]
    return Finding(max(off), EXACT, f"the two KLs pull {apart(wanted, other):.2f} apart here")


def _luck(_: None) -> Finding:
    """On `two_states`: the identity with luck, its mean, and by how much trajectory-level DPO misses π*."""
    drawn, sure, reference = two_states(), two_states(1.0), torch.full((3, 2), 0.5, dtype=torch.float64).log()
    best, episodes = chance_backup(drawn, reference, beta=1.0), every_episode(drawn)
    added = luck(drawn, best, episodes)
    earned = totals(best.logp - reference, episodes) + best.v[0]
    often = (totals(best.logp, episodes) + episodes.chance).exp()
    identity = apart(totals(drawn.reward, episodes), earned + added)

    def trained(mdp: Chance) -> Tensor:
        return minimum(lambda logp: trajectory_dpo(mdp, logp, reference, beta=1.0), reference)

    missed = best.v[0] - regularised_return(drawn, trained(drawn), reference, beta=1.0)[0]
    here = chance_backup(sure, reference, beta=1.0).logp
    by_steps = minimum(lambda logp: step_dpo(best.q_kl, logp, reference, beta=1.0), reference)
    off = [
        identity,
        abs(float((often * added).sum())),
        apart(trained(sure)[:2].exp(), here[:2].exp()),  # state 2 is never seen there
        apart(by_steps.exp(), best.logp.exp()),
        0.0 if missed > 0.04 else 1.0,
    ]
    lost = f"{float(missed):.3f} of {float(best.v[0]):.2f} is lost"
    return Finding(max(off), 1e-8, f"luck up to {float(added.abs().max()):.1f} is credited to actions: {lost}")


def _reward_model(_: None) -> Finding:
    """On all pairs of a prompt, labelled by σ(R_w - R_l): there is no slope at r = R, and descent from elsewhere ends there."""
    whole, method = soft_pairs(1.0), rm()
    reward, prompt = whole.batch.columns["reward"], whole.batch.tokens.prompt
    truth = at_the_end(whole.tree, whole.batch.tokens, reward)
    start = random_table(whole.tree, 33, 2.0)
    steepest = _slope(method, whole, start).gradient.abs().max()
    flat = float(_slope(method, whole, truth).gradient.abs().max() / steepest)
    of = whole.at(_descended(method, whole, start))
    apart_by = method.reward(of(whole.batch.tokens, method.needs), whole.batch).detach() - reward
    constants = group_mean(apart_by, prompt, int(prompt.max()) + 1)
    off = float((apart_by - constants[prompt]).abs().max())
    free = ", ".join(f"{constant:+.2f}" for constant in constants.tolist())
    return Finding(max(flat, off), 1e-6, f"r - R is {free} on the prompts; the slope at r = R is {flat:.0e}")


def _values(_: None) -> Finding:
    """On completions as often as the reference draws them: no slope at the exact values, and descent ends there."""
    whole = reference_groups(1.0)
    tokens, reward = whole.batch.tokens, whole.batch.columns["reward"]
    earned = at_the_end(whole.tree, tokens, reward)
    mean = mean_backup(whole.tree, earned, whole.reference)
    soft = soft_backup(whole.tree, earned, whole.reference, beta=0.5).q_kl
    start, off = random_table(whole.tree, 33), []
    for method, truth in ((value(), mean), (value(lam=1.0), mean), (soft_value(beta=0.5), soft)):
        end = start
        for _round in range(3):  # targets that are made of values are right from the end up, a token a round
            end = _descended(method, whole, end)
        steepest = _slope(method, whole, start).gradient.abs().max()
        off += [float(_slope(method, whole, truth).gradient.abs().max() / steepest), apart(end, truth)]
    return Finding(max(off), 1e-6, f"the two values are up to {apart(mean, soft):.2f} apart here")


def _slope(method: Method, whole: Population, policy: Tensor) -> Slope:
    of = whole.at(policy)
    return slope(method, of, filled(method, whole.batch, of))


def _descended(method: Method, whole: Population, start: Tensor) -> Tensor:
    """The table [S, V] at which descent from another ends; what credit makes is made at the start."""
    of = whole.at(start)
    batch = filled(method, whole.batch, of)
    mover = torch.optim.LBFGS(
        [table(of)], max_iter=300, tolerance_grad=1e-13, tolerance_change=0, line_search_fn="strong_wolfe"
    )

    def closure() -> Tensor:
        found = slope(method, of, batch)
        table(of).grad = found.gradient
        return found.loss

    mover.step(closure)  # pyright: ignore[reportArgumentType]
    return table(of).detach()


EXAMPLE_LAWS: tuple[Law[None], ...] = (
    Law(
        "KL estimators",
        "k1 and k3 are KL(π‖π_ref) on average; as losses k1 pulls nowhere, k2 along ∇KL(π‖π_ref), k3 along ∇KL(π_ref‖π).",
        "A KL penalty of an on-policy method pulls towards another divergence than the one that is logged.",
        _estimators,
    ),
    Law(
        "luck",
        "Where the environment draws, G = β Σ log π*/π_ref + V*(s_0) + luck of mean 0; pairs of one state give π*, of whole "
        "trajectories they do not.",
        "What chance did would be taken for what actions did, without anybody's knowing how much.",
        _luck,
    ),
    Law(
        "reward model",
        "On all pairs of a prompt, labelled by Bradley and Terry's σ(R_w - R_l), rm ends at r = R + a constant of the prompt.",
        "A reward model does not learn the reward behind its labels: a sign, or the token that it is read at, is wrong.",
        _reward_model,
    ),
    Law(
        "values",
        "On the reference's own completions, value ends at E_ref[R | s] for any λ, soft_value at β log E_ref[e^{R/β} | s], at "
        "every state, those behind end tokens included.",
        "A value is drawn to another number than the one that decoding takes it for: a state too far, or another average.",
        _values,
    ),
)
