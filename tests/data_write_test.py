"""softq.data.write: rows by hand, files that other readers read, and the way back to equal records."""

import csv
import gzip
import io
import json
import os
import re

import pyarrow as pa
import pytest
from depth import tries
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from pyarrow import parquet

from softq.data.example import Example
from softq.data.files import read_rows
from softq.data.formats import FORMATS, Reading, detect, parse_rows
from softq.data.rows import Row
from softq.data.write import Writer, row

FORMS = (
    ".jsonl",
    ".json",
    ".csv",
    ".jsonl.gz",
    ".json.gz",
    ".csv.gz",
    ".jsonl.zst",
    ".json.zst",
    ".csv.zst",
    ".parquet",
)
ODD = "a\u2028b\u2029\x85\x00\x1c\"quote\", 'q'\r\n\r\n\ttail\\ 😀é\ufeff "
SAID = [{"role": "user", "content": "Hi"}]
ANSWER = [{"role": "assistant", "content": ODD}]
CALL = {
    "role": "assistant",
    "content": None,
    "tool_calls": [{"function": {"name": "f", "arguments": {"b": 1, "a": 2}}}],
}
TOOL = {"type": "function", "function": {"name": "f", "parameters": {"type": "object", "properties": {"b": {}}}}}

EXAMPLES = {
    "pairs": [
        Example(
            "",
            SAID,
            (ANSWER, [CALL]),
            {"weight": (2.0,), "ref_logps": (-1.5, -2.0)},
            {"enable_thinking": False, "tools": [TOOL]},
            {"id": "é"},
        ),
        Example(
            "",
            SAID,
            (ANSWER, [*ANSWER, *SAID, *ANSWER]),
            {"weight": (0.5,), "ref_logps": (-1.0, -2.0)},
            {},
            {"id": "7"},
        ),
    ],
    "groups": [Example("", ODD, ("x", "\n y", ODD), {"reward": (1.0, -2.5, 0.0)}, {}, {})],
    "labels": [
        Example("", "p", (ODD,), {"label": (1.0,), "ref_logps": (-3.0,)}),
        Example("", "", ("y",), {"label": (0.0,), "ref_logps": (-4.0,)}),
    ],
    "rows": [Example("", SAID, ([*ANSWER, *SAID, *ANSWER],)), Example("", SAID, (ANSWER,))],
    "prompts": [Example("", ODD, ()), Example("", "q", (), {}, {}, {})],
    "steps": [Example("", "p", ("one", ODD), {"step_label": (1.0, 0.0)})],
}


def written(path, rows, **options) -> None:
    with Writer(path, **options) as writer:
        for one in rows:
            writer.write(one)


def plain(path) -> list[dict]:
    """The rows as other programs read them."""
    if path.suffix == ".parquet":
        return parquet.read_table(path).to_pylist()
    data = path.read_bytes()
    data = gzip.decompress(data) if path.suffix == ".gz" else data
    data = pa.input_stream(str(path), compression="zstd").read() if path.suffix == ".zst" else data
    if ".jsonl" in path.name:
        return [json.loads(line) for line in data.decode().splitlines()]
    if ".json" in path.name:
        return json.loads(data)
    header, *rows = csv.reader(io.StringIO(data.decode(), newline=""))
    return [dict(zip(header, cells, strict=True)) for cells in rows]


def read_back(path) -> list[Example]:
    rows = list(read_rows(path))
    assert all(isinstance(one, Row) for one in rows)
    _, parsed = parse_rows(iter(rows), Reading())
    return [example._replace(where="") for example in parsed if isinstance(example, Example)]


def refusal(path, rows, **options) -> str:
    before = sorted(path.parent.iterdir())
    with pytest.raises(ValueError) as error:
        written(path, rows, **options)
    assert sorted(path.parent.iterdir()) == before
    assert "\n" not in str(error.value)
    return str(error.value).removeprefix(f"{path}: ")


