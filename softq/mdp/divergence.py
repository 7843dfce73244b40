"""KL(π‖π_ref) of one choice, by estimate and exactly: what each estimator is worth as a number and as a loss.

d = log π(a|s) - log π_ref(a|s) in nats, of an action drawn from π. An estimator k means two things: its VALUE is E_π[k], a
number to log; its GRADIENT is E_π[∇k], where d is differentiated and the drawn actions stay fixed: what descent on it as a
loss follows. None of k1, k2, k3 (J. Schulman, Approximating KL Divergence, 2020) has both right.

| estimator                | value      | gradient    |
|--------------------------|------------|-------------|
| k1 = d                   | KL(π‖ref)  | 0           |
| k2 = d²/2                | biased     | ∇KL(π‖ref)  |
| k3 = e^{-d} - 1 + d      | KL(π‖ref)  | ∇KL(ref‖π)  |
| corrected(k1 or k3, ρ)   | KL(π‖ref)  | ∇KL(π‖ref)  |
| straight_through(k3, k2) | KL(π‖ref)  | ∇KL(π‖ref)  |
| full                     | KL(π‖ref)  | ∇KL(π‖ref)  |

All of this is said of one state. Along a sequence the values add up to the sequence KL, since KL(π(y)‖π_ref(y)) is
E_π Σ_t KL(s_t); the gradients do not: each keeps the states where they are, so a token answers for its own d alone, while it
also chose the later states. The exact gradient is E_π Σ_t (Σ_{i≥t} d_i) ∇log π_t, the reward-to-go of d; or `corrected` with
ρ of the whole prefix, Π_{i≤t} π/π_old, in place of the token's own.

Nothing is clamped. d → -∞ is an action that π hardly takes and π_ref does; that rare sample's weight e^{-d} = π_ref/π is what
makes k3 exact, so a clamp would bias its value and take its gradient away where it is largest. k3 grows as e^{-d} and is inf
below d = -709 in float64 and -88 in float32, with gradient -inf and never nan for a finite d; k1 and k2 are finite for any
d within ±1e4. Who clamps d before does so knowingly.
"""

from torch import Tensor

from softq.mdp.readouts import kl

full = kl  # the exact KL of each state from the log-probs of both vocabularies, [n, V], [n, V] -> [n], nats; value and gradient


def k1(d: Tensor) -> Tensor:
    """d, any shape -> the same, nats. Value KL(π‖π_ref). Gradient 0 in expectation, since E_π[∇log π] = 0: no loss.

    Without gradient, as a cost in the reward, its policy gradient is the exact one of the sequence KL.
    """
    return d


def k2(d: Tensor) -> Tensor:
    """d²/2, any shape -> the same. Value E_π[d²]/2, KL(π‖π_ref) only to second order in d. Gradient ∇KL(π‖π_ref)."""
    return d.square() / 2


def k3(d: Tensor) -> Tensor:
    """e^{-d} - 1 + d ≥ 0, any shape -> the same, nats. Value KL(π‖π_ref). Gradient that of the other one, ∇KL(π_ref‖π).

    Written with expm1: near 0, where k3 is d²/2, the relative error falls from ε/d² to ε/|d|, and no value is negative.
    """
    return (-d).expm1() + d


def corrected(estimate: Tensor, ratio: Tensor) -> Tensor:
    """ρ · k, any shape -> the same: for actions drawn from π_old, with ρ = π/π_old differentiable, also where ρ = 1.

    E_old[ρ k] = E_π[k] holds for every π, so the gradient is that of the value: of k1 and k3 ∇KL(π‖π_ref), of k2 that of its
    biased value. A ρ without gradient corrects the value only: the gradient is then that of k alone.
    """
    return ratio * estimate


def straight_through(value: Tensor, gradient: Tensor) -> Tensor:
    """The value of one estimator with the gradient of another, any shape -> the same; both finite.

    straight_through(k3, k2) = k2 - sg(k2) + sg(k3), sg without gradient: KL(π‖π_ref) and ∇KL(π‖π_ref).
    """
    return gradient - gradient.detach() + value.detach()
