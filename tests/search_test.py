"""Decoders on tables: beams against all answers, samples against exact laws, best of n and rejection against enumeration."""

import math
from collections import Counter
from collections.abc import Sequence

import pytest
import torch
from torch import Tensor

from softq.lm.growing import Growing
from softq.mdp.tabular import TabularLM, along, every_draw, every_trajectory, random_table, token_tree
from softq.search import best_of as best
from softq.search import rejection
from softq.search.answer import Answer, Limits
from softq.search.beam import beam
from softq.search.chunks import PathRatio, chunk_beam, uniforms
from softq.search.decoders import DECODERS
from softq.search.heard import Heard
from softq.search.sampling import filtered, pick, sample, uniform
from softq.search.voice import Likelihood, LogRatio, Mixed, Speaker, plausible, realigned, tuned

PROMPTS = [torch.tensor([0, 1]), torch.tensor([2])]
TREE = token_tree([(0, 1), (2,)], 3, 4, end=2)
LEAVES = every_trajectory(TREE)
LIMITS = Limits(4, frozenset([2]))
POLICY, REFERENCE, THIRD = (TabularLM(TREE, random_table(TREE, seed, 1.5)) for seed in range(3))


def sums(model: TabularLM) -> Tensor:
    """Σ log π of every answer, in the order of LEAVES."""
    return along(TREE, model.table.detach().log_softmax(-1), LEAVES).sum(-1)


def words(row: int) -> tuple[int, ...]:
    return tuple(LEAVES.ids[row, 1:][LEAVES.action[row]].tolist())


def ranked(values: Tensor, prompt: int) -> list[tuple[tuple[int, ...], float]]:
    rows = (LEAVES.prompt == prompt).nonzero()[:, 0].tolist()
    return sorted(((words(row), float(values[row])) for row in rows), key=lambda each: -each[1])


def spoken(*models: TabularLM) -> list[Speaker]:
    forest = Growing(PROMPTS)
    return [Speaker(model, forest, 9) for model in models]


def heard(seed: int = 0) -> Heard:
    models = {"policy": POLICY, "ref": REFERENCE, "tuned": THIRD, "untuned": REFERENCE, "reward": THIRD}
    return Heard(models, PROMPTS, LIMITS, seed=seed)


@pytest.mark.parametrize("mode", ["likelihood", "ratio"])
def test_as_wide_as_there_are_answers_a_beam_is_exhaustive(mode: str) -> None:
    policy, reference = spoken(POLICY, REFERENCE)
    objective = Likelihood(policy) if mode == "likelihood" else LogRatio(policy, reference, 1e-9)
    expected = sums(POLICY) - (0 if mode == "likelihood" else sums(REFERENCE))
    found = beam(objective, LIMITS, width=60, n=5)
    for prompt, answers in enumerate(found):
        for answer, (tokens, value) in zip(answers, ranked(expected, prompt)[:5], strict=True):
            assert (answer.tokens, answer.prompt) == (tokens, prompt)
            assert answer.score == pytest.approx(value, abs=1e-12)
            assert answer.logp == pytest.approx(dict(ranked(sums(POLICY), prompt))[tokens], abs=1e-12)
            assert answer.ended == (tokens[-1] == 2)


def greedy_path(model: TabularLM, prompt: Sequence[int]) -> tuple[int, ...]:
    said: list[int] = []
    while len(said) < 4 and 2 not in said:
        said.append(int(model.table[model.rows[*prompt, *said]].argmax()))
    return tuple(said)


def test_one_beam_is_greedy() -> None:
    expected = [greedy_path(POLICY, prompt.tolist()) for prompt in PROMPTS]
    assert [answers[0].tokens for answers in beam(Likelihood(spoken(POLICY)[0]), LIMITS, width=1)] == expected
    assert [answers[0].tokens for answers in DECODERS["greedy"](heard())] == expected
    cold = sample(spoken(POLICY)[0], LIMITS, temperature=0)
    assert [answers[0].tokens for answers in cold] == expected


def by_hand(score: dict[tuple[int, ...], float], width: int) -> list[tuple[tuple[int, ...], float]]:
    """A beam search written down once more: scores of every path that there is -> finished paths, best first."""
    live, done = [((), 0.0)], []
    for _ in range(4):
        over = sorted(((path, score[path]) for path in score if path[:-1] in dict(live)), key=lambda each: -each[1])
        done += [each for each in over[:width] if each[0][-1] == 2]
        live = [each for each in over if each[0][-1] != 2][:width]
    return sorted(done + live, key=lambda each: -each[1])