def test_rows_by_hand():
    pair, other = EXAMPLES["pairs"]
    assert row(pair, "pairs") == {
        "prompt": SAID,
        "chosen": ANSWER,
        "rejected": [CALL],
        "tools": [TOOL],
        "chat_template_kwargs": {"enable_thinking": False},
        "weight": 2.0,
        "ref_logps": [-1.5, -2.0],
        "id": "é",
    }
    assert list(row(other, "pairs")) == ["prompt", "chosen", "rejected", "weight", "ref_logps", "id"]
    assert row(EXAMPLES["groups"][0], "groups") == {
        "prompt": ODD,
        "completions": ["x", "\n y", ODD],
        "scores": [1.0, -2.5, 0.0],
    }
    label = {"prompt": "p", "completion": ODD, "label": True, "ref_logps": -3.0}
    assert row(EXAMPLES["labels"][0], "labels") == label
    assert row(EXAMPLES["labels"][0], "labels")["label"] is True
    assert row(EXAMPLES["prompts"][0], "prompts") == {"prompt": ODD}
    steps = row(EXAMPLES["steps"][0], "steps")
    assert steps == {"prompt": "p", "completions": ["one", ODD], "labels": [True, False]}
    assert steps["labels"][0] is True
    assert row(EXAMPLES["rows"][1], "rows") == {"prompt": SAID, "completion": ANSWER}


def test_rows_without_a_prompt_are_whole_texts():
    assert row(Example("", "", ("x",)), "rows") == {"text": "x"}
    assert row(Example("", [], (ANSWER,)), "rows") == {"messages": ANSWER}
    assert row(Example("", "", ("x",)), "rows", empty_prompt=True) == {"prompt": "", "completion": "x"}
    assert row(Example("", [], (ANSWER,)), "rows", empty_prompt=True) == {"messages": ANSWER}  # no row has a prompt []
    assert row(Example("", "", ("x",), {"label": (0.0,)}), "labels")["prompt"] == ""


@pytest.mark.parametrize(
    ("kind", "other", "expected"),
    [
        ("pairs", {"messages": 1, "source": 2}, {"messages": 1, "source": 2}),  # UltraFeedback has them
        ("pairs", {"prompt": 1, "other_prompt": 2}, {"other_other_prompt": 1, "other_prompt": 2}),
        ("labels", {"margin": 1.0, "messages": 2}, {"other_margin": 1.0, "messages": 2}),  # a column that must be read
        ("labels", {"chosen": 1, "rejected": 2}, {"other_chosen": 1, "other_rejected": 2}),  # it would be pairs
        ("labels", {"chosen": 1}, {"chosen": 1}),
        ("rows", {"label": 1}, {"other_label": 1}),
        ("rows", {"instruction": 1, "output": 2}, {"other_instruction": 1, "other_output": 2}),
        ("prompts", {"text": 1}, {"other_text": 1}),
        ("steps", {"scores": 1}, {"other_scores": 1}),
    ],
)
def test_no_other_field_is_overwritten_or_makes_another_format(kind, other, expected):
    example = EXAMPLES[kind][0]._replace(other=other)
    canonical = row(example._replace(other={}), kind)
    assert row(example, kind) == {**canonical, **expected}


NAMES = sorted(
    {name for format in FORMATS.values() for name in format.fields} | {"weight", "margin", "other_label", "id"}
)


@given(st.sampled_from(list(EXAMPLES)), st.lists(st.sampled_from(NAMES), unique=True, max_size=6))
def test_every_other_field_comes_back(kind, names):
    example = EXAMPLES[kind][0]._replace(other={name: f"value {i}" for i, name in enumerate(names)})
    one = row(example, kind)
    format = detect(one)
    assert format == detect(row(example._replace(other={}), kind))
    _, (back,) = parse_rows(iter([Row("", one)]), Reading(format))
    assert back._replace(other={}) == example._replace(other={})
    assert list(back.other.values()) == list(example.other.values())


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("kind", EXAMPLES)
def test_what_was_written_is_read_back(tmp_path, form, kind):
    examples = EXAMPLES[kind]
    rows = [row(example, kind) for example in examples]
    if ".csv" in form:  # one header for all rows
        rows, examples = rows[:1], examples[:1]
    written(tmp_path / f"a{form}", rows)
    assert read_back(tmp_path / f"a{form}") == examples
    assert os.listdir(tmp_path) == [f"a{form}"]


def test_templates_find_the_arguments_in_their_order(tmp_path):
    rows = [row(example, "pairs") for example in EXAMPLES["pairs"]]
    for form in (".jsonl", ".parquet"):
        written(tmp_path / f"a{form}", rows)
        (call,) = read_back(tmp_path / f"a{form}")[0].completions[1][0]["tool_calls"]
        assert list(call["function"]["arguments"]) == ["b", "a"]


