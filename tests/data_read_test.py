"""softq.data.read: files to tokens, every row and token accounted for, and found again by content."""

import gc
import gzip
import json
import re
from functools import cache

import pytest
from chats import assistant, byte_level, user
from depth import tries
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

from softq.data.encode import Encoder
from softq.data.read import DROPPED, MERGED, boundaries, cache_directory, read, template
from softq.data.rows import DataError

H, A = "\n\nHuman:", "\n\nAssistant:"
DIALOGUES = [
    (f"{H} Where is the pen?{A} On the table.", f"{H} Where is the pen?{A} I do not know."),
    (f"{H} Hi{A} Hello!{H} What now?{A} Rest.", f"{H} Hi{A} Hello!{H} What now?{A} Work, and then rest."),
    (f"{H} Hi{A} Hello!{H} What now?{A} Rest.", f"{H} Hi{A} Hello!"),
    (f"{H} Hi{A}", f"{H} Hi{A} Hello!"),
    (f"{H} Hi{A} Hello!", f"{H} Ho{A} Hello!"),
    (f"{H} Hi{A} Hello!", f"{H} Hi{A} Hello!<eos>"),
    (f"{H} Where is the pen?{A} On the table.", f"{H} Where is the pen?{A} I do not know."),
]
SHAREGPT = {
    "conversations": [{"from": "human", "value": "Where is the pen?"}],
    "chosen": {"from": "gpt", "value": "On the table."},
    "rejected": {"from": "gpt", "value": "I do not know."},
}
PAIR = {"prompt": "Where is", "chosen": " the pen?", "rejected": " the table?"}
LABEL = {"prompt": "Where is", "completion": " the pen?", "label": True}


@cache
def tokenizer() -> PreTrainedTokenizerFast:
    """A byte-level BPE of a few merges, trained on the spot."""
    trained = Tokenizer(models.BPE())
    trained.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    trained.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    special = ["<eos>", "<|im_start|>", "<|im_end|>"]
    trainer = trainers.BpeTrainer(
        vocab_size=330, special_tokens=special, initial_alphabet=alphabet, show_progress=False
    )
    trained.train_from_iterator([text for pair in DIALOGUES for text in pair], trainer)
    return PreTrainedTokenizerFast(tokenizer_object=trained, eos_token="<eos>")


def count(text: str) -> int:
    return len(tokenizer()(text, add_special_tokens=False)["input_ids"])


def lines(folder, rows, name: str = "a.jsonl"):
    path = folder / name
    data = "\n".join(row if isinstance(row, str) else json.dumps(row) for row in rows).encode()
    path.write_bytes(gzip.compress(data) if name.endswith(".gz") else data)
    return path


def dialogues(folder, name: str = "a.jsonl.gz"):
    rows = [{"chosen": chosen, "rejected": rejected, "source": "s"} for chosen, rejected in DIALOGUES]
    return lines(folder, [{**rows[0], "id": 3}, *rows[1:]], name)


def listed(dataset, name: str) -> list[dict]:
    file = dataset.directory / name
    return [json.loads(line) for line in file.read_text().splitlines()] if file.exists() else []


def plainly(dataset):
    return [
        (r.where, r.columns, r.source, [(c.ids.tolist(), c.action.tolist(), c.ended) for c in r.completions])
        for r in dataset.records
    ]


# One file