@pytest.mark.parametrize("width", [1, 2, 3, 5])
@pytest.mark.parametrize("mode", ["likelihood", "ratio"])
def test_a_narrow_beam_finds_what_it_can_see(mode: str, width: int) -> None:
    policy, reference = spoken(POLICY, REFERENCE)
    objective = Likelihood(policy) if mode == "likelihood" else LogRatio(policy, reference, 1e-9)
    found = beam(objective, LIMITS, width=width, n=1)
    for prompt, ids in enumerate(PROMPTS):
        score: dict[tuple[int, ...], float] = {(): 0.0}
        for state in TREE.prefixes:
            if TREE.root[POLICY.rows[state]] == prompt:
                logp, ref = (m.table[m.rows[state]].detach().log_softmax(-1) for m in (POLICY, REFERENCE))
                for token in range(3):
                    gain = float(logp[token] - (0 if mode == "likelihood" else ref[token]))
                    score[*state[len(ids) :], token] = score[state[len(ids) :]] + gain
        del score[()]
        tokens, value = by_hand(score, width)[0]
        assert (found[prompt][0].tokens, found[prompt][0].score) == (tokens, pytest.approx(value))


def test_a_length_penalty_divides_finished_and_cut_paths_alike() -> None:
    for penalty in (1.0, -0.7):
        found = beam(Likelihood(spoken(POLICY)[0]), LIMITS, width=60, n=3, length_penalty=penalty)
        lengths = torch.tensor([len(words(row)) for row in range(len(LEAVES.ids))])
        for prompt, answers in enumerate(found):
            expected = ranked(sums(POLICY) / lengths**penalty, prompt)[:3]
            assert [answer.tokens for answer in answers] == [tokens for tokens, _ in expected]
            assert [answer.score for answer in answers] == pytest.approx([value for _, value in expected])


def test_a_search_stops_when_nothing_can_be_better() -> None:
    table = torch.full_like(POLICY.table, -5.0)
    table[:, 2] = 5.0  # the end is all but certain everywhere
    (voice,) = spoken(TabularLM(TREE, table))
    found = beam(Likelihood(voice), LIMITS, width=3)
    assert [answers[0].tokens for answers in found] == [(2,), (2,)]
    assert voice.evaluations == 0, "the prompts' own states told enough"
    with pytest.raises(ValueError, match="n = 4 answers of 3 beams"):
        beam(Likelihood(voice), LIMITS, width=3, n=4)


def test_only_plausible_tokens_have_a_ratio() -> None:
    policy, reference = spoken(POLICY, REFERENCE)
    rated = LogRatio(policy, reference, plausible=0.3).rated(policy.forest.last)
    for row, prompt in enumerate(PROMPTS):
        at = POLICY.rows[tuple(prompt.tolist())]
        logp, ref = (m.table[at].detach().log_softmax(-1) for m in (POLICY, REFERENCE))
        there = logp.exp() >= 0.3 * logp.exp().max()
        assert 0 < there.sum() < 3 or row
        torch.testing.assert_close(rated.raw[row], torch.where(there, logp - ref, -torch.inf))
    for share in (-0.1, 1.5):
        with pytest.raises(ValueError, match=f"plausible = {share}: expected from 0, any token, to 1, the likeliest"):
            LogRatio(policy, reference, share).rated(policy.forest.last)


def test_what_is_impossible_is_never_plausible() -> None:
    logp = torch.tensor([[0.5, 0.25, 0.24, 0.01, 0.0], [0.0, 0.3, 0.3, 0.4, 0.0]]).log()
    assert plausible(logp, 0.0).tolist() == [[True] * 4 + [False], [False] + [True] * 3 + [False]]
    assert plausible(logp, 0.5).tolist() == [[True, True, False, False, False], [False] + [True] * 3 + [False]]
    assert plausible(logp, 1.0).tolist() == [[True] + [False] * 4, [False] * 3 + [True, False]]


