"""What the study of "From r to Q*" found: a page for people, figures for programs."""

import json
from collections.abc import Iterator, Mapping, Sequence
from statistics import fmean
from typing import Any, NamedTuple, Protocol

from softq.studies.claims import verdict
from softq.studies.seeds import Spread, spread

SCORES = {
    "localisation": "log π/π_ref",
    "control": "log π_ref",
    "control_dpo": "log π",
    "control_rm": "change of a reward model's word",
}
ARMS = {
    "crowd": "fits the crowd",
    "crowd, chosen first": "… chosen first",
    "style": "another style",
    "style, chosen first": "… chosen first ",
}
LEAST = {"auc": 0.005, "reward": 0.05, "length": 0.5, "nats": 0.02}
"""The least difference that would be worth a claim."""


class Seed(Protocol):
    """What one seed came to; see `r_to_q.Found`."""

    @property
    def credit(self) -> Mapping[str, Mapping[str, float]]: ...

    @property
    def search(self) -> Sequence[Mapping[str, Any]]: ...

    @property
    def falling(self) -> Mapping[str, Sequence[Mapping[str, float]]]: ...

    @property
    def law(self) -> Mapping[str, float]: ...

    @property
    def seconds(self) -> float: ...


Results = Mapping[int, Seed]


class Claim(NamedTuple):
    """A difference that the paper, or the theory, says is above 0."""

    said: str
    measured: str
    values: Mapping[int, float]  # by seed
    kind: str  # of LEAST

    @property
    def spread(self) -> Spread:
        """Over the seeds."""
        return spread(self.values)


def searched(found: Results, policy: str, family: str, size: int, figure: str) -> dict[int, float]:
    """A figure of one decoder, by seed."""
    return {
        seed: next(
            row[figure] for row in one.search if (row["policy"], row["family"], row["size"]) == (policy, family, size)
        )
        for seed, one in found.items()
    }


def claims(found: Results) -> list[Claim]:
    """All, in the paper's order."""
    return [*_credit(found), *_search(found), *_falling(found)]


def _credit(found: Results) -> Iterator[Claim]:
    for kind, errors in (("plausible", "the crowd's own errors"), ("random", "names drawn at random")):
        for control in ("control", "control_dpo", "control_rm"):
            values = {
                seed: one.credit[kind]["localisation_auc"] - one.credit[kind][f"{control}_auc"]
                for seed, one in found.items()
            }
            yield Claim(
                f"log π/π_ref finds {errors} better than {SCORES[control]}", "AUC, less the control's", values, "auc"
            )


def _search(found: Results) -> Iterator[Claim]:
    def less(policy: str, one: tuple[str, int], other: tuple[str, int], figure: str = "reward") -> dict[int, float]:
        a, b = (searched(found, policy, *which, figure) for which in (one, other))
        return {seed: a[seed] - b[seed] for seed in a}

    wide = "beam, length penalty 1"
    yield Claim(
        "a few beams help the policy",
        "reward of 5 beams less greedy's",
        less("dpo", ("beam", 5), ("beam", 1)),
        "reward",
    )
    yield Claim("… and the model before it (control)", "the same", less("sft", ("beam", 5), ("beam", 1)), "reward")
    yield Claim(
        "beams beat as many samples ranked by likelihood",
        "reward of 5 beams less best of 5's",
        less("dpo", ("beam", 5), ("best of n by likelihood", 5)),
        "reward",
    )
    yield Claim(
        "best of 5 by likelihood beats any of 5 samples (control)",
        "reward",
        less("dpo", ("best of n by likelihood", 5), ("any of n samples", 5)),
        "reward",
    )
    yield Claim(
        "beams over likelihood beat beams over the log-ratio",
        "reward at 5 beams",
        less("dpo", ("beam", 5), ("beam over the log-ratio", 5)),
        "reward",
    )
    for family, said in (("beam", "by the sum"), (wide, "with transformers' length penalty")):
        yield Claim(
            f"many beams lengthen, {said}",
            "tokens at 20 beams less at 5",
            less("dpo", (family, 20), (family, 5), "length"),
            "length",
        )
        yield Claim(
            f"many beams hurt, {said}", "reward at 5 beams less at 20", less("dpo", (family, 5), (family, 20)), "reward"
        )
    yield Claim(
        "many beams lengthen the model before too (control)",
        "tokens at 20 beams less at 5, length penalty 1",
        less("sft", (wide, 20), (wide, 5), "length"),
        "length",
    )


