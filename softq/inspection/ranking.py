"""Does the policy itself hold the chosen completion likelier, and could it at this β: arXiv 2405.19534.

R = mean 1[LP_w ≥ LP_l], R~ the same of LP / tokens; LP = Σ log π. Neither asks the reference, so a reward can be right (accuracy)
where the policy still prefers the rejected one. How hard a pair is, is the reference's: c = log π_ref(y_l)/π_ref(y_w) in nats.
  Theorem 4.1: LP_w ≥ LP_l  ⇔  its DPO loss ≤ h(βc) = -log σ(βc)
  Theorem 3.1: the idealised policy has log π*(y_w)/π*(y_l) = -c + logit(α)/β, where α is the probability that y_w is better
So a pair can not be learned at β where βc ≥ logit(α): the policy that fits the labels perfectly ranks it wrong too.
"""

from typing import NamedTuple

import numpy as np

from softq.inspection.accuracy import WORST, mean_figure
from softq.inspection.columns import SIDES
from softq.inspection.figures import Figure, Finding, bootstrapped
from softq.inspection.shelf import Shelf

ALPHA = 0.999  # of a label that has no doubt: with 1 every pair could be learned
GRID = (0.01, 0.1, 1.0, 5.0, 10.0)  # β
QUANTILES = (0.05, 0.25, 0.5, 0.75, 0.95)
MANY = 0.05  # a share of pairs that can not be learned from which on they are worth a look: no run is ill for it


class Ranked(NamedTuple):
    """Of P pairs, [P] each: Σ log π of the chosen and the rejected completions in nats, their tokens, and how hard they are."""

    record: np.ndarray
    chosen: np.ndarray
    rejected: np.ndarray
    chosen_tokens: np.ndarray
    rejected_tokens: np.ndarray
    difficulty: np.ndarray | None  # c; None without a reference

    def right(self) -> np.ndarray:
        """1[LP_w ≥ LP_l]: [P] bool, the terms of R."""
        return self.chosen >= self.rejected

    def right_per_token(self) -> np.ndarray:
        """1[LP_w/|y_w| ≥ LP_l/|y_l|]: [P] bool, the terms of R~."""
        return self.chosen / self.chosen_tokens >= self.rejected / self.rejected_tokens


def ranked(shelf: Shelf) -> Ranked:
    """The columns of the pairs whose log-probs are finite."""
    names = ["logp", "tokens", *(["ref_logp"] if shelf.compared else [])]
    table = shelf.table("pairs", ["record", *(f"{side}_{name}" for side in SIDES for name in names)])
    column = {name: table[name].to_numpy() for name in table.column_names}
    with np.errstate(invalid="ignore"):
        difficulty = column["rejected_ref_logp"] - column["chosen_ref_logp"] if shelf.compared else None
    chosen, rejected, n, m = (column[f"{side}_{name}"] for name in ("logp", "tokens") for side in SIDES)
    of = Ranked(column["record"], chosen, rejected, n, m, difficulty)
    known = np.all([np.isfinite(values) for values in of if values is not None], 0)
    return Ranked(*(None if values is None else values[known] for values in of))  # pyright: ignore[reportArgumentType]


def idealised(difficulty: np.ndarray, beta: float, alpha: float = ALPHA) -> np.ndarray:
    """log π*(y_w)/π*(y_l) = -c + log(α/(1-α))/β: nats [P] -> nats [P]. The ranking is right where it is above 0."""
    return -difficulty + np.log(alpha / (1 - alpha)) / beta


def threshold(difficulty: np.ndarray, beta: float) -> np.ndarray:
    """h(βc) = -log σ(βc): the DPO loss [P] at which the policy holds both completions equally likely."""
    return np.logaddexp(0, -beta * difficulty)


def figures(shelf: Shelf) -> list[Figure]:
    """R and R~; with a reference R_ref, quantiles of c, R* over the grid of β and the gap to it; at the policy's β if known.
    Of several scored completions, the share of records that are ranked right as a whole."""
    if shelf.kind != "pairs":
        return _groups(shelf)
    pairs, beta = ranked(shelf), shelf.facts["beta"]
    found = [
        mean_figure("ranking/R", pairs.right(), "pairs whose chosen completion the policy holds at least as likely"),
        mean_figure("ranking/R_per_token", pairs.right_per_token(), "the same of the mean log π of a token"),
    ]
    if pairs.difficulty is None or not len(pairs.difficulty):
        return found
    found += [*_reference(pairs.difficulty), *_ideal(pairs.right(), pairs.difficulty)]
    return found + (_at(pairs.difficulty, beta) if beta else [])


