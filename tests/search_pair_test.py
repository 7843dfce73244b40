"""A policy's chunks scored by a pair with another tokenizer: what it is told, and that its score is that of the text."""

import json
from pathlib import Path
from typing import NamedTuple

import pytest
import torch
from calls import called, jsonl
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    LlamaConfig,
    PreTrainedTokenizerBase,
    PreTrainedTokenizerFast,
)

from softq.data.rows import DataError
from softq.lm.growing import Growing
from softq.search.chunks import PathRatio
from softq.search.voice import Speaker
from softq.searching.opened import Asked, opened
from softq.searching.pair import TextRatio, opened_pair, shared
from softq.searching.prompts import Prompt
from softq.searching.words import decoder

TEXT = ["the cat sat on the mat", "a naïve dog ran home", "rivers run to the sea", "« été » — voilà des stones"] * 8
PROMPTS = ["the cat", "rivers run to", "a dog"]
CHAT = (
    "{% for m in messages %}<{{ m['role'] }}>{{ m['content'] }}</s>{% endfor %}"
    "{% if add_generation_prompt %}<assistant>{% endif %}"
)


def trained(size: int, chat: str | None = None) -> PreTrainedTokenizerFast:
    """Byte-level BPE of about so many tokens, whose end of text is <eos>, and that of a chat </s>."""
    backend = Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    letters = pre_tokenizers.ByteLevel.alphabet()
    special = ["<eos>", "</s>"]
    backend.train_from_iterator(
        TEXT, trainers.BpeTrainer(vocab_size=size, special_tokens=special, initial_alphabet=letters)
    )  # pyright: ignore
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=backend, eos_token="<eos>")
    tokenizer.chat_template = chat
    return tokenizer


def saved(home: Path, tokenizer: PreTrainedTokenizerBase, seed: int, **more: int) -> str:
    torch.manual_seed(seed)
    sizes = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4}
    sizes |= {"vocab_size": len(tokenizer), "max_position_embeddings": 256, **more}
    config = LlamaConfig(**sizes, bos_token_id=None, eos_token_id=0)
    model = AutoModelForCausalLM.from_config(config)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() > 1:
                parameter.mul_(8)
        model.get_output_embeddings().weight[0] *= 4  # some answers end
    model.save_pretrained(home)
    tokenizer.save_pretrained(home)
    return str(home)


class Homes(NamedTuple):
    policy: str
    tuned: str
    untuned: str


@pytest.fixture(scope="module")
def homes(tmp_path_factory: pytest.TempPathFactory) -> Homes:
    """A policy, and a pair whose tokens are longer."""
    home, long = tmp_path_factory.mktemp("models"), trained(330, CHAT)
    return Homes(saved(home / "p", trained(270), 1), saved(home / "t", long, 2), saved(home / "u", long, 3))


def prompts(*texts: str, tokenizer: PreTrainedTokenizerBase) -> list[Prompt]:
    return [Prompt(f"row {n}", text, torch.tensor(tokenizer(text).input_ids)) for n, text in enumerate(texts)]


def ratio(homes: Homes, before: list[int], said: list[int]) -> float:
    """Σ log π_tuned/π_untuned of tokens, by the models' own forward."""
    sums = []
    for home in (homes.tuned, homes.untuned):
        model, ids = AutoModelForCausalLM.from_pretrained(home), torch.tensor([[*before, *said]])
        with torch.no_grad():
            logp = model(ids).logits[0, :-1].log_softmax(-1).gather(-1, ids[0, 1:, None])[:, 0]
        sums.append(float(logp[len(before) - 1 :].sum()))
    return sums[0] - sums[1]


def grown(forest: Growing, tokens: list[list[int]]) -> torch.Tensor:
    """The last nodes of answers to a forest's one prompt."""
    ends = []
    for answer in tokens:
        node = forest.last
        for token in answer:
            node = forest.add(torch.tensor([token]), node)
        ends.append(int(node))
    return torch.tensor(ends)