def test_samples_follow_the_policy_and_depend_on_nothing_else() -> None:
    found = sample(spoken(POLICY)[0], LIMITS, n=4000, seed=3)
    for prompt, answers in enumerate(found):
        often = Counter(answer.tokens for answer in answers)
        for tokens, logp in ranked(sums(POLICY), prompt):
            share = math.exp(logp)
            assert abs(often[tokens] / 4000 - share) < 4 * math.sqrt(share / 4000) + 1e-3
        assert answers[0].logp == pytest.approx(dict(ranked(sums(POLICY), prompt))[answers[0].tokens])
    alone = Growing(PROMPTS[1:])
    few = sample(Speaker(POLICY, alone, 9), LIMITS, n=7, seed=3, numbers=torch.tensor([1]))
    assert [answer.tokens for answer in few[0]] == [answer.tokens for answer in found[1][:7]]
    other = sample(spoken(POLICY)[0], LIMITS, n=7, seed=4)
    assert [answer.tokens for answer in other[1]] != [answer.tokens for answer in found[1][:7]]


def test_samples_that_begin_alike_are_computed_once() -> None:
    (voice,) = spoken(POLICY)
    sample(voice, LIMITS, n=500)
    inner = sum(2 not in path[len(PROMPTS[int(r)]) :] for path, r in zip(TREE.prefixes, TREE.root, strict=True))
    assert voice.evaluations <= inner - len(PROMPTS)


def test_filters_by_hand() -> None:
    logits = torch.tensor([[0.5, 0.3, 0.15, 0.05]]).log() + 7
    shares = {
        (): [0.5, 0.3, 0.15, 0.05],
        (("top_k", 2),): [0.625, 0.375, 0, 0],
        (("top_p", 0.79),): [0.625, 0.375, 0, 0],
        (("top_p", 0.81),): [0.5 / 0.95, 0.3 / 0.95, 0.15 / 0.95, 0],
        (("min_p", 0.29),): [0.5 / 0.95, 0.3 / 0.95, 0.15 / 0.95, 0],
        (("min_p", 0.31),): [0.625, 0.375, 0, 0],
        (("temperature", 0.5),): [0.25 / 0.365, 0.09 / 0.365, 0.0225 / 0.365, 0.0025 / 0.365],
        (("temperature", 0),): [1, 0, 0, 0],
        (("top_k", 3), ("top_p", 0.8)): [0.625, 0.375, 0, 0],
    }
    for given, share in shares.items():
        found = filtered(logits, **dict(given))
        torch.testing.assert_close(found.exp(), torch.tensor([share], dtype=torch.float64), rtol=1e-6, atol=1e-9)
    assert filtered(logits, top_p=1e-9).exp().tolist() == [[1, 0, 0, 0]]


def test_what_is_drawn_is_kept_beside_what_the_policy_says() -> None:
    (voice,) = spoken(POLICY)
    found = sample(voice, LIMITS, n=3, temperature=0.5)
    forest = voice.forest
    for answer in (answer for answers in found for answer in answers):
        for node in forest.answered(answer.node):
            state = (*PROMPTS[answer.prompt].tolist(), *forest.answer(node)[:-1])
            logits = POLICY.table[POLICY.rows[state]].detach()
            token = int(forest.token[node])
            assert forest.column("logp")[node] == pytest.approx(float(logits.log_softmax(-1)[token]))
            assert forest.column("drawn_logp")[node] == pytest.approx(float((2 * logits).log_softmax(-1)[token]))


def test_a_number_picks_its_token() -> None:
    logp = torch.tensor([[0.25, 0.0, 0.5, 0.25]], dtype=torch.float64).log().repeat(5, 1)
    chance = torch.tensor([0.0, 0.24, 0.26, 0.74, 0.9999999], dtype=torch.float64)
    assert pick(logp, chance).tolist() == [0, 0, 2, 2, 3]
    assert torch.equal(uniform(1, 2, (3, 2)), uniform(1, 2, (3, 2)))
    assert not torch.equal(uniform(1, 2, (3, 2)), uniform(2, 1, (3, 2)))


def test_mixed_voices_by_hand() -> None:
    policy, reference, third = spoken(POLICY, REFERENCE, THIRD)
    nodes = policy.forest.last
    p, r, t = (m.table[[m.rows[(0, 1)], m.rows[(2,)]]].detach().log_softmax(-1) for m in (POLICY, REFERENCE, THIRD))
    for voice, expected in (
        (realigned(policy, reference, 2.5), 2.5 * p - 1.5 * r),
        (tuned(reference, policy, third, 0.5), r + 0.5 * (p - t)),
        (realigned(policy, reference, 0.0), r),
        (Mixed([(1.0, policy)]), p),
    ):
        torch.testing.assert_close(voice.logits(nodes).log_softmax(-1), expected.log_softmax(-1))


