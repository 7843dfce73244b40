"""What the other tests of search left open: each was written for a mutant (bench/mutants.py) that survived them. By module."""

import math
from collections.abc import Mapping
from inspect import signature

import pytest
import torch
from torch import Tensor

from softq.lm.growing import Growing
from softq.mdp.tabular import TabularLM, random_table, token_tree
from softq.search import best_of as best
from softq.search import rejection
from softq.search.answer import Answer, Limits, answer
from softq.search.backups import BACKUPS, Edges
from softq.search.beam import beam
from softq.search.chunks import PathRatio, PathValue, chunk_beam
from softq.search.decoders import DECODERS
from softq.search.guided import Guided
from softq.search.heard import Heard
from softq.search.sampling import filtered, pick, sample
from softq.search.scoring import logps, rewards, tokens_of
from softq.search.voice import Likelihood, LogRatio, Mixed, Speaker

Path = tuple[int, ...]
PROMPTS = [torch.tensor([0, 1]), torch.tensor([3])]
TREE = token_tree([(0, 1), (3,)], 4, 3)


def table(seed: int) -> TabularLM:
    return TabularLM(TREE, random_table(TREE, seed, 1.5))


def speakers(*models: TabularLM, prompts: list[Tensor] = PROMPTS) -> list[Speaker]:
    forest = Growing(prompts)
    return [Speaker(model, forest, 9) for model in models]


def tensor(*values: float) -> Tensor:
    return torch.tensor(values, dtype=torch.float64)


# --- beam ---


def written_down(gain: Mapping[Path, list[float]], ends: set[int], width: int, tokens: int) -> list[tuple[Path, float]]:
    """A beam search once more: what each next token adds, by what was said -> the `width` best answers, best first.

    Candidates that end count if they are among the best `width` of all; the best `width` of the others go on.
    """
    live, done = {(): 0.0}, []
    for _ in range(tokens):
        every = {(*path, a): value + more for path, value in live.items() for a, more in enumerate(gain[path])}
        best_first = sorted(every.items(), key=lambda each: -each[1])
        done += [(path, value) for path, value in best_first[:width] if path[-1] in ends]
        live = dict([each for each in best_first if each[0][-1] not in ends][:width])
    return sorted(done + list(live.items()), key=lambda each: -each[1])[:width]


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("width", [1, 2, 3])
@pytest.mark.parametrize("ends", [{2}, {1, 2, 3}])
def test_a_beam_finds_what_one_that_was_written_down_finds(ends: set[int], width: int, seed: int) -> None:
    models = table(seed), table(seed + 10)
    policy, reference = speakers(*models)
    found = beam(LogRatio(policy, reference, 1e-9), Limits(3, frozenset(ends)), width=width, n=width)
    ratio = models[0].table.detach().log_softmax(-1) - models[1].table.detach().log_softmax(-1)
    for ids, answers in zip(PROMPTS, found, strict=True):
        gain = {state[len(ids) :]: ratio[row].tolist() for state, row in models[0].rows.items() if state[0] == ids[0]}
        expected = written_down(gain, ends, width, 3)
        assert [each.tokens for each in answers] == [path for path, _ in expected]
        assert [each.score for each in answers] == pytest.approx([value for _, value in expected])


def branching(end: float, other: float, then: int) -> TabularLM:
    """After the prompt, token 2 ends an answer at `end` nats and token 0 goes on at `other`: behind it `then` is sure, and so on.

    Behind the other two tokens, which share what is left, nothing is sure.
    """
    logits = torch.zeros(len(TREE.prefixes), 4, dtype=torch.float64)
    for row, state in enumerate(TREE.prefixes):
        if state[:2] == (3, 0):
            logits[row, then] = 60.0
    left = math.log((1 - math.exp(end) - math.exp(other)) / 2)
    logits[TREE.prefixes.index((3,))] = tensor(other, left, end, left)
    return TabularLM(TREE, logits)


