"""Beam search: the likeliest answers, or those of the highest log-ratio, as far as a few beams can see."""

from typing import NamedTuple, Protocol

import torch
from torch import Tensor

from softq.lm.growing import Growing
from softq.search.answer import Answer, Limits, answer, best
from softq.search.voice import Rated, Voice


class Objective(Protocol):
    """What a path is scored by: a sum over its tokens."""

    falling: bool

    @property
    def voices(self) -> tuple[Voice, ...]:
        """All that speak."""
        ...

    def rated(self, nodes: Tensor) -> Rated:
        """What every next token of n states adds."""
        ...


class Beams(NamedTuple):
    """The paths that are gone on from, and the answers so far."""

    nodes: Tensor  # [m]
    scores: Tensor  # [m] float64
    answers: tuple[list[Answer], ...]  # of each prompt, at most `width`


class Rule(NamedTuple):
    """How wide, for how many answers, and how length counts."""

    width: int
    n: int
    length_penalty: float

    def normalised(self, score: float, length: int) -> float:
        """The score of a finished answer."""
        return score / length**self.length_penalty


def beam(
    objective: Objective, limits: Limits, *, width: int = 5, n: int = 1, length_penalty: float = 0.0
) -> list[list[Answer]]:
    """The n best answers of each prompt, best first, that `width` beams find.

    A finished answer's score is divided by its length to the power of `length_penalty`; any but 0 is another objective than the
    sum that the theory speaks of (arXiv 2404.12358, eq 13). A prompt's search is over when no beam can do better any more: sums
    of log-probabilities only fall. As wide as there are answers, it is exhaustive; one beam is greedy.
    """
    if not 1 <= n <= width:
        raise ValueError(f"n = {n} answers of {width} beams: expected from 1 to as many as beams")
    rule, forest = Rule(width, n, length_penalty), objective.voices[0].forest
    P = len(forest.last)
    beams = Beams(forest.last, torch.zeros(P, dtype=torch.float64), tuple([] for _ in range(P)))
    for step in range(1, limits.tokens + 1):
        beams = _stepped(objective, limits, beams, rule, step)
        open_ = _open(objective, limits, beams, rule, step)
        beams = Beams(beams.nodes[open_], beams.scores[open_], beams.answers)
        if not len(beams.nodes):
            break
        for voice in objective.voices:
            voice.keep(beams.nodes)
    for node, score in zip(beams.nodes.tolist(), beams.scores.tolist(), strict=True):
        cut = answer(forest, node, False, rule.normalised(score, limits.tokens))
        beams.answers[cut.prompt].append(cut)
    return [best(answers, n) for answers in beams.answers]


def _stepped(objective: Objective, limits: Limits, beams: Beams, rule: Rule, step: int) -> Beams:
    """Every beam goes on: of all its prompt's candidates the best `width` that do not end, and those among them that do."""
    forest = objective.voices[0].forest
    width = rule.width
    rated = objective.rated(beams.nodes)
    row, token, score = _candidates(forest, beams, rated, width, width + max(width, len(limits.ends)))
    prompt, ended = forest.prompt[beams.nodes[row]], limits.ended(forest, beams.nodes[row], token)
    first = torch.searchsorted(prompt, prompt)
    before = (~ended).cumsum(0) - (~ended).long()  # candidates that do not end, ahead of each
    wanted = torch.where(ended, torch.arange(len(row)) - first < width, before - before[first] < width)
    row, token, score, ended = row[wanted], token[wanted], score[wanted], ended[wanted]
    nodes = forest.add(token, beams.nodes[row])
    for name, values in rated.of(row.to(rated.raw.device), token.to(rated.raw.device)).items():
        forest.put(name, nodes, values)
    forest.put("score", nodes, score)
    for node, value in zip(nodes[ended].tolist(), score[ended].tolist(), strict=True):
        found = answer(forest, node, True, rule.normalised(value, step))
        beams.answers[found.prompt].append(found)
    for answers in beams.answers:
        answers[:] = best(answers, width)
    return Beams(nodes[~ended], score[~ended], beams.answers)


def _candidates(forest: Growing, beams: Beams, rated: Rated, width: int, each: int) -> tuple[Tensor, Tensor, Tensor]:
    """(beam, token, score) of each prompt's best candidates, prompt by prompt and best first: enough that `width` do not end."""
    values, tokens = rated.raw.topk(min(each, rated.raw.shape[-1]), -1)
    scores = beams.scores[:, None] + (values.double() - rated.minus[:, None]).cpu()
    prompt = forest.prompt[beams.nodes]
    alive, place = prompt.unique_consecutive(return_inverse=True)
    rank = torch.arange(len(prompt)) - torch.searchsorted(prompt, prompt)
    table = scores.new_full((len(alive), width, scores.shape[1]), -torch.inf)
    table[place, rank] = scores
    best_scores, best_at = table.flatten(1).topk(min(width * each, table.shape[1] * table.shape[2]), -1)
    at = best_at[best_scores > -torch.inf]
    owner = torch.arange(len(alive))[:, None].expand_as(best_at)[best_scores > -torch.inf]
    beam_of = torch.searchsorted(place, owner) + at // scores.shape[1]
    return beam_of, tokens.cpu()[beam_of, at % scores.shape[1]], best_scores[best_scores > -torch.inf]


def _open(objective: Objective, limits: Limits, beams: Beams, rule: Rule, step: int) -> Tensor:
    """[m] bool: beams of prompts whose n answers could still be bettered."""
    prompt = objective.voices[0].forest.prompt[beams.nodes]
    if not objective.falling:
        return torch.ones(len(prompt), dtype=torch.bool)
    length = limits.tokens if rule.length_penalty > 0 else min(step + 1, limits.tokens)
    nth = [answers[rule.n - 1].score if len(answers) >= rule.n else -torch.inf for answers in beams.answers]
    could = torch.full((len(nth),), -torch.inf, dtype=torch.float64)
    could.scatter_reduce_(0, prompt, beams.scores / length**rule.length_penalty, "amax")
    return could[prompt] > torch.tensor(nth, dtype=torch.float64)[prompt]