def _falling(found: Results) -> Iterator[Claim]:
    for arm, said in (
        ("crowd, chosen first", "fine-tuned on the chosen answers first, chosen answers fall"),
        ("crowd", "not so fine-tuned, of a model that fits the crowd, they fall too"),
        ("style", "not so fine-tuned, of a model of another style, they fall too"),
        ("style, chosen first", "of that one after the chosen answers, they fall"),
    ):
        values = {seed: -one.falling[arm][-1]["chosen"] for seed, one in found.items()}
        yield Claim(said, "fall of the chosen answers' reward", values, "nats")
    for arm in ARMS:
        values = {
            seed: one.falling[arm][-1]["chosen"] - one.falling[arm][-1]["rejected"] for seed, one in found.items()
        }
        yield Claim(f"the margin grows: {arm}", "chosen less rejected", values, "nats")


def markdown(found: Results, recipe: Any) -> str:
    """The page."""
    return "\n\n".join(
        [
            "# From r to Q*, asked again",
            _head(found, recipe),
            "\n".join(["## What was found", "", *_told(found)]),
            "## Credit\n\n![AUC of finding a wrong word](r_to_q_credit.svg)",
            "\n".join(_credit_table(found)),
            "## Search\n\n![True reward against beams](r_to_q_search.svg)",
            "\n".join(_search_table(found)),
            "## Falling likelihood\n\n![Rewards through training](r_to_q_falling.svg)",
            _law(found),
            "\n".join(["## Every claim", "", *_claims_table(found)]),
            _caveats(),
            _how_made(found, recipe),
        ]
    )


def _head(found: Results, recipe: Any) -> str:
    return f"""The paper ([arXiv 2404.12358](https://arxiv.org/abs/2404.12358)) has three findings: the implicit reward
tells which words are wrong; a few beams over a trained policy improve it, many lengthen it and hurt; and the likelihood of chosen
answers falls where the model was fine-tuned on them first. Here they are asked of the world of `softq demo`, in which the true
reward of every word is known, with {len(found)} seeds and the controls that the paper left out. Everything here was written by

```console
softq study r-to-q --output r_to_q
```"""


def _told(found: Results) -> Iterator[str]:
    by = {"shows": [], "does not show": [], "unclear": []}
    for claim in claims(found):
        by[verdict(claim.spread, LEAST[claim.kind])].append(claim.said)
    for what, said in by.items():
        if said:
            yield f"- **{what.capitalize()}**: {'; '.join(said)}."


def _claims_table(found: Results) -> Iterator[str]:
    yield "| claim | measured | difference | verdict |"
    yield "|---|---|--:|---|"
    for claim in claims(found):
        one = claim.spread
        yield f"| {claim.said} | {claim.measured} | {_between(one)} | **{verdict(one, LEAST[claim.kind])}** |"
    yield ""
    yield (
        "A difference is of one seed, its interval over the seeds (Student, 95 %). **Shows**: the interval is above 0. **Does "
        "not show**: it is below the least difference that would matter. Unclear is everything else: so few seeds can not tell."
    )


def _credit_table(found: Results) -> Iterator[str]:
    yield "One name in a right, held-out answer is wrong. Top 1: the lowest token of the answer is a word of that name."
    yield ""
    yield "| error | score | top 1 | AUC |"
    yield "|---|---|--:|--:|"
    for kind, said in (
        ("plausible", "as the crowd errs"),
        ("random", "any wrong name"),
        ("garden path", "popular: most of the crowd errs so"),
    ):
        for score, label in SCORES.items():
            top, auc = (
                spread({seed: one.credit[kind][f"{score}_{figure}"] for seed, one in found.items()})
                for figure in ("top1", "auc")
            )
            yield f"| {said} | {label} | {_mean(top)} | {_mean(auc)} |"