def test_hh_dialogues_with_every_row_and_token_accounted_for(tmp_path):
    path = dialogues(tmp_path)
    dataset = read(path, tokenizer())
    assert (dataset.kind, dataset.formats, dataset.template_ends) == ("pairs", ("hh",), set())
    assert (dataset.other_columns, dataset.cached) == (("source", "id"), False)
    assert [source.name for source in dataset.sources] == ["a"]
    assert [record.where for record in dataset.records] == [f"{path}:{n}" for n in (1, 2, 7)]
    prompts = [text[: text.rfind(A) + len(A)] for text, _ in DIALOGUES]
    words = [[text.removeprefix(prompts[n]) for text in DIALOGUES[n]] for n in range(7)]
    used = [0, 1, 6]
    scored = sum(count(text) + 1 for n in used for text in words[n])
    context = sum(2 * count(prompts[n]) for n in used)
    dropped = 2 * (count(DIALOGUES[5][0]) + 1)  # only this one came so far that it was tokenised
    ledger = dataset.ledger.as_dict()
    assert ledger["rows_in"], ledger["rows_used"] == (7, 3)
    assert ledger["rows_dropped"] == {
        "later_user_turn": 1, "empty_completion": 1, "no_shared_prompt": 1, "equal_completions": 1
    }  # fmt: skip
    assert ledger["tokens"] == {
        "in": scored + context + dropped, "scored": scored, "context": context, "cut": 0, "template_tail": 0,
        "dropped": dropped,
    }  # fmt: skip
    assert (ledger["shared"], ledger["merged"], ledger["duplicates"]) == (context // 2, 0, 1)
    assert (ledger["completions"], ledger["finished"]) == (6, 6)
    assert [(line["row"], line["reason"]) for line in listed(dataset, DROPPED)] == [
        (3, "later_user_turn"), (4, "empty_completion"), (5, "no_shared_prompt"), (6, "equal_completions")
    ]  # fmt: skip


def test_the_records_say_what_the_file_says(tmp_path):
    dataset = read(dialogues(tmp_path), tokenizer())
    for record, n in zip(dataset.records, (0, 1, 6), strict=True):
        for completion, text in zip(record.completions, DIALOGUES[n], strict=True):
            assert tokenizer().decode(completion.ids) == text + "<eos>"
            said = tokenizer().decode(completion.ids[1:][completion.action])
            assert said == text[text.rfind(A) + len(A) :] + "<eos>"


def test_dropped_rows_are_written_down_with_what_is_wrong(tmp_path):
    bad = {**PAIR, "chosen": 3, "note": "ä\n\u2028" + "b" * 300}
    path = lines(tmp_path, [PAIR, '{"prompt": ', bad, {**PAIR, "rejected": PAIR["chosen"]}, "", PAIR])
    dataset = read(path, tokenizer())
    malformed, wrong, equal = listed(dataset, DROPPED)
    assert malformed["reason"] == "malformed_json"
    assert malformed["excerpt"] == '{"prompt":'
    message = "field 'chosen' is a number; expected a string or a list of messages"
    start = '{"prompt": "Where is", "chosen": 3, "rejected": " the table?", "note": "ä\\n bbb'
    assert {**wrong, "excerpt": wrong["excerpt"][: len(start)]} == {
        "file": str(path), "row": 3, "field": "chosen", "reason": "bad_type", "message": message, "excerpt": start
    }  # fmt: skip
    assert len(wrong["excerpt"]) == 200
    assert (equal["row"], equal["reason"]) == (4, "equal_completions")
    assert listed(dataset, MERGED) == []
    assert sorted(dataset.ledger.examples) == ["bad_type", "equal_completions", "malformed_json"]


def test_merged_boundaries_are_written_down(tmp_path):
    merged = {"prompt": "Where is ", "chosen": "the pen?", "rejected": "it?"}
    path = lines(tmp_path, [merged, PAIR, merged], "a.json").rename(tmp_path / "a.jsonl")
    dataset = read(path, tokenizer())
    assert listed(dataset, MERGED) == [{"file": str(path), "row": 1}, {"file": str(path), "row": 3}]
    assert dataset.ledger.merged == 2
    assert dataset.ledger.lines()[-1] == f"boundary    2 rows with a token across it, split there: {path}:1, :3"


def test_a_row_that_spells_a_special_token_is_named(tmp_path):
    path = lines(tmp_path, [PAIR, {**PAIR, "chosen": " the pen?<eos>"}, {**PAIR, "prompt": "<|im_end|>"}])
    ledger = read(path, tokenizer()).ledger
    assert (ledger.spelled, ledger.examples["spelled"]) == (2, [f"{path}:2", f"{path}:3"])
    last = "special     2 rows spell a special token in their own text"
    assert ledger.lines()[-1] == f"{last}: {path}:2, :3"


def test_chatml_by_name_and_by_file(tmp_path):
    path = lines(tmp_path, [SHAREGPT])
    with pytest.raises(DataError, match=r"a.jsonl:1: messages need a chat template .* --chat-template FILE\|chatml$"):
        read(path, tokenizer())
    dataset = read(path, tokenizer(), chat_template="chatml")
    end = tokenizer().convert_tokens_to_ids("<|im_end|>")
    assert dataset.template_ends == {end}
    assert read(path, tokenizer(), chat_template="chatml", end_ids=[end]).template_ends == set()
    assert tokenizer().decode(dataset.records[0].completions[0].ids) == (
        "<|im_start|>user\nWhere is the pen?<|im_end|>\n<|im_start|>assistant\nOn the table.<|im_end|>"
    )
    file = tmp_path / "mine.jinja"
    file.write_text("{% for m in messages %}{{ m.role + '>' + m.content + '\n' }}{% endfor %}")
    dataset = read(path, tokenizer(), chat_template=file)
    assert tokenizer().decode(dataset.records[0].completions[1].ids) == (
        "user>Where is the pen?\nassistant>I do not know.<eos>"
    )


def test_templates_that_can_not_be_read(tmp_path):
    (tmp_path / "bad.jinja").write_bytes(b"\xff")
    for name, reason in (("no.jinja", "No such file or directory"), ("bad.jinja", "not UTF-8")):
        with pytest.raises(ValueError) as error:
            template(tmp_path / name)
        advice = "give a Jinja file or chatml"
        assert str(error.value) == f"--chat-template {tmp_path / name} can not be read ({reason}); {advice}"
        assert not isinstance(error.value, DataError)
    assert template(None) is None


def test_nothing_left_lists_the_reasons(tmp_path):
    path = lines(tmp_path, [{"chosen": chosen, "rejected": rejected} for chosen, rejected in DIALOGUES])
    said = (
        "all 7 rows were dropped (3 prompt_too_long, 1 later_user_turn, 1 empty_completion, 1 no_shared_prompt, "
        f"1 equal_completions), the first because {path}:1: nothing of a completion begins within max_length, 9 tokens; "
        "raise it"
    )
    with pytest.raises(DataError, match=f"^{re.escape(said)}$"):
        read(path, tokenizer(), max_length=9)


def test_columns_are_read_by_those_who_read_them(tmp_path):
    path = lines(tmp_path, [{**PAIR, "weight": 0.5}])
    assert read(path, tokenizer(), reads=("weight",)).records[0].columns == {"weight": (0.5,)}
    with pytest.raises(DataError, match=r"a.jsonl:1: column 'weight' is known but dpo does not read it"):
        read(path, tokenizer(), method="dpo")


@pytest.mark.parametrize(("rows", "kind", "columns", "completions"), [
    ([{"prompt": "Q", "completions": [" a", " b", " it"], "scores": [3, 2, 1]}], "groups", {"reward": (3.0, 2.0, 1.0)}, 3),
    ([LABEL], "labels", {"label": (1.0,)}, 1),
    ([{"prompt": "Q", "completions": [" a", " b"], "labels": [1, 0]}], "steps", {"step_label": (1.0, 0.0)}, 1),
    ([{"text": "Where is it?"}], "rows", {}, 1),
    ([{"prompt": "Q"}], "prompts", {}, 1),
])  # fmt: skip
def test_each_kind(tmp_path, rows, kind, columns, completions):
    dataset = read(lines(tmp_path, rows), tokenizer())
    assert dataset.kind == kind
    assert dataset.records[0].columns == columns
    assert len(dataset.records[0].completions) == completions


def test_keep_cuts_and_drop_drops(tmp_path):
    long = {**PAIR, "chosen": " the pen? it"}
    path = lines(tmp_path, [PAIR, long])
    limit = max(count(PAIR["prompt"] + PAIR[side]) + 1 for side in ("chosen", "rejected"))
    dropped = read(path, tokenizer(), max_length=limit).ledger
    assert dropped.dropped == {"too_long": 1}
    dataset = read(path, tokenizer(), max_length=limit, truncate="keep")
    assert [[c.ended for c in record.completions] for record in dataset.records] == [[True, True], [False, True]]
    assert len(dataset.records[1].completions[0].ids) == limit
    assert dataset.ledger.tokens["cut"] == count(PAIR["prompt"] + long["chosen"]) + 1 - limit
    assert dataset.ledger.read == dropped.read
    with pytest.raises(ValueError, match=r"^truncate is 'kepe'; expected drop or keep$"):
        read(path, tokenizer(), truncate="kepe")


def test_boundaries_show_where_prompts_end(tmp_path):
    path = dialogues(tmp_path)
    shown = boundaries(read(path, tokenizer()), tokenizer(), n=2)
    assert len(shown) == 2
    assert shown[0].startswith(f"{path}:1: ")
    head, tail = shown[1].split("␟")
    assert head.endswith("now?\\n\\nAssistant:'")
    assert tail == "' Rest.<eos>'"


# Several sources


def test_several_files_are_one_data_set(tmp_path):
    first, second = dialogues(tmp_path), dialogues(tmp_path, "b.jsonl")
    third = lines(tmp_path, [PAIR, "{}"], "c.jsonl")
    dataset = read([first, f"{second},name=B,weight=2", {"path": str(third)}], tokenizer())
    assert dataset.formats == ("hh", "hh", "preference")
    assert [(source.name, source.weight) for source in dataset.sources] == [("a", 1.0), ("B", 2.0), ("c", 1.0)]
    assert [record.source for record in dataset.records] == [0, 0, 0, 1, 1, 1, 2] == dataset.records.source.tolist()
    assert [record.where for record in dataset.records][3] == f"{second}:1"
    ledger = dataset.ledger
    assert [(name, tally.rows, tally.used) for name, tally in ledger.sources.items()] == [
        ("a", 7, 3), ("B", 7, 3), ("c", 2, 1)
    ]  # fmt: skip
    assert (ledger.rows, ledger.used, ledger.duplicates) == (16, 7, 4)
    assert ledger.read == sum(tally.read for tally in ledger.sources.values())
    alone = read(first, tokenizer())
    assert alone.ledger.as_dict()["tokens"] == ledger.sources["a"].counted(True)["tokens"]
    assert plainly(dataset)[:3] == [(where, columns, 0, said) for where, columns, _, said in plainly(alone)]
    assert alone.records[0].source is None


def test_the_first_rows_of_each_source_are_compared_with_the_whole_text(tmp_path, monkeypatch):
    many = [{**PAIR, "prompt": f"Where is {n}"} for n in range(300)]
    files = [lines(tmp_path, many), lines(tmp_path, ["{}", *many[:3]], "b.jsonl")]
    compared = []
    monkeypatch.setattr(Encoder, "check_whole", lambda self, example: compared.append(example.where))
    dataset = read(files, tokenizer())
    expected = [f"{files[0]}:{n}" for n in range(1, 17)] + [f"{files[1]}:{n}" for n in (2, 3, 4)]
    assert compared == expected
    assert dataset.ledger.compared == len(expected) == 19
    assert len(dataset.records) == 303


def test_sources_of_two_kinds_are_refused(tmp_path):
    first, second = lines(tmp_path, [PAIR]), lines(tmp_path, [LABEL], "b.jsonl")
    said = f"{second}: holds labels (unpaired), but {first} holds pairs (preference); give data of one kind"
    with pytest.raises(DataError, match=f"^{re.escape(said)}$"):
        read([first, second], tokenizer())
    with pytest.raises(ValueError, match=r"^no data file was given; name one$"):
        read([], tokenizer())


# The cache


@pytest.fixture
def kept(tmp_path):
    """A file of three rows, one of them bad, and a cache that holds it."""
    path = lines(tmp_path, [PAIR, {**PAIR, "prompt": "Where is ", "weight": 2}, "{", {**PAIR, "other": 1, "weight": 3}])
    options = {"reads": ("weight",), "cache": tmp_path / "cache"}
    dataset = read(path, tokenizer(), **options)
    assert not dataset.cached
    return path, options, dataset


def refuse(*_):
    raise AssertionError("encoded")


def test_data_is_found_again(kept, monkeypatch):
    path, options, fresh = kept
    monkeypatch.setattr(Encoder, "encode_all", refuse)
    again = read(path, tokenizer(), **options)
    assert again.cached
    assert plainly(again) == plainly(fresh)
    assert again.ledger.as_dict() == fresh.ledger.as_dict()
    assert again.ledger.lines() == fresh.ledger.lines()
    same = ("kind", "formats", "sources", "template_ends", "other_columns", "directory", "fingerprint")
    assert [getattr(again, name) for name in same] == [getattr(fresh, name) for name in same]
    assert listed(again, DROPPED) == listed(fresh, DROPPED)
    assert [line["row"] for line in listed(again, DROPPED)] == [2, 3, 4]
    assert again.directory.parent == options["cache"]
    assert re.fullmatch("[0-9a-f]{32}", again.fingerprint)
    weighed = read(f"{path},weight=3,name=a", tokenizer(), **options)  # the weight changes no token
    assert weighed.cached
    assert weighed.sources[0].weight == 3.0


def test_a_cached_store_stays_when_the_data_set_is_gone(kept):
    path, options, fresh = kept
    directory = fresh.directory
    del fresh
    assert directory.exists()
    assert read(path, tokenizer(), **options).cached


def other_template(tokenizer):
    changed = PreTrainedTokenizerFast(tokenizer_object=tokenizer.backend_tokenizer, eos_token="<eos>")
    changed.chat_template = "{{ messages }}"
    return changed


def other_eos(tokenizer):
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer.backend_tokenizer, eos_token="<|im_end|>")


