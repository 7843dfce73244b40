"""The theory as one picture: a token tree small enough to read, with its r, Q*, V*, π* and A, as an SVG.

The tree grows from left to right, as text does: states are boxes, tokens are edges. Every number is computed by the code
that trains and verifies; nothing is typed in but the example's rewards, its reference and β.
"""

import re
from collections.abc import Iterator, Sequence
from html import escape
from typing import NamedTuple

import torch
from torch import Tensor

from softq.inspection.colour import ink, shade
from softq.mdp.soft import Optimum, implicit_reward, soft_backup
from softq.mdp.tabular import TokenTree, along, every_trajectory, token_tree

WIDTH, HEIGHT = 1200, 960
MARGIN = 28.0
INK, SOFT, RULE, PAPER = "#1f2933", "#5b6b7a", "#c5ced6", "#f4f6f8"
BAND = 26.0  # px; how wide the edge of a certain token is
BOX, ELBOW, RUN = 80.0, 50.0, 292.0  # px; a state, the bend of an edge, its straight part
ROWS = (222.0, 314.0, 422.0, 514.0)  # the height of each answer
PANEL = 686.0  # where the lower part begins
COLUMNS = ((4.0, 71.0), (90.0, 178.0), (194.0, 286.0))  # of an edge's numbers: label from, number to
LEAF = (106.0, 165.0, 223.0, 288.0)  # where each number of an answer ends
FULL = 1.5  # the reward that is coloured in full
STYLE = (
    "text{font-family:system-ui,-apple-system,'Segoe UI',Roboto,'Helvetica Neue',Arial,sans-serif;font-size:15px;"
    f"fill:{INK};font-variant-numeric:tabular-nums}}"
    f"text.title{{font-size:25px;font-weight:650}}text.soft{{fill:{SOFT}}}"
    "text.strong,tspan.strong{font-weight:650}tspan.low{font-size:12px}"
)


class Example(NamedTuple):
    """A token MDP whose tokens have names, and what is optimal in it."""

    names: str  # [V] letters
    tree: TokenTree
    reward: Tensor  # [S, V]
    reference: Tensor  # [S, V] nats
    beta: float
    best: Optimum

    def said(self, state: int) -> str:
        """The tokens after the prompt, as letters."""
        return "".join(self.names[token] for token in self.tree.prefixes[state][1:])


class Edge(NamedTuple):
    """A token [V] chosen in a state [S], and where it runs in the picture: from a point, then level at y from x to end (px)."""

    state: int
    token: int
    start: tuple[float, float]
    x: float
    end: float
    y: float


def example() -> Example:
    """The smallest tree that shows everything: one prompt, two tokens a and b, answers of two tokens, β = 0.5.

    States are the prompt, a and b, in this order. The reference likes least what pays most: bb is worth 3 and has 4% of
    its mass.
    """
    tree = token_tree([(0,)], vocabulary=2, horizon=2)
    reward = torch.tensor([[0.0, 1.0], [0.5, -0.5], [-1.0, 2.0]], dtype=torch.float64)
    reference = torch.tensor([[0.6, 0.4], [0.5, 0.5], [0.9, 0.1]], dtype=torch.float64).log()
    return Example("ab", tree, reward, reference, 0.5, soft_backup(tree, reward, reference, beta=0.5))


def tree_svg() -> str:
    """The picture: the tree of `example`, how to read it, and one path added up. Always the same text."""
    it = example()
    label = "A token tree with reward, Q*, V*, advantage and the optimal policy on it"
    head = f'viewBox="0 0 {WIDTH} {HEIGHT}" width="{WIDTH}" height="{HEIGHT}" role="img" aria-label="{label}"'
    return "\n".join(
        [
            f'<svg xmlns="http://www.w3.org/2000/svg" xml:space="preserve" {head}>',  # a span may begin with a space
            f"<style>{STYLE}</style>",
            f'<rect x="0.5" y="0.5" width="{WIDTH - 1}" height="{HEIGHT - 1}" rx="12" fill="#ffffff" stroke="#d9e0e6"/>',
            *_captions(it),
            *(line for edge in _edges(it) for line in _edge(it, edge)),
            *_states(it),
            *_leaves(it),
            *_key(),
            *_path(it),
            "</svg>",
            "",
        ]
    )


