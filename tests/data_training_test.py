"""Ten steps from data of every shape: what a run reads, what it refuses, and the account that it leaves."""

import json
import shlex
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from calls import called, jsonl
from transformers import AutoTokenizer

import softq
from softq.data.rows import DataError
from softq.mdp.readouts import REF_LOGP
from softq.training.events import Note, Progress, RunError
from softq.training.run import run
from softq.training.settings import Call, build
from softq.training.source import batch_of

ANSWERS = ["the cat sat", "a dog ran home", "rivers run to the sea", "stones are still", "birds sing at dawn"]
WORSE = ["no", "no and no", "yes it is not", "the sea the sea"]
PAIRS = [{"prompt": f"Say {n}:", "chosen": f" {ANSWERS[n % 5]}", "rejected": f" {WORSE[n % 4]} {n}"} for n in range(18)]
GROUPS = [
    {"prompt": f"Say {n}:", "completions": [f" {ANSWERS[n % 5]}", f" {WORSE[n % 4]}", f" {n}"], "scores": [5, 1, n % 4]}
    for n in range(12)
]
LABELS = [
    {"prompt": f"Say {n}:", "completion": f" {(ANSWERS if n % 3 else WORSE)[n % 4]}", "label": n % 3 > 0}
    for n in range(18)
]


def given(model: Path, data: Any, output: Path, **more: Any) -> dict[str, Any]:
    """Settings of a short run that holds nothing out."""
    files = data if isinstance(data, list) else [str(data)]
    base = {"model": str(model), "data": files, "output": str(output), "learning_rate": 3e-3, "batch_size": 4}
    return {**base, "eval_fraction": 0.0, "num_train_epochs": 10, "max_steps": 10, **more}


class Trained:
    """A run that is over: its notes, its steps and what it wrote."""

    def __init__(self, name: str, values: dict[str, Any], **call: Any) -> None:
        settings, method, understood = build(name, values)
        events = list(run(name, settings, method, understood, Call(**call)))
        self.notes = [event.text for event in events if isinstance(event, Note)]
        self.steps = [event.metrics for event in events if isinstance(event, Progress)]
        self.output = Path(values["output"])
        self.losses = [step["loss"] for step in self.steps]
        self.ledger = json.loads((self.output / "ledger.json").read_text())

    def lines(self, name: str) -> list[dict[str, Any]]:
        """A file of JSON lines in the output."""
        return [json.loads(line) for line in (self.output / name).read_text().splitlines()]


def refused(name: str, values: dict[str, Any]) -> str:
    """Why a run does not begin; it has written nothing."""
    settings, method, understood = build(name, values)
    with pytest.raises((ValueError, RunError)) as error:
        list(run(name, settings, method, understood))
    assert not Path(values["output"]).exists()
    return str(error.value)


def decoded(source: Any, model: Path) -> list[str]:
    """The first completion of each record behind its prompt, as the model reads it."""
    tokenizer = AutoTokenizer.from_pretrained(model)
    records = softq.read([source], tokenizer, chat_template="chatml").records
    return [tokenizer.decode(record.completions[0].ids.tolist()) for record in records]


