"""An MDP in which the environment draws the next state, and what learning from whole trajectories gets wrong there.

With chance, Q*(s,a) = r(s,a) + E V*(s') averages over the outcomes, and an episode's return is no longer what its actions earned:

    G = β Σ_t log π*/π_ref(a_t|s_t) + V*(s_0) + luck,      luck = Σ_t [V*(s_{t+1}) - E V*(s')].

Luck has mean 0 under every policy. A loss that compares two trajectories by G, as trajectory-level DPO of agents does, credits
it to the actions all the same, and its minimum is not π*: log-ratios that are normalised in each state can not carry the value
of the state that was drawn, so they are bent to carry what they can of it. On `two_states` at β = 1 with a uniform reference
the second action has probability 0.27 in both states under π*; by trajectories it gets 0.42 after good luck (all that was done
there won: too near the reference) and 0.08 after bad luck (too far), the risky action 0.56 instead of 0.53, and 0.047 of the
1.06 that π* earns is lost. Two actions of one state share what was drawn: step-level pairs give π* (arXiv 2408.07199).
A sequence of tokens has no chance in it: luck is 0 and the theory of the token tree stands.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from softq import masked
from softq.mdp.soft import Optimum, implicit_reward, maxent, soft_value
from softq.mdp.tabular import gradient


@dataclass(frozen=True)
class Chance:
    """A finite MDP with drawn outcomes; it starts in state 0 and states are numbered after those that lead to them."""

    next: Tensor  # [S, A, E] int64; the state after an outcome, -1 if that ends the episode
    probability: Tensor  # [S, A, E]; of an outcome; 0 where there are fewer than E
    reward: Tensor  # [S, A] reward units

    def __post_init__(self) -> None:
        """Raises ValueError on what is no such MDP."""
        shapes = [tuple(x.shape) for x in (self.next, self.probability, self.reward)]
        if self.next.dim() != 3 or shapes[1] != shapes[0] or shapes[2] != shapes[0][:2]:
            raise ValueError(f"next and probability are [S, A, E] and reward is [S, A], but the shapes are {shapes}")
        number = torch.arange(len(self.next))[:, None, None]
        if not ((self.next == -1) | ((self.next > number) & (self.next < len(self.next)))).all():
            raise ValueError(
                "a next state is -1 or a larger number that there is: number states after those that lead to them"
            )
        off = float((self.probability.sum(-1) - 1).abs().max())
        if not (self.probability >= 0).all() or not off < 1e-6:
            raise ValueError(f"probabilities of outcomes are ≥ 0 and sum to 1, but a sum is {off:.2g} away from it")


def two_states(probability: float = 0.5) -> Chance:
    """A safe action, a risky one, and two states that the risky one may lead to; float64.

    In state 0, action 0 earns 1 and ends. Action 1 earns 0 and leads to state 1 with the given probability, else to state 2.
    In state 1 the actions earn 3 and 2, in state 2 they earn 0 and -1, and end. The two are one state plus 3: π* is the same in
    both, V* differs by 3, and at 0.5 luck is ±1.5. With probability 1 nothing is drawn.
    """
    after = torch.full((3, 2, 2), -1)
    after[0, 1] = torch.tensor([1, 2])
    chance = torch.tensor([1.0, 0.0], dtype=torch.float64).repeat(3, 2, 1)
    chance[0, 1] = torch.tensor([probability, 1 - probability], dtype=torch.float64)
    return Chance(after, chance, torch.tensor([[1.0, 0.0], [3.0, 2.0], [0.0, -1.0]], dtype=torch.float64))


def chance_backup(mdp: Chance, ref_logp: Tensor, *, beta: float) -> Optimum:
    """Q*(s,a) = r + E V*(s'), V*(s) = β log Σ π_ref e^{Q*/β} and π*; ref_logp [S, A] nats. An end has value 0."""
    q, value = torch.zeros_like(mdp.reward), torch.zeros_like(mdp.reward[:, 0])
    for s in reversed(range(len(q))):
        q[s] = mdp.reward[s] + (mdp.probability[s] * _after(mdp.next[s], value)).sum(-1)
        value[s] = soft_value(maxent(q[s], ref_logp[s], beta=beta), beta=beta)
    q_maxent = maxent(q, ref_logp, beta=beta)
    return Optimum(q, q_maxent, value, (q_maxent - value[:, None]) / beta)


def regularised_return(mdp: Chance, logp: Tensor, ref_logp: Tensor, *, beta: float) -> Tensor:
    """E_π Σ_t [r - β log π/π_ref] from each state on, [S] reward units: what π* maximises and V* is the most of.

    logp [S, A] nats, finite; differentiable. V* - this = β E_π Σ_t KL(π‖π*)(s_t).
    """
    value = torch.zeros_like(logp[:, 0])
    for s in reversed(range(len(logp))):
        later = (mdp.probability[s] * _after(mdp.next[s], value)).sum(-1)
        value[s] = (logp[s].exp() * (mdp.reward[s] - implicit_reward(logp[s], ref_logp[s], beta=beta) + later)).sum(-1)
    return value


def _after(following: Tensor, value: Tensor) -> Tensor:
    """The value [S] of the next state, in the shape of `following`; 0 where the episode ends."""
    return torch.where(following >= 0, value[following.clamp(min=0)], 0.0)


class Episodes(NamedTuple):
    """What may happen, one episode a row; 0 in padding."""

    state: Tensor  # [B, T] int64
    action: Tensor  # [B, T] int64
    outcome: Tensor  # [B, T] int64
    taken: Tensor  # [B, T] bool; False in padding
    chance: Tensor  # [B] nats; log-probability of the outcomes, given the actions


def every_episode(mdp: Chance) -> Episodes:
    """Every path of states, actions and outcomes of positive probability, in the order of their numbers."""
    paths = list(_paths(mdp, 0))
    lengths = torch.tensor([len(path) for path in paths])
    T = int(lengths.max())
    state, action, outcome = torch.tensor([[*path, *[(0, 0, 0)] * (T - len(path))] for path in paths]).unbind(-1)
    taken = torch.arange(T) < lengths[:, None]
    chance = masked.total(mdp.probability[state, action, outcome].log(), taken, -1)
    return Episodes(state, action, outcome, taken, chance)


def _paths(mdp: Chance, state: int) -> Iterator[tuple[tuple[int, int, int], ...]]:
    """Every way to go on from a state: (state, action, outcome), ..."""
    for action, outcome in (mdp.probability[state] > 0).nonzero().tolist():
        after = int(mdp.next[state, action, outcome])
        for rest in _paths(mdp, after) if after >= 0 else [()]:
            yield (state, action, outcome), *rest


def totals(table: Tensor, episodes: Episodes) -> Tensor:
    """Σ_t of the entries of a table [S, A] that each episode passes through: [B]. Of the reward it is the return G."""
    return masked.total(table[episodes.state, episodes.action], episodes.taken, -1)


def luck(mdp: Chance, optimum: Optimum, episodes: Episodes) -> Tensor:
    """Σ_t [V*(s_{t+1}) - E V*(s')], [B] reward units: what chance added to the return. Mean 0 under every policy."""
    after = _after(mdp.next, optimum.v)
    drawn = after[episodes.state, episodes.action, episodes.outcome]
    return masked.total(drawn, episodes.taken, -1) - totals((mdp.probability * after).sum(-1), episodes)


def preference_loss(score: Tensor, truth: Tensor, weight: Tensor) -> Tensor:
    """E over ordered pairs (i, j) of the cross-entropy of σ(score_i - score_j) with the soft label σ(truth_i - truth_j).

    score, truth [..., N] in reward units; weight [..., N] probabilities of i, and independently of j. -> [...]
    """
    margin, target = (x[..., :, None] - x[..., None, :] for x in (score, truth))
    entropy = F.binary_cross_entropy_with_logits(margin, target.sigmoid(), reduction="none")
    return (weight[..., :, None] * weight[..., None, :] * entropy).sum((-2, -1))


def trajectory_dpo(mdp: Chance, logp: Tensor, ref_logp: Tensor, *, beta: float) -> Tensor:
    """The population loss of trajectory-level DPO: two episodes drawn by the reference, label σ(G_i - G_j), a number.

    score = β Σ_t log π/π_ref over the actions; the environment's probabilities cancel in it. logp, ref_logp [S, A] nats.
    """
    episodes = every_episode(mdp)
    weight = (totals(ref_logp, episodes) + episodes.chance).exp()
    return preference_loss(
        totals(implicit_reward(logp, ref_logp, beta=beta), episodes), totals(mdp.reward, episodes), weight
    )


def step_dpo(q: Tensor, logp: Tensor, ref_logp: Tensor, *, beta: float) -> Tensor:
    """The population loss of step-level DPO, summed over states: two actions of one state, label σ(Q_i - Q_j), a number.

    With Q* [S, A] its one minimum is π* (arXiv 2408.07199): the states' values cancel inside a pair, and luck with them.
    """
    return preference_loss(implicit_reward(logp, ref_logp, beta=beta), q, ref_logp.exp()).sum()


def minimum(loss: Callable[[Tensor], Tensor], start: Tensor) -> Tensor:
    """log π [S, A] of a table of logits that minimises loss(log π), descending from log π = start, in float64.

    L-BFGS and one Newton step in the directions that matter; a state that the loss does not see keeps its start. Raises
    ArithmeticError unless the gradient is below 1e-10 and no direction curves down. The minimum is a local one where the loss
    has more.
    """
    logits = start.detach().double().clone().requires_grad_()
    descent = torch.optim.LBFGS(
        [logits], max_iter=2000, tolerance_grad=1e-12, tolerance_change=0.0, line_search_fn="strong_wolfe"
    )

    def of(x: Tensor) -> Tensor:
        return loss(x.log_softmax(-1))

    def closure() -> float:
        value = of(logits)
        logits.grad = torch.autograd.grad(value, logits)[0]
        return value.item()

    descent.step(closure)
    at = logits.detach()
    bent = torch.as_tensor(torch.autograd.functional.hessian(of, at)).reshape(at.numel(), at.numel())
    if not bent.isfinite().all():
        raise ArithmeticError("no minimum was found from this start: the descent left the finite numbers")
    slope = gradient(of, at).flatten()
    at = at - (torch.linalg.pinv(bent, rtol=1e-9, hermitian=True) @ slope).view_as(at)
    steepest, least = gradient(of, at).abs().max(), torch.linalg.eigvalsh(bent).min()
    if not steepest < 1e-10 or not least > -1e-9:
        raise ArithmeticError(f"no minimum was found from this start: gradient {steepest:.2g}, curvature {least:.2g}")
    return at.log_softmax(-1)