def test_what_a_mixed_voice_forbids_has_no_mass() -> None:
    closed = random_table(TREE, 5)
    closed[:, 0] = -torch.inf
    policy, reference = spoken(TabularLM(TREE, closed), TabularLM(TREE, closed))
    said = realigned(policy, reference, 3.0).logits(policy.forest.last)
    assert (said[:, 0] == -torch.inf).all()
    assert said[:, 1:].isfinite().all()


def brute_force(logp: Tensor, score: Tensor, n: int) -> Tensor:
    """The law of the best of n by all draws of n, the first of ties."""
    draws = every_draw(torch.zeros(len(logp), dtype=torch.int64), n)
    kept = draws.gather(1, score[draws].argmax(-1, keepdim=True))[:, 0]
    return torch.zeros_like(logp).index_add(0, kept, logp[draws].sum(-1).exp())


@pytest.mark.parametrize("n", [1, 2, 4])
def test_best_of_n_has_the_law_that_all_draws_give(n: int) -> None:
    logp = torch.tensor([0.4, 0.1, 0.25, 0.2, 0.05], dtype=torch.float64).log()
    score = torch.tensor([1.0, 3.0, 2.0, 2.0, 3.0], dtype=torch.float64)
    torch.testing.assert_close(best.law(logp, score, n).exp(), brute_force(logp, score, n))
    exact = float((brute_force(logp, score, n) * (brute_force(logp, score, n).log() - logp)).sum())
    assert best.divergence(logp, score, n) == pytest.approx(exact)
    assert best.divergence(logp, score, n) <= best.bound(n) + 1e-12


def test_the_law_is_one_of_numbers_however_the_lowest_class_was_rounded() -> None:
    for seed in range(40):
        logp = torch.randn(4, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).log_softmax(-1)
        worst_at = best.law(logp, torch.tensor([1.0, 0.2, 0.5, -0.8]), 2)[3]
        torch.testing.assert_close(worst_at, 2 * logp[3])


def test_the_divergence_of_best_of_n_ends_and_its_bound_does_not() -> None:
    logp = torch.tensor([0.4, 0.1, 0.25, 0.2, 0.05], dtype=torch.float64).log()
    score = torch.tensor([1.0, 3.0, 2.0, 2.0, 3.0], dtype=torch.float64)
    assert best.divergence(logp, score, 4096) == pytest.approx(-math.log(0.15), abs=1e-9)
    assert best.bound(4096) > 7
    fine = torch.full((4000,), -math.log(4000), dtype=torch.float64)
    assert best.divergence(fine, torch.arange(4000).double(), 8) == pytest.approx(best.bound(8), abs=2e-3)


def test_best_of_n_keeps_the_first_of_the_best() -> None:
    drawn = [[Answer(0, k, (k,), True, 0.0, -float(k)) for k in (4, 2, 7, 2)], [Answer(1, 9, (9,), True, 0.0, -9.0)]]
    found = best.best_of(drawn, lambda each: torch.tensor([a.logp for a in each]), n=2)
    assert [[a.tokens for a in answers] for answers in found] == [[(2,), (2,)], [(9,)]]
    assert [a.score for a in found[0]] == [-2, -2]


def test_rejection_is_exact_with_the_true_bound_and_bent_with_few() -> None:
    logp = torch.tensor([0.5, 0.3, 0.2], dtype=torch.float64).log()
    score = torch.tensor([0.0, 1.0, 2.5], dtype=torch.float64)
    target = (logp + score / 0.8).log_softmax(-1)
    laws = [
        rejection.law(logp, score, every_draw(torch.zeros(3, dtype=torch.int64), m), temperature=0.8) for m in (1, 3, 9)
    ]
    gaps = [float((law.exp() * (law - target)).sum()) for law in laws]
    torch.testing.assert_close(laws[0], logp)
    assert gaps[0] == pytest.approx(float((logp + score / 0.8).logsumexp(-1) - (logp.exp() * score).sum() / 0.8))
    assert gaps[0] > gaps[1] > gaps[2]
    assert gaps[2] < 0.03


