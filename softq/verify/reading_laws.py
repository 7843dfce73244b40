"""The laws of what is measured of a policy: columns, made as `softq score` makes them, against the exact values of a table."""

from typing import Any, NamedTuple

import torch
from torch import Tensor

from softq import masked
from softq.inspection.accuracy import half_ties
from softq.inspection.credit import Actions, split
from softq.inspection.information import exact
from softq.inspection.pieces import Pieces
from softq.inspection.ranking import idealised, threshold
from softq.inspection.tables import readouts, token_table
from softq.inspection.values import prefixes, state
from softq.lm.score import score
from softq.mdp.soft import implicit_reward, state_kl
from softq.mdp.tabular import along, every_pair, expected
from softq.records import Tokens
from softq.verify.law import EXACT, Finding, Law, apart
from softq.verify.tables import models
from softq.verify.theory import Table

PIECES = Pieces(lambda ids: "".join("a1. "[token] for token in ids))


class Read(NamedTuple):
    """Completions that the reference can take, and the policy's columns of their tokens [N]."""

    tokens: Tokens
    table: dict[str, Any]
    row: Tensor  # [N] which completion

    def column(self, name: str) -> Tensor:
        """[N] of the table."""
        return torch.as_tensor(self.table[name])

    def sums(self, name: str) -> Tensor:
        """[B] over the tokens of each completion."""
        values = self.column(name)
        return torch.zeros(len(self.tokens.ended), dtype=values.dtype).index_add(0, self.row, values)


def _read(on: Table, policy: Tensor, rows: Tensor | None = None, record: Tensor | None = None) -> Read:
    """The columns of some leaves (all that have mass), as records of their own or of their prompt, under a policy [S, V]."""
    rows = on.alive.nonzero()[:, 0] if rows is None else rows
    record = on.leaves.prompt[rows] if record is None else record
    tokens = Tokens(on.leaves.ids[rows], on.leaves.action[rows], on.leaves.ended[rows], record)
    with torch.no_grad():
        scored = score(models(policy, on.reference, on.tree), tokens, readouts(True, False))
    return Read(tokens, token_table(scored, tokens, PIECES, on.beta), tokens.action.nonzero()[:, 0])


def _pairs(on: Table) -> tuple[Tensor, Tensor]:
    """Rows [P] of all ordered pairs of completions with mass of one prompt."""
    first, second = every_pair(on.leaves.prompt)
    there = on.alive[first] & on.alive[second]
    return first[there], second[there]


def _whole(on: Table, policy: Tensor, name: str) -> Tensor:
    """[B] a column summed over each leaf; 0 of those without mass."""
    found = torch.zeros(len(on.leaves.ended), dtype=on.reward.dtype)
    found[on.alive] = _read(on, policy).sums(name)
    return found


def _read_other(on: Table) -> Read:
    """Under some policy, with divergences too: a token without mass has the log of next to none, so that 0 · ∞ does not arise."""
    other, reference = (table.masked_fill(on.reference == -torch.inf, -1e4) for table in (on.other, on.reference))
    rows = on.alive.nonzero()[:, 0]
    return _read(on._replace(reference=reference), other, rows, on.leaves.prompt[rows])


def _columns(on: Table) -> Finding:
    of, shape = _read_other(on), on.reward.shape
    states = {
        "entropy": -masked.product(on.other.exp(), on.other).sum(-1),
        "ref_entropy": -masked.product(on.reference.exp(), on.reference).sum(-1),
        "kl": state_kl(on.other, on.reference),
        "kl_from_ref": state_kl(on.reference, on.other),
    }
    reward = implicit_reward(on.other, on.reference, beta=on.beta)
    exactly = {"logp": on.other, "ref_logp": on.reference, "reward": reward}
    exactly |= {name: values[:, None].expand(shape) for name, values in states.items()}
    action = of.tokens.action
    off = max(apart(of.column(name), along(on.tree, table, of.tokens)[action]) for name, table in exactly.items())
    return Finding(off, EXACT * max(1.0, on.beta))


def _fall(on: Table) -> Finding:
    of = _read_other(on)
    group, ref, policy = of.tokens.prompt, of.sums("ref_logp"), of.sums("logp")
    reward, from_ref, to_ref = of.sums("reward"), on.beta * of.sums("kl_from_ref"), on.beta * of.sums("kl")
    falls, rises = expected(ref, reward + from_ref, group), expected(policy, reward - to_ref, group)
    level = int((expected(ref, reward, group) >= 0).sum())
    return Finding(max(float(falls.abs().max()), float(rises.abs().max()), level), EXACT * max(1.0, on.beta))


def _accuracy(on: Table) -> Finding:
    first, second = _pairs(on)
    implicit, reward = _whole(on, on.optimum.logp, "reward"), on.sums(on.reward)
    margin, gap = implicit[first] - implicit[second], reward[first] - reward[second]
    wrong = 1 - float(half_ties(margin[gap > 0].numpy()).mean())
    return Finding(max(apart(margin, gap), wrong), EXACT * max(1.0, on.beta))