def _groups(shelf: Shelf) -> list[Figure]:
    """Of several scored completions a record is right where all of them are in the order of their scores; equal scores in any."""
    if shelf.facts["kind"] != "groups":
        return []
    table = shelf.table("rows", ["record", "score", "logp", "tokens"])
    record, score, total, tokens = (column.to_numpy() for column in table.columns)
    known = np.isfinite(score) & np.isfinite(total)
    groups = [rows for rows in np.split(*_cuts(record[known])) if len(np.unique(score[known][rows])) > 1]
    found = []
    for name, logp in (("groups", total[known]), ("groups_per_token", (total / tokens)[known])):
        right = np.array([in_order(score[known][rows], logp[rows]) for rows in groups], dtype=bool)
        told = "mean log π of a token" if "token" in name else "Σ log π"
        found.append(
            mean_figure(
                f"ranking/{name}", right, f"groups all of whose completions are ranked by {told} as by their scores"
            )
        )
    return found


def _cuts(record: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Row numbers [N], and where among them another record begins."""
    return np.arange(len(record)), np.flatnonzero(np.diff(record)) + 1


def in_order(score: np.ndarray, logp: np.ndarray) -> bool:
    """Whether logp [n] never falls where score [n] rises (the paper's rule for more than two: the whole permutation)."""
    return all(logp[score > value].min(initial=np.inf) >= logp[score == value].max() for value in np.unique(score))


def _reference(c: np.ndarray) -> list[Figure]:
    meaning = "log π_ref(rejected)/π_ref(chosen): high is hard; {:.0%} of the pairs are at most as hard"
    return [
        mean_figure(
            "ranking/R_reference", c <= 0, "pairs whose chosen completion the reference holds at least as likely"
        ),
        *(
            Figure(
                f"ranking/difficulty/{q:g}",
                float(np.quantile(c, q)),
                "nats",
                len(c),
                meaning.format(q),
                bootstrapped(lambda rows, q=q: float(np.quantile(c[rows], q)), len(c)),
            )
            for q in QUANTILES
        ),
    ]


def _ideal(right: np.ndarray, c: np.ndarray) -> list[Figure]:
    ideal = np.stack([idealised(c, beta) > 0 for beta in GRID])
    each = [
        mean_figure(
            f"ranking/R_ideal/{beta:g}", row, f"pairs that the best policy at β = {beta:g} ranks right (α = {ALPHA})"
        )
        for beta, row in zip(GRID, ideal, strict=True)
    ]

    def gap(rows: np.ndarray) -> float:
        return float(np.median(ideal[:, rows].mean(-1)) - right[rows].mean())

    whole = gap(np.arange(len(c)))
    meaning = "the alignment gap: the median of R_ideal over its β less R"
    return [*each, Figure("ranking/gap", whole, "share", len(c), meaning, bootstrapped(gap, len(c)))]


def _at(c: np.ndarray, beta: float) -> list[Figure]:
    h = threshold(c, beta)
    told = f"pairs that the best policy at this β = {beta:g} ranks wrong: βc ≥ {np.log(ALPHA / (1 - ALPHA)):.2f}"
    middle = "the DPO loss under which half of the pairs must come to be ranked right"
    return [
        mean_figure("ranking/not_learnable", idealised(c, beta) <= 0, told),
        Figure(
            "ranking/threshold",
            float(np.median(h)),
            "nats",
            len(c),
            f"median of h(βc): {middle}",
            bootstrapped(lambda rows: float(np.median(h[rows])), len(c)),
        ),
    ]


def not_learnable(pairs: Ranked, beta: float) -> np.ndarray:
    """Records of the pairs that the idealised policy at β ranks wrong too, the hardest first. [U]; empty without a reference."""
    if pairs.difficulty is None:
        return pairs.record[:0]
    hard = np.flatnonzero(idealised(pairs.difficulty, beta) <= 0)
    return pairs.record[hard[np.argsort(-pairs.difficulty[hard], kind="stable")]]


def findings(shelf: Shelf) -> list[Finding]:
    """The pairs that can not be learned at this β."""
    beta = shelf.facts["beta"]
    if shelf.kind != "pairs" or not shelf.compared or not beta:
        return []
    pairs = ranked(shelf)
    records = not_learnable(pairs, beta)
    if not len(records):
        return []
    part = len(records) / len(pairs.record)
    nats = np.log(ALPHA / (1 - ALPHA)) / beta
    return [
        Finding(
            "ranking/not_learnable",
            "watch" if part > MANY else "expected",
            f"{len(records)} of {len(pairs.record)} pairs ({part:.1%}) can not be learned at β = {beta:g}: the reference holds "
            f"the rejected completion likelier by {nats:.1f} nats or more, and so would the best policy",
            "lower β, begin from a reference trained on the chosen completions, or leave these pairs out",
            records[:WORST].tolist(),
        )
    ]
