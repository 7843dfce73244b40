"""What the study of the frontier found: a page for people, and figures for programs."""

import json
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

from softq.studies.claims import verdict
from softq.studies.seeds import Spread, spread

LEAST = {"names": 0.05, "letters": 2.0}
"""The least differences that would be worth a claim: right names of three, letters."""


class Place(NamedTuple):
    """What was decoded by one pair of weights: means over the answers."""

    names_weight: float  # nats a right name
    brevity_weight: float  # nats for ten letters less
    names: float  # right ones of three
    letters: float
    kl: float  # KL(guided ‖ the model), nats an answer: the mean log-ratio of what was drawn

    @property
    def weights(self) -> tuple[float, float]:
        """Of names and of brevity."""
        return self.names_weight, self.brevity_weight


Results = Mapping[int, Sequence[Place]]  # by seed
FREE = (0.0, 0.0)  # the model itself


def over_seeds(found: Results) -> dict[tuple[float, float], dict[str, Spread]]:
    """By pair of weights, each figure over the seeds."""
    each = {seed: {one.weights: one for one in places} for seed, places in found.items()}
    return {
        one.weights: {
            name: spread({seed: getattr(places[one.weights], name) for seed, places in each.items()})
            for name in ("names", "letters", "kl")
        }
        for one in next(iter(found.values()))
    }


def undominated(found: Results) -> list[tuple[float, float]]:
    """The pairs of weights that no other beats in names or letters without losing in the other, the longest answers first.

    By the means; differences up to LEAST are none.
    """
    means = {of: (figures["names"].mean, figures["letters"].mean) for of, figures in over_seeds(found).items()}

    def beaten(here: tuple[float, float], by: tuple[float, float]) -> bool:
        more = (by[0] - here[0]) / LEAST["names"], (here[1] - by[1]) / LEAST["letters"]
        return min(more) >= -1 and max(more) > 1

    kept = [of for of, here in means.items() if not any(beaten(here, by) for by in means.values())]
    return sorted(kept, key=lambda of: -means[of][1])


def gained(found: Results, to: tuple[float, float], since: tuple[float, float], name: str) -> Spread:
    """A figure at one pair of weights less that at another, on the same prompts of the same seed."""
    each = {seed: {one.weights: one for one in places} for seed, places in found.items()}
    return spread({seed: getattr(of[to], name) - getattr(of[since], name) for seed, of in each.items()})


def markdown(found: Results, recipe: Any, seconds: float) -> str:
    """The page."""
    return "\n\n".join(
        [
            "# Two values, composed at decode time",
            "![Right names against letters, by the weights of two values](frontier.svg)",
            _head(found, recipe),
            "\n".join(["## What was found", "", *_told(found)]),
            "## By weights",
            "\n".join(_table(found)),
            _how_made(recipe, seconds),
        ]
    )


def _head(found: Results, recipe: Any) -> str:
    return f"""A small model is fine-tuned on what the crowd of `softq demo`'s world writes, and never trained again. Its own
samples, {recipe.samples} a prompt, are scored twice: by how many of the three names are right, and by how few letters they
have. `softq train value` makes a value of each score, and the decoder `guided` adds both to the model's logits, with one pair of
weights after another. Short names are not the right ones, so the two rewards are in tension. There are {len(found)} seeds; a seed
draws the world, its texts and all training. Everything here was written by

```console
softq study frontier --output frontier
```"""


