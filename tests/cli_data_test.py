"""softq data as a person meets it: exit codes, one line for each mistake, accounts that add up, rows in colours."""

import json
import re
import shlex
from pathlib import Path
from typing import Any

import pytest
from calls import called, jsonl, snapshot
from tokenizers import processors
from transformers import AutoTokenizer

from softq.cli.data import NEEDED

PAIRS = [{"prompt": f"Say {n}:", "chosen": f" yes {n}", "rejected": f" no {n} times"} for n in range(12)]
BLANK = {"prompt": "Say 99:", "chosen": "  ", "rejected": " no"}
CHATS = [
    {
        "conversations": [{"from": "human", "value": f"Say {n}"}],
        "chosen": {"from": "gpt", "value": "the cat"},
        "rejected": {"from": "gpt", "value": "a dog ran"},
    }
    for n in range(3)
]
ESCAPES = re.compile(r"\x1b\[[\d;]*m")


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The current directory, with a few files."""
    monkeypatch.chdir(tmp_path)
    for name in ("FORCE_COLOR", "NO_COLOR", "TERM", "COLUMNS"):
        monkeypatch.delenv(name, raising=False)
    jsonl(tmp_path / "pairs.jsonl", PAIRS)
    jsonl(tmp_path / "some.jsonl", [*PAIRS, BLANK])
    jsonl(tmp_path / "none.jsonl", [BLANK, BLANK])
    jsonl(tmp_path / "chats.jsonl", CHATS)
    jsonl(tmp_path / "groups.jsonl", [{"prompt": "p", "completions": [" a", " b"], "scores": [1, 2]}])
    jsonl(tmp_path / "odd.jsonl", [{"answer": 1, "more": 2}])
    (tmp_path / "cut.jsonl.gz").write_bytes(b"\x1f\x8b\x08\x00\x00\x00\x00\x00\x00\x03\xab\x56")
    (tmp_path / "folder").mkdir()
    return tmp_path


def told(line: str, capsys: pytest.CaptureFixture, code: int = 0) -> str:
    """What `softq data …` prints."""
    found, out, err = called(["data", *shlex.split(line)], capsys)
    assert found == code, err
    return out


def account(line: str, capsys: pytest.CaptureFixture, code: int = 0) -> dict[str, Any]:
    """What `softq data … --json` prints: one document and nothing else."""
    return json.loads(told(f"{line} --json", capsys, code))


def adds_up(tally: dict[str, Any]) -> None:
    """Every row and every token that came in is somewhere."""
    assert tally["rows_in"] == tally["rows_used"] + sum(tally["rows_dropped"].values())
    if tally["tokens"] is not None:
        assert tally["tokens"]["in"] == sum(tally["tokens"].values()) - tally["tokens"]["in"] > 0


def test_usable_rows(here: Path, capsys: pytest.CaptureFixture) -> None:
    out = told("pairs.jsonl", capsys)
    assert "read        pairs: preference (pairs)" in out
    assert "rows        12 = 12 used + 0 dropped" in out
    assert "tokens" not in out
    out = told("some.jsonl", capsys)
    assert "13 = 12 used + 1 dropped" in out
    assert "the first empty_completion: a completion says nothing" in out
    assert out.count("some.jsonl") == 1
    assert told("pairs.jsonl --strict", capsys)


def test_no_usable_row_and_strictness_exit_with_3(here: Path, capsys: pytest.CaptureFixture) -> None:
    code, out, err = called(["data", "none.jsonl"], capsys)
    assert (code, err.count("\n")) == (3, 1)
    assert err.startswith("softq: all 2 rows were dropped (2 empty_completion), the first because none.jsonl:1: ")
    assert "rows        2 = 0 used + 2 dropped" in out
    code, out, err = called(["data", "some.jsonl", "--strict"], capsys)
    assert (code, err) == (
        3,
        "softq: --strict: 1 of 13 rows were dropped, the first because some.jsonl:13: a completion says nothing\n",
    )
    assert "13 = 12 used + 1 dropped" in out


MISTAKES = {
    "no file": ("", 2, "required: FILE"),
    "unknown option": ("pairs.jsonl --showw 3", 2, "unrecognized arguments: --showw"),
    "an option in short": ("pairs.jsonl --str", 2, "unrecognized arguments: --str"),
    "no such choice": ("pairs.jsonl --pairs some --to o.jsonl", 2, "invalid choice: 'some'"),
    "missing": ("pair.jsonl", 3, "did you mean pairs.jsonl"),
    "a directory": ("folder", 3, "folder"),
    "cut off": ("cut.jsonl.gz", 3, "cut.jsonl.gz"),
    "no data": ("x.txt", 3, "x.txt"),
    "unknown format": ("odd.jsonl", 3, "odd.jsonl:1: unknown format; the fields are answer, more"),
    "two kinds": ("pairs.jsonl groups.jsonl", 3, "groups.jsonl: holds groups (groups), but pairs.jsonl holds pairs"),
    "no model": ("pairs.jsonl --model folder", 2, "folder"),
    "no template": ("chats.jsonl --model MODEL", 3, "--chat-template FILE|chatml"),
    "no such template": ("chats.jsonl --model MODEL --chat-template none.jinja", 2, "none.jinja can not be read"),
    "bad rename": ("pairs.jsonl --rename prompt", 2, "expected OURS=THEIRS"),
    "bad weight": ("pairs.jsonl,weight=0", 2, "weight is 0"),
    "no rows to show": ("pairs.jsonl --show -1", 2, "--show -1: expected a number of rows"),
    "no number": ("pairs.jsonl --show some", 2, "invalid int value: 'some'"),
    "no length": ("pairs.jsonl --model MODEL --max-length 0", 2, "--max-length 0: expected a number of tokens"),
    "no share to flip": ("pairs.jsonl --to o.jsonl --flip 0", 2, "--flip 0: expected a share between 0 and 1"),
    "too much to flip": ("pairs.jsonl --to o.jsonl --flip 1", 2, "--flip 1: expected a share between 0 and 1"),
    "nothing to flip": ("pairs.jsonl --to o.jsonl --flip nan", 2, "--flip nan: expected a share"),
    "no share to hold out": ("pairs.jsonl --to o.jsonl --split 1.5 p.jsonl", 2, "--split 1.5: expected a share"),
    "split turned round": ("pairs.jsonl --to o.jsonl --split p.jsonl 0.2", 2, "--split p.jsonl: expected a share"),
    "no sample": ("pairs.jsonl --to o.jsonl --sample 0", 2, "--sample 0: expected a number of records"),
    "less than none": ("pairs.jsonl --to o.jsonl --sample -3", 2, "--sample -3: expected a number of records"),
    "half a record": ("pairs.jsonl --to o.jsonl --sample 2.5", 2, "--sample 2.5: expected a number of records"),
    "without end": ("pairs.jsonl --to o.jsonl --sample inf", 2, "--sample inf: expected a number of records"),
    "margin below 0": ("groups.jsonl --to o.jsonl --pairs all --margin -1", 2, "--margin -1: expected a number, 0 or"),
    "no margin": ("groups.jsonl --to o.jsonl --pairs all --margin nan", 2, "--margin nan: expected a number, 0 or"),
    "no score": ("groups.jsonl --to o.jsonl --unpair good", 2, "--unpair good: expected a score, or nothing"),
    "nan as a score": ("groups.jsonl --to o.jsonl --unpair nan", 2, "--unpair nan: expected a score, or nothing"),
    "no data to check against": ("pairs.jsonl --check --against pear.jsonl", 3, "pear.jsonl"),
}


@pytest.mark.parametrize("name", MISTAKES)
def test_a_mistake_is_one_line_and_writes_nothing(
    name: str, here: Path, model_directory: Path, capsys: pytest.CaptureFixture
) -> None:
    line, expected, message = MISTAKES[name]
    before = snapshot(here)
    code, out, err = called(["data", *shlex.split(line.replace("MODEL", str(model_directory)))], capsys)
    assert (code, out, err.count("\n")) == (expected, "", 1), err
    assert err.startswith("softq: ")
    assert message in err
    assert snapshot(here) == before


VALUES = {
    "pairs": "all",
    "flip": "0.5",
    "sample": "1",
    "split": "0.5 other.jsonl",
    "margin": "0",
    "against": "pairs.jsonl",
    "chat_template": "chatml",
    "max_length": "9",
    "truncate": "drop",
    "seed": "42",
}


@pytest.mark.parametrize("option", NEEDED)
def test_an_option_that_nothing_reads_is_refused(option: str, here: Path, capsys: pytest.CaptureFixture) -> None:
    name = f"--{option.replace('_', '-')}"
    code, out, err = called(["data", "pairs.jsonl", *shlex.split(f"{name} {VALUES.get(option, '')}")], capsys)
    assert (code, out) == (2, "")
    assert err == f"softq: {name} is read with --{NEEDED[option]} only\n"


def test_json_adds_up_without_a_model(here: Path, capsys: pytest.CaptureFixture) -> None:
    said = account("some.jsonl", capsys)
    adds_up(said)
    assert (said["rows_in"], said["rows_used"], said["rows_dropped"]) == (13, 12, {"empty_completion": 1})
    assert said["tokens"] is None
    assert (said["kind"], said["formats"]) == ("pairs", {"some": "preference"})
    assert said["lengths"]["unit"] == "characters"
    assert said["lengths"]["chosen"]["max"] == len(" yes 10")
    assert "findings" not in said
    assert "written" not in said


def test_json_adds_up_with_a_model(here: Path, model_directory: Path, capsys: pytest.CaptureFixture) -> None:
    jsonl(here / "long.jsonl", [*PAIRS, BLANK, {"prompt": "Say", "chosen": " b" * 90, "rejected": " c"}])
    said = account(f"long.jsonl --model {model_directory} --max-length 64", capsys)
    adds_up(said)
    assert said["rows_dropped"] == {"empty_completion": 1, "too_long": 1}
    assert said["tokens"]["dropped"] > 64
    assert said["tokens"]["cut"] == said["tokens"]["template_tail"] == 0
    tokenizer = AutoTokenizer.from_pretrained(model_directory)
    sides = [[len(tokenizer(row[side])["input_ids"]) for row in PAIRS] for side in ("prompt", "chosen", "rejected")]
    assert said["tokens"]["scored"] == sum(sides[1]) + sum(sides[2]) + 2 * len(PAIRS)  # an EOS each
    assert said["tokens"]["context"] == 2 * sum(sides[0])
    assert said["shared"] == sum(sides[0])
    assert (said["completions"], said["finished"], said["lengths"]["too_long"]) == (24, 24, 1)


def test_two_sources_have_accounts_of_their_own(
    here: Path, model_directory: Path, capsys: pytest.CaptureFixture
) -> None:
    said = account(f"pairs.jsonl some.jsonl,name=other,weight=0.5 --model {model_directory}", capsys)
    adds_up(said)
    for tally in said["sources"].values():
        adds_up(tally)
    assert {name: tally["rows_in"] for name, tally in said["sources"].items()} == {"pairs": 12, "other": 13}
    assert said["duplicates"] == 12
    for name, whole in said["tokens"].items():
        assert whole == sum(tally["tokens"][name] for tally in said["sources"].values())
    out = told("pairs.jsonl some.jsonl,name=other,weight=0.5", capsys)
    assert "other: preference (pairs, 0.5 times a pass)" in out
    assert "by source   pairs 12 of 12, other 12 of 13" in out


def test_json_is_one_document_also_where_the_exit_code_is_3(here: Path, capsys: pytest.CaptureFixture) -> None:
    assert account("none.jsonl", capsys, 3)["rows_dropped"] == {"empty_completion": 2}
    assert account("some.jsonl --strict --show 2 --check", capsys, 3)["rows_used"] == 12
    found = account("some.jsonl --strict --to out.jsonl", capsys, 3)
    assert "written" not in found
    assert not Path("out.jsonl").exists()


def test_fields_by_other_names_and_formats_by_name(here: Path, capsys: pytest.CaptureFixture) -> None:
    jsonl(here / "named.jsonl", [{"q": "a", "good": " b", "bad": " c"}])
    code, _, err = called(["data", "named.jsonl"], capsys)
    assert code == 3
    assert "q, good, bad" in err
    said = account("named.jsonl --rename prompt=q chosen=good rejected=bad", capsys)
    assert said["formats"] == {"named": "preference"}
    jsonl(here / "text.jsonl", [{"prompt": "a", "completion": "b", "text": "c"}])
    assert account("text.jsonl", capsys)["formats"] == {"text": "prompt-completion"}
    for name in ("language-modeling", "language_modeling"):
        assert account(f"text.jsonl --format {name}", capsys)["formats"] == {"text": "language-modeling"}


def test_truncate_keep_cuts_what_drop_drops(here: Path, model_directory: Path, capsys: pytest.CaptureFixture) -> None:
    line = f"pairs.jsonl --model {model_directory} --max-length 12"
    dropped, kept = account(line, capsys, 3), account(f"{line} --truncate keep", capsys)
    assert (dropped["rows_used"], dropped["tokens"]["cut"]) == (0, 0)
    assert (kept["rows_used"], kept["rows_dropped"]) == (12, {})
    assert kept["tokens"]["cut"] > 0
    assert kept["tokens"]["in"] == dropped["tokens"]["in"]
    assert kept["lengths"]["whole"]["max"] == 12
    assert kept["lengths"]["too_long"] == dropped["lengths"]["too_long"] == 12


def test_reading_writes_nothing(here: Path, model_directory: Path, capsys: pytest.CaptureFixture) -> None:
    before = snapshot(here)
    told(f"some.jsonl pairs.jsonl --model {model_directory} --show 3 --check --against pairs.jsonl", capsys)
    account("some.jsonl --check", capsys)
    assert snapshot(here) == before


def test_lengths_stand_in_columns(here: Path, model_directory: Path, capsys: pytest.CaptureFixture) -> None:
    jsonl(here / "long.jsonl", [*PAIRS, {"prompt": "Say", "chosen": " b" * 1090, "rejected": " c"}])
    for line, unit in (("long.jsonl", "characters"), (f"long.jsonl --model {model_directory}", "tokens")):
        lines = told(line, capsys).splitlines()
        start = next(n for n, line in enumerate(lines) if line.startswith("lengths "))
        table = [re.match(r"(\w+)( +\S+){4}", line) for line in lines[start : start + 5]]
        assert [row and row[1] for row in table] == ["lengths", "prompt", "chosen", "rejected", "whole"]
        assert len({row and row.end() for row in table}) == 1
        assert lines[start].endswith(f"  in {unit}")
        bars = [line for line in lines if " to " in line and "█" in line]
        assert sum(int(bar.split()[-1]) for bar in bars) == 13
        assert len({len(bar) for bar in bars}) == 1
    assert "too long    1 rows, of more than 1,024 tokens (max_length)" in lines


def test_checks_and_what_they_find(here: Path, capsys: pytest.CaptureFixture) -> None:
    twice = [*PAIRS, *PAIRS[:1], {**PAIRS[1], "chosen": PAIRS[1]["rejected"], "rejected": PAIRS[1]["chosen"]}]
    jsonl(here / "twice.jsonl", twice)
    jsonl(here / "held.jsonl", PAIRS[3:5])
    out = told("twice.jsonl --check --against held.jsonl", capsys)
    assert re.search(r"^warning     exact_duplicates: .*\n            twice\.jsonl:1 = :13$", out, re.MULTILINE)
    assert re.search(r"^warning     opposite_labels: .*\n            twice\.jsonl:2 = :14$", out, re.MULTILINE)
    leaks = r"^warning     leakage: .*\n            twice\.jsonl:4 = held\.jsonl:1; twice\.jsonl:5 = held\.jsonl:2$"
    assert re.search(leaks, out, re.MULTILINE)
    levels = re.findall(r"^(warning|note) ", out, re.MULTILINE)
    assert levels == sorted(levels, reverse=True)
    findings = account("twice.jsonl --check --against held.jsonl", capsys)["findings"]
    by_name = {finding["check"]: finding for finding in findings}
    assert by_name["exact_duplicates"]["rows"] == [["twice.jsonl:1", "twice.jsonl:13"]]
    assert by_name["leakage"]["numbers"]["equal"] == 2
    assert account("chats.jsonl --check --against chats.jsonl", capsys)["findings"]


def test_what_is_checked_is_what_was_read_though_it_is_converted(here: Path, capsys: pytest.CaptureFixture) -> None:
    out = told("groups.jsonl --best --to out.jsonl --check", capsys)
    assert "written     1 rows to out.jsonl; left out: 1 not_best" in out
    assert "length_bias" in out or "scripts" in out or "checked" in out


class TestShow:
    """--show, in colours and without."""

    def test_brackets_hold_exactly_what_is_scored(
        self, here: Path, model_directory: Path, capsys: pytest.CaptureFixture
    ) -> None:
        out = told(f"pairs.jsonl --model {model_directory} --show 2", capsys)
        assert re.findall(r"⟦(.*?)⟧", out, re.DOTALL) == [
            "scored",
            " yes 0<eos>",
            " no 0 times<eos>",
            " yes 1<eos>",
            " no 1 times<eos>",
        ]
        assert "\nSay 0:⟦ yes 0<eos>⟧\n" in out
        assert re.search(
            r"^chosen\nSay 0:⟦.*\n\d+ context, \d+ scored · special tokens: <eos> softq$", out, re.MULTILINE
        )
        assert "\x1b" not in out
        assert out.count("── pairs.jsonl:") == 2

    def test_a_template_scores_the_words_and_their_end(
        self, here: Path, model_directory: Path, capsys: pytest.CaptureFixture
    ) -> None:
        out = told(f"chats.jsonl --model {model_directory} --chat-template chatml --show 1", capsys)
        assert re.findall(r"⟦(.*?)⟧", out, re.DOTALL) == ["scored", "the cat<|im_end|>", "a dog ran<|im_end|>"]
        assert "<|im_start|>user\nSay 0<|im_end|>\n<|im_start|>assistant\n⟦the cat" in out
        assert "special tokens: <|im_start|> ×2 template · <|im_end|> ×2 template" in out
        assert ", 1 template tail ·" in out

    def test_who_added_each_special_token(
        self, here: Path, model_directory: Path, tmp_path: Path, capsys: pytest.CaptureFixture
    ) -> None:
        spelled = [{"prompt": "Say <|im_start|>", "chosen": " yes<eos>", "rejected": " no"}]
        jsonl(here / "spelled.jsonl", spelled)
        tokenizer = AutoTokenizer.from_pretrained(model_directory)
        tokenizer.add_special_tokens({"bos_token": "<bos>"})
        bos = ("<bos>", tokenizer.convert_tokens_to_ids("<bos>"))
        tokenizer.backend_tokenizer.post_processor = processors.TemplateProcessing("<bos> $A", special_tokens=[bos])
        with_bos = tmp_path / "bos"
        tokenizer.save_pretrained(with_bos)
        (with_bos / "config.json").write_text((model_directory / "config.json").read_text())
        out = told(f"spelled.jsonl --model {with_bos} --show 1", capsys)
        text = "<|im_start|> the data's own text"
        assert f"special tokens: <bos> tokenizer · {text} · <eos> the data's own text\n" in out
        assert f"special tokens: <bos> tokenizer · {text} · <eos> softq\n" in out
        assert "<bos>Say <|im_start|>⟦ yes<eos>⟧" in out

    def test_what_is_cut(self, here: Path, model_directory: Path, capsys: pytest.CaptureFixture) -> None:
        out = told(f"pairs.jsonl --model {model_directory} --max-length 12 --truncate keep --show 1", capsys)
        (rejected,) = [line for line in out.splitlines() if line.startswith("… ⟦")]
        scored, cut = rejected.removeprefix("… ⟦").split("⟧")
        assert scored + cut == " no 0 times<eos>"
        assert scored
        assert cut
        assert re.search(r"\d+ context, \d+ scored, \d+ cut · special tokens: ", out)

    def test_colours_in_a_wide_terminal(
        self, here: Path, model_directory: Path, capsys: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setenv("FORCE_COLOR", "1")
        monkeypatch.setenv("COLUMNS", "300")
        out = told(f"pairs.jsonl --model {model_directory} --show 1", capsys)
        assert "⟦" not in out
        assert "\x1b[2mSay 0:\x1b[0m\x1b[32m yes 0\x1b[0m\x1b[1;4;34m<eos>\x1b[0m\n" in out
        monkeypatch.setenv("NO_COLOR", "1")
        out = told(f"pairs.jsonl --model {model_directory} --show 1", capsys)
        assert "Say 0:⟦ yes 0<eos>⟧" in ESCAPES.sub("", out)
        assert "\x1b[32m" not in out

    def test_without_a_model_the_texts_alone(self, here: Path, capsys: pytest.CaptureFixture) -> None:
        out = told("pairs.jsonl --show 1", capsys)
        assert out.endswith("⟦scored⟧\n── pairs.jsonl:1\nSay 0:\nchosen\n⟦ yes 0⟧\nrejected\n⟦ no 0 times⟧\n")
        out = told("chats.jsonl --show 1", capsys)
        assert out.endswith("user: Say 0\nchosen\n⟦assistant: the cat⟧\nrejected\n⟦assistant: a dog ran⟧\n")
        out = told("groups.jsonl --show 5", capsys)
        assert out.endswith("p\ncompletion 0, score 1\n⟦ a⟧\ncompletion 1, score 2\n⟦ b⟧\n")
        jsonl(here / "labels.jsonl", [{"prompt": "p", "completion": " c", "label": n} for n in (True, False)])
        out = told("labels.jsonl --show 2", capsys)
        assert out.endswith("labels.jsonl:1\np\ngood\n⟦ c⟧\n── labels.jsonl:2\np\nbad\n⟦ c⟧\n")
        jsonl(here / "rows.jsonl", [{"prompt": "p", "completion": " c"}])
        assert told("rows.jsonl --show 1", capsys).endswith("p\ncompletion\n⟦ c⟧\n")
        jsonl(here / "prompts.jsonl", [{"prompt": "p"}])
        assert told("prompts.jsonl --show 1", capsys).endswith("── prompts.jsonl:1\np\n")
        jsonl(here / "steps.jsonl", [{"prompt": "p", "completions": [" a", " b"], "labels": [True, False]}])
        assert told("steps.jsonl --show 1", capsys).endswith("p\nstep 0, good\n⟦ a⟧\nstep 1, bad\n⟦ b⟧\n")

    @pytest.mark.parametrize(
        "row",
        [
            {"prompt": "p"},
            {"prompt": "p", "completions": [" a", " b"], "labels": [True, False]},
            {"text": "the cat sat"},
            {"prompt": "p", "completions": [" a", " b", " c"], "scores": [1, 2, 3]},
        ],
    )
    def test_every_kind_with_a_model(
        self, row: dict, here: Path, model_directory: Path, capsys: pytest.CaptureFixture
    ) -> None:
        jsonl(here / "one.jsonl", [row])
        out = told(f"one.jsonl --model {model_directory} --show 1", capsys)
        shown = out.partition("── one.jsonl:1\n")[2]
        for text in (row.get("prompt", ""), *row.get("completions", ())):
            assert text in shown
        scored = re.findall(r"⟦(.*?)⟧", shown, re.DOTALL)
        assert len(scored) == (
            0 if "labels" not in row and len(row) == 1 and "prompt" in row else len(row.get("scores", "1"))
        )

    def test_a_long_text_is_shown_by_its_ends(self, here: Path, capsys: pytest.CaptureFixture) -> None:
        jsonl(here / "long.jsonl", [{"prompt": "a" + "b" * 5000 + "c", "chosen": " d", "rejected": " e"}])
        out = told("long.jsonl --show 1", capsys)
        assert max(map(len, out.splitlines())) < 500
        assert "bbb … bbb" in out


HOSTILE = "[red]x[/red] [bold] :smile: :100: \x1b[31mR\x1b]0;title\x07 \r\b\x9b2J \u202eesrever\u2066 \x85\u2028"
"""Markup, emoji codes, colours, a window title, overwriting and text turned round."""


@pytest.mark.parametrize("coloured", [False, True])
@pytest.mark.parametrize("tokens", [False, True])
def test_hostile_text_is_shown_and_not_obeyed(
    coloured: bool,
    tokens: bool,
    here: Path,
    model_directory: Path,
    capsys: pytest.CaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    rows = [
        {"prompt": HOSTILE, "chosen": f" {HOSTILE}\nsecond\tline", "rejected": " no", f"more {HOSTILE}\n": 1},
        {"prompt": HOSTILE, "chosen": {HOSTILE: 1}, "rejected": HOSTILE},
        {"prompt": [{"role": HOSTILE, "content": HOSTILE}], "chosen": HOSTILE, "rejected": HOSTILE},
    ]
    jsonl(here / "hostile.jsonl", [*rows, rows[0]])
    if coloured:
        monkeypatch.setenv("FORCE_COLOR", "1")
        monkeypatch.setenv("COLUMNS", "200")
    model = f"--model {model_directory}" if tokens else ""
    # the file's own name may be hostile as well
    (here / "hostile.jsonl").rename(here / "ho\x1b[31mstile.jsonl")
    out = told(f"'ho\x1b[31mstile.jsonl' {model} --show 2 --check", capsys)
    plain = ESCAPES.sub("", out) if coloured else out
    assert not re.search("[\x00-\x08\x0b-\x1f\x7f-\x9f\u2028\u2029\u202a-\u202e\u2066-\u2069]", plain)
    assert "\x1b[31m" not in out
    shown = plain.partition("── ")[2]
    assert "[red]x[/red] [bold] :smile: :100: \\x1b[31mR\\x1b]0;title\\x07 \\r\\x08\\x9b2J \\u202eesrever" in shown
    assert re.search(r"second +line", shown)
    (unread,) = [line for line in plain.splitlines() if line.startswith("unread")]
    assert unread.startswith("unread      fields that nothing reads: more [red]x[/red] [bold] :smile: :100: \\x1b[31mR")
    again = account(f"'ho\x1b[31mstile.jsonl' {model} --check", capsys)
    assert again["other_fields"] == [f"more {HOSTILE}\n"]


def test_a_narrow_terminal_wraps_under_the_first_word(
    here: Path, capsys: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FORCE_COLOR", "1")
    monkeypatch.setenv("COLUMNS", "60")
    wide = {f"field_{n}": n for n in range(40)}
    jsonl(here / "wide.jsonl", [{"prompt": "p", "chosen": " a", "rejected": " b", **wide}])
    lines = told("wide.jsonl", capsys).splitlines()
    assert max(map(len, lines)) <= 60
    start = next(n for n, line in enumerate(lines) if line.startswith("unread "))
    assert all(line.startswith(" " * 12 + "field_") for line in lines[start + 1 : start + 5])
