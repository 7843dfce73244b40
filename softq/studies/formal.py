"""A crowd of which a few begin with a set phrase: every idle sentence there is, word for word.

Once begun, the phrase's words are certain. So an answer with it has the highest log-probability a token, and a search that
divides by length, as `generate` of transformers does unless it is told not to, must prefer it; by the sum it never can. Its first
word is rarer than many other beginnings, so few beams do not see it. Theory says of this world: with many beams and a length
penalty answers become longer, and worse by what idle sentences cost; before dpo as well as after it.
"""

from random import Random

from softq.worlds.guidebook import FILLERS, Guidebook
from softq.worlds.world import Words

PHRASE: Words = tuple(word for filler in FILLERS for word in filler)
SAID = 0.02  # share of answers that begin so


def formal(world: Guidebook, prompt: Words, rng: Random) -> Words:
    """An answer of such a crowd."""
    return (*PHRASE * (rng.random() < SAID), *world.demonstration(prompt, rng))