def _ranking(on: Table) -> Finding:
    first, second = _pairs(on)
    reward, ref = on.sums(on.reward), _whole(on, on.other, "ref_logp")
    difficulty, gap = (ref[second] - ref[first]).numpy(), reward[first] - reward[second]
    best, other = (_whole(on, policy, "logp") for policy in (on.optimum.logp, on.other))
    off = 0.0
    for c, alpha, ideal in zip(difficulty, gap.sigmoid().tolist(), best[first] - best[second], strict=True):
        off = max(off, abs(float(idealised(c, on.beta, alpha) - ideal)))
    ratio = other - ref
    loss = -torch.nn.functional.logsigmoid(on.beta * (ratio[first] - ratio[second]))
    below = loss <= torch.as_tensor(threshold(difficulty, on.beta))
    return Finding(off + int((below != (other[first] >= other[second])).sum()), 1e-9 * max(1.0, 1 / on.beta))


def _parts(on: Table) -> Finding:
    chosen, rejected = (rows[::7] for rows in _pairs(on))
    of = _read(on, on.optimum.logp, torch.stack([chosen, rejected], 1).flatten(), torch.arange(2 * len(chosen)) // 2)
    end = of.column("position") == (of.tokens.action.sum(-1) - 1)[of.row]
    record, completion, shared, reward, text = (
        of.table[name] for name in ("record", "completion", "shared", "reward", "text")
    )
    parts = torch.as_tensor(split(Actions(record, completion, of.row.numpy(), shared, end.numpy(), reward, text))[1])
    whole = on.sums(on.reward)
    return Finding(apart(parts.sum(-1), whole[chosen] - whole[rejected]), EXACT * max(1.0, on.beta))


def _information(on: Table) -> Finding:
    logp, ref, reward = _whole(on, on.optimum.logp, "logp"), _whole(on, on.optimum.logp, "ref_logp"), on.sums(on.reward)
    off = 0.0
    for g in on.leaves.prompt.unique().tolist():
        mine = on.alive & (on.leaves.prompt == g)
        found, tilt = exact(logp[mine].numpy(), ref[mine].numpy()), reward[mine] / on.beta
        log_q = tilt.log_softmax(0)
        log_w = tilt.logsumexp(0) - on.optimum.v[g] / on.beta
        off = max(off, abs(found.log_w - float(log_w)), abs(found.entropy + float((log_q.exp() * log_q).sum())))
    return Finding(off, 1e-9)


def _values(on: Table) -> Finding:
    """Of every prefix of every answer, and of every action of every state on the way."""
    of = _read(on, on.optimum.logp)
    ended = of.tokens.ended.numpy()
    found = prefixes(of.table["reward"], of.row.numpy(), ended)
    before, paid = (along(on.tree, t, of.tokens) for t in (on.optimum.v[:, None].expand_as(on.reward), on.reward))
    after = torch.nn.functional.pad(before[:, 1:], (0, 1))  # V* behind each action; 0 behind the end
    start, action, so_far = on.optimum.v[of.tokens.prompt][:, None], of.tokens.action, paid.cumsum(-1)
    off = apart(torch.as_tensor(found.prefix), (after - start + so_far)[action])
    off = max(off, apart(torch.as_tensor(found.rest), (so_far[:, -1:] - so_far - after)[action]))
    q_kl = {prefix: on.optimum.advantage_kl[s] for s, prefix in enumerate(on.tree.prefixes)}
    for n, (b, t) in enumerate(action.nonzero().tolist()):
        token = {name: values[n] for name, values in of.table.items()}
        there = torch.tensor(token["top_ref_logp"]) > -torch.inf
        advantage = q_kl[tuple(of.tokens.ids[b, : t + 1].tolist())][torch.tensor(token["top"])]
        off = max(off, apart(torch.as_tensor(state(token, on.beta).advantage)[there], advantage[there]))
    return Finding(off, EXACT * max(1.0, on.beta))


READING_LAWS: tuple[Law[Table], ...] = (
    Law(
        "scored columns",
        "Log-probs, rewards, entropies and both divergences that are read of a token are those of its state in the tables.",
        "What the page shows of a token would be another one's, or of the wrong direction.",
        _columns,
    ),
    Law(
        "measured fall",
        "Read along answers, E_ref[Σ r + β KL(π_ref‖π)] = 0 and E_π[Σ r - β KL(π‖π_ref)] = 0, for any policy (eq 16).",
        "Whether chosen answers fall by more than leaving the reference costs could not be told.",
        _fall,
    ),
    Law(
        "exact margins",
        "At π* the margin that is read of every pair of answers is R(y_w) - R(y_l), and its accuracy is 1.",
        "The accuracy of a policy would not say how well it knows the reward.",
        _accuracy,
    ),
    Law(
        "ranking",
        "The idealised ranking is that of π*, and a pair's loss is below h(βc) exactly where the policy ranks it right.",
        "Pairs would be called unlearnable that are not (arXiv 2405.19534).",
        _ranking,
    ),
    Law(
        "parts of a margin",
        "The parts into which the margin of any pair is split sum to R(y_w) - R(y_l) at π*.",
        "A token would be counted twice, not at all, or on the wrong side.",
        _parts,
    ),
    Law(
        "information",
        "At π*, q = π*/(π_ref W) is the softmax of R/β: its log W and its entropy are what is measured (arXiv 2505.23761).",
        "How concentrated the change of a policy is would be told wrongly.",
        _information,
    ),
    Law(
        "values",
        "Read off π*, A of every action is Q* - V*, and the running sum V*(prefix) - V*(s_0) and what was paid on the way.",
        "Values that are shown along an answer would be those of another state, or of no reward at all.",
        _values,
    ),
)