class TestShapes:
    """Data as it comes, in the formats of others."""

    def test_an_alpaca_ranking_of_a_dataset_info(self, model_directory: Path, tmp_path: Path) -> None:
        rows = [
            {"ask": f"Say {n}", "more": "now" * (n % 2), "good": ANSWERS[n % 5], "bad": WORSE[n % 4]} for n in range(12)
        ]
        (tmp_path / "ranking.json").write_text(json.dumps(rows))
        columns = {"prompt": "ask", "query": "more", "chosen": "good", "rejected": "bad"}
        entries = {"mine": {"file_name": "ranking.json", "ranking": True, "columns": columns}}
        (tmp_path / "dataset_info.json").write_text(json.dumps(entries))
        source = f"{tmp_path / 'dataset_info.json'},entry=mine"
        done = Trained("dpo", given(model_directory, [source], tmp_path / "out", chat_template="chatml"))
        assert len(done.steps) == 10
        assert done.losses[-1] < done.losses[0] == pytest.approx(0.6931472)
        assert (done.ledger["rows_used"], list(done.ledger["sources"])) == (12, ["mine"])
        first = decoded(source, model_directory)[1]
        assert first == "<|im_start|>user\nSay 1\nnow<|im_end|>\n<|im_start|>assistant\na dog ran home<|im_end|>"
        manifest = json.loads((done.output / "manifest.json").read_text())
        assert list(manifest["data"]["files"]) == [str(tmp_path / "ranking.json")]

    def test_a_sharegpt_ranking_with_tags_of_its_own(self, model_directory: Path, tmp_path: Path) -> None:
        rows = [
            {
                "turns": [{"who": "me", "says": f"Say {n}"}],
                "good": {"who": "it", "says": ANSWERS[n % 5]},
                "bad": {"who": "it", "says": WORSE[n % 4]},
            }
            for n in range(12)
        ]
        jsonl(tmp_path / "ranking.jsonl", rows)
        entry = {
            "file_name": "ranking.jsonl",
            "formatting": "sharegpt",
            "ranking": True,
            "columns": {"messages": "turns", "chosen": "good", "rejected": "bad"},
            "tags": {"role_tag": "who", "content_tag": "says", "user_tag": "me", "assistant_tag": "it"},
        }
        (tmp_path / "dataset_info.json").write_text(json.dumps({"mine": entry}))
        source = {"path": str(tmp_path / "dataset_info.json"), "entry": "mine"}
        done = Trained("dpo", given(model_directory, [source], tmp_path / "out", chat_template="chatml"))
        assert done.losses[-1] < done.losses[0]
        assert done.ledger["rows_used"] == 12
        first = decoded(source, model_directory)[0]
        assert first == "<|im_start|>user\nSay 0<|im_end|>\n<|im_start|>assistant\nthe cat sat<|im_end|>"

    def test_ultrafeedback_as_groups_and_as_pairs(
        self, model_directory: Path, tmp_path: Path, capsys: pytest.CaptureFixture
    ) -> None:
        rows = [
            {
                "instruction": row["prompt"],
                "source": "made",
                "completions": [
                    {"response": text.strip(), "overall_score": score, "model": "m"}
                    for text, score in zip(row["completions"], row["scores"], strict=True)
                ],
            }
            for row in GROUPS
        ]
        data, pairs = jsonl(tmp_path / "uf.jsonl", rows), tmp_path / "pairs.jsonl"
        values = given(model_directory, data, tmp_path / "groups", chat_template="chatml")
        done = Trained("infonca", values)
        assert done.losses[-1] < done.losses[0]
        assert any("which nothing reads: source" in n or "does not read: source" in n for n in done.notes)
        message = refused("dpo", {**values, "output": str(tmp_path / "none")})
        assert "softq data FILE --pairs best-worst --to pairs.jsonl" in message
        code, _, _ = called(["data", str(data), *shlex.split("--pairs best-worst --to"), str(pairs)], capsys)
        assert code == 0
        done = Trained("dpo", given(model_directory, pairs, tmp_path / "pairs", chat_template="chatml"))
        assert done.losses[-1] < done.losses[0]
        assert done.ledger["rows_used"] == len(GROUPS)

    def test_groups_of_strings(self, model_directory: Path, tmp_path: Path) -> None:
        data = jsonl(tmp_path / "groups.jsonl", [*GROUPS, {**GROUPS[0], "scores": [1]}])
        done = Trained("infonca", given(model_directory, data, tmp_path / "out"))
        assert done.losses[-1] < done.losses[0]
        assert done.ledger["completions"] == 3 * len(GROUPS)
        assert [line["reason"] for line in done.lines("dropped.jsonl")] == ["bad_type"]

    def test_labels_for_kto_and_as_demonstrations(self, model_directory: Path, tmp_path: Path) -> None:
        data = jsonl(tmp_path / "labels.jsonl", LABELS)
        done = Trained("kto", given(model_directory, data, tmp_path / "kto"))
        assert done.losses[-1] < done.losses[0]
        assert {"rewards/chosen", "rewards/rejected"} <= set().union(*done.steps)
        done = Trained("sft", given(model_directory, data, tmp_path / "sft", batch_size=100, max_steps=1))
        assert any("12 records to train on" in note for note in done.notes)
        assert any("the good completions, the bad ones are not used" in note for note in done.notes)
        good = jsonl(tmp_path / "good.jsonl", [row for row in LABELS if row["label"]])
        alone = Trained("sft", given(model_directory, good, tmp_path / "alone", batch_size=100, max_steps=1))
        assert done.losses == pytest.approx(alone.losses, rel=1e-6)
        assert done.steps[0]["num_tokens"] == alone.steps[0]["num_tokens"]
        bad = jsonl(tmp_path / "bad.jsonl", [row for row in LABELS if not row["label"]])
        assert "no row is left that sft can use" in refused("sft", given(model_directory, bad, tmp_path / "none"))

    def test_texts_dialogues_and_completions_to_imitate(self, model_directory: Path, tmp_path: Path) -> None:
        turns = [{"role": "user", "content": "Say"}, {"role": "assistant", "content": "the cat sat"}]
        kinds = {
            "completions": [{"prompt": f"Say {n}:", "completion": f" {ANSWERS[n % 5]}"} for n in range(8)],
            "texts": [{"text": f"{ANSWERS[n % 5]} {n}"} for n in range(8)],
            "dialogues": [{"messages": [*turns, {"role": "user", "content": str(n)}, turns[1]]} for n in range(8)],
        }
        for name, rows in kinds.items():
            data = jsonl(tmp_path / f"{name}.jsonl", rows)
            values = given(model_directory, data, tmp_path / name, chat_template="chatml", format=None)
            done = Trained("sft", values)
            assert done.losses[-1] < done.losses[0] - 0.3, name
            assert done.ledger["finished"] == done.ledger["completions"] == 8