def test_a_pair_with_the_policys_tokenizer_says_of_texts_what_it_says_of_tokens(homes: Homes) -> None:
    """Wherever the text of a path has the path's tokens, ended and not."""
    own = AutoTokenizer.from_pretrained(homes.tuned)
    (prompt,) = prompts("the cat", tokenizer=own)
    pair = opened_pair({"tuned": homes.tuned, "untuned": homes.untuned}, [prompt], chat_template=None)
    texts = [" sat on the mat", " sa", " naïve dog ran", " — voilà", " t h e"]
    tokens = [own(text).input_ids for text in texts] + [[*own(text).input_ids, 0] for text in texts] + [[0]]
    forest = Growing([prompt.ids])
    voices = [Speaker(pair.loaded.models[name], forest, 99) for name in ("policy", "ref")]  # pyright: ignore
    ends = grown(forest, tokens)
    score = TextRatio(pair, [0], decoder(own), frozenset([0, 1]))
    assert [list(score.told(forest, node)) for node in ends.tolist()] == tokens
    by_tokens = PathRatio(*voices)(forest, ends)
    found = score(forest, ends)
    torch.testing.assert_close(found, by_tokens, rtol=0, atol=1e-5)
    assert found.abs().min() > 0.05
    expected = [ratio(homes, prompt.ids.tolist(), said) for said in tokens]
    assert found.tolist() == pytest.approx(expected, abs=1e-3)
    assert forest.column("ratio")[ends].equal(found)
    states = {tuple(said[:n]) for said in tokens for n in range(1, len(said))}
    assert score.evaluations == 2 * len(states)


def test_what_is_told_is_text_in_the_pairs_own_tokens(homes: Homes) -> None:
    policy, own = (AutoTokenizer.from_pretrained(home) for home in (homes.policy, homes.tuned))
    (prompt,) = prompts("the cat", tokenizer=policy)
    chat = prompt._replace(text=[{"role": "user", "content": "the cat"}])
    pair = opened_pair({"tuned": homes.tuned, "untuned": homes.untuned}, [prompt, chat], chat_template=None)
    assert pair.prompts[0].ids.tolist() == own("the cat").input_ids
    assert pair.prompts[1].ids.tolist() == own("<user>the cat</s><assistant>").input_ids
    accent = policy("ü").input_ids
    assert len(accent) == 2
    said = policy(" sat on the naïve mat").input_ids
    for number, end in ((0, 0), (1, 1)):  # EOS behind text, </s> behind a message
        score = TextRatio(pair, [number], decoder(policy), frozenset([0]))
        for tokens, told in (
            (said, own(" sat on the naïve mat").input_ids),
            ([*said, 0], [*own(" sat on the naïve mat").input_ids, end]),
            ([0], [end]),
            ([*said, *accent], own(" sat on the naïve matü").input_ids),
            ([*said, accent[0]], own(" sat on the naïve mat").input_ids),
            ([accent[0]], []),
            ([*said, accent[0], 0], [*own(" sat on the naïve mat\ufffd").input_ids, end]),
            ([*said, 1], own(" sat on the naïve mat</s>").input_ids),
        ):
            forest = Growing([prompt.ids])
            assert list(score.told(forest, int(grown(forest, [tokens])))) == told
        forest = Growing([prompt.ids])
        assert score(forest, grown(forest, [accent[:1]])).tolist() == [0.0]
    assert not shared(policy, own)


def test_every_prompt_has_its_own_beginning(homes: Homes) -> None:
    """In one forest, with nodes in any order; a group may have some prompts of all."""
    policy, own = (AutoTokenizer.from_pretrained(home) for home in (homes.policy, homes.tuned))
    given = prompts(*PROMPTS, tokenizer=policy)
    pair = opened_pair({"tuned": homes.tuned, "untuned": homes.untuned}, given, chat_template=None)
    forest = Growing([given[2].ids, given[0].ids])
    nodes = torch.tensor(
        [int(forest.add(torch.tensor([token]), forest.last[at : at + 1])) for at, token in ((1, 40), (0, 41), (1, 42))]
    )
    found = TextRatio(pair, [2, 0], decoder(policy), frozenset([0]))(forest, nodes)
    expected = [
        ratio(homes, own(PROMPTS[n]).input_ids, own(policy.decode([t])).input_ids)
        for n, t in ((0, 40), (2, 41), (0, 42))
    ]
    assert found.tolist() == pytest.approx(expected, abs=1e-3)