@pytest.mark.parametrize(
    ("end", "other", "then", "penalty", "asked", "score"),
    [
        (-0.9, -1.55, 0, 0.7, True, -1.55 / 3**0.7),  # -1.55 / 2^0.7 is below -0.9: better at a length of 3 alone
        (-1.0, -0.5, 2, -0.7, True, -0.5 * 2**0.7),  # -0.5 · 3^0.7 is below -1
        (-1.0, -0.7, 2, -0.7, False, -1.0),  # and so is -0.7 · 2^0.7: nothing that is longer can be better
        (-1.0, -1.0, 0, 0.0, False, -1.0),  # as good is not better
    ],
)
def test_a_search_stops_when_no_length_can_make_it_better(
    end: float, other: float, then: int, penalty: float, asked: bool, score: float
) -> None:
    (voice,) = speakers(branching(end, other, then), prompts=[torch.tensor([3])])
    ((found,),) = beam(Likelihood(voice), Limits(3, frozenset([2])), width=3, length_penalty=penalty)
    assert found.score == pytest.approx(score)
    assert (voice.evaluations > 0) == asked


def test_an_answer_counts_if_it_is_among_the_best_when_it_ends() -> None:
    logits = torch.zeros(len(TREE.prefixes), 4, dtype=torch.float64)
    logits[:2] = tensor(0.5, 0.05, 0.4, 0.05).log()
    for (found,) in beam(Likelihood(speakers(TabularLM(TREE, logits))[0]), Limits(2, frozenset([2])), width=1):
        assert found.tokens[0] == 0
        assert found.score == pytest.approx(math.log(0.5 * 0.25)), (
            "less than the 0.4 of what ended, and was second then"
        )


def test_no_answers_are_refused() -> None:
    with pytest.raises(ValueError, match="n = 0 answers of 3 beams"):
        beam(Likelihood(speakers(table(0))[0]), Limits(3), width=3, n=0)


def test_a_beam_sees_past_all_that_end() -> None:
    logits = tensor(0.0, 3.0, 2.0, 1.0).repeat(len(TREE.prefixes), 1)
    policy, flat = speakers(TabularLM(TREE, logits), TabularLM(TREE, 0 * logits))
    ((first, *_), _) = beam(LogRatio(policy, flat, 1e-9), Limits(1, frozenset([1, 2, 3])), width=1)
    assert first.tokens == (1,)
    ratio = beam(LogRatio(policy, flat, 1e-9), Limits(1, frozenset([1, 2, 3])), width=4, n=4)
    assert [[each.tokens for each in answers] for answers in ratio] == [[(1,), (2,), (3,), (0,)]] * 2


# --- best of n, rejection ---


def test_answers_too_rare_for_a_number_have_a_law() -> None:
    logp, score = tensor(-900.0, -0.0, -800.0), tensor(2.0, 1.0, 0.0)
    expected = [math.log(3) - 900.0, 0.0, 3 * -800.0]  # drawn once of three, all but surely, thrice
    torch.testing.assert_close(best.law(logp, score, 3), tensor(*expected))


def test_the_best_class_is_sure_of_so_many_that_rounding_would_show() -> None:
    generator = torch.Generator().manual_seed(0)
    logp = torch.randn(3000, generator=generator).log_softmax(-1)
    score = torch.arange(3000) // 300
    assert (logp.double().logsumexp(-1).abs() * 2**30).item() > 1, "of float32 the sum is 1 but for a rounding"
    assert best.law(logp, score, 2**30).logsumexp(-1).item() == pytest.approx(0, abs=1e-4)
    assert best.divergence(logp, score, 2**30) == pytest.approx(-logp[2700:].logsumexp(-1).item(), abs=1e-4)


def test_a_pool_that_is_accepted_whole_is_all_there_is() -> None:
    chance = torch.zeros(4, 4, dtype=torch.float64)
    assert rejection.accepted(tensor(1.0, 0.0, 0.5, 1.0), 9, chance) == [0, 1, 2, 3]
    assert rejection.accepted(tensor(), 2, chance) == []