class TestSources:
    """Several files with weights."""

    def test_two_sources_by_weight(self, model_directory: Path, tmp_path: Path) -> None:
        one, two = jsonl(tmp_path / "one.jsonl", PAIRS[:10]), jsonl(tmp_path / "two.jsonl", PAIRS[10:])
        files = [f"{one},name=first,weight=2", {"path": str(two), "name": "second", "weight": 0.5}]
        values = given(model_directory, files, tmp_path / "out", batch_size=6, num_train_epochs=1.0, max_steps=None)
        done = Trained("dpo", values)
        assert len(done.steps) == 4  # 2 * 10 + 8 / 2 = 24 records, six a step
        assert done.steps[-1]["epoch"] == 1
        keys = {f"{name}/rewards/{what}" for name in ("first", "second") for what in ("accuracies", "margins", "ties")}
        assert keys <= set().union(*done.steps)
        logged = done.lines("metrics.jsonl")
        assert keys <= set().union(*logged)
        assert not any("source" in key for line in logged for key in line)
        assert {name: tally["rows_used"] for name, tally in done.ledger["sources"].items()} == {
            "first": 10,
            "second": 8,
        }
        for step in done.steps:  # the parts weigh as many records as each has in the step
            both = [
                step[f"{name}/rewards/margins"] for name in ("first", "second") if f"{name}/rewards/margins" in step
            ]
            assert min(both) - 1e-6 <= step["rewards/margins"] <= max(both) + 1e-6

    def test_evaluation_data_has_an_account_of_its_own(self, model_directory: Path, tmp_path: Path) -> None:
        data = jsonl(tmp_path / "data.jsonl", PAIRS[:12])
        held = jsonl(tmp_path / "held.jsonl", [*PAIRS[12:], {"prompt": "p", "chosen": " ", "rejected": " no"}])
        values = given(model_directory, data, tmp_path / "out", eval_data=[str(held)])
        del values["eval_fraction"]
        done = Trained("dpo", values)
        ledger = json.loads((done.output / "eval_ledger.json").read_text())
        assert (ledger["rows_in"], ledger["rows_used"]) == (7, 6)
        (lost,) = done.lines("eval_dropped.jsonl")
        assert (lost["file"], lost["row"], lost["reason"]) == (str(held), 7, "empty_completion")
        assert (done.output / "dropped.jsonl").read_bytes() == b""
        assert any("eval_rewards/accuracies" in line for line in done.lines("metrics.jsonl"))
        manifest = json.loads((done.output / "manifest.json").read_text())
        assert {"eval_ledger.json", "eval_dropped.jsonl", "ledger.json", "dropped.jsonl"} <= set(manifest["files"])
        assert sorted(manifest["data"]["files"]) == sorted([str(data), str(held)])


