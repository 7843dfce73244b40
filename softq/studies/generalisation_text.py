"""What the study of generalisation found: a page for people, figures for programs, and a picture."""

import json
from collections.abc import Iterator, Mapping
from html import escape
from statistics import fmean
from typing import Any, Protocol

from softq.studies.claims import verdict
from softq.studies.seeds import Spread, spread

KINDS: Mapping[str, tuple[str, str]] = {
    "trained on": ("the pairs of training, by their own noisy labels", "trained on"),
    "same": ("in distribution: new pairs of the crowd's answers to the same questions", "in distribution"),
    "questions": ("prompt: questions that were held out", "prompt: held-out questions"),
    "wording": ("prompt: the same questions, the country first", "prompt: another wording"),
    "style": ("response: the same knowledge, in reverse order, with adverbs and fillers", "response: another style"),
    "fine-tuned": ("policy: answers of the fine-tuned model", "policy: fine-tuned model"),
    "trained": ("policy: answers of the policy that dpo made", "policy: after dpo"),
}
"""Kind of pairs -> what they are, and a label. All but the first are labelled by the truth, and ties left out."""
SHIFTED = ("questions", "wording", "style", "fine-tuned")
OWN = "trained"
"""A shift too, but not a fair one: a policy errs most often where the reward that made it is wrong, so it is told apart."""
LEAST = 0.005
"""The least difference of accuracies that would be worth a claim."""
PAPER = (0.03, 0.07)  # by how much the implicit reward is behind under shift, on average and at most (arXiv 2409.03650)
WIDTH, ROW, LEFT, TOP, BOTTOM, RIGHT = 640.0, 30.0, 190.0, 56.0, 40.0, 24.0  # px
STYLE = (
    ".shift text{font:12px system-ui,-apple-system,'Segoe UI',Roboto,'Helvetica Neue',Arial,sans-serif;fill:#1f2933;"
    "font-variant-numeric:tabular-nums}"
    ".shift .soft{fill:#5b6b7a}.shift .paper{fill:#fff;stroke:#d9e0e6}.shift .grid{stroke:#e6ebef}"
    ".shift .implicit{stroke:#d55e00;fill:#d55e00}.shift .explicit{stroke:#0072b2;fill:#0072b2}.shift line.bar{stroke-width:2}"
    "@media (prefers-color-scheme:dark){.shift text{fill:#e6edf3}.shift .soft{fill:#9aa7b3}"
    ".shift .paper{fill:#12181f;stroke:#30363d}.shift .grid{stroke:#262e37}"
    ".shift .implicit{stroke:#f0a030;fill:#f0a030}.shift .explicit{stroke:#56b4e9;fill:#56b4e9}}"
)
"""The implicit reward is a vermilion square, the explicit one a blue disc (Okabe and Ito's palette)."""


class Judged(Protocol):
    """What one seed came to: shares that are right, by kind of pairs."""

    @property
    def right(self) -> Mapping[str, Mapping[str, float]]: ...  # by reward, "implicit" or "explicit", by kind of pairs

    @property
    def pairs(self) -> Mapping[str, int]: ...

    @property
    def seconds(self) -> float: ...


Results = Mapping[int, Judged]  # by seed


def behind(found: Results, kind: str) -> dict[int, float]:
    """By seed, explicit less implicit: the same pairs, so much of chance is in both."""
    return {seed: one.right["explicit"][kind] - one.right["implicit"][kind] for seed, one in found.items()}


def under_shift(found: Results) -> tuple[dict[int, float], dict[int, float]]:
    """By seed, explicit less implicit under shift: the mean over SHIFTED, and the largest of them."""
    each = {seed: [behind(found, kind)[seed] for kind in SHIFTED] for seed in found}
    return {seed: fmean(of) for seed, of in each.items()}, {seed: max(of) for seed, of in each.items()}


def loss_of(found: Results, reward: str) -> dict[int, float]:
    """By seed, how much less often a reward is right under shift, on average, than in distribution."""
    by_kind = {seed: one.right[reward] for seed, one in found.items()}
    return {seed: of["same"] - fmean(of[kind] for kind in SHIFTED) for seed, of in by_kind.items()}


def markdown(found: Results, recipe: Any) -> str:
    """The page."""
    rows = [
        "| pairs | how many | implicit (dpo) | explicit (rm) | explicit − implicit | the explicit one is right more often |",
        "|---|--:|--:|--:|--:|---|",
        *(_row(found, kind) for kind in KINDS),
    ]
    return "\n\n".join(
        [
            "# An implicit and an explicit reward, under shift",
            "![How often each reward is right, by kind of pairs](generalisation.svg)",
            _head(found, recipe),
            "\n".join(["## What was found", "", *_told(found)]),
            "## By kind of pairs",
            "\n".join(rows),
            _read(),
            _how_made(found, recipe),
        ]
    )