@pytest.mark.parametrize("changed", [
    {"max_length": 99},
    {"truncate": "keep"},
    {"chat_template": "chatml"},
    {"rename": {"prompt": "prompt"}},
    {"reads": ("weight", "margin")},
    {"format": "preference"},
    {"end_ids": [1]},
    {"given": ",name=b"},
    {"tokenizer": byte_level()},
    {"tokenizer": other_template(tokenizer())},
    {"tokenizer": other_eos(tokenizer())},
], ids=str)  # fmt: skip
def test_what_the_encoding_depends_on_is_a_miss(kept, monkeypatch, changed):
    path, options, fresh = kept
    changed = dict(changed)
    given, words = f"{path}{changed.pop('given', '')}", changed.pop("tokenizer", tokenizer())
    found = read(given, words, **{**options, **changed})
    assert not found.cached
    assert found.fingerprint != fresh.fingerprint
    monkeypatch.setattr(Encoder, "encode_all", refuse)
    assert read(given, words, **{**options, **changed}).cached
    assert read(path, tokenizer(), **options).cached


def test_another_bos_in_the_template_is_a_miss(tmp_path):
    path, found = lines(tmp_path, [SHAREGPT]), []
    for bos in ("<eos>", "<|im_start|>"):
        words = PreTrainedTokenizerFast(
            tokenizer_object=tokenizer().backend_tokenizer, eos_token="<eos>", bos_token=bos
        )
        words.chat_template = "{{ bos_token }}{% for m in messages %}{{ m.content }}<|im_end|>{% endfor %}"
        dataset = read(path, words, cache=tmp_path / "cache")
        found.append((dataset.cached, words.convert_ids_to_tokens(int(dataset.records[0].completions[0].ids[0]))))
    assert found == [(False, "<eos>"), (False, "<|im_start|>")]


