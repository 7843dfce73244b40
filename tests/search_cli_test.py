"""softq search: rows that train, figures that are the full score's, groups that change nothing, mistakes in one line."""

import json
import re
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from calls import called, jsonl
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import WhitespaceSplit
from transformers import (
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    AutoTokenizer,
    LlamaConfig,
    PreTrainedTokenizerFast,
)

from softq.cli import search_flags
from softq.data.read import read
from softq.lm.tokenizer import load_tokenizer
from softq.search.answer import Answer
from softq.search.decoders import DECODERS
from softq.search.heard import Heard
from softq.search.sampling import sample
from softq.searching import run as searching
from softq.searching.words import completion, stopped

SAID = "the cat sat a dog ran home rivers run to sea stones are still no birds sing at dawn yes it is".split()
WORDS = ["<eos>", "<unk>", "<|im_start|>", "<|im_end|>", *SAID]
PROMPTS = ["the cat", "birds sing at dawn", "rivers run to the sea stones are still", "no", "a dog ran"]
Rows = Callable[..., list[dict]]


def saved(home: Path, seed: int) -> Path:
    """A model of a token a word, drawn so that some words are far likelier than others."""
    words = WordLevel({word: n for n, word in enumerate(WORDS)}, unk_token="<unk>")
    backend = Tokenizer(words)
    backend.pre_tokenizer = WhitespaceSplit()
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=backend,
        eos_token="<eos>",
        unk_token="<unk>",
        additional_special_tokens=["<|im_start|>", "<|im_end|>"],
    )
    torch.manual_seed(seed)
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=256,
        bos_token_id=None,
        eos_token_id=0,
        initializer_range=0.3,
    )
    AutoModelForCausalLM.from_config(config).save_pretrained(home)
    tokenizer.save_pretrained(home)
    return home