def test_rounds_of_rejection_fill_up_to_n_and_no_further() -> None:
    chance = torch.tensor([[0.9, 0.9, 0.5, 0.9], [0.0] * 4, [0.0] * 4, [0.0] * 4])
    assert rejection.accepted(tensor(0.0, 0.0, 1.0, 0.0), 3, chance) == [2, 0, 1]


def test_what_has_no_chance_is_not_accepted() -> None:
    scores = tensor(-2000.0, 0.0)  # e^-2000 is 0
    assert rejection.accepted(scores, 2, torch.zeros(1, 2)) == [1]


# --- sampling ---


def test_what_nothing_is_left_out_of_is_the_softmax_to_the_last_bit() -> None:
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(50, 40, generator=generator, dtype=torch.float64)
    assert torch.equal(filtered(logits), logits.log_softmax(-1))
    assert torch.equal(filtered(logits, temperature=0.7), (logits / 0.7).log_softmax(-1))


def test_of_tokens_that_tie_the_first_are_kept() -> None:
    kept = filtered(torch.zeros(1, 40), top_k=3)
    assert (kept > -torch.inf).nonzero()[:, 1].tolist() == [0, 1, 2]
    torch.testing.assert_close(kept[:, :3].exp(), torch.full((1, 3), 1 / 3, dtype=torch.float64))


def test_a_filter_at_its_very_bound() -> None:
    for given, kept in (
        ({"top_p": 0.5}, [True, False]),  # the first has half of the mass: no more is needed
        ({"min_p": 1.0}, [True, True]),  # the second is as likely as the likeliest
        ({"top_p": 1.0, "top_k": 2}, [True, True]),
    ):
        assert (filtered(torch.zeros(1, 2), **given) > -torch.inf).tolist() == [kept], given
    rare = filtered(tensor(0.0, -60.0, -99.0)[None], top_p=1.0, top_k=2)
    assert rare[0].tolist() == pytest.approx([0.0, -60.0, -math.inf]), "all of the mass is the rarest token's too"


def test_a_number_on_a_border_picks_what_begins_there() -> None:
    half = torch.zeros(1, 2, dtype=torch.float64).log_softmax(-1)
    assert pick(half.repeat(3, 1), tensor(0.0, 0.4999, 0.5)).tolist() == [0, 0, 1]
    assert pick(tensor(-math.inf, 0.0)[None], tensor(0.0)).tolist() == [1], "what is impossible is never picked"
    short = tensor(0.25, 0.5, 0.2499).log()[None]  # what is rounded away is missed nowhere
    assert pick(short, tensor(0.99999)).tolist() == [2]
    greatest = tensor(1 - 2**-53)
    for seed in range(50):
        logp = random_table(TREE, seed, 3.0)[:1].log_softmax(-1)
        assert pick(torch.cat([logp, torch.full((1, 3), -math.inf)], -1), greatest).item() == 3


def test_samples_are_those_of_seed_0_unless_told() -> None:
    drawn = [sample(speakers(table(0))[0], Limits(3), n=6, **given) for given in ({}, {"seed": 0}, {"seed": 1})]
    assert drawn[0] == drawn[1] != drawn[2]


# --- answers, scoring, what a decoder hears ---


def test_any_of_several_tokens_ends_an_answer() -> None:
    forest = Growing(PROMPTS)
    tokens = torch.tensor([0, 1, 2, 3])
    ended = Limits(3, frozenset([3, 1])).ended(forest, forest.last[:1].expand(4), tokens)
    assert ended.tolist() == [False, True, False, True]


def said(on: Heard) -> list[Answer]:
    """Two answers to the first prompt that begin alike, of three nodes together, and one of one to the other."""
    start = on.forest.add(torch.tensor([0, 1]), on.forest.last)
    ends = on.forest.add(torch.tensor([1, 2]), start[[0, 0]])
    on.forest.put("logp", torch.cat([start, ends]), torch.zeros(4))
    return [answer(on.forest, node, False) for node in (*ends.tolist(), int(start[1]))]