def test_other_content_is_a_miss(kept):
    path, options, fresh = kept
    path.write_text(path.read_text().replace("the pen?", "the pan?"))
    found = read(path, tokenizer(), **options)
    assert not found.cached
    assert plainly(found) != plainly(fresh)


def test_a_damaged_cache_is_written_anew(kept):
    path, options, fresh = kept
    expected = plainly(fresh)
    (fresh.directory / "ids.bin").write_bytes(b"")
    again = read(path, tokenizer(), **options)
    assert not again.cached
    assert again.directory == fresh.directory
    assert plainly(again) == expected
    assert [file.name for file in options["cache"].iterdir()] == [again.fingerprint]


def test_a_refusal_leaves_nothing_in_the_cache(tmp_path):
    path = lines(tmp_path, [{**PAIR, "rejected": PAIR["chosen"]}])
    with pytest.raises(DataError, match="the only row was dropped"):
        read(path, tokenizer(), cache=tmp_path / "cache")
    assert list((tmp_path / "cache").iterdir()) == []


def test_an_entry_of_dataset_info_is_found_again_until_it_changes(tmp_path):
    row = {"q": "Where is", "instruction": "What is", "a": " it?", "b": " he?"}
    (tmp_path / "rows.json").write_text(json.dumps([row]))
    options = {"chat_template": "chatml", "cache": tmp_path / "cache"}

    def named(prompt: str):
        said = {
            "file_name": "rows.json",
            "ranking": True,
            "columns": {"prompt": prompt, "chosen": "a", "rejected": "b"},
        }
        (tmp_path / "dataset_info.json").write_text(json.dumps({"mine": said}))
        return read(f"{tmp_path / 'dataset_info.json'},entry=mine", tokenizer(), **options)

    assert [named(prompt).cached for prompt in ("q", "q", "instruction", "q")] == [False, True, False, True]
    (tmp_path / "rows.json").write_text(json.dumps([row, row]))
    assert not named("q").cached