def _captions(it: Example) -> Iterator[str]:
    """What the picture is, and the two directions in which the tree is read."""
    left, right, bottom = MARGIN, _levels()[2] + 48, ROWS[-1] + 92
    yield _words(left, 50, "Your language model is a Q-function: the theory on the smallest tree", "title")
    what = (
        "A box is a state: the prompt x and the tokens so far. An edge is a token, a or b. Two tokens make an answer; "
    )
    yield _words(left, 78, f"{what}there the episode ends. β = {it.beta}", "soft")
    value = "Q*_KL = r + V*(s′), and V*(s) = β log Σ π_ref exp(Q*_KL/β), 0 at the end."
    yield from _caption(1, left, 122, "Backward, from the answers:", value)
    yield _arrow(right, 140, left)
    yield _arrow(left, bottom, right)
    policy = "π* = softmax(Q*_ME/β). A model’s logits are Q*_ME/β, up to a constant per state."
    yield from _caption(2, left, bottom + 26, "Forward, from the prompt:", policy)


def _levels() -> tuple[float, float, float]:
    """Where the boxes of the prompt, of what one token leads to, and of the answers begin."""
    step = BOX + ELBOW + RUN
    return MARGIN, MARGIN + step, MARGIN + 2 * step


def _heights() -> list[float]:
    """[S] where each state stands: halfway between what follows it."""
    pairs = [(ROWS[0] + ROWS[1]) / 2, (ROWS[2] + ROWS[3]) / 2]
    return [sum(pairs) / 2, *pairs]


def _edges(it: Example) -> Iterator[Edge]:
    """Every token of every state, from top to bottom."""
    heights, levels = _heights(), _levels()
    for state in range(len(it.tree.prefixes)):
        for token in range(it.tree.vocabulary):
            after = int(it.tree.next[state, token])
            left = levels[int(it.tree.depth[state])] + BOX
            y = heights[after] if after >= 0 else ROWS[2 * (state - 1) + token]
            x, port = left + ELBOW, heights[state] + (13 if token else -13)
            yield Edge(state, token, (left, port), x, x + RUN + 8, y)


def _edge(it: Example, edge: Edge) -> Iterator[str]:
    """A band as wide as π*, a dashed corridor as wide as π_ref, and six numbers around them."""
    at = edge.state, edge.token
    best, optimal, reference = it.best, float(it.best.logp[at].exp()), float(it.reference[at].exp())
    advantage = float(best.advantage_kl[at])
    yield f'<g id="edge-{escape(it.said(edge.state) + it.names[edge.token])}">'
    yield from _band(edge, optimal, reference, _shade(advantage))
    yield from _token(edge.x + 12, edge.y, it.names[edge.token])
    over = ("r", it.reward[at]), ("Q*_KL", best.q_kl[at]), ("Q*_ME", best.q_maxent[at])
    under = ("π_ref", reference), ("A", advantage), ("π*", optimal)
    for y, cells in ((edge.y - 22, over), (edge.y + 33, under)):
        for (left, right), (label, number) in zip(COLUMNS, cells, strict=True):
            yield _words(edge.x + left, y, label, "soft")
            yield _words(edge.x + right, y, _number(number), "strong" if label in ("A", "π*") else "", "end")
    yield "</g>"


def _band(edge: Edge, optimal: float, reference: float, colour: str) -> Iterator[str]:
    """An edge in two widths: filled for one probability, dashed for another. A pixel is the least."""
    width = max(1.0, BAND * optimal)
    yield f'<path d="{_along(edge, 0)}" fill="none" stroke="{colour}" stroke-width="{width:.2f}"/>'
    for side in (-1, 1):
        d = _along(edge, side * BAND * reference / 2)
        yield f'<path d="{d}" fill="none" stroke="#45525e" stroke-dasharray="4 4"/>'