@pytest.mark.parametrize("chat", [False, True])
def test_search_by_a_pair_with_another_tokenizer(
    chat: bool, homes: Homes, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    given = [[{"role": "user", "content": text}] if chat else text for text in PROMPTS]
    file = jsonl(tmp_path / "prompts.jsonl", [{"prompt": prompt} for prompt in given])
    words = ["search", "--policy", homes.policy, "--prompts", str(file), "--output", str(tmp_path / "out.jsonl")]
    words += ["--method", "chunk_beam", "--length", "3", "--n", "2", "--max-new-tokens", "9"]
    words += [
        "--models",
        f"tuned={homes.tuned},untuned={homes.untuned}",
        *(["--chat-template", "chatml"] if chat else []),
    ]
    code, _, told = called(words, capsys)
    assert code == 0, told
    assert "tuned and untuned do not have the policy's tokens: chunk_beam tells them text" in told
    rows = [json.loads(line) for line in (tmp_path / "out.jsonl").read_text().splitlines()]
    assert len(rows) == 2 * len(PROMPTS)
    own = AutoTokenizer.from_pretrained(homes.tuned)
    for row in rows:
        said = row["completion"][0]["content"] if chat else row["completion"]
        said = said if row["ended"] else said.rstrip("\ufffd")
        before = f"<user>{row['prompt'][0]['content']}</s><assistant>" if chat else row["prompt"]
        ids = own(before).input_ids
        whole = own(before + said).input_ids
        assert whole[: len(ids)] == ids
        assert row["score"] == pytest.approx(
            ratio(homes, ids, [*whole[len(ids) :], *[int(chat)] * row["ended"]]), abs=1e-3
        )
        assert row["evaluations"] > 0
    assert {row["ended"] for row in rows} == {True, False}
    for first, second in zip(rows[::2], rows[1::2], strict=True):
        assert first["score"] >= second["score"]


def test_a_pair_whose_heads_are_padded_is_read_as_text(homes: Homes, tmp_path: Path) -> None:
    """Same tokenizer, other sizes: by tokens it is refused, by text it is the same ratio."""
    tokenizer = AutoTokenizer.from_pretrained(homes.tuned)
    padded = saved(tmp_path / "wide", tokenizer, 5, vocab_size=len(tokenizer) + 7)
    asked = Asked(homes.tuned, "the cat", models={"tuned": homes.untuned, "untuned": padded})
    of = opened(asked)
    assert of.pair is not None
    assert not {"tuned", "untuned"} & set(of.loaded.models.keys())
    alike = opened(asked._replace(models={"tuned": homes.untuned, "untuned": homes.tuned}))
    assert alike.pair is None
    assert {"tuned", "untuned"} <= set(alike.loaded.models.keys())


def test_mistakes_are_one_line(homes: Homes, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    third = saved(tmp_path / "third", trained(300), 4)
    short = saved(tmp_path / "short", AutoTokenizer.from_pretrained(homes.tuned), 4, max_position_embeddings=8)
    plain = saved(tmp_path / "plain", trained(300), 5)
    pair = f"tuned={homes.tuned},untuned={homes.untuned}"
    for words, code, line in (
        (["--models", f"tuned={homes.tuned}"], 2, "scores text in a pair: give untuned=MODEL"),
        (["--models", f"untuned={homes.tuned}"], 2, "scores text in a pair: give tuned=MODEL"),
        (
            ["--models", f"tuned={homes.tuned},untuned={third}"],
            2,
            "have different tokenizers: give a pair that shares one",
        ),
        (["--models", f"tuned={homes.tuned},untuned={homes.policy}"], 2, "have different tokenizers"),
        (["--models", f"tuned={homes.tuned},untuned={short}"], 2, "and they 8 positions: lower --max-new-tokens"),
        (["--method", "tuned", "--models", pair], 2, "the model 'tuned' does not have the policy's tokens"),
        (["--models", f"tuned={third},untuned={plain}", "--chat"], 3, "messages need a chat template"),
    ):
        chat = words[-1] == "--chat"
        prompt = [{"role": "user", "content": "the cat"}] if chat else "the cat sat on"
        file = jsonl(tmp_path / "one.jsonl", [{"prompt": prompt}])
        policy = homes.untuned if chat else homes.policy
        base = ["search", "--policy", policy, "--prompts", str(file), "--output", str(tmp_path / "out.jsonl")]
        method = [] if "--method" in words else ["--method", "chunk_beam"]
        found, _, told = called([*base, *method, "--max-new-tokens", "40", *words[: len(words) - chat]], capsys)
        assert found == code, told
        assert line in told.splitlines()[-1]
        assert "Traceback" not in told
    with pytest.raises(DataError, match="row 0: tuned and untuned can not read it: the prompt has no tokens"):
        opened_pair(
            {"tuned": homes.tuned, "untuned": homes.untuned},
            [Prompt("row 0", "", torch.tensor([5]))],
            chat_template=None,
        )