def test_scoring_whole_counts_every_node_once_for_each_model() -> None:
    on = Heard({"policy": table(0), "ref": table(1), "reward": table(2)}, PROMPTS, Limits(3))
    answers = said(on)
    logp, ref_logp = on.logps(answers)
    assert on.evaluations == 2 * 4
    told = on.rewards(answers)
    assert on.evaluations == 2 * 4 + 4
    policy, ref, reward = (on.models[name].table.detach() for name in ("policy", "ref", "reward"))  # pyright: ignore
    states = [(3,), (0, 1), (0, 1, 0)]
    (b, a, c) = (TREE.prefixes.index(state) for state in states)
    for found, of in ((logp, policy.log_softmax(-1)), (ref_logp, ref.log_softmax(-1))):
        torch.testing.assert_close(found, torch.stack([of[a, 0] + of[c, 1], of[a, 0] + of[c, 2], of[b, 1]]))
    torch.testing.assert_close(told, torch.stack([reward[c, 1], reward[c, 2], reward[b, 1]]))


def test_what_is_heard_has_a_seed_and_a_longest_path() -> None:
    on = Heard({"policy": table(0)}, PROMPTS, Limits(3))
    assert (on.seed, on.longest) == (0, 2 + 3)
    with pytest.raises(ValueError, match="needs a reference: give --reference MODEL"):
        DECODERS["best_of_n"](on, samples=2)


def test_a_pair_that_reads_text_is_none_of_the_models() -> None:
    policy, flat = speakers(table(0), table(1))
    on = Heard({"policy": table(0)}, PROMPTS, Limits(3), pair=PathRatio(policy, flat))
    with pytest.raises(ValueError, match="the model 'untuned' does not have the policy's tokens"):
        on.model("untuned")
    with pytest.raises(ValueError, match="needs a value: give --value MODEL"):
        on.model("value")


def test_rewards_have_no_gradient() -> None:
    told = rewards(table(0), tokens_of(PROMPTS, [Answer(0, 5, (1, 2), False, 0.0, 0.0)]))
    assert not told.requires_grad
    assert told.item() == pytest.approx(float(table(0).table.detach()[TREE.prefixes.index((0, 1, 1)), 2]))


# --- voices ---


def beginning(first: Tensor, second: Tensor) -> TabularLM:
    """Logits of the two prompts' ends; 0 elsewhere."""
    logits = torch.zeros(len(TREE.prefixes), 4, dtype=torch.float64)
    logits[0], logits[1] = first, second
    return TabularLM(TREE, logits)


def test_what_any_voice_forbids_is_forbidden_whatever_its_weight() -> None:
    shut, free = tensor(-math.inf, 0.0, 1.0, 2.0), tensor(3.0, 0.0, 1.0, 2.0)
    open_, closed = speakers(beginning(free, free), beginning(shut, shut))
    for weight, other in ((0.5, 0.5), (3.0, -2.0), (-2.0, 3.0)):
        mixed = Mixed([(weight, open_), (other, closed)]).logits(open_.forest.last)
        assert mixed[:, 0].tolist() == [-math.inf] * 2
        assert mixed[:, 1:].isfinite().all()


def test_what_is_plausible_is_so_in_its_own_state() -> None:
    policy, flat = speakers(
        beginning(tensor(0.6, 0.25, 0.1, 0.05).log(), tensor(0.2, 0.1, 0.4, 0.3).log()),
        beginning(*torch.zeros(2, 4, dtype=torch.float64)),
    )
    first, second = LogRatio(policy, flat, 0.3).rated(policy.forest.last).raw.exp().tolist()
    assert first == pytest.approx([2.4, 1.0, 0.0, 0.0])
    assert second == pytest.approx([0.8, 0.0, 1.6, 1.2])