@pytest.mark.parametrize("there", [True, False])
def test_data_of_the_hub_is_not_kept(tmp_path, monkeypatch, there):
    datasets = pytest.importorskip("datasets")
    monkeypatch.setattr(datasets, "load_dataset", lambda *args, **kwargs: iter([PAIR]))
    if there:
        (tmp_path / "cache").mkdir()
    for _ in range(2):
        dataset = read("org/set,revision=main", tokenizer(), cache=tmp_path / "cache")
        assert (dataset.cached, dataset.fingerprint, dataset.records[0].where) == (False, "", "org/set[0]")
    del dataset
    gc.collect()
    assert list((tmp_path / "cache").iterdir()) == []


def test_a_commit_of_the_hub_is_found_again(tmp_path, monkeypatch):
    datasets = pytest.importorskip("datasets")
    asked = []
    monkeypatch.setattr(datasets, "load_dataset", lambda *args, **kwargs: asked.append(kwargs) or iter([PAIR]))
    commit, other = "0123456789" * 4, "f" * 40
    found = [
        read(f"org/set,revision={revision}{more}", tokenizer(), cache=tmp_path / "cache").cached
        for revision, more in ((commit, ""), (commit, ""), (other, ""), (other, ",split=test"), (other, ""))
    ]
    assert found == [False, True, False, False, True]
    assert [kwargs["revision"] for kwargs in asked] == [commit, other, other]