class TestAccount:
    """What a run writes beside the model, and what it keeps for the next."""

    def test_a_list_of_cut_boundaries_only_where_there_are_some(self, model_directory: Path, tmp_path: Path) -> None:
        whole = Trained("dpo", given(model_directory, jsonl(tmp_path / "a.jsonl", PAIRS), tmp_path / "a"))
        assert whole.ledger["merged"] == 0
        assert not (whole.output / "merged.jsonl").exists()
        cut = [*PAIRS, {"prompt": "the c", "chosen": "at sat", "rejected": "at ran"}]
        data = jsonl(tmp_path / "b.jsonl", cut)
        done = Trained("dpo", given(model_directory, data, tmp_path / "b"))
        assert done.ledger["merged"] == 1
        assert done.lines("merged.jsonl") == [{"file": str(data), "row": len(cut)}]
        assert "merged.jsonl" in json.loads((done.output / "manifest.json").read_text())["files"]
        # A run that overwrites it, without such rows, leaves none behind.
        again = Trained(
            "dpo", given(model_directory, tmp_path / "a.jsonl", tmp_path / "b", max_steps=1), overwrite=True
        )
        assert not (again.output / "merged.jsonl").exists()

    def test_the_account_adds_up_and_names_what_was_dropped(self, model_directory: Path, tmp_path: Path) -> None:
        long = {"prompt": "Say", "chosen": " a" * 80, "rejected": " b"}
        data = jsonl(tmp_path / "data.jsonl", [*PAIRS, long, {"prompt": "p", "chosen": "a"}, {"prompt": 1}])
        done = Trained("dpo", given(model_directory, data, tmp_path / "out", max_length=64))
        ledger = done.ledger
        assert ledger["rows_in"] == len(PAIRS) + 3 == ledger["rows_used"] + sum(ledger["rows_dropped"].values())
        assert ledger["tokens"]["in"] == sum(count for part, count in ledger["tokens"].items() if part != "in")
        assert [line["row"] for line in done.lines("dropped.jsonl")] == [19, 20, 21]
        assert {line["reason"] for line in done.lines("dropped.jsonl")} == set(ledger["rows_dropped"])
        whole = Trained(
            "dpo", given(model_directory, data, tmp_path / "whole", max_length=64, batch_size=100, max_steps=1)
        )
        assert whole.steps[0]["num_tokens"] == ledger["tokens"]["scored"]

    def test_the_second_run_reads_what_the_first_encoded(
        self, model_directory: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setenv("SOFTQ_CACHE", str(tmp_path / "cache"))
        rows = [*PAIRS, {"prompt": "the c", "chosen": "at sat", "rejected": "at ran"}, {"prompt": 1}]
        data = jsonl(tmp_path / "data.jsonl", rows)
        runs = [Trained("dpo", given(model_directory, data, tmp_path / name)) for name in ("a", "b")]
        said = ["encoded by an earlier run" in done.notes for done in runs]
        assert said == [False, True]
        for name in ("metrics.jsonl", "ledger.json", "dropped.jsonl", "merged.jsonl"):
            assert (runs[0].output / name).read_bytes() == (runs[1].output / name).read_bytes(), name
        other = Trained("dpo", given(model_directory, data, tmp_path / "c", max_length=512))
        assert "encoded by an earlier run" not in other.notes
        jsonl(data, rows[1:])
        other = Trained("dpo", given(model_directory, data, tmp_path / "d"))
        assert "encoded by an earlier run" not in other.notes
        assert other.ledger["rows_in"] == len(rows) - 1

    def test_rows_that_are_cut_train_and_have_no_end(self, model_directory: Path, tmp_path: Path) -> None:
        data = jsonl(tmp_path / "data.jsonl", PAIRS)
        values = given(model_directory, data, tmp_path / "out", max_length=16, truncate="keep")
        done = Trained("dpo", values)
        tokens = done.ledger["tokens"]
        assert tokens["cut"] > 0
        assert done.ledger["rows_used"] == len(PAIRS)
        assert 0 < done.ledger["finished"] < done.ledger["completions"]
        assert done.losses[-1] < done.losses[0]
        read = softq.read(str(data), softq.load(str(model_directory), None).tokenizer, max_length=16, truncate="keep")
        ended = [completion.ended for record in read.records for completion in record.completions]
        assert ended.count(False) == done.ledger["completions"] - done.ledger["finished"]
        batch = batch_of(list(read.records), range(len(read.records)), build("dpo", values)[1])
        assert batch.tokens.ended.tolist() == ended
        assert int(batch.tokens.action.sum()) == tokens["scored"]


@pytest.fixture(scope="module")
def stored(model_directory: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """PAIRS with the sums that the starting model gives to both sides, scored by softq.score in float64."""
    directory = tmp_path_factory.mktemp("stored")
    plain = jsonl(directory / "plain.jsonl", PAIRS)
    loaded = softq.load(str(model_directory), dtype="float64")
    records = list(softq.read(str(plain), loaded.tokenizer).records)
    batch = batch_of(records, range(len(records)), build("dpo", given(model_directory, plain, directory))[1])
    with torch.no_grad():
        sums = softq.score(loaded.models, batch.tokens, (REF_LOGP,))["ref_logp"].sum(-1)
    chosen, rejected = sums[batch.pairs.chosen].tolist(), sums[batch.pairs.rejected].tolist()
    rows = [
        {**row, "ref_chosen_logps": c, "ref_rejected_logps": r}
        for row, c, r in zip(PAIRS, chosen, rejected, strict=True)
    ]
    jsonl(directory / "stored.jsonl", rows)
    jsonl(
        directory / "listed.jsonl",
        [{**row, "ref_logps": [c, r]} for row, c, r in zip(PAIRS, chosen, rejected, strict=True)],
    )
    return directory


def test_what_a_loss_can_not_read_later_on_names_its_step_and_its_records(
    model_directory: Path, tmp_path: Path
) -> None:
    """The first step that draws row 5 ends the run; with the seed of a run it is not the first of all."""
    rows = [
        {"prompt": f"Say {n}:", "completions": [" one", " two"], "scores": [0.9, 1.5 if n == 5 else 0.1]}
        for n in range(8)
    ]
    data = jsonl(tmp_path / "groups.jsonl", rows)
    values = given(model_directory, data, tmp_path / "out", batch_size=1, eval_fraction=0, num_train_epochs=1)
    with pytest.raises(RunError, match=r"^step \d+: scores from 0\.9 to 1\.5; .* its records: .*groups\.jsonl:6$"):
        Trained("sppo", values)


@pytest.mark.parametrize(("rows", "batch_size"), [(1, 4), (len(PAIRS), 1)])
def test_a_coupled_step_of_one_record_is_refused(
    rows: int, batch_size: int, model_directory: Path, tmp_path: Path
) -> None:
    data = jsonl(tmp_path / "pairs.jsonl", PAIRS[:rows])
    message = refused("aot", given(model_directory, data, tmp_path / "out", batch_size=batch_size))
    assert "compares the records of a step, and needs at least two records in each" in message


class TestStoredReference:
    """Data that brings the reference's log-probs."""

    @pytest.mark.parametrize(("dtype", "close"), [("float64", 1e-9), ("float32", 1e-6)])
    @pytest.mark.parametrize("name", ["dpo", "ipo", "wpo", "aot"])
    def test_training_is_that_with_a_scored_reference(
        self, name: str, dtype: str, close: float, stored: Path, model_directory: Path, tmp_path: Path
    ) -> None:
        options = {"dtype": dtype, "eval_fraction": 0.2, "eval_steps": 5}
        scored = Trained(name, given(model_directory, stored / "plain.jsonl", tmp_path / "scored", **options))
        read = Trained(name, given(model_directory, stored / "stored.jsonl", tmp_path / "read", **options))
        assert len(scored.steps) == 10
        assert scored.losses[-1] != scored.losses[0]
        assert read.losses == pytest.approx(scored.losses, rel=1e-6, abs=close)
        for ours, theirs in zip(read.lines("metrics.jsonl"), scored.lines("metrics.jsonl"), strict=True):
            equal = theirs.get("rewards/ties") == 1  # nothing has moved yet: which side is ahead is rounding
            same = {key for key in theirs if not (equal and key in ("rewards/ties", "rewards/accuracies"))}
            if dtype == "float64":
                assert {k: ours[k] for k in same} == pytest.approx({k: theirs[k] for k in same}, rel=1e-6, abs=close)
        manifest = json.loads((read.output / "manifest.json").read_text())
        assert "ref_logps" in manifest["reference"]["model"]
        assert any("with the stored reference, is up to 0.00 nats" in note for note in read.notes)

    def test_both_spellings_are_one(self, stored: Path, model_directory: Path, tmp_path: Path) -> None:
        runs = [
            Trained("dpo", given(model_directory, stored / f"{n}.jsonl", tmp_path / n)) for n in ("stored", "listed")
        ]
        assert runs[0].lines("metrics.jsonl") == runs[1].lines("metrics.jsonl")

    def test_another_reference_that_was_stored_is_read(
        self, stored: Path, model_directory: Path, tmp_path: Path
    ) -> None:
        rows = [json.loads(line) for line in (stored / "stored.jsonl").read_text().splitlines()]
        data = jsonl(
            tmp_path / "shifted.jsonl", [{**row, "ref_chosen_logps": row["ref_chosen_logps"] - 5} for row in rows]
        )
        done = Trained("dpo", given(model_directory, data, tmp_path / "out", max_steps=1))
        assert done.steps[0]["rewards/margins"] == pytest.approx(0.5, abs=1e-5)  # beta 0.1 of 5 nats
        assert done.losses[0] == pytest.approx(0.4740770, abs=1e-5)  # -log σ(0.5)

    @pytest.mark.parametrize(
        ("name", "message"),
        [
            ("tdpo2", "tdpo2 reads kl_from_ref of the reference, and the data stores its log-probs alone"),
            ("dpo+tdpo2", "kl_from_ref of the reference"),
            ("kto", "kto scores completions under each other's prompts, another pairing each step"),
        ],
    )
    def test_methods_that_need_more_are_refused(
        self, name: str, message: str, stored: Path, model_directory: Path, tmp_path: Path
    ) -> None:
        assert message in refused(name, given(model_directory, stored / "stored.jsonl", tmp_path / "out"))

    def test_a_method_without_a_reference_does_not_read_them(
        self, stored: Path, model_directory: Path, tmp_path: Path
    ) -> None:
        message = refused("sft", given(model_directory, stored / "stored.jsonl", tmp_path / "out"))
        assert "'ref_chosen_logps' is known but sft does not read it" in message

    def test_labels_that_store_them_do_not_serve_kto(self, model_directory: Path, tmp_path: Path) -> None:
        data = jsonl(tmp_path / "labels.jsonl", [{**row, "ref_logps": -9.5} for row in LABELS])
        assert "another pairing each step" in refused("kto", given(model_directory, data, tmp_path / "out"))

    def test_a_method_that_remembers_reads_them(self, model_directory: Path, tmp_path: Path) -> None:
        data = jsonl(tmp_path / "labels.jsonl", [{**row, "ref_logps": -9.5} for row in LABELS])
        assert Trained("bco", given(model_directory, data, tmp_path / "out", max_steps=1)).losses[0] > 0

    def test_completions_that_are_cut_are_refused(self, stored: Path, model_directory: Path, tmp_path: Path) -> None:
        values = given(model_directory, stored / "stored.jsonl", tmp_path / "out", truncate="keep")
        Trained("dpo", {**values, "max_steps": 1})  # nothing is cut
        values["output"] = str(tmp_path / "cut")
        tokenizer = AutoTokenizer.from_pretrained(model_directory)
        longest = max(
            len(c.ids)
            for record in softq.read(values["data"], tokenizer, reads=("ref_logps",)).records
            for c in record.completions
        )
        message = refused("dpo", {**values, "max_length": longest - 1})
        assert message.startswith("--truncate keep: completions are cut, and the log-probs that the data stores")

    def test_a_reference_beside_them_is_refused(self, stored: Path, model_directory: Path, tmp_path: Path) -> None:
        values = given(model_directory, stored / "stored.jsonl", tmp_path / "out", reference=str(model_directory))
        message = refused("dpo", values)
        assert message.startswith("--reference: the data stores the reference's log-probs (ref_logps)")

    def test_some_rows_without_them_are_dropped(self, stored: Path, model_directory: Path, tmp_path: Path) -> None:
        data = tmp_path / "mixed.jsonl"
        data.write_text((stored / "stored.jsonl").read_text() + json.dumps(PAIRS[0]) + "\n")
        done = Trained("dpo", given(model_directory, data, tmp_path / "out", max_steps=1))
        assert done.ledger["rows_dropped"] == {"mixed_columns": 1}
        files = [str(stored / "stored.jsonl"), str(stored / "plain.jsonl")]
        with pytest.raises(DataError, match="lacks column 'ref_logps'"):
            Trained("dpo", given(model_directory, files, tmp_path / "none"))

    def test_a_method_that_reads_single_tokens_where_lengths_differ_is_refused_where_they_do_not(
        self, model_directory: Path, tmp_path: Path
    ) -> None:
        row = {
            "prompt": "Say",
            "chosen": " aa",
            "rejected": " bb",
            "ref_chosen_logps": -9.0,
            "ref_rejected_logps": -8.0,
        }
        (tmp_path / "alike.jsonl").write_text((json.dumps(row) + "\n") * 4)
        values = given(model_directory, tmp_path / "alike.jsonl", tmp_path / "out", max_steps=1)
        assert "reads the reference token by token" in refused("ld_dpo", values)
        assert len(Trained("dpo", values).steps) == 1

    def test_a_users_method_that_reads_single_tokens_is_refused(
        self, stored: Path, model_directory: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        (tmp_path / "theirs.py").write_text(OWN)
        monkeypatch.syspath_prepend(str(tmp_path))
        sys.modules.pop("theirs", None)
        values = given(model_directory, stored / "stored.jsonl", tmp_path / "out")
        message = refused("theirs:by_token", values)
        assert "reads the reference token by token, and the data stores sums over completions" in message
        assert len(Trained("theirs:by_token", {**values, "data": [str(stored / "plain.jsonl")]}).steps) == 10
        summed = Trained("theirs:by_sum", {**values, "output": str(tmp_path / "summed")})
        assert summed.losses[-1] < summed.losses[0]


OWN = """
from softq import Method, Term
from softq.mdp.readouts import REF_LOGP
from softq.objectives.weights import per_pair

def _method(value):
    def loss(scored, batch):
        ratio = value(scored["logp"] - scored["ref_logp"])
        return (1 - ratio[batch.pairs.chosen] + ratio[batch.pairs.rejected]).relu()
    return Method((Term("theirs", "pair", loss, per_pair),), (REF_LOGP,))

def by_token() -> Method:
    return _method(lambda ratio: ratio.clamp(-0.5, 0.5).sum(-1))

def by_sum() -> Method:
    return _method(lambda ratio: ratio.sum(-1))
"""


def test_more_steps_than_the_passes_have_are_told_of(model_directory: Path, tmp_path: Path) -> None:
    data = tmp_path / "pairs.jsonl"
    data.write_text("".join(json.dumps(row) + "\n" for row in PAIRS[:8]))
    short = given(model_directory, data, tmp_path / "short", num_train_epochs=2, max_steps=5)
    told = "--max-steps 5 is not reached: --num-train-epochs 2 ends after step 4; raise it for more"
    done = Trained("dpo", short)
    assert (len(done.steps), told in done.notes) == (4, True)
    enough = Trained("dpo", {**short, "output": str(tmp_path / "enough"), "max_steps": 4})
    assert not [note for note in enough.notes if "--max-steps" in note]