def _along(edge: Edge, aside: float, steps: int = 16) -> str:
    """A path along an edge, moved aside by so many px: an S-bend, a cubic with level ends, and a straight line."""
    x, y = edge.start
    points = [f"{x - 6:.1f} {y + aside:.1f}"]  # from under the box
    wide, high = edge.x - x, edge.y - y
    for t in (n / steps for n in range(steps + 1)):
        across, down = 1.5 * (1 - t) ** 2 + 1.5 * t**2, high / wide * 6 * t * (1 - t)
        length = (across**2 + down**2) ** 0.5
        right = x + wide * (1.5 * t * (1 - t) + t**3)
        below = y + high * (3 * t**2 - 2 * t**3)
        points.append(f"{right - aside * down / length:.1f} {below + aside * across / length:.1f}")
    return "M" + "L".join(points) + f"H{edge.end:.1f}"


def _states(it: Example) -> Iterator[str]:
    """A box each: what was said, and V*."""
    for state, y in enumerate(_heights()):
        x, said = _levels()[int(it.tree.depth[state])], it.said(state)
        yield f'<g id="state-{escape(said)}">'
        yield _rect((x, y - 32, BOX, 64), 6, PAPER, INK)
        yield _words(x + BOX / 2, y - 7, _name(it, state), "strong", "middle")
        yield _words(x + 9, y + 18, "V*", "soft")
        yield _words(x + BOX - 9, y + 18, _number(it.best.v[state]), "strong", "end")
        yield "</g>"


def _leaves(it: Example) -> Iterator[str]:
    """The answers: what each is worth, how likely it is, and what its implicit rewards add up to."""
    tokens = every_trajectory(it.tree)
    reward = along(it.tree, it.reward, tokens).sum(-1)
    reference, optimal = (along(it.tree, table, tokens).sum(-1) for table in (it.reference, it.best.logp))
    implicit = implicit_reward(optimal, reference, beta=it.beta)
    left, top = _levels()[2], ROWS[0] - 42
    yield from _row([left + x for x in (48.0, *LEAF)], top, ("answer", "R", "π_ref", "π*", "β·L"))
    yield _words(left + LEAF[3], top - 22, "R − V*(x) =", "soft", "end")
    for n, y in enumerate(ROWS):
        name = "".join(it.names[token] for token in tokens.ids[n, 1:].tolist())
        yield f'<g id="leaf-{escape(name)}">'
        yield from _answer(left + 24, y, name)
        cells = _number(reward[n]), _number(reference[n].exp(), 3), _number(optimal[n].exp(), 3)
        for x, cell in zip(LEAF, cells, strict=False):
            yield _words(left + x, y + 5, cell, "", "end")
        yield from _credit(left + LEAF[3], y, float(implicit[n]))
        yield "</g>"
    mean = float((reference.exp() * implicit).sum())
    yield _words(left + LEAF[3], ROWS[-1] + 48, "What falls: the mean under π_ref", "strong", "end")
    sentence = f"E_ref[β·L] = −β·KL(π_ref‖π*) = {_number(mean, 3)}"
    yield _words(left + LEAF[3], ROWS[-1] + 71, sentence, "", "end")