def test_where_the_cache_is(monkeypatch, tmp_path):
    monkeypatch.setenv("SOFTQ_CACHE", str(tmp_path))
    assert cache_directory() == tmp_path
    monkeypatch.delenv("SOFTQ_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "x"))
    assert cache_directory() == tmp_path / "x" / "softq"
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert cache_directory() == tmp_path / ".cache" / "softq"


# Nothing is lost

TEXT = st.text("ab the<>\n", max_size=8)
BAD = st.sampled_from([
    "{]", "[]", {"prompt": "Q"}, {**PAIR, "chosen": None}, {**PAIR, "weight": -1}, {**LABEL, "weight": 1}, {},
])  # fmt: skip


def row(prompt: str, chosen: str, rejected: str, chat: bool) -> dict:
    if not chat:
        return {"prompt": prompt, "chosen": chosen, "rejected": rejected}
    return {"prompt": [user(prompt)], "chosen": [assistant(chosen)], "rejected": assistant(rejected)}


@settings(max_examples=tries(50), deadline=None)
@given(
    st.lists(st.one_of(st.tuples(TEXT, TEXT, TEXT), BAD), max_size=8),
    st.integers(10, 20),
    st.booleans(),
    st.sampled_from(["drop", "keep"]),
    st.integers(0, 8),
)
def test_nothing_is_lost(tmp_path_factory, texts, limit, chat, truncate, split):
    folder = tmp_path_factory.mktemp("read")
    good = row("Where", " is", " the", chat)  # so that something is left
    rows = [row(*text, chat) if isinstance(text, tuple) else text for text in texts]
    parts = [[good, *rows[:split]], [good, *rows[split:]]]
    files = [lines(folder, [*part, "{}"], f"{name}.jsonl") for name, part in zip("ab", parts, strict=True)]
    limit += 40 if chat else 0
    dataset = read(files, tokenizer(), max_length=limit, truncate=truncate, chat_template="chatml", reads=("weight",))
    completions = [completion for record in dataset.records for completion in record.completions]
    ledger = dataset.ledger
    assert ledger.rows == len(rows) + 4 == len(dataset.records) + sum(ledger.dropped.values())
    assert len(listed(dataset, DROPPED)) == sum(ledger.dropped.values())
    assert len(listed(dataset, MERGED)) == ledger.merged
    places = [(line["file"], line["row"]) for line in listed(dataset, DROPPED)]
    used = [(str(files[record.source]), int(record.where.rpartition(":")[2])) for record in dataset.records]
    every = [(str(file), n) for file, part in zip(files, parts, strict=True) for n in range(1, len(part) + 2)]
    assert sorted(places + used) == every
    assert ledger.tokens["scored"] == sum(int(c.action.sum()) for c in completions)
    assert ledger.tokens["scored"] + ledger.tokens["context"] == sum(len(c.ids) for c in completions)
    assert ledger.tokens["template_tail"] == (len(completions) if chat else 0)
    assert ledger.tokens["cut"] == 0 or not all(c.ended for c in completions)
    assert max(len(c.ids) for c in completions) <= limit
    assert ledger.read == sum(ledger.tokens.values())
    for name in ("rows", "used", "read"):
        assert getattr(ledger, name) == sum(getattr(tally, name) for tally in ledger.sources.values())