def test_rejection_accepts_by_hand() -> None:
    scores = torch.tensor([0.0, 2.0, 1.0], dtype=torch.float64)
    shares = [math.exp(-1), 1.0, math.exp(-0.5)]  # τ = 2
    chance = torch.tensor([[shares[0] + 0.01, 0.5, shares[2] - 0.01], [0.9, 0.5, 0.5], [0.0, 0.0, 0.0]])
    assert rejection.accepted(scores, 3, chance, temperature=2.0) == [1, 2, 0]
    assert rejection.accepted(scores, 1, chance, temperature=2.0) == [1]
    assert rejection.accepted(scores, 9, chance[:1], temperature=2.0) == [1, 2]


def test_one_beam_and_one_chunk_is_best_of_k() -> None:
    policy, tuned_, untuned = spoken(POLICY, THIRD, REFERENCE)
    numbers = torch.tensor([5, 6])
    found = chunk_beam(
        policy, PathRatio(tuned_, untuned), LIMITS, filtered, uniforms(2, numbers, 6, 4), width=1, branches=6, length=4
    )
    drawn = sample(spoken(POLICY)[0], LIMITS, n=6, seed=2, numbers=numbers)
    ratio = sums(THIRD) - sums(REFERENCE)
    for prompt, answers in enumerate(drawn):
        best_ = max((dict(ranked(ratio, prompt))[answer.tokens], answer.tokens) for answer in answers)
        assert found[prompt][0].tokens == best_[1]
        assert found[prompt][0].score == pytest.approx(best_[0])


@pytest.mark.parametrize("length", [1, 2, 3])
def test_chunks_keep_the_best_paths_and_what_was_finished(length: int) -> None:
    flat, tuned_, untuned = spoken(TabularLM(TREE, torch.zeros_like(POLICY.table)), THIRD, REFERENCE)
    chances = uniforms(0, torch.tensor([0, 1]), 400, 4)
    found = chunk_beam(
        flat, PathRatio(tuned_, untuned), LIMITS, filtered, chances, width=4, branches=100, length=length
    )
    ratio = sums(THIRD) - sums(REFERENCE)
    for prompt, answers in enumerate(found):
        known = dict(ranked(ratio, prompt))
        assert [answer.score for answer in answers] == pytest.approx([known[answer.tokens] for answer in answers])
        assert len({answer.tokens for answer in answers}) == len(answers) == 4
        assert all(answer.ended == (answer.tokens[-1] == 2) for answer in answers)
        if length == 1:  # with so many branches every token is tried
            assert [answer.tokens for answer in answers] == tokenwise(prompt, known)


def tokenwise(prompt: int, known: dict[tuple[int, ...], float]) -> list[tuple[int, ...]]:
    """Four beams over the log-ratio, finished paths among them, written down once more."""
    ids = PROMPTS[prompt].tolist()
    beams: list[tuple[tuple[int, ...], float]] = [((), 0.0)]
    for _ in range(4):
        done = [each for each in beams if each[0][-1:] == (2,)]
        for path, value in (each for each in beams if each[0][-1:] != (2,)):
            state = (*ids, *path)
            logp, ref = (m.table[m.rows[state]].detach().log_softmax(-1) for m in (THIRD, REFERENCE))
            done += [((*path, token), value + float(logp[token] - ref[token])) for token in range(3)]
        beams = sorted(done, key=lambda each: -each[1])[:4]
    assert all(known[path] == pytest.approx(value) for path, value in beams)
    return [path for path, _ in beams]


def worth(prompt: int, said: tuple[int, ...]) -> float:
    """Twice what THIRD says of what the last token led to, less what REFERENCE does."""
    at = (*PROMPTS[prompt].tolist(), *said[:-1])
    third, reference = (float(m.table.detach()[m.rows[at], said[-1]]) for m in (THIRD, REFERENCE))
    return 2 * third - reference