@pytest.mark.parametrize("form", FORMS)
def test_other_programs_read_any_text(tmp_path, form):
    rows = [{"text": ODD, "n": ""}, {"text": "", "n": ODD * 2}]
    written(tmp_path / f"a{form}", rows)
    assert plain(tmp_path / f"a{form}") == rows


TEXT = st.text(st.characters(exclude_categories=["Cs"]), max_size=20)


@settings(max_examples=tries(60), suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(rows=st.lists(st.tuples(TEXT, TEXT), min_size=1, max_size=4), form=st.sampled_from(FORMS))
def test_any_text_comes_through(tmp_path, rows, form):
    path = tmp_path / f"a{form}"
    rows = [{"text": text, "note": note} for text, note in rows]
    written(path, rows, overwrite=True)
    assert plain(path) == rows
    assert [one.value for one in read_rows(path)] == rows


def test_csv_cells(tmp_path):
    written(tmp_path / "a.csv", [{"prompt": SAID, "label": True, "weight": 2.0, "n": None, "o": {"é": [1, None]}}])
    header, cells, end = (tmp_path / "a.csv").read_bytes().decode().split("\r\n")
    assert header == "prompt,label,weight,n,o"
    assert cells == '"[{""role"": ""user"", ""content"": ""Hi""}]",true,2.0,,"{""é"": [1, null]}"'
    assert end == ""


def test_the_same_rows_make_the_same_bytes(tmp_path):
    rows = [row(example, "pairs") for example in EXAMPLES["pairs"]]
    for form in (".jsonl", ".jsonl.gz", ".jsonl.zst", ".parquet"):
        for name in ("a", "b"):
            written(tmp_path / f"{name}{form}", rows)
        assert (tmp_path / f"a{form}").read_bytes() == (tmp_path / f"b{form}").read_bytes()
    lines = (tmp_path / "a.jsonl").read_bytes()
    assert lines.isascii() is False
    assert len(lines.decode().splitlines()) == lines.count(b"\n") == 2
    assert gzip.decompress((tmp_path / "a.jsonl.gz").read_bytes()) == lines


def test_parquet_holds_messages_as_objects(tmp_path):
    rows = [row(example, "pairs") for example in EXAMPLES["pairs"]]
    written(tmp_path / "a.PARQUET", rows)
    table = parquet.read_table(tmp_path / "a.PARQUET")
    assert pa.types.is_struct(table.schema.field("chosen").type.value_type)
    assert json.loads(table["tools"][0].as_py()) == [TOOL]
    assert table["tools"][1].as_py() is None
    assert parquet.ParquetFile(tmp_path / "a.PARQUET").metadata.row_group(0).column(0).compression == "ZSTD"


def test_parquet_in_many_batches(tmp_path):
    rows = [{"prompt": f"p{i}", "weight": i / 2, "id": i if i % 3 else None} for i in range(2500)]
    written(tmp_path / "a.parquet", rows)
    assert plain(tmp_path / "a.parquet") == rows
    assert parquet.ParquetFile(tmp_path / "a.parquet").metadata.num_row_groups == 3


FIRST = [{"x": 1, "y": "s", "prompt": SAID}] * 1000
DEEP = "would be changed by Parquet to"


@pytest.mark.parametrize(
    ("rows", "expected"),
    [
        ([*FIRST, FIRST[0], {"x": "1"}], "row 1002: field 'x' does not fit those before it, which are int64"),
        ([*FIRST, {"x": 1.5}], f"row 1001: field 'x' {DEEP} 1"),
        ([*FIRST, {"x": 1}, {"z": 1}], "row 1002: field 'z' is not among those of the first 1000 rows"),
        ([*FIRST, {"prompt": [{"role": "user", "content": "", "name": "n"}]}], f"row 1001: field 'prompt' {DEEP} .*"),
        ([{"y": "s"}, {"y": "t"}, {"y": [1]}], "row 3: field 'y' does not fit those before it, or Parquet at all"),
        ([{"x": 1}, {"x": 2**63}], "row 2: field 'x' does not fit those before it, or Parquet at all"),
        ([{"x": "\ud800"}], "row 1: field 'x' does not fit those before it, or Parquet at all"),
        ([{"x": {}}], "row 1: field 'x' is or holds an object without fields, as in every row, .*"),
        ([{"chat_template_kwargs": {"a": None, "b": 1}}], f"row 1: field 'chat_template_kwargs' {DEEP} .*"),
        ([{"chat_template_kwargs": {"a": 2, "b": 1}}, {"chat_template_kwargs": {"b": 1, "a": 2}}], f"row 2: .* {DEEP} .*"),
    ],
)  # fmt: skip
def test_parquet_refuses_what_it_would_change(tmp_path, rows, expected):
    assert re.fullmatch(f"{expected}; write .jsonl, which takes any row", refusal(tmp_path / "a.parquet", rows))


def test_csv_refuses_other_fields(tmp_path):
    rows = [{"a": "1", "b": "2"}, {"b": "4", "a": "3"}, {"a": "5", "c": "6", "d": "7"}]
    written(tmp_path / "a.csv", rows[:2])
    assert plain(tmp_path / "a.csv") == rows[:2]
    expected = "row 3 lacks b and adds c, d; CSV has one header for all rows; write .jsonl, which takes any row"
    assert refusal(tmp_path / "b.csv", rows) == expected


@pytest.mark.parametrize("form", [".jsonl", ".json.gz", ".csv"])
@pytest.mark.parametrize("value", [[float("nan")], {"a": float("inf")}, b"bytes", "half \ud800"])
def test_what_json_can_not_hold_is_named(tmp_path, form, value):
    said = refusal(tmp_path / f"a{form}", [{"a": "x", "b": "y"}, {"a": "z", "b": value}])
    assert said.startswith("row 2: field 'b' can not be written as JSON: ")
    assert said.endswith("; repair or remove it, or write .parquet")


def test_a_path_that_can_not_be_written_is_refused_at_once(tmp_path):
    (tmp_path / "a.jsonl").write_text("mine")
    (tmp_path / "d.jsonl").mkdir()
    cases = {
        "a.jsonl": "the file exists; name another, or --overwrite",
        "d.jsonl": "is a directory; name a file",
        "no/a.jsonl": f"there is no directory {tmp_path}/no; make it, or name another",
        "a.txt": "unknown file type; expected one of .jsonl, .jsonl.gz, .jsonl.zst, .json, .json.gz, .json.zst, .csv, .csv.gz, "
        ".csv.zst, .parquet",
        "a.parquet.gz": "unknown file type",
        "jsonl": "unknown file type",
    }
    for name, expected in cases.items():
        with pytest.raises((ValueError, OSError)) as error:
            Writer(tmp_path / name)
        assert str(error.value).startswith(f"{tmp_path / name}: {expected}")
    assert (tmp_path / "a.jsonl").read_text() == "mine"


@pytest.mark.parametrize("form", FORMS)
def test_the_whole_file_or_none_of_it(tmp_path, form, recwarn):
    path = tmp_path / f"a{form}"
    path.write_text("mine")

    def interrupted(after: int):
        for _ in range(after):
            yield {"a": "x"}
        assert path.read_text() == "mine"
        raise KeyboardInterrupt

    for after in (0, 1500):
        with pytest.raises(KeyboardInterrupt):
            written(path, interrupted(after), overwrite=True)
        assert os.listdir(tmp_path) == [path.name]
        assert path.read_text() == "mine"
    written(path, [{"a": "x"}], overwrite=True)
    assert plain(path) == [{"a": "x"}]
    assert not recwarn.list


def test_a_file_that_appears_meanwhile_is_kept(tmp_path):
    path = tmp_path / "a.jsonl"
    rows = ({"a": path.write_text("mine")} for _ in range(2))
    with pytest.raises((ValueError, OSError), match=r"a\.jsonl: the file exists"):
        written(path, rows)
    assert path.read_text() == "mine"
    assert os.listdir(tmp_path) == ["a.jsonl"]


@pytest.mark.parametrize("form", [".jsonl", ".json", ".csv", ".parquet"])
def test_no_rows_make_no_file(tmp_path, form):
    assert refusal(tmp_path / f"a{form}", []) == "there is no row to write"


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="needs a device that is always full")
@pytest.mark.parametrize("form", FORMS)
def test_a_full_disk_is_one_line(tmp_path, form):
    os.symlink("/dev/full", Writer(tmp_path / f"a{form}")._partial)
    with pytest.raises((ValueError, OSError), match=r"can not be written: .*No space left"):
        written(tmp_path / f"a{form}", ({"a": f"{n * 7919 % 3001}" * 50} for n in range(3000)))
    assert os.listdir(tmp_path) == []