def _head(found: Results, recipe: Any) -> str:
    return f"""A small model is fine-tuned on what the crowd of `softq demo`'s world writes. From it dpo trains a policy, whose
log π/π_ref is an implicit reward, and rm a reward model (`softq train rm`), on the same {recipe.pairs:,} pairs with the crowd's
noisy labels, in the same {recipe.steps} steps of {recipe.batch} pairs. The world's truth says how often each is right.
There are {len(found)} seeds; a seed draws the world, its texts and all training. In a world of 109 words this shows a
direction at most, and is no evidence about large models. Everything here was written by

```console
softq study generalisation --output generalisation
```"""


def _told(found: Results) -> Iterator[str]:
    """What is said of implicit rewards, and what was seen."""
    mean, most = (spread(part) for part in under_shift(found))
    fit, same, own = (spread(behind(found, kind)) for kind in ("trained on", "same", OWN))
    said = f"on average by {PAPER[0]:.0%}, at most by {PAPER[1]:.0%}, in arXiv 2409.03650"
    yield (
        f"- **Under shift the explicit reward is right more often** ({said}): here the difference is {_points(mean)} on "
        f"average over the {len(SHIFTED)} shifts of prompt, response and policy, {_points(most)} where it is most. Verdict: "
        f"**{verdict(mean, LEAST)}**."
    )
    why = " Perhaps since its head starts from nothing and reads one state of two layers." if same.mean < 0 else ""
    yield (
        f"- Where nothing is shifted: explicit less implicit is {_points(fit)} on the pairs of training and {_points(same)} on "
        f"new pairs of the same kind.{why}"
    )
    for reward, method in (("implicit", "dpo"), ("explicit", "rm")):
        lost = _points(spread(loss_of(found, reward)))
        yield f"- From new pairs of the same kind to shifted ones the {reward} reward ({method}) falls by {lost} on average."
    yield (
        f"- **On answers of dpo's own policy the explicit reward is right more often**: {_points(own)}. Verdict: "
        f"**{verdict(own, LEAST)}**. That is more than a shift: the policy errs most often where the reward that made it is "
        "wrong, so its answers are chosen against that reward, and not against the other. It is what a policy meets that labels "
        "its own next round."
    )


def _read() -> str:
    return f"""Shares are of pairs whose better completion has the strictly larger reward; a tie is wrong. ± is half of a 95 %
interval over the seeds (Student). A difference is that of two rewards on the same pairs of the same seed. **Shows**: its
interval is above 0. **Does not show**: it is below {100 * LEAST:g} points. Unclear is everything else: so few seeds can not
tell."""


def _how_made(found: Results, recipe: Any) -> str:
    seconds = [one.seconds for one in found.values()]
    return f"""## How it was made

- Fine-tuning: {recipe.fine_tuning} steps on {recipe.demonstrations:,} answers of the crowd. Its model is the start of both, and
  dpo's reference; rm has a fresh head of one number in place of the head over tokens.
- Training: AdamW with a tenth of warm-up, then a cosine down to 0; the same batches in the same order. The learning rate is
  {recipe.policy_rate:g} for dpo and {recipe.model_rate:g} for rm, chosen on a seed that is not reported so that both fit the
  pairs of training about alike: a head that starts from nothing has farther to go. dpo has β = {recipe.beta:g}.
- Answers of policies are sampled at T = 1 to questions that were trained on, and paired as they come; a pair counts if its
  answers differ in how many names are right. The policy after dpo is the one whose implicit reward is judged.
- Rounding: another processor adds floats in another order, which makes it another training. The same seeds gave under shift
  −4.7 ±5.1 points on one, which does not show, and −2.9 ±6.0 on another, which is unclear; on answers of dpo's own
  policy +41.5 ±12.8 and +46.9 ±13.0. Only that last difference showed both times.
- One seed took {fmean(seconds):.0f} s of a processor on average, evaluation included.
"""


def _row(found: Results, kind: str) -> str:
    said, _ = KINDS[kind]
    implicit, explicit = (
        spread({seed: one.right[reward][kind] for seed, one in found.items()}) for reward in ("implicit", "explicit")
    )
    pairs = sum(one.pairs[kind] for one in found.values())
    less = spread(behind(found, kind))
    shown = f"{_share(implicit)} | {_share(explicit)} | {_points(less)} | {verdict(less, LEAST)}"
    return f"| {said} | {pairs:,} | {shown} |"


