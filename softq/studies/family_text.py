"""The words around the tables of the family's study: what was done, what the figures are, how to read a verdict."""

from collections import Counter
from collections.abc import Sequence

from softq.studies.arms import FLIPS, START, Results
from softq.studies.claims import Claim
from softq.studies.ground import Recipe
from softq.studies.trial import WARMUP

CLAIMS = """A difference is that of two trainings of the same seed, its interval is over the seeds (Student, 95 %).
**Shows**: the interval is above 0. **Does not show**: it is below the least difference that would matter (`LEAST`
in `softq/studies/claims.py`). Unclear is everything else: so few seeds can not tell.
"""
FIGURES = """- True reward: of answers to questions that were held out, sampled at T = 1. A right name is 1, an idle
  sentence −0.1; 3 is the most.
- KL: of whole answers from the fine-tuned model, in nats; unbiased, each state's part exact. Length: tokens, the
  end token included.
- log π of chosen: its change in nats, over held-out pairs that the truth labels. Ranking: in how many of them the
  chosen answer gained more than the rejected one. AUC: of finding the one wrong word of an answer by log π/π_ref.
- ± is half of a 95 % interval over the seeds. That of reward and length is of the change since the start: a seed is
  a world, some worlds are harder, and all methods share them.
"""
NOISE = """cdpo (dpo with `label_smoothing`) and robust are told the share of flipped labels. β is larger than by
default: at β = 0.1 the margins of so short a training stay where all these losses are one straight line, and can
not differ.
"""
LONGER = {
    "reward": "As many steps as `softq demo` makes, by the defaults and under flipped labels as above:\n",
    "margin": "The same where labels are certain: the truth's own, in place of the crowd's. The margin is that of held-out\n"
    "pairs, in nats. ipo's loss is 0 at 1/(2β) a token, sppo_hard's at 1/β between the sides, dpo's nowhere.\n",
}
"""By the first figure of the table that follows."""


def head(results: Results, recipe: Recipe) -> str:
    """What it is, in a few lines, and the picture."""
    trainings = [name for name in results if name != START]
    methods, seeds = len({name.split()[0] for name in trainings}), len(results[START])
    return f"""# The family, side by side

![True reward against KL from the reference, one point a method](family.svg)

{methods} methods in the world of `softq demo`. Each trains the same small model on the same pairs of a crowd's
answers, of which {FLIPS:.0%} have their label swapped on top of the crowd's own noise, for {recipe.steps} steps of
{recipe.batch} pairs: a fifth of the demo's steps. There are {len(trainings) * seeds} trainings with {seeds} seeds; a seed
draws the world, its texts and all training. In a world of 109 words this shows directions, and is no evidence about
large models. Everything here was written by

```console
softq study family --output family
```
"""


def summary(found: Sequence[Claim]) -> str:
    """What is said, by its verdict; of a claim that was measured several times, how often it came out so."""
    times = Counter(claim.says for claim in found)
    lines = []
    for verdict, told in (("shows", "Shows"), ("does not show", "Does not show"), ("unclear", "Unclear")):
        so = Counter(claim.says for claim in found if claim.verdict == verdict)
        said = [f"{says} ({count} of {times[says]})" if times[says] > 1 else says for says, count in so.items()]
        lines += [f"- **{told}**: {'; '.join(said)}."] if said else []
    return "\n".join([*lines, ""])


def how_made(results: Results, recipe: Recipe) -> str:
    """What decides the figures, and what they took."""
    seconds = sorted(run.seconds for name, runs in results.items() if name != START for run in runs.values())
    return f"""## How it was made

- Fine-tuning: {recipe.fine_tuning} steps on {recipe.demonstrations:,} answers of the crowd, once a seed. Its model is
  every method's start and reference.
- Training: {recipe.steps} steps, {recipe.long_steps} where it says so, of {recipe.batch} pairs (the demo: 64) out of
  {recipe.pairs:,}. AdamW; the learning rate is {recipe.learning_rate:g} for every method, after {WARMUP} steps of warm-up
  down to 0. It, and the β beside the defaults, were chosen on a seed that is not reported. (At 5e-4, the demo's,
  methods of small β ran away in one world of three, to a KL of 33.) AdamW does not see the scale of a loss, so one
  learning rate serves losses whose gradients differ a thousandfold; and in so few steps it decides how far a policy
  goes, more than β does where β is small.
- Data: the sides of a pair are, for methods of labels, one good and one bad completion; for methods of groups, two
  completions that score 1 and 0, of which plackett_luce, best_vs_rest and all_pairs make dpo. sppo takes scores for
  win probabilities, and gets 0.8 and 0.2; the four regressions take differences of rewards for log-odds, and get
  log(0.8/0.2) and 0. bmc marks the tokens in which the two sides differ. aligndistil has two teachers, dpo
  at its β on these pairs and on these pairs swapped, of {recipe.steps} steps each, which count in its time alone.
- Rounding: another processor adds floats in another order, and 600 steps later it is another training. The same seeds gave
  the same picture on two of them, but robust beat dpo at 20 % flipped by 0.034 (0.023 to 0.044) on one and by 0.050
  (−0.003 to 0.10) on the other, ipo's collapse was 0.038 (0.029 to 0.046) and 0.027 (−0.013 to 0.068), and on the
  other methods of β 0.01 ran in one world to a KL of 2.6 to 8.7. A verdict near its limit is a matter of such chance.
- One training took {seconds[len(seconds) // 2]:.1f} s of a processor (median, evaluation included), all of them
  {sum(seconds) / 60:.0f} minutes.
"""