@pytest.fixture(scope="module")
def policy(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return saved(tmp_path_factory.mktemp("policy"), 7)


@pytest.fixture(scope="module")
def reference(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return saved(tmp_path_factory.mktemp("reference"), 8)


@pytest.fixture
def rows(policy: Path, tmp_path: Path, capsys: pytest.CaptureFixture) -> Rows:
    """The rows of a call; its prompts are PROMPTS, in files of their own, if no others are given."""

    def rows(*words: str, prompts: list[dict] | None = None) -> list[dict]:
        given = jsonl(tmp_path / "prompts.jsonl", prompts or [{"prompt": text} for text in PROMPTS])
        out = tmp_path / "out.jsonl"
        base = ["search", "--policy", str(policy), "--prompts", str(given), "--output", str(out), "--overwrite"]
        code, _, told = called([*base, "--max-new-tokens", "8", *words], capsys)
        assert code == 0, told
        return [json.loads(line) for line in out.read_text().splitlines()]

    return rows


def own(directory: Path, prompt: str, row: dict) -> float:
    """Σ log π of a row's completion by the model's own forward."""
    model, tokenizer = (kind.from_pretrained(directory) for kind in (AutoModelForCausalLM, AutoTokenizer))
    before = tokenizer(prompt).input_ids
    ids = torch.tensor([tokenizer(prompt + row["completion"]).input_ids + [0] * row["ended"]])
    assert ids.shape[1] - len(before) == row["tokens"]
    with torch.no_grad():
        logp = model(ids).logits[0, :-1].log_softmax(-1).gather(-1, ids[0, 1:, None])[:, 0]
    return float(logp[len(before) - 1 :].sum())


def test_figures_are_the_models_own(rows: Rows, policy: Path, reference: Path) -> None:
    found = rows("--beams", "3", "--n", "2", "--reference", str(reference), "--beta", "0.3")
    assert [row["prompt"] for row in found] == [text for text in PROMPTS for _ in range(2)]
    assert [row["rank"] for row in found] == [0, 1] * len(PROMPTS)
    for row in found:
        logp, ref = (own(of, row["prompt"], row) for of in (policy, reference))
        assert row["logp"] == pytest.approx(logp, abs=1e-4)
        assert row["score"] == pytest.approx(logp, abs=1e-4)
        assert row["ref_logp"] == pytest.approx(ref, abs=1e-4)
        assert row["reward"] == pytest.approx(0.3 * (logp - ref), abs=1e-4)
        assert abs(row["reward"]) > 1e-3
    assert all(first["score"] >= second["score"] for first, second in zip(found[::2], found[1::2], strict=True))
    assert {row["method"] for row in found} == {"beam"}
    assert found[0]["settings"] == {"beams": 3, "n": 2, "length_penalty": 0.0}


def test_one_beam_costs_a_token_each(rows: Rows) -> None:
    """The last token's state is not needed; the first one's is the prompt's."""
    (row,) = rows("--method", "greedy", prompts=[{"prompt": "the cat"}])
    assert row["evaluations"] == row["tokens"] - 1
    assert row["ref_logp"] is row["reward"] is None


def test_a_function_chooses_among_samples(rows: Rows, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    """The samples of `sample`, the one with the most words first, each judged as it is written down."""
    (tmp_path / "mine.py").write_text(
        "def words(prompts, completions):\n"
        "    assert len(prompts) == len(completions)\n"
        "    return [float(len((p + c).split())) for p, c in zip(prompts, completions)]\n"
    )
    found = rows("--method", "best_of_n_judged", "--by", f"{tmp_path}/mine.py:words", "--samples", "4", "--n", "4")
    plain = rows("--method", "sample", "--n", "4")
    for n in range(len(PROMPTS)):
        some, drawn = found[4 * n : 4 * n + 4], plain[4 * n : 4 * n + 4]
        assert sorted(row["completion"] for row in some) == sorted(row["completion"] for row in drawn)
        counts = [len((row["prompt"] + row["completion"]).split()) for row in some]
        assert [row["score"] for row in some] == counts == sorted(counts, reverse=True)
    assert len({row["score"] for row in found}) > 3
    base = ["search", "--policy", "-", "--prompt", "the cat", "--method", "best_of_n_judged"]
    assert called(base, capsys)[::2] == (2, "softq: best_of_n_judged needs --by\n")


def test_groups_change_nothing(rows: Rows, monkeypatch: pytest.MonkeyPatch) -> None:
    together = rows("--method", "sample", "--n", "3", "--seed", "4")
    monkeypatch.setattr(searching, "MOST", 2)
    apart = rows("--method", "sample", "--n", "3", "--seed", "4")
    said = [row["completion"] for row in together]
    assert [row["completion"] for row in apart] == said
    assert len(set(said)) > len(PROMPTS)
    assert [row["logp"] for row in apart] == pytest.approx([row["logp"] for row in together], abs=1e-4)
    assert [row["completion"] for row in rows("--method", "sample", "--n", "3", "--seed", "5")] != said


def test_memory_makes_groups_smaller(rows: Rows, monkeypatch: pytest.MonkeyPatch) -> None:
    before = [row["completion"] for row in rows()]
    calls: list[int] = []
    monkeypatch.setattr(searching, "ROOM", {"cpu": 1})
    monkeypatch.setattr(searching, "Heard", lambda *args, **more: calls.append(len(args[1])) or Heard(*args, **more))
    assert [row["completion"] for row in rows()] == before
    assert calls == [1] * len(PROMPTS)


def test_prompts_of_preferences_are_searched_once_and_rows_train(
    rows: Rows, policy: Path, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    pairs = [{"prompt": p, "chosen": f" {SAID[n]}", "rejected": " no"} for n, p in enumerate(["a dog", "the", "a dog"])]
    found = rows(prompts=pairs)
    assert [row["prompt"] for row in found] == ["a dog", "the"]
    assert [row["where"].rsplit(":")[-1] for row in found] == ["1", "2"]
    spoken = load_tokenizer(str(policy))
    data = read(str(tmp_path / "out.jsonl"), spoken.tokenizer, end_ids=spoken.end_ids)
    assert data.kind == "rows"
    assert len(data.records) == 2
    (completion,) = data.records[0].completions
    assert int(completion.action.sum()) == found[0]["tokens"] + (not found[0]["ended"])


def test_prompts_of_a_list_are_each_searched(rows: Rows) -> None:
    assert len(rows(prompts=[{"prompt": "a"}, {"prompt": "a"}])) == 2


def test_chats_are_rendered_and_end_as_their_template_says(
    policy: Path, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    """<|im_end|> is no end token of this model: only the template names it."""
    messages = [{"role": "user", "content": "Hello"}]
    given = jsonl(tmp_path / "chat.jsonl", [{"prompt": messages}])
    words = ["search", "--policy", str(policy), "--prompts", str(given), "--chat-template", "chatml", "--beams", "40"]
    out = tmp_path / "chat_out.jsonl"
    words += ["--n", "26", "--max-new-tokens", "1", "--output", str(out)]
    code, _, told = called(words, capsys)
    assert code == 0, told
    found = [json.loads(line) for line in out.read_text().splitlines()]
    assert found[0]["prompt"] == messages
    ended = [row["completion"] for row in found if row["ended"]]
    assert ended == [[{"role": "assistant", "content": ""}]] * 2  # <eos> and <|im_end|>


def test_a_stop_string_ends_an_answer_and_is_left_out(rows: Rows) -> None:
    whole = rows("--method", "greedy")
    number = max(range(len(PROMPTS)), key=lambda n: whole[n]["tokens"])
    said = whole[number]["completion"].split()
    stop = f"{said[1]} {said[2]}"  # of two tokens
    found = rows("--method", "greedy", "--stop", "nothing", stop)[number]
    assert (found["tokens"], found["ended"]) == (3, True)
    assert found["completion"] == f" {said[0]} "


def test_words() -> None:
    letters = {1: "a", 2: "b", 3: "c", 9: "<end>"}

    def decode(ids) -> str:
        return "".join(letters[id] for id in ids)

    assert stopped(decode, []) is None
    says = stopped(decode, ["bc", "aaa"])
    assert says is not None
    assert [says([1, 2]), says([1, 2, 3]), says([1] * 3), says([2, 3] + [1, 2] * 40)] == [False, True, True, False]
    assert completion(decode, 1, [2, 3, 9], frozenset({9}), ()) == "bc"
    assert completion(decode, 1, [2, 9, 3], frozenset({9}), ()) == "b<end>c"
    assert completion(decode, 1, [1, 2, 3], frozenset(), ["c", "b"]) == "a"
    assert completion(lambda ids: decode(ids).strip("a"), 1, [1, 2], frozenset(), ()) == "b"


def test_a_prompt_alone_is_answered_on_the_terminal(policy: Path, capsys: pytest.CaptureFixture) -> None:
    words = ["search", "--policy", str(policy), "--prompt", "the cat", "--max-new-tokens", "3", "--n", "2"]
    code, said, told = called(words, capsys)
    assert code == 0
    assert said.count("log π") == 2
    assert "1 prompt, 2 answers" in told
    assert "no reference" in told


def test_every_decoder_stands_in_the_docs() -> None:
    text = (Path(__file__).parent.parent / "docs/search.md").read_text()
    table = text[text.index("## Decoders") : text.index("## What is written")]
    assert set(re.findall(r"`([a-z_]+)`", "".join(row.split("|")[1] for row in table.splitlines() if "|" in row))) == {
        *DECODERS
    }


def test_a_decoder_brings_its_own_flags(policy: Path, capsys: pytest.CaptureFixture, monkeypatch) -> None:
    def mine(on: Heard, *, twice: int, beta: float = 1.0, note: str = "x"):
        """Says things twice."""
        assert (twice, beta, note) == (2, 0.5, "x")
        return sample(on.policy, on.limits, n=twice)

    monkeypatch.setattr(search_flags, "DECODERS", {**DECODERS, "mine": mine})
    base = ["search", "--policy", str(policy), "--prompt", "the cat", "--max-new-tokens", "3", "--method", "mine"]
    code, said, _ = called([*base, "--twice", "2", "--beta", "0.5"], capsys)
    assert (code, said.count("log π")) == (0, 2)
    code, said, _ = called(["search", "--method", "mine", "--help"], capsys)
    assert code == 0
    assert "Says things twice." in said
    assert "--twice INT" in said
    code, _, told = called(base, capsys)
    assert (code, told) == (2, "softq: mine needs --twice\n")


@pytest.mark.parametrize(
    ("words", "code", "told"),
    [
        (["--method", "greedy", "--beams", "3"], 2, "--beams: greedy does not read it; it reads no setting"),
        (["--method", "sample", "--plausible", "3"], 2, "sample does not read it; it reads --n, --temperature"),
        (["--method", "mcts", "--selection", "x"], 2, "--selection 'x': input should be 'puct' or 'ucb'"),
        (["--method", "mcts", "--backup", "hard"], 2, "--backup 'hard': input should be 'max', 'mean' or 'soft'"),
        (
            ["--method", "mcts", "--reference", "uniform", "--beta", "1", "--plausible", "2"],
            2,
            "plausible = 2.0: expected from 0",
        ),
        (["--method", "bea"], 2, "no decoder 'bea'; did you mean beam?"),
        (["--beams", "many"], 2, "--beams 'many': input should be a valid integer"),
        (["--beans", "3"], 2, "--beans: no such option; did you mean --beams?"),
        (["--n", "7"], 2, "n = 7 answers of 5 beams"),
        (["--method", "beam_logratio"], 2, "this decoder needs a reference: give --reference MODEL"),
        (["--max-new-tokens", "0"], 2, "expected a whole number, 1 or more"),
        (["--prompts", "nowhere.jsonl"], 2, "give --prompts FILE or --prompt TEXT, and not both"),
        (["--models", "a=b,a=c"], 2, "each name once"),
        (["--method", "best_of_n_judged", "--by", "no.where:f"], 2, "judge no.where:f: No module named 'no'; expected"),
        (["--models", "ref=b"], 2, "--models ref=…: that is --reference"),
        (["--value", "v", "--models", "value=w"], 2, "--value is --models value=…"),
        (["--models", "small=nowhere"], 2, "model nowhere: no such directory"),
        (["--stop", ""], 2, "--stop '': expected a text"),
        (["--output", "nowhere/out.jsonl"], 2, "there is no directory nowhere"),
        (["--output", "out.txt"], 2, "unknown file type"),
        (["--reference", "nowhere"], 2, "model nowhere"),
    ],
)
def test_mistakes_are_one_line(
    words: list[str], code: int, told: str, policy: Path, capsys: pytest.CaptureFixture, tmp_path: Path, monkeypatch
) -> None:
    monkeypatch.chdir(tmp_path)
    found, said, line = called(["search", "--policy", str(policy), "--prompt", "Hi", *words], capsys)
    assert (found, said) == (code, "")
    assert line.startswith("softq: ") or "no reference" in line
    assert told in line.splitlines()[-1]
    assert not list(tmp_path.iterdir())


class Halting:
    """Greedy decoding of one prompt after another, that is stopped at the third."""

    def __init__(self, stop: BaseException) -> None:
        self.stop, self.calls = stop, 0

    def __call__(self, on: Heard) -> list[list[Answer]]:
        self.calls += 1
        if self.calls == 3:
            raise self.stop
        return DECODERS["greedy"](on)


@pytest.mark.parametrize(
    ("stop", "code", "last"),
    [
        (KeyboardInterrupt(), 130, "stopped"),
        (SystemExit(143), 143, ""),
        (ValueError("no such luck"), 2, "softq: no such luck"),
    ],
)
def test_a_search_that_is_stopped_keeps_what_is_finished(
    stop: BaseException, code: int, last: str, rows: Rows, policy: Path, tmp_path: Path, capsys, monkeypatch
) -> None:
    whole = {row["prompt"]: row["completion"] for row in rows("--method", "greedy")}
    (tmp_path / "out.jsonl").unlink()
    monkeypatch.setattr(searching, "MOST", 1)
    monkeypatch.setattr(search_flags, "DECODERS", {**DECODERS, "halting": Halting(stop)})
    given, part = tmp_path / "prompts.jsonl", tmp_path / "out.part.jsonl"
    words = ["search", "--policy", str(policy), "--prompts", str(given), "--output", str(tmp_path / "out.jsonl")]
    words += ["--max-new-tokens", "8", "--method"]
    found, _, told = called([*words, "halting"], capsys)
    assert found == code
    assert f"2 of 5 prompts were finished: their rows are in {part}\n{last}" in told
    assert sorted(file.name for file in tmp_path.iterdir()) == ["out.part.jsonl", "prompts.jsonl"]
    kept = [json.loads(line) for line in part.read_text().splitlines()]
    assert [row["prompt"] for row in kept] == ["no", "the cat"], "the shortest first"
    assert [row["where"] for row in kept] == [f"{given}:4", f"{given}:1"]
    assert [row["completion"] for row in kept] == [whole[row["prompt"]] for row in kept]
    # and when it is called again
    code, _, told = called([*words, "greedy"], capsys)
    assert (code, told.count("\n")) == (2, 1)
    assert f"{part} has rows of a call that was stopped; move it away, or --overwrite" in told
    assert called([*words, "greedy", "--overwrite"], capsys)[0] == 0
    assert sorted(file.name for file in tmp_path.iterdir()) == ["out.jsonl", "prompts.jsonl"]
    again = [json.loads(line) for line in (tmp_path / "out.jsonl").read_text().splitlines()]
    assert [(row["prompt"], row["completion"]) for row in again] == [*whole.items()]


def test_a_search_that_is_stopped_before_anything_is_finished_leaves_nothing(
    policy: Path, tmp_path: Path, capsys, monkeypatch
) -> None:
    halting = Halting(KeyboardInterrupt())
    halting.calls = 2
    monkeypatch.setattr(search_flags, "DECODERS", {**DECODERS, "halting": halting})
    words = ["search", "--policy", str(policy), "--prompt", "no", "--output", str(tmp_path / "out.jsonl")]
    code, _, told = called([*words, "--method", "halting"], capsys)
    assert (code, "were finished" in told, list(tmp_path.iterdir())) == (130, False, [])


def test_rows_that_are_read_are_not_written_over(policy: Path, tmp_path: Path, capsys) -> None:
    part = jsonl(tmp_path / "out.part.jsonl", [{"prompt": "no"}])
    before = part.read_bytes()
    words = ["search", "--policy", str(policy), "--prompts", str(part), "--output", str(tmp_path / "out.jsonl")]
    code, _, told = called([*words, "--overwrite"], capsys)
    assert (code, part.read_bytes()) == (2, before)
    assert "is read" in told


def test_a_value_model_has_a_value_head(policy: Path, capsys: pytest.CaptureFixture) -> None:
    words = ["search", "--policy", str(policy), "--prompt", "no", "--value", str(policy)]
    code, _, told = called(words, capsys)
    assert (code, told.count("\n")) == (2, 1)
    assert "has a head over tokens: give a value model" in told


def test_blocks_are_kept_by_a_value_that_reads_the_policys_tokens(
    rows: Rows, policy: Path, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    torch.manual_seed(3)
    AutoModelForSequenceClassification.from_pretrained(policy, num_labels=1).save_pretrained(tmp_path / "value")
    tokenizer = AutoTokenizer.from_pretrained(policy)
    tokenizer.save_pretrained(tmp_path / "value")
    found = rows("--method", "blockwise", "--value", str(tmp_path / "value"), "--length", "3")
    model = AutoModelForSequenceClassification.from_pretrained(tmp_path / "value")
    for row in found:
        ids = tokenizer(row["prompt"] + row["completion"], return_tensors="pt").input_ids
        ids = torch.cat([ids, torch.zeros(1, int(row["ended"]), dtype=torch.int64)], 1)
        with torch.no_grad():
            assert row["score"] == pytest.approx(float(model.score(model.model(ids)[0][0, -1])), abs=1e-4)
    words = {word: n for n, word in enumerate(WORDS[::-1])}
    other = PreTrainedTokenizerFast(tokenizer_object=Tokenizer(WordLevel(words, unk_token="<unk>")), eos_token="<eos>")
    other.save_pretrained(tmp_path / "value")
    words = ["search", "--policy", str(policy), "--prompt", "no", "--value", str(tmp_path / "value")]
    code, _, told = called([*words, "--method", "blockwise"], capsys)
    assert code == 2
    assert "another tokenizer than the policy, whose tokens it judges" in told


def test_data_is_checked(policy: Path, capsys: pytest.CaptureFixture, tmp_path: Path) -> None:
    chat = jsonl(tmp_path / "chat.jsonl", [{"prompt": [{"role": "user", "content": "a"}]}])
    long = jsonl(tmp_path / "long.jsonl", [{"prompt": "no " * 3000}])
    out = ["--output", str(tmp_path / "out.jsonl")]
    base = ["search", "--policy", str(policy), "--prompts"]
    assert "--chat-template FILE|chatml" in called([*base, str(chat), *out], capsys)[2]
    code, _, told = called([*base, str(long), *out], capsys)
    assert code == 2
    assert "positions: leave it out" in told
    code, _, told = called([*base, str(tmp_path / "nowhere.jsonl"), *out], capsys)
    assert code == 3
    code, _, told = called([*base, str(chat)], capsys)
    assert (code, told.count("--output FILE")) == (2, 1)
    code, _, told = called([*base, str(chat), "--output", str(chat), "--overwrite"], capsys)
    assert code == 2
    assert "is read" in told
    assert not Path(out[1]).exists()