def _search_table(found: Results) -> Iterator[str]:
    yield (
        "Means over held-out prompts and seeds. Tokens read: by all models, a prompt's own left out. Alike: the share of answers "
        "as long as the greedy one, and by how much their reward is above it, so that length has no part in it."
    )
    yield ""
    yield "| model | decoder | n | true reward | right names | length | tokens read | alike | reward above greedy's |"
    yield "|---|---|--:|--:|--:|--:|--:|--:|--:|"
    first = next(iter(found.values()))
    for row in first.search:
        key = row["policy"], row["family"], row["size"]
        reward = spread(searched(found, *key, "reward"))
        mean = {
            name: fmean(searched(found, *key, name).values()) for name in ("right", "length", "evaluations", "alike")
        }
        gains = [gain for gain in searched(found, *key, "gain").values() if gain is not None]
        gain = f"{fmean(gains):+.2f}" if gains else "–"
        told = f"{mean['right']:.3f} | {mean['length']:.1f} | {mean['evaluations']:.0f} | {mean['alike']:.0%} | {gain}"
        yield f"| {key[0]} | {key[1]} | {key[2]} | {_mean(reward)} | {told} |".replace("-", "−")


def _law(found: Results) -> str:
    rows = [
        f"| {seed} | {one.law['samples']:,.0f} | {one.law['reward']:.4f} | {one.law['kl']:.4f} | "
        f"{abs(one.law['reward'] - one.law['kl']) / one.law['error']:.1f} |".replace("-", "−")
        for seed, one in found.items()
    ]
    table = "\n".join(
        ["| seed | samples | E_ref[βL] | −β KL(π_ref‖π) | apart, in standard errors |", "|--:|--:|--:|--:|--:|", *rows]
    )
    return f"""The law E_ref[βL] = −β KL(π_ref‖π) ≤ 0 says how far the reference's own answers must fall, whatever was trained.
Of fresh samples of the reference, under the policy of the search:

{table}

In the lab it holds to rounding (`softq verify`, "falling likelihood")."""


def _caveats() -> str:
    return """## What to keep in mind

- It is a world of 109 words and few facts, with a model of two layers: it shows mechanisms, and is no evidence about large
  models.
- The world has popular errors by design: the first word of some names leads the crowd astray, so greedy decoding of a model of
  the crowd goes wrong where the whole name would not. That beams gain nothing before dpo is by this design, too.
- Harmless rare words are less likely than popular errors, which is why log-probs alone find errors badly.
- Many beams neither lengthen nor hurt here, not even with transformers' length penalty. So that part of the second finding is
  neither seen nor refuted: it needs a world in which longer answers are likelier a token."""


def _how_made(found: Results, recipe: Any) -> str:
    return f"""## How it was made

- Fine-tuning: {recipe.fine_tuning} steps on {recipe.demonstrations:,} answers of the crowd, or of the other style (reverse order,
  an adverb in each claim, more fillers). dpo, β = {recipe.beta:g}: {recipe.steps} steps of {recipe.batch} of
  {recipe.pairs:,} pairs with the crowd's noisy labels, learning rate {recipe.rate:g}; the reward model (`rm`) likewise. The
  trainings whose likelihood is followed: {recipe.gentle_steps} steps at {recipe.gentle_rate:g}; "chosen first" is as many steps
  of sft on the chosen answers before.
- A reward model's word on a token is the change of its reward from the text before to the text with it.
- One seed took {fmean(one.seconds for one in found.values()):.0f} s of a processor on average.
"""


def _mean(one: Spread) -> str:
    half = "" if one.interval is None else f" ±{(one.interval[1] - one.interval[0]) / 2:.3f}"
    return f"{one.mean:.3f}{half}".replace("-", "−")


def _between(one: Spread) -> str:
    ends = "" if one.interval is None else f" ({one.interval[0]:.3f} to {one.interval[1]:.3f})"
    return f"{one.mean:+.3f}{ends}".replace("-", "−")


def document(found: Results, recipe: Any) -> str:
    """Every figure: JSON."""
    whole = {
        "recipe": recipe._asdict(),
        "seeds": {
            str(seed): {"credit": one.credit, "search": one.search, "falling": one.falling, "law": one.law}
            for seed, one in found.items()
        },
        "claims": [
            {
                "said": each.said,
                "measured": each.measured,
                **each.spread._asdict(),
                "verdict": verdict(each.spread, LEAST[each.kind]),
            }
            for each in claims(found)
        ],
    }
    return json.dumps(whole, indent=1, ensure_ascii=False) + "\n"