def test_what_is_plausible_at_its_bounds() -> None:
    tied, shut = tensor(0.0, 0.0, -1.0, -2.0), tensor(-math.inf, 0.0, 1.0, 2.0)
    policy, reference = speakers(beginning(tied, shut), beginning(tied, shut))
    said = LogRatio(policy, reference, 1.0).rated(policy.forest.last).raw
    assert said.tolist() == [[0.0, 0.0, -math.inf, -math.inf], [-math.inf] * 3 + [0.0]], "all of the likeliest"
    said = LogRatio(policy, reference, 0.0).rated(policy.forest.last).raw
    assert said.tolist() == [[0.0] * 4, [-math.inf, 0.0, 0.0, 0.0]], "all but what is impossible for both"


# --- guided ---


def test_a_lone_candidate_is_worth_the_average() -> None:
    base, other = speakers(table(0), table(0))
    voice = Guided(base, [(3.0, table(1))], 9, top_k=1)
    assert torch.equal(voice.logits(base.forest.last), other.logits(base.forest.last))


def test_a_guided_voice_may_be_asked_first_far_behind_a_prompt() -> None:
    said = []
    for in_turn in (True, False):
        (base,) = speakers(table(0))
        voice = Guided(base, [(3.0, table(1))], 9, top_k=2)
        first = base.forest.add(torch.tensor([2, 0]), base.forest.last)
        second = base.forest.add(torch.tensor([1, 3]), first)
        asked = (base.forest.last, first, second) if in_turn else (second,)
        said.append([voice.logits(nodes) for nodes in asked][-1])
    assert torch.equal(*said)


# --- chunks ---


class Listening(Speaker):
    """A voice that remembers what it was told to keep."""

    def keep(self, nodes: Tensor) -> None:
        self.kept = nodes
        super().keep(nodes)


@pytest.mark.parametrize("branches", [1, 2])
def test_a_lone_beam_gets_all_the_samples(branches: int) -> None:
    """Four numbers are spread over four tokens that are equally likely, from 0 on."""
    flat = TabularLM(TREE, torch.zeros(len(TREE.prefixes), 4, dtype=torch.float64))
    policy, worth, other = speakers(flat, table(0), flat)
    spread = torch.arange(2 * branches)[:, None].expand(-1, 2) / 4 + 0.1
    found = chunk_beam(
        policy, PathRatio(worth, other), Limits(1), filtered, [spread] * 2, width=2, branches=branches, length=1
    )
    for prompt, answers in enumerate(found):
        logp = table(0).table.detach()[prompt].log_softmax(-1)[: 2 * branches]
        order = logp.argsort(descending=True)[:2]
        assert [each.tokens for each in answers] == [(token,) for token in order.tolist()]
        assert [each.score for each in answers] == pytest.approx((logp[order] + math.log(4)).tolist())


def test_where_all_beams_have_ended_none_is_kept() -> None:
    forest = Growing(PROMPTS)
    policy = Listening(table(0), forest, 9)
    score = PathRatio(Speaker(table(1), forest, 9), policy)
    chance = torch.full((1, 3), 0.5, dtype=torch.float64)
    ends = Limits(3, frozenset(range(4)))
    chunk_beam(policy, score, ends, filtered, [chance] * 2, width=1, branches=1, length=2)
    assert (policy.kept.dtype, len(policy.kept)) == (torch.int64, 0)