def _share(found: Spread) -> str:
    """ "93.1 ±0.4 %"."""
    return f"{100 * found.mean:.1f}{_half(found)} %"


def _points(found: Spread) -> str:
    """ "+1.2 ±0.4 points"."""
    return f"{100 * found.mean:+.1f}{_half(found)} points".replace("-", "−")


def _half(found: Spread) -> str:
    return "" if found.interval is None else f" ±{50 * (found.interval[1] - found.interval[0]):.1f}"


def document(found: Results, recipe: Any) -> str:
    """Every figure: JSON."""
    mean, most = under_shift(found)
    whole = {
        "recipe": recipe._asdict(),
        "kinds": {kind: said for kind, (said, _) in KINDS.items()},
        "seeds": {str(seed): {"right": dict(one.right), "pairs": dict(one.pairs)} for seed, one in found.items()},
        "explicit less implicit": {kind: spread(behind(found, kind))._asdict() for kind in KINDS},
        "under shift, mean": spread(mean)._asdict(),
        "under shift, most": spread(most)._asdict(),
    }
    return json.dumps(whole, indent=1, ensure_ascii=False) + "\n"


def picture(found: Results) -> str:
    """A row a kind of pairs: both rewards and their intervals along one axis of accuracy. SVG text, always the same."""
    shown = [one for kind in KINDS for reward in ("implicit", "explicit") for one in _ends(found, reward, kind)]
    low = max(0.0, int(20 * (min(shown) - 0.01)) / 20)
    height = TOP + ROW * len(KINDS) + BOTTOM

    def across(share: float) -> float:
        return LEFT + (WIDTH - LEFT - RIGHT) * (min(max(share, low), 1.0) - low) / (1.0 - low)

    body = []
    for tick in range(round(20 * low), 21):
        x = across(tick / 20)
        body.append(f'<line class="grid" x1="{x:.1f}" y1="{TOP - 12:.1f}" x2="{x:.1f}" y2="{height - BOTTOM:.1f}"/>')
        if tick % 2 == 0:
            body.append(_words(x, height - BOTTOM + 16, f"{5 * tick} %", "soft", "middle"))
    for number, (kind, (_, label)) in enumerate(KINDS.items()):
        y = TOP + ROW * (number + 0.3)
        body.append(_words(LEFT - 12, y + 4, label, "", "end"))
        for reward, lift in (("implicit", -5.0), ("explicit", 5.0)):
            start, mean, end = _ends(found, reward, kind)
            ends = f'x1="{across(start):.1f}" x2="{across(end):.1f}" y1="{y + lift:.1f}" y2="{y + lift:.1f}"'
            body.append(f'<line class="bar {reward}" {ends}/>')
            body.append(_mark(reward, across(mean), y + lift))
    for x, reward, label in (
        (LEFT, "implicit", "implicit: log π/π_ref of dpo"),
        (LEFT + 210, "explicit", "explicit: rm"),
    ):
        body += [_mark(reward, x + 5, 22), _words(x + 16, 26, label)]
    body.append(
        _words(LEFT, height - 8, "share of pairs that a reward has right; bars are 95 % over the seeds", "soft")
    )
    label = "How often an implicit and an explicit reward are right, by kind of pairs"
    head = f'viewBox="0 0 {WIDTH:g} {height:g}" width="{WIDTH:g}" height="{height:g}" role="img" aria-label="{label}"'
    card = f'<rect class="paper" x="0.5" y="0.5" width="{WIDTH - 1:g}" height="{height - 1:g}" rx="8"/>'
    lines = [
        f'<svg xmlns="http://www.w3.org/2000/svg" class="shift" {head}>',
        f"<style>{STYLE}</style>",
        card,
        *body,
        "</svg>",
    ]
    return "\n".join(lines) + "\n"


def _ends(found: Results, reward: str, kind: str) -> tuple[float, float, float]:
    one = spread({seed: of.right[reward][kind] for seed, of in found.items()})
    low, high = one.interval or (one.mean, one.mean)
    return low, one.mean, high


def _mark(reward: str, x: float, y: float) -> str:
    if reward == "explicit":
        return f'<circle class="explicit" cx="{x:.1f}" cy="{y:.1f}" r="4"/>'
    return f'<rect class="implicit" x="{x - 3.6:.1f}" y="{y - 3.6:.1f}" width="7.2" height="7.2"/>'


def _words(x: float, y: float, text: str, kind: str = "", anchor: str = "start") -> str:
    return f'<text class="{kind}" x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}">{escape(text)}</text>'