def _told(found: Results) -> Iterator[str]:
    """What each value does alone, what they do together, and what one costs of the other."""
    names, brevity = (sorted({of[k] for of in over_seeds(found)}) for k in (0, 1))
    some, most, little, short = names[-2], names[-1], brevity[len(brevity) // 2], brevity[-1]
    alone, further = (gained(found, (weight, 0.0), FREE, "names") for weight in (some, most))
    fewer = gained(found, (0.0, short), FREE, "letters")
    yield (
        f"- **A value raises its reward.** By {some:g} nats a name: {_signed(alone)} right names of three "
        f"({verdict(alone, LEAST['names'])}), by {most:g}: {_signed(further)}. By {short:g} nats for ten letters: "
        f"{_signed(fewer, 1)} letters ({verdict(_turned(fewer), LEAST['letters'])})."
    )
    cost = gained(found, (some, short), (some, 0.0), "names")
    yield (
        f"- **One costs the other.** At {some:g} nats a name, brevity at {short:g} moves the right names by {_signed(cost)} "
        f"(a loss: {verdict(_turned(cost), LEAST['names'])})."
    )
    right, letters = (gained(found, (some, little), FREE, name) for name in ("names", "letters"))
    yield (
        f"- **Composed, both move.** With {some:g} and {little:g}: {_signed(right)} right names and {_signed(letters, 1)} "
        "letters at once, by values that were trained apart."
    )
    kl = over_seeds(found)
    yield (
        f"- What it takes, in KL from the model: {_with(kl[some, little]['kl'], 1)} nats an answer for both of these, "
        f"{_with(kl[some, short]['kl'], 1)} at brevity {short:g}. Far from its samples a value is a guess."
    )
    listed = ", ".join(f"({a:g}, {b:g})" for a, b in undominated(found))
    yield f"- The frontier, off which something else is better in one and no worse in the other, is at the weights {listed}."


def _table(found: Results) -> Iterator[str]:
    edge = set(undominated(found))
    heads = "nats a right name | nats for ten letters less | right names of 3 | letters | KL from the model, nats"
    yield f"| {heads} | on the frontier |"
    yield "|--:|--:|--:|--:|--:|---|"
    for (names, brevity), of in over_seeds(found).items():
        shown = f"{_with(of['names'], 2)} | {_with(of['letters'], 1)} | {_with(of['kl'], 2)}"
        yield f"| {names:g} | {brevity:g} | {shown} | {'yes' if (names, brevity) in edge else ''} |"


def _how_made(recipe: Any, seconds: float) -> str:
    return f"""## How it was made

- Fine-tuning: {recipe.fine_tuning} steps on {recipe.demonstrations:,} answers of the crowd. A value starts from that model,
  with a fresh head of one number in place of the head over tokens, and is trained by TD(λ), λ = 0.95, for
  {recipe.steps_of_names} steps (names) or {recipe.steps_of_brevity} (brevity) of {recipe.batch} prompts with
  {recipe.samples} answers each, at a learning rate of {recipe.learning_rate:g}.
- Decoding: {recipe.answers} answers to each of the held-out prompts, at T = 1, by the same random numbers for every pair of
  weights; the {recipe.top_k} likeliest tokens are weighed. With exact soft values this would sample π\\*
  (`softq verify`, law `guided by V*`); these are means, and learned.
- ± is half of a 95 % interval over the seeds (Student). **Shows**: the interval of a difference is on its side of 0; **does
  not show**: it is below what would matter ({LEAST["names"]:g} names, {LEAST["letters"]:g} letters). KL is the average
  log-ratio of what was drawn.
- One seed took {seconds:.0f} s of a processor on average.
"""


def _turned(found: Spread) -> Spread:
    """The same difference the other way round."""
    return spread({seed: -value for seed, value in found.values.items()})


def _with(found: Spread, digits: int) -> str:
    half = "" if found.interval is None else f" ±{(found.interval[1] - found.interval[0]) / 2:.{digits}f}"
    return f"{round(found.mean, digits) + 0.0:.{digits}f}{half}"  # never -0.00


def _signed(found: Spread, digits: int = 2) -> str:
    return f"{'+' if found.mean >= 0 else '−'}{_with(found._replace(mean=abs(found.mean)), digits)}"


def document(found: Results, recipe: Any) -> str:
    """Every figure: JSON."""
    whole = {
        "recipe": recipe._asdict(),
        "seeds": {str(seed): [one._asdict() for one in places] for seed, places in found.items()},
        "means": [
            {"names_weight": of[0], "brevity_weight": of[1], **{name: one._asdict() for name, one in figures.items()}}
            for of, figures in over_seeds(found).items()
        ],
        "frontier": [list(of) for of in undominated(found)],
    }
    return json.dumps(whole, indent=1, ensure_ascii=False) + "\n"