@pytest.mark.parametrize("states", [1, 2, 3])
def test_a_pair_is_asked_in_parts(states: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("softq.search.chunks.STATES", states)
    tuned_, untuned = speakers(table(0), table(1))
    score, forest = PathRatio(tuned_, untuned), tuned_.forest
    first = forest.add(torch.tensor([0, 1, 2, 3, 3]), forest.last[[0, 0, 1, 1, 0]])
    second = forest.add(torch.tensor([2, 1, 0]), first[[0, 2, 4]])
    said = [(0, 1, 0, 2), (0, 1, 1), (3, 2, 1), (3, 3), (0, 1, 3, 0)]
    ratio = table(0).table.detach().log_softmax(-1) - table(1).table.detach().log_softmax(-1)
    expected = [
        sum(float(ratio[TREE.prefixes.index(path[:t]), path[t]]) for t in range(2 if path[0] == 0 else 1, len(path)))
        for path in said
    ]
    found = score(forest, torch.cat([second[:1], first[1:2], second[1:2], first[3:4], second[2:]]))
    assert found.tolist() == pytest.approx(expected)
    assert score.evaluations == tuned_.evaluations + untuned.evaluations == 2 * 3, (
        "of three nodes each was asked what follows"
    )


def test_what_a_path_is_worth_has_no_gradient() -> None:
    forest = Growing(PROMPTS)
    nodes = forest.add(torch.tensor([1, 2]), forest.last)
    worth = PathValue([(2.0, table(0)), (-0.5, table(1)), (0.0, table(2))], forest, 9)
    told = worth(forest, nodes)
    assert not told.requires_grad
    of = [2.0 * table(0).table[row, token] - 0.5 * table(1).table[row, token] for row, token in ((0, 1), (1, 2))]
    torch.testing.assert_close(told, torch.stack(of).detach())
    assert worth.evaluations == 2 * 2


# --- tree search ---


def weighed(guess: float, **columns: list[float]) -> Edges:
    """The actions of a state that is worth a guess, and room for one more."""
    forest, count = Growing([torch.tensor([3])]), len(next(iter(columns.values())))
    nodes = forest.add(torch.arange(count), torch.zeros(count, dtype=torch.int64))
    forest.put("guess", forest.last, tensor(guess))
    for name, values in columns.items():
        forest.put(name, nodes, tensor(*values))
    there = torch.arange(count + 1) < count
    return Edges(forest, forest.last, torch.cat([nodes, nodes[:1]])[None], there[None])


def test_a_soft_search_takes_the_likeliest_under_the_reference_tilted_by_its_worth() -> None:
    edges = weighed(0.0, logp=[-1.0, -2.0, -4.0], reward=[0.5, 0.25, -1.0], value=[0.75, 1.5, 2.0])
    (said,) = BACKUPS["soft"].choice(edges, 0.5).tolist()
    ref_logp = [-1.0 - 1.0, -2.0 - 0.5, -4.0 + 2.0]
    assert said == pytest.approx([ref_logp[0] + 1.5, ref_logp[1] + 3.0, ref_logp[2] + 4.0, -math.inf])


@pytest.mark.parametrize("name", BACKUPS)
def test_inside_a_chunk_a_state_is_worth_what_its_one_child_is(name: str) -> None:
    edges = weighed(math.nan, logp=[-1.0], reward=[0.5], value=[0.75], visits=[3.0], prior=[1.0])
    others, weight = BACKUPS[name].around(edges, torch.tensor([1]), 0.5)
    assert BACKUPS[name].sums.after(float(others), float(weight), -0.3, 0.5) == pytest.approx(-0.3)


# --- decoders ---


def test_a_setting_begins_alike_in_every_decoder() -> None:
    expected = {"n": 1, "samples": 16, "temperature": 1.0, "length_penalty": 0.0}
    for name, decoder in DECODERS.items():
        given = {key: of.default for key, of in signature(decoder).parameters.items() if key in expected}
        assert given == {key: expected[key] for key in given}, name


def test_chunks_are_scored_by_the_policy_and_its_reference_where_there_is_no_pair() -> None:
    models = {"policy": table(0), "ref": table(1)}
    settings = {"beams": 3, "branches": 4, "length": 2}
    two, three = (DECODERS["chunk_beam"](Heard(models, PROMPTS, Limits(3)), n=n, **settings) for n in (2, 3))
    assert [len(answers) for answers in two] == [2, 2]
    assert [answers[:2] for answers in three] == two
    logp, ref_logp = logps(models, tokens_of(PROMPTS, [each for answers in three for each in answers]))
    assert ref_logp is not None
    assert [each.score for answers in three for each in answers] == pytest.approx((logp - ref_logp).tolist())
