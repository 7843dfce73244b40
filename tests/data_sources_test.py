"""softq.data.sources, factory and stream: what a user may name, and which rows come of it."""

import datetime
import json

import pytest

from softq.data.example import Example
from softq.data.formats import Reading
from softq.data.rows import DataError, Dropped, Row
from softq.data.sources import DataSource, opened, rows_of, sources
from softq.data.stream import stream

PAIR = {"prompt": "Q:", "chosen": " yes", "rejected": " no"}
LABEL = {"prompt": "Q:", "completion": " yes", "label": True}


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name in ("a.jsonl", "b.jsonl.gz", "c.json", "x/a.jsonl", "x/y/a.jsonl"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(json.dumps(PAIR))
    return tmp_path


def refusal(given) -> str:
    with pytest.raises(ValueError) as error:
        sources(given)
    said = str(error.value)
    assert "\n" not in said
    assert isinstance(error.value, DataError) is not said.startswith(
        ("data ", "no data ")
    )  # a file's fault, or the user's
    return said


# What is named


@pytest.mark.parametrize(("given", "source"), [
    ("a.jsonl", DataSource("a.jsonl", "a")),
    ("b.jsonl.gz", DataSource("b.jsonl.gz", "b")),
    ("a.jsonl,name=N,weight=0.5", DataSource("a.jsonl", "N", 0.5)),
    ("org/s,weight=2,format=stepwise,split=S", DataSource("org/s", "s", 2.0, "stepwise", "S")),
    ("org/set,split=test[:10],config=en,revision=main",
     DataSource("org/set", "set", split="test[:10]", config="en", revision="main")),
    ("org/set.v1", DataSource("org/set.v1", "set.v1")),
    ({"path": "a.jsonl"}, DataSource("a.jsonl", "a")),
    ({"path": "a.jsonl", "name": "N", "weight": "3", "format": "hh"}, DataSource("a.jsonl", "N", 3.0, "hh")),
    ({"path": "org/set", "name": None, "split": "test"}, DataSource("org/set", "set", split="test")),
])  # fmt: skip
def test_one_source(given, source):
    assert sources(given) == sources([given]) == (source,)
    assert source.hub is source.path.startswith("org/")


def test_a_path_object_and_a_name_with_commas(folder):
    odd = folder / "a, b,c.jsonl"
    odd.write_text("{}")
    assert sources(odd) == (DataSource(str(odd), "a, b,c"),)
    assert [source.name for source in sources([odd, f"{folder / 'a.jsonl'},name=odd"])] == ["a, b,c", "odd"]


def test_a_directory_is_no_data_set_of_the_hub(folder):
    assert not DataSource("x/y").hub
    assert refusal("x/y").startswith("x/y: is a directory; name a file in it")


@pytest.mark.parametrize(("given", "names"), [
    (["a.jsonl", "c.json"], ["a", "c"]),
    (["a.jsonl", "x/a.jsonl", "x/y/a.jsonl", "c.json"], ["a.jsonl", "x/a.jsonl", "x/y/a.jsonl", "c"]),
    (["a.jsonl,name=N", "x/a.jsonl,name=N"], ["a.jsonl", "x/a.jsonl"]),
    (["a.jsonl", "a.jsonl"], ["a.jsonl (1)", "a.jsonl (2)"]),
    (["o/s,split=test", "o/s", "p/s,config=en"], ["o/s:test", "o/s", "p/s:en"]),
    (["o/s,revision=1", "o/s,revision=2"], ["o/s:1", "o/s:2"]),
])  # fmt: skip
def test_names_differ(given, names):
    assert [source.name for source in sources(given)] == names


@pytest.mark.parametrize(("given", "message"), [
    ([], "no data file was given; name one"),
    ("a.jsonl,weight=x", "data a.jsonl: weight is x; expected a number above 0"),
    ("a.jsonl,weight=0", "data a.jsonl: weight is 0; expected a number above 0"),
    ("a.jsonl,weight=nan", "data a.jsonl: weight is nan; expected a number above 0"),
    ({"path": "a.jsonl", "weight": None}, "data a.jsonl: weight is None; expected a number above 0"),
    ({"path": "a.jsonl", "wieght": 2, "z": 1},
     "data a.jsonl: option 'wieght' is unknown; expected name, weight, format, split, config, revision, entry"),
    ({"name": "a"}, "data {'name': 'a'}: has no path; expected {path: FILE, name: …, weight: …}"),
    ({"path": 3}, "data {'path': 3}: has no path; expected {path: FILE, name: …, weight: …}"),
    (["a.jsonl", "zzz.csv"], "zzz.csv: no such file; check the name"),
    ("a.jsonl,wieght=2",
     "data a.jsonl: option 'wieght' is unknown; expected name, weight, format, split, config, revision, entry"),
])  # fmt: skip
def test_what_is_refused(given, message):
    assert refusal(given) == message


def test_every_file_is_there_before_any_is_read(monkeypatch):
    monkeypatch.setattr("softq.data.files.read_rows", lambda path: pytest.fail("read"))
    assert refusal(["a.jsonl", "x/b.jsonl", "c.json"]).startswith("x/b.jsonl: no such file")


# dataset_info.json


def info(folder, **entries) -> str:
    (folder / "dataset_info.json").write_text(json.dumps(entries))
    return "dataset_info.json"


def entry(folder, rows, **said):
    """The rows of an entry, and its records."""
    (folder / "rows.json").write_text(json.dumps(rows))
    (source,) = sources(f"{info(folder, mine={'file_name': 'rows.json', **said})},entry=mine")
    assert source.name == "mine"
    assert [row.where for row in rows_of(source)] == [f"rows.json[{n}]" for n in range(len(rows))]
    found = stream([source], Reading())
    return found.formats[0], [item.example for item in found.items]


def user(text):
    return {"role": "user", "content": text}


def assistant(text):
    return {"role": "assistant", "content": text}


def test_an_alpaca_ranking(folder):
    columns = {"prompt": "question", "query": "more", "chosen": "good", "rejected": "bad"}
    row = {
        "question": "Q",
        "more": "m",
        "good": "yes",
        "bad": "no",
        "system": "not named",
        "input": "i",
        "chosen": "c",
        "id": 1,
    }
    assert entry(folder, [row], ranking=True, columns=columns) == (
        "alpaca", [Example("rows.json[0]", [user("Q\nm")], ([assistant("yes")], [assistant("no")]), other={"id": 1})]
    )  # fmt: skip
    (source,) = sources("dataset_info.json,entry=mine")
    assert next(rows_of(source)).value == {
        "instruction": "Q",
        "input": "m",
        "chosen": "yes",
        "rejected": "no",
        "id": 1,
    }


def test_an_alpaca_kto(folder):
    columns = {"prompt": "instruction", "response": "answer", "kto_tag": "good", "system": "s", "history": "h"}
    row = {"instruction": "Q", "answer": "yes", "good": False, "s": "S", "h": [["a", "b"]]}
    system = {"role": "system", "content": "S"}
    assert entry(folder, [row], columns=columns) == (
        "alpaca-kto",
        [Example("rows.json[0]", [system, user("a"), assistant("b"), user("Q")], ([assistant("yes")],), {"label": (0.0,)})],
    )  # fmt: skip


def test_an_entry_that_names_no_columns(folder):
    row = {"instruction": "Q", "input": "i", "output": "yes"}
    assert entry(folder, [row]) == ("alpaca-sft", [Example("rows.json[0]", [user("Q\ni")], ([assistant("yes")],))])


TAGS = {"role_tag": "role", "content_tag": "content", "user_tag": "U", "assistant_tag": "A", "system_tag": "S"}


def test_a_sharegpt_ranking_with_tags_of_its_own(folder):
    turn = lambda role, text: {"role": role, "content": text}  # noqa: E731
    row = {
        "talk": [turn("S", "s"), turn("U", "Q")],
        "chosen": turn("A", "yes"),
        "rejected": turn("A", "no"),
        "messages": [],
    }
    said = {"formatting": "sharegpt", "ranking": True, "tags": TAGS}
    said["columns"] = {"messages": "talk", "chosen": "chosen", "rejected": "rejected"}
    system = {"role": "system", "content": "s"}
    assert entry(folder, [row], **said) == (
        "sharegpt", [Example("rows.json[0]", [system, user("Q")], ([assistant("yes")], [assistant("no")]))]
    )  # fmt: skip


def test_a_sharegpt_kto_and_tools(folder):
    row = {
        "conversations": [{"from": "human", "value": "Q"}, {"from": "gpt", "value": "yes"}],
        "tag": True,
        "t": '[{"name": "T"}]',
    }
    columns = {"messages": "conversations", "kto_tag": "tag", "tools": "t"}
    assert entry(folder, [row], formatting="sharegpt", columns=columns) == (
        "sharegpt-kto",
        [Example("rows.json[0]", [user("Q")], ([assistant("yes")],), {"label": (1.0,)}, {"tools": [{"name": "T"}]})],
    )


def test_a_sharegpt_demonstration(folder):
    row = {"text": "not this", "messages": [{"role": "U", "content": "Q"}, {"role": "A", "content": "yes"}]}
    said = {"formatting": "sharegpt", "columns": {"messages": "messages"}, "tags": TAGS}
    assert entry(folder, [row], **said) == (
        "language-modeling", [Example("rows.json[0]", [user("Q")], ([assistant("yes")],))]
    )  # fmt: skip


def test_bad_rows_of_an_entry_keep_their_names(folder):
    rows = [{"instruction": "Q", "chosen": "a", "rejected": "b"}, {"instruction": "Q", "chosen": 3, "rejected": "b"}]
    columns = {"prompt": "instruction", "chosen": "chosen", "rejected": "rejected"}
    _, (good, bad) = entry(folder, rows, ranking=True, columns=columns)
    assert isinstance(good, Example)
    assert bad[:4] == ("rows.json[1]", "bad_type", "field 'chosen' is a number; expected a string", "chosen")
    odd = {"conversations": "odd", "chosen": {"from": 3}, "rejected": ["gpt"]}
    _, (bad,) = entry(folder, [odd], formatting="sharegpt", ranking=True)
    assert bad[1:3] == ("bad_type", "field 'conversations' is a string; expected a list of messages")


def test_an_entry_of_the_hub(folder):
    said = {"hf_hub_url": "org/set", "ms_hub_url": "other/set", "split": "test", "subset": "en", "ranking": True}
    (source,) = sources(f"{info(folder, mine=said)},entry=mine,weight=2")
    there, _ = opened(source)
    assert there == DataSource("org/set", "mine", 2.0, "alpaca", "test", "en", None, "mine")
    assert there.hub
    assert opened(source._replace(format="openrlhf"))[0].format == "openrlhf"


FILE = {"file_name": "a.jsonl"}


@pytest.mark.parametrize(("content", "name", "message"), [
    ({"first": FILE, "second": FILE}, "frist", ": no entry 'frist'; did you mean dataset_info.json,entry=first?"),
    ({"first": FILE, "second": FILE}, "z",
     ": no entry 'z'; expected dataset_info.json,entry=NAME with one of first, second"),
    ({"first": FILE, "second": FILE}, "",
     ": no entry is named; expected dataset_info.json,entry=NAME with one of first, second"),
    ({"e": 3}, "e", ": entry 'e' is a number; expected an object"),
    ([], "e", ": holds no object; expected data sets by name"),
    ({"e": {}}, "e", ", entry e: names no file; expected file_name or hf_hub_url"),
    ({"e": {**FILE, "formatting": "chatml"}}, "e",
     ", entry e: formatting is 'chatml'; expected alpaca or sharegpt"),
    ({"e": {**FILE, "num_samples": 3}}, "e",
     ", entry e: 'num_samples' is not read; expected only columns, file_name, formatting, hf_hub_url, ranking, split, subset, "
     "tags"),
    ({"e": {**FILE, "columns": {"images": "i"}}}, "e",
     ", entry e: column 'images' is not read; expected only prompt, query, response, history, system, tools, chosen, "
     "rejected, kto_tag"),
    ({"e": {**FILE, "columns": {"prompt": "i"}, "formatting": "sharegpt"}}, "e",
     ", entry e: column 'prompt' is not read; expected only messages, system, tools, chosen, rejected, kto_tag"),
    ({"e": {**FILE, "columns": ["prompt"]}}, "e", ", entry e: columns and tags are objects; expected names by name"),
])  # fmt: skip
def test_bad_entries(folder, content, name, message):
    (folder / "dataset_info.json").write_text(json.dumps(content))
    assert refusal("dataset_info.json" + (f",entry={name}" if name else "")) == f"dataset_info.json{message}"


def test_an_entry_whose_file_is_missing(folder):
    said = refusal(f"{info(folder, mine={'file_name': 'zzz.csv'})},entry=mine")
    assert said == "zzz.csv: no such file; check the name"


def test_no_dataset_info_and_a_broken_one(folder):
    assert refusal("x/dataset_info.json,entry=a") == "x/dataset_info.json: can not be read: No such file or directory"
    (folder / "dataset_info.json").write_text("{")
    assert refusal("dataset_info.json,entry=a").startswith("dataset_info.json: malformed JSON (")


# The hub


@pytest.fixture
def hub(monkeypatch):
    """A stand-in for datasets.load_dataset: what it was asked, and what it gives."""
    datasets = pytest.importorskip("datasets")
    asked, given = [], []

    def load_dataset(*args, **kwargs):
        asked.append((args, kwargs))
        if given and isinstance(given[0], Exception):
            raise given[0]
        return iter(given)

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    return asked, given


def test_a_data_set_of_the_hub(hub):
    asked, given = hub
    call = {"role": "assistant", "content": None, "tool_calls": [{"name": "T", "x": None}], "name": None}
    given += [
        {
            "prompt": "Q:",
            "chosen": " a",
            "rejected": " b",
            "weight": None,
            "meta": {"x": None, "y": 1},
            "day": datetime.date(2026, 1, 2),
        },
        {"chosen": [call, {"role": "tool", "content": "c", "tool_calls": None}]},
        "no row",
    ]
    (source,) = sources("org/set,split=test,config=en,revision=7")
    assert asked == []
    first, second, third = rows_of(source)
    assert asked == [(("org/set", "en"), {"split": "test", "revision": "7", "streaming": True})]
    assert first == Row(
        "org/set[0]", {"prompt": "Q:", "chosen": " a", "rejected": " b", "meta": {"y": 1}, "day": "2026-01-02"}
    )
    call = {"role": "assistant", "content": None, "tool_calls": [{"name": "T"}]}
    assert second == Row("org/set[1]", {"chosen": [call, {"role": "tool", "content": "c"}]})
    assert third == Dropped(
        "org/set[2]", "bad_type", "the row is a string; expected an object with named fields", "", "no row"
    )


def test_rows_of_the_hub_are_streamed(monkeypatch):
    datasets = pytest.importorskip("datasets")

    def endless(*args, **kwargs):
        while True:
            yield dict(PAIR)

    monkeypatch.setattr(datasets, "load_dataset", endless)
    found = stream(sources("org/set"), Reading())
    assert found.formats == ("preference",)
    assert [next(found.items).example.where for _ in range(3)] == ["org/set[0]", "org/set[1]", "org/set[2]"]


@pytest.mark.parametrize("error", [
    OSError("Couldn't reach\nthe Hub"), ValueError("Couldn't reach the Hub"), ConnectionError("Couldn't reach the Hub")
])  # fmt: skip
def test_what_the_hub_does_not_give(hub, error):
    hub[1].append(error)
    with pytest.raises(DataError) as said:
        list(rows_of(DataSource("org/set", "set")))
    assert str(said.value) == "org/set: no such file, and the hub does not give it (Couldn't reach the Hub)"


def test_a_hub_that_stops(monkeypatch):
    datasets = pytest.importorskip("datasets")

    def breaks(*args, **kwargs):
        yield from [PAIR, PAIR]
        raise OSError("timed out")

    monkeypatch.setattr(datasets, "load_dataset", breaks)
    with pytest.raises(DataError, match=r"^org/set: the hub stopped after 2 rows \(timed out\)$"):
        list(rows_of(DataSource("org/set", "set")))


def test_an_empty_split(hub):
    with pytest.raises(DataError, match=r"^org/set: split 'train' is empty; expected at least one row$"):
        stream([DataSource("org/set", "set")], Reading())


def test_without_the_package(monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "datasets", None)
    with pytest.raises(DataError, match=r"^org/set: .* the package datasets, which is missing; pip install datasets$"):
        list(rows_of(DataSource("org/set", "set")))


def test_datasets_itself_reads_a_local_directory(folder, monkeypatch):
    """What the hub gives is what `datasets` streams; here it does so from a directory of Parquet."""
    datasets = pytest.importorskip("datasets")
    rows = [
        {
            "prompt": [user("Q")],
            "chosen": [{**assistant("yes"), "name": "A"}],
            "rejected": [assistant("no")],
            "weight": 2.0,
        },
        {"prompt": [user("Q")], "chosen": [assistant("so")], "rejected": [assistant("no")], "weight": None},
    ]
    (folder / "set").mkdir()
    datasets.Dataset.from_list(rows).to_parquet(str(folder / "set" / "train.parquet"))
    monkeypatch.setattr(DataSource, "hub", property(lambda source: True))
    first, second = rows_of(DataSource("./set", "set"))
    assert first == Row("./set[0]", rows[0])
    assert second == Row("./set[1]", {name: cell for name, cell in rows[1].items() if name != "weight"})


# Several sources


def examples(given, **reading):
    found = stream(sources(given), Reading(**reading))
    return found.kind, found.formats, [(item.source, item.example.where) for item in found.items]


def test_several_formats_of_one_kind(folder):
    (folder / "i.jsonl").write_text(json.dumps({"chosen": "a b", "rejected": "a c"}) + "\nbroken")
    assert examples(["a.jsonl", "i.jsonl"]) == (
        "pairs", ("preference", "implicit"), [(0, "a.jsonl:1"), (1, "i.jsonl:1"), (1, "i.jsonl:2")]
    )  # fmt: skip
    assert examples(["i.jsonl,format=implicit", "a.jsonl"], format="preference")[1] == ("implicit", "preference")


def test_sources_of_two_kinds(folder):
    (folder / "l.jsonl").write_text(json.dumps(LABEL))
    with pytest.raises(DataError) as error:
        stream(sources(["a.jsonl", "l.jsonl"]), Reading())
    assert str(error.value) == (
        "l.jsonl: holds labels (unpaired), but a.jsonl holds pairs (preference); give data of one kind"
    )


def test_sources_bring_the_same_columns(folder):
    (folder / "w.jsonl").write_text(json.dumps({**PAIR, "weight": 1}))
    for given, message in (
        (["a.jsonl", "w.jsonl"], "w.jsonl:1: this source brings column 'weight', unlike the first; give it in all"),
        (["w.jsonl", "a.jsonl"], "a.jsonl:1: this source lacks column 'weight', unlike the first; give it in all"),
    ):
        with pytest.raises(DataError) as error:
            examples(given)
        assert str(error.value) == message