def _key() -> Iterator[str]:
    """An edge with formulas where the numbers are."""
    x, y = MARGIN, PANEL + 88
    yield _words(x, PANEL, "How to read an edge", "strong")
    edge = Edge(0, 0, (x + 8, y), x + 9, x + 510, y)
    yield from _band(edge, 0.7, 0.3, _shade(0.5))
    yield from _token(x + 12, y, "a")
    columns = (4.0, 90.0, 282.0)
    rows = {
        y - 50: ("given", "KL form", "max-entropy form"),
        y - 23: ("r", "Q*_KL = r + V*(s′)", "Q*_ME = Q*_KL + β log π_ref"),
        y + 33: ("π_ref", "A = Q*_KL − V*(s)", "π* = softmax(Q*_ME/β)"),
    }
    for height, cells in rows.items():
        for left, cell in zip(columns, cells, strict=True):
            yield _words(x + left, height, cell, "soft" if height == y - 50 else "")
    yield _words(x + 4, y + 80, "Filled: as wide as π*. Dashed: as wide as π_ref.")
    yield _rect((x + 4, y + 94, 14, 14), 3, _shade(1.0))
    yield _words(x + 26, y + 106, "A > 0: likelier than in the reference")
    yield _rect((x + 324, y + 94, 14, 14), 3, _shade(-1.0))
    yield _words(x + 346, y + 106, "A < 0: less likely")
    yield _words(x + 4, y + 132, "R: the reward of a whole answer. L: its log π*/π_ref.")


def _path(it: Example) -> Iterator[str]:
    """The likeliest answer: the rewards of its tokens, shaped, add up to its own less a constant."""
    left, top = 620.0, PANEL
    ends = [left + x for x in (212.0, 314.0, 416.0, 540.0)]
    yield from _caption(3, left, top, "A = β log π*/π_ref is a reward for each token:", "")
    yield _words(left + 32, top + 25, "the true one, shaped by V*. Added up for the likeliest answer:")
    yield from _row(ends, top + 59, ("r", "V*(s′)", "V*(s)", "A"))
    path, y = _likeliest(it), top + 87
    for step in range(len(path)):
        yield from _step(it, path, step, ends, y + 36 * step)
    total, value, y = sum(float(it.reward[at]) for at in path), float(it.best.v[0]), y + 36 * len(path)
    yield f'<path d="M{left + 32} {y - 20}H{ends[3] + 8}" stroke="{RULE}"/>'
    yield '<g id="sum">'
    yield from _answer(left + 56, y + 4, "".join(it.names[token] for _, token in path))
    yield from _sum(ends, y + 9, (total, None, -value), total - value)
    yield "</g>"
    yield from _row(ends, y + 37, ("R", "", "V*(x)", "β·L"))
    yield _words(left + 32, y + 67, "V* in between cancels, and V*(x) is the same for every answer:")
    yield _words(left + 32, y + 90, "only sums over whole answers are identified.")


def _step(it: Example, path: Sequence[tuple[int, int]], step: int, ends: Sequence[float], y: float) -> Iterator[str]:
    """A token of the path: r + V*(s′) − V*(s) = A, with what the token after or before it cancels struck out."""
    state, token = path[step]
    reward, value, last = float(it.reward[state, token]), float(it.best.v[state]), step == len(path) - 1
    following = 0.0 if last else float(it.best.v[path[step + 1][0]])
    yield f'<g id="step-{step + 1}">'
    yield from _token(ends[0] - 156, y - 5, it.names[token])
    yield _words(ends[0] - 128, y, f"at {_name(it, state)}", "soft")
    yield from _sum(ends, y, (reward, following, -value), reward + following - value)
    for n in [1] * (not last) + [2] * (step > 0):
        yield f'<path d="M{ends[n] - 36} {y}l38 -11" stroke="{INK}"/>'
    yield "</g>"


def _likeliest(it: Example) -> list[tuple[int, int]]:
    """State and token of each step of the answer that π* gives most often."""
    path, state = [], 0
    while state >= 0:
        path.append((state, int(it.best.logp[state].argmax())))
        state = int(it.tree.next[path[-1]])
    return path


def _row(ends: Sequence[float], y: float, names: Sequence[str]) -> Iterator[str]:
    """Names over or under columns of numbers."""
    for x, name in zip(ends, names, strict=True):
        if name:
            yield _words(x, y, name, "soft", "end")


