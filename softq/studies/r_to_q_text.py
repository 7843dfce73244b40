"""What the study of "From r to Q*" found: a page for people, figures for programs."""

import json
from collections.abc import Iterator, Mapping, Sequence
from statistics import fmean
from typing import Any

from softq.studies.formal import PHRASE, SAID
from softq.studies.r_to_q_claims import SCORES, Results, claims, searched
from softq.studies.seeds import Spread, spread
from softq.worlds.guidebook import IDLE


def markdown(found: Results, recipe: Any) -> str:
    """The page."""
    return "\n\n".join(
        [
            "# From r to Q*, asked again",
            _head(found, recipe),
            "\n".join(["## What was found", "", *_told(found)]).rstrip(),
            "## Credit\n\n![AUC of finding a wrong word](r_to_q_credit.svg)",
            "\n".join(_credit_table(found)),
            "## Search\n\n![True reward against beams](r_to_q_search.svg)",
            "\n".join(_search_table(found, "search")),
            _must_lengthen(),
            "\n".join(_search_table(found, "formal")),
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
    by: dict[str, list[str]] = {"shows": [], "shows in these worlds": [], "does not show": [], "unclear": []}
    for claim in claims(found):
        by[claim.verdict].append(claim.said)
    for what, said in by.items():
        if said:
            yield f"**{what.capitalize()}**"
            yield ""
            yield from (f"- {each}" for each in said)
            yield ""


def _claims_table(found: Results) -> Iterator[str]:
    yield "| claim | measured | difference | over prompts | verdict |"
    yield "|---|---|--:|--:|---|"
    for claim in claims(found):
        here = "" if claim.here is None else "{:.3f} to {:.3f}".format(*claim.here).replace("-", "−")
        yield f"| {claim.said} | {claim.measured} | {_between(claim.spread)} | {here} | **{claim.verdict}** |"
    yield ""
    yield (
        "A difference is of one seed, its interval over the seeds (Student, 95 %): of other worlds, too. **Shows**: it is above "
        "0. **Does not show**: it is below the least difference that would matter. Unclear is everything else: so few seeds can "
        "not tell. The interval over prompts is of the worlds of these seeds alone; **shows in these worlds** is what is above 0 "
        "there, and open otherwise."
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


def _search_table(found: Results, crowd: str) -> Iterator[str]:
    if crowd == "search":
        yield (
            "Means over held-out prompts and seeds. Tokens read: by all models, a prompt's own left out. Alike: the share of "
            "answers as long as the greedy one, and by how much their reward is above it, so that length has no part in it. Any "
            "sample is what choosing at random among n comes to, whatever n."
        )
        yield ""
    yield "| model | decoder | n | true reward | right names | length | tokens read | alike | reward above greedy's |"
    yield "|---|---|--:|--:|--:|--:|--:|--:|--:|"
    first = next(iter(found.values()))
    for row in getattr(first, crowd):
        key = row["policy"], row["family"], row["size"]
        reward = spread(searched(found, crowd, key, "reward"))
        mean = {
            name: fmean(searched(found, crowd, key, name).values())
            for name in ("right", "length", "evaluations", "alike")
        }
        gains = [gain for gain in searched(found, crowd, key, "gain").values() if gain is not None]
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
- Many beams lengthen and hurt where something long and certain may be begun, and log-probabilities are divided by length; by
  their sum they do not. It is no effect of dpo: the model before it is lengthened as well.
- The world with the set phrase was made to follow from the theory, not to be like language."""


def _must_lengthen() -> str:
    return f"""### Where many beams must lengthen

In the crowd's own world many beams change nothing: an idle sentence costs more a token than the rest of an answer, so no search
has a reason to add one. In a second world {SAID:.0%} of the crowd begin with a set phrase, every idle sentence there is
({len(PHRASE)} words), and everything else is as it was. Once begun its words are certain: whoever divides by length must prefer
it, whoever takes the sum must not, and few beams do not see it, since its first word is rarer than many other beginnings. It
costs {-IDLE:g} an idle sentence. This was said before it was run; the share was not searched for.

![True reward and length against beams, with a set phrase](r_to_q_formal.svg)"""


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
            str(seed): {
                "credit": one.credit,
                "search": _without_prompts(one.search),
                "formal": _without_prompts(one.formal),
                "falling": one.falling,
                "law": one.law,
            }
            for seed, one in found.items()
        },
        "claims": [
            {
                "said": each.said,
                "measured": each.measured,
                **each.spread._asdict(),
                "over_prompts": each.here,
                "verdict": each.verdict,
            }
            for each in claims(found)
        ],
    }
    return json.dumps(whole, indent=1, ensure_ascii=False) + "\n"


def _without_prompts(rows: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    return [{name: value for name, value in row.items() if name != "each"} for row in rows]