@pytest.mark.parametrize("length", [1, 2, 3, 4, 9])
def test_blocks_that_are_worth_most_are_gone_on_from(length: int) -> None:
    settings = {"values": "reward=2+ref=-1", "branches": 5, "length": length, "temperature": 0.8}
    for seed in range(8):
        on = heard(seed)
        for prompt, (found,) in enumerate(DECODERS["blockwise"](on, **settings)):
            chance, said, before = uniform(seed, prompt, (5, 4)), (), -1
            while len(said) < 4 and said[-1:] != (2,) and len(said) > before:
                before, blocks = len(said), []
                for own in chance:
                    path = said
                    for t in range(before, min(before + length, 4)):
                        state = POLICY.table.detach()[POLICY.rows[(*PROMPTS[prompt].tolist(), *path)]]
                        path = (*path, int(pick((state / 0.8).log_softmax(-1)[None], own[t : t + 1])))
                        if path[-1] == 2:
                            break
                    blocks.append(path)
                said = max(blocks, key=lambda path: worth(prompt, path))
            assert (found.tokens, found.ended) == (said, said[-1] == 2)
            assert found.score == pytest.approx(worth(prompt, said))
        assert on.evaluations > 0


def test_one_block_is_best_of_k_by_the_value() -> None:
    found = DECODERS["blockwise"](heard(3), values="reward", branches=16, length=4)
    best_ = DECODERS["best_of_n_reward"](heard(3), samples=16)
    assert [(a.tokens, a.score) for (a,) in found] == [(a.tokens, pytest.approx(a.score)) for (a,) in best_]


def test_a_value_of_weight_nothing_is_not_asked() -> None:
    asked, not_asked = heard(), heard()
    DECODERS["blockwise"](asked, values="reward+ref")
    DECODERS["blockwise"](not_asked, values="reward+ref=0")
    DECODERS["sample"](alone := heard(), n=6)
    behind = asked.evaluations - not_asked.evaluations
    assert not_asked.evaluations == alone.evaluations + behind
    assert behind > 0


def test_chunks_have_sizes() -> None:
    for name, wrong in (("chunk_beam", {"beams": 0}), ("chunk_beam", {"length": 0}), ("blockwise", {"branches": 0})):
        with pytest.raises(ValueError, match=r"expected at least 1 of each"):
            DECODERS[name](heard(), **({"values": "reward"} if name == "blockwise" else {}), **wrong)


def test_decoders_name_what_they_lack() -> None:
    on = Heard({"policy": POLICY}, PROMPTS, LIMITS)
    with pytest.raises(ValueError, match="needs a reference: give --reference MODEL"):
        DECODERS["beam_logratio"](on)
    with pytest.raises(ValueError, match="needs a model 'tuned': give --models tuned=MODEL"):
        DECODERS["tuned"](on)
    with pytest.raises(ValueError, match="needs a value: give --value MODEL"):
        DECODERS["blockwise"](on)


def test_best_of_n_decoders_rank_by_what_they_say() -> None:
    ratio, likely = sums(POLICY) - sums(REFERENCE), sums(POLICY)
    drawn = sample(spoken(POLICY)[0], LIMITS, n=16, seed=1)
    for name, value in (
        ("best_of_n", lambda tokens, p: dict(ranked(ratio, p))[tokens]),
        ("best_of_n_norm", lambda tokens, p: dict(ranked(ratio, p))[tokens] / len(tokens)),
        ("best_of_n_likelihood", lambda tokens, p: dict(ranked(likely, p))[tokens]),
        (
            "best_of_n_reward",
            lambda tokens, p: float(THIRD.table.detach()[THIRD.rows[*PROMPTS[p].tolist(), *tokens[:-1]], tokens[-1]]),
        ),
    ):
        found = DECODERS[name](heard(seed=1), samples=16, n=2)
        for prompt, answers in enumerate(found):
            best_ = sorted((value(answer.tokens, prompt) for answer in drawn[prompt]), reverse=True)
            assert [answer.score for answer in answers] == pytest.approx(best_[:2]), name
    assert [a.tokens for a in DECODERS["best_of_n_random"](heard(seed=1))[0]] == [drawn[0][0].tokens]


def test_rejection_keeps_samples_of_the_reference_by_their_ratio() -> None:
    found = DECODERS["rejection"](heard(seed=2), samples=40, n=6)
    drawn = sample(spoken(REFERENCE)[0], LIMITS, n=40, seed=2)
    for prompt, answers in enumerate(found):
        ratio = dict(ranked(sums(POLICY) - sums(REFERENCE), prompt))
        scores = torch.tensor([ratio[answer.tokens] for answer in drawn[prompt]])
        kept = rejection.accepted(scores, 6, uniform(3, prompt, (40, 40)))
        assert [answer.tokens for answer in answers] == [drawn[prompt][k].tokens for k in kept]
        assert [answer.score for answer in answers] == pytest.approx([float(scores[k]) for k in kept])