def _sum(ends: Sequence[float], y: float, terms: Sequence[float | None], total: float) -> Iterator[str]:
    """An addition with its signs set apart; None leaves a gap."""
    for n, (x, term) in enumerate(zip(ends, terms, strict=False)):
        if term is not None:
            yield _words(x, y, _number(abs(term) if n else term), "", "end")
        if term is not None and n:
            yield _words(x - 46, y, "−" if term < 0 else "+", "", "end")
    yield _words(ends[-1] - 76, y, "=", "", "end")
    yield from _credit(ends[-1], y - 5, total)


def _answer(x: float, y: float, name: str) -> Iterator[str]:
    """A leaf, around a point."""
    yield _rect((x - 24, y - 18, 48, 36), 18, PAPER, INK)
    yield _words(x, y + 5, name, "strong", "middle")


def _credit(x: float, y: float, value: float) -> Iterator[str]:
    """A coloured reward that ends at x."""
    yield _rect((x - 54, y - 15, 62, 30), 5, _shade(value))
    yield _words(x, y + 5, _number(value), "strong", "end", fill=ink(shade(value, FULL)))


def _name(it: Example, state: int) -> str:
    return "·".join("x" + it.said(state))


def _shade(value: float) -> str:
    """Red below 0, blue above."""
    return "#{:02x}{:02x}{:02x}".format(*shade(value, FULL))


def _token(x: float, y: float, name: str) -> Iterator[str]:
    yield f'<circle cx="{x:.1f}" cy="{y:.1f}" r="13" fill="#ffffff" stroke="{INK}"/>'
    yield _words(x, y + 5, name, "strong", "middle")


def _caption(number: int, x: float, y: float, lead: str, rest: str) -> Iterator[str]:
    """A numbered sentence with a bold beginning."""
    yield f'<circle cx="{x + 11}" cy="{y - 5}" r="11" fill="{INK}"/>'
    yield _words(x + 11, y, str(number), "strong", "middle", fill="#ffffff")
    yield f'<text x="{x + 32}" y="{y}"><tspan class="strong">{_lowered(lead)}</tspan> {_lowered(rest)}</text>'


def _arrow(start: float, y: float, end: float) -> str:
    back = -7 if start < end else 7
    shape = f"M{start:.1f} {y:.1f}H{end:.1f}m{back} -5l{-back} 5l{back} 5"
    return f'<path d="{shape}" fill="none" stroke="{SOFT}" stroke-width="1.5"/>'


def _rect(box: tuple[float, float, float, float], radius: float, fill: str, stroke: str = "none") -> str:
    x, y, width, height = box
    place = f'x="{x:.1f}" y="{y:.1f}" width="{width:.1f}" height="{height:.1f}" rx="{radius}"'
    return f'<rect {place} fill="{fill}" stroke="{stroke}"/>'


def _number(value: Tensor | float, decimals: int = 2) -> str:
    """With a true minus sign, and none before a zero."""
    return f"{round(float(value), decimals) + 0.0:.{decimals}f}".replace("-", "−")


def _words(x: float, y: float, words: str, kind: str = "", anchor: str = "start", *, fill: str = "") -> str:
    """One line of text."""
    given = {"class": kind, "text-anchor": anchor if anchor != "start" else "", "style": fill and f"fill:{fill}"}
    rest = "".join(f' {name}="{value}"' for name, value in given.items() if value)
    return f'<text x="{x:.1f}" y="{y:.1f}"{rest}>{_lowered(words)}</text>'


def _lowered(words: str) -> str:
    """Escaped text in which `_name` is a subscript."""
    body, shift = "", ""
    for piece in filter(None, re.split(r"(_[A-Za-z]+)", escape(words))):
        if piece.startswith("_"):
            body, shift = body + f'<tspan class="low" dy="4">{piece[1:]}</tspan>', ' dy="-4"'
        else:
            body, shift = body + (f"<tspan{shift}>{piece}</tspan>" if shift else piece), ""
    return body
