"""softq.data.files: the same rows from every kind of file, true places, and a name for all that can be wrong."""

import csv
import datetime
import decimal
import gzip
import io
import json
import os
import re
import tracemalloc
from contextlib import suppress

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from depth import tries
from hypothesis import given, settings
from hypothesis import strategies as st

from softq.data import json_rows
from softq.data.files import EXTENSIONS, read_rows
from softq.data.rows import DataError, Dropped, Row, excerpt

EXPECTED = ".jsonl, .ndjson, .json, .csv, .tsv, .parquet, each also with .gz or .zst"
MESSAGES = [{"role": "user", "content": "a\n\"b\", 'c' é😀"}, {"role": "assistant", "content": ""}]
ROWS = [
    {"prompt": "Why?", "chosen": "one, two\tthree\nfour", "messages": MESSAGES, "label": True, "weight": 0.5},
    {"prompt": "", "chosen": '"é" 😀 \x00', "messages": MESSAGES[:1], "label": False, "weight": 2.0},
    {"prompt": "[1, 2]", "chosen": "{not JSON", "messages": [], "label": True},
]


def gz(data: bytes, level: int = 9) -> bytes:
    return gzip.compress(data, level, mtime=0)


def zstd(data: bytes) -> bytes:
    sink = pa.BufferOutputStream()
    with pa.CompressedOutputStream(sink, "zstd") as stream:
        stream.write(data)
    return sink.getvalue().to_pybytes()


def table(rows: list, delimiter: str) -> bytes:
    text = io.StringIO()
    writer = csv.DictWriter(text, list(rows[0]), delimiter=delimiter)
    writer.writeheader()
    for row in rows:
        writer.writerow({k: json.dumps(v) if isinstance(v, list | bool) else v for k, v in row.items()})
    return text.getvalue().encode()


def parquet(rows: list | pa.Table, **options) -> bytes:
    file = io.BytesIO()
    pq.write_table(rows if isinstance(rows, pa.Table) else pa.Table.from_pylist(rows), file, **options)
    return file.getvalue()


def label(value: object) -> str:
    """A short name of a parameter, the same in every process."""
    return repr(value)[:30]


def lines(rows: list) -> bytes:
    return "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows).encode()


WRITERS = {
    ".jsonl": lines,
    ".ndjson": lambda rows: lines(rows).rstrip(),
    ".json": lambda rows: json.dumps(rows, indent=1).encode(),
    ".csv": lambda rows: table(rows, ","),
    ".tsv": lambda rows: table(rows, "\t"),
    ".parquet": parquet,
}
PACKERS = {"": lambda data: data, ".gz": gz, ".zst": zstd}


def found(folder, name: str, content: str | bytes) -> list:
    """The rows and the drops of a file, with places relative to the folder."""
    path = folder / name
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    return [row._replace(where=row.where.removeprefix(f"{folder}/")) for row in read_rows(path)]


def rows(folder, name: str, content: str | bytes) -> list[tuple]:
    read = found(folder, name, content)
    assert all(isinstance(row, Row) for row in read), read
    return [tuple(row) for row in read]


def refusal(folder, name: str, content: str | bytes) -> str:
    with pytest.raises(DataError) as error:
        found(folder, name, content)
    assert "\n" not in str(error.value)
    return str(error.value).removeprefix(f"{folder}/")


class TestRows:
    @pytest.mark.parametrize("name", ["a.jsonl", "a.json", "a.ndjson", "A.JSONL"])
    def test_json_lines_count_blank_lines(self, tmp_path, name):
        read = rows(tmp_path, name, '\n{"a": 1}\r\n   \n\n{"a": "\u2028\x85"}')
        assert read == [(f"{name}:2", {"a": 1}), (f"{name}:5", {"a": "\u2028\x85"})]

    @pytest.mark.parametrize("name", ["a.json", "a.jsonl"])
    def test_arrays_count_elements_from_0(self, tmp_path, name):
        read = rows(tmp_path, name, '\n [{"a": [1, "]"]},\n\n {"b": {}} ]\n')
        assert read == [(f"{name}[0]", {"a": [1, "]"]}), (f"{name}[1]", {"b": {}})]

    def test_csv_counts_the_line_on_which_a_row_starts(self, tmp_path):
        read = rows(tmp_path, "a.csv", 'a,b\r\n1,"x\ny"\r\n\r\n2,z')
        assert read == [("a.csv:2", {"a": "1", "b": "x\ny"}), ("a.csv:5", {"a": "2", "b": "z"})]

    def test_parquet_counts_rows_through_all_batches(self, tmp_path):
        read = rows(tmp_path, "a.parquet", parquet([{"a": i} for i in range(3000)], row_group_size=1700))
        assert read == [(f"a.parquet[{i}]", {"a": i}) for i in range(3000)]

    @pytest.mark.parametrize("packed", PACKERS)
    @pytest.mark.parametrize("ending", WRITERS)
    def test_every_kind_of_file_holds_the_same_rows(self, tmp_path, ending, packed):
        assert ending + packed in EXTENSIONS
        read = rows(tmp_path, f"a{ending}{packed}", PACKERS[packed](WRITERS[ending](ROWS)))
        assert [value for _, value in read] == ROWS

    @pytest.mark.parametrize("content", ['{"a": 1}', '{"a":\n 1\n}\n', '\n\n{\n "a": 1\n}'])
    def test_one_object_may_take_the_whole_file(self, tmp_path, content):
        assert [value for _, value in rows(tmp_path, "a.json", content)] == [{"a": 1}]

    @pytest.mark.parametrize(
        ("name", "text"), [("a.jsonl", '{"a": "é"}'), ("a.json", '[{"a": "é"}]'), ("a.csv", "a\né")]
    )
    def test_a_byte_order_mark_is_tolerated(self, tmp_path, name, text):
        assert rows(tmp_path, name, text.encode("utf-8-sig"))[0][1] == {"a": "é"}

    def test_a_whole_surrogate_pair_is_a_character_and_so_is_nul(self, tmp_path):
        assert rows(tmp_path, "a.jsonl", '{"a": "\\ud83d\\ude00\\u0000"}')[0][1] == {"a": "😀\0"}

    def test_the_file_is_called_as_the_user_called_it(self, tmp_path, monkeypatch):
        monkeypatch.chdir(tmp_path)
        (tmp_path / "a.jsonl").write_text("{}")
        assert next(read_rows("./a.jsonl")).where == "./a.jsonl:1"

    def test_members_of_one_gzip_file_follow_each_other(self, tmp_path):
        packed = gz(b'{"a": 1}\n{"a"') + gz(b": 2}\n")
        assert [value["a"] for _, value in rows(tmp_path, "a.jsonl.gz", packed)] == [1, 2]


class TestCells:
    def test_are_typed_by_the_name_of_their_column(self, tmp_path):
        content = (
            "prompt,chosen,weight,score,label,kto_tag,scores,tools,other\n"
            '"[{""role"": ""user""}]","{""from"": ""gpt""}", 1e1 ,-.5,TRUE,0,"[1, 2.5]",[],true\n'
            "[1],{},one,1_0,yes,False,1 2,{,\n"
            ',"[{""a"": 1}]",,,,,,,\n'
        )
        assert [value for _, value in rows(tmp_path, "a.csv", content)] == [
            {"prompt": [{"role": "user"}], "chosen": {"from": "gpt"}, "weight": 10.0, "score": -0.5, "label": True,
             "kto_tag": False, "scores": [1, 2.5], "tools": [], "other": "true"},
            {"prompt": "[1]", "chosen": "{}", "weight": "one", "score": "1_0", "label": "yes", "kto_tag": False,
             "scores": "1 2", "tools": "{", "other": ""},
            {"prompt": "", "chosen": '[{"a": 1}]', "other": ""},
        ]  # fmt: skip

    def test_one_column_needs_no_separator(self, tmp_path):
        assert [value for _, value in rows(tmp_path, "a.csv", "prompt\nx\n")] == [{"prompt": "x"}]

    def test_a_cell_may_be_long(self, tmp_path):
        assert rows(tmp_path, "a.csv", "a\n" + "x" * 200_000)[0][1] == {"a": "x" * 200_000}

    def test_nulls_that_a_schema_adds_are_absent(self, tmp_path):
        call = {"function": {"name": "f", "arguments": {"x": 1, "content": None}}}
        content = parquet([
            {"prompt": "a", "chosen": None, "messages": [{"role": "assistant", "content": None, "tool_calls": [call]}]},
            {"messages": [{"role": None, "content": None, "from": "gpt", "value": ["a", None]}]},
        ])  # fmt: skip
        arguments = {"function": {"name": "f", "arguments": {"x": 1}}}
        assert [value for _, value in rows(tmp_path, "a.parquet", content)] == [
            {"prompt": "a", "messages": [{"role": "assistant", "content": None, "tool_calls": [arguments]}]},
            {"messages": [{"from": "gpt", "value": ["a", None]}]},
        ]

    def test_dates_and_decimals_are_text_and_maps_are_objects(self, tmp_path):
        columns = {
            "day": pa.array([datetime.date(2024, 1, 2)]),
            "price": pa.array([decimal.Decimal("1.50")]),
            "half": pa.array([0.5], pa.float16()),
            "kwargs": pa.array([[("a", 1)]], pa.map_(pa.string(), pa.int64())),
        }
        read = rows(tmp_path, "a.parquet", parquet(pa.table(columns)))
        assert read[0][1] == {"day": "2024-01-02", "price": "1.50", "half": 0.5, "kwargs": {"a": 1}}


TEXT = st.text(st.characters(codec="utf-8"), max_size=5)
SCALAR = st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | TEXT
VALUE = st.recursive(
    SCALAR, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(TEXT, inner, max_size=3), max_leaves=9
)
RECORD = st.dictionaries(TEXT, VALUE, max_size=4).map(lambda row: {**row, "id": "x"})
TYPED = st.fixed_dictionaries({
    "a": TEXT, "b": st.integers(-(2**63), 2**63 - 1), "c": st.floats(allow_nan=False), "d": st.lists(TEXT),
    "e": st.booleans(), "f": st.lists(st.fixed_dictionaries({"role": TEXT, "content": TEXT | st.none()})),
})  # fmt: skip


class TestLaws:
    @settings(max_examples=tries(60), deadline=None)
    @given(st.lists(RECORD, min_size=1, max_size=5), st.booleans(), st.sampled_from([None, 1]), st.integers(1, 40))
    def test_json_comes_back_from_both_layouts_however_it_is_cut(self, tmp_path_factory, values, ascii, indent, chunk):
        folder = tmp_path_factory.mktemp("rows")
        content = "\n".join(json.dumps(value, ensure_ascii=ascii) for value in values)
        assert [value for _, value in rows(folder, "a.jsonl", content)] == values
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(json_rows, "CHUNK", chunk)
            content = json.dumps(values, ensure_ascii=ascii, indent=indent)
            assert [value for _, value in rows(folder, "a.json", content)] == values

    @settings(max_examples=tries(40), deadline=None)
    @given(st.lists(TYPED, min_size=1, max_size=5))
    def test_parquet_comes_back(self, tmp_path_factory, values):
        read = rows(tmp_path_factory.mktemp("rows"), "a.parquet", parquet(values))
        assert [value for _, value in read] == values

    @settings(max_examples=tries(200), deadline=None)
    @given(st.sampled_from(["a.json", "a.jsonl", "a.csv"]), st.data())
    def test_damage_is_refused_or_dropped(self, tmp_path_factory, name, data):
        content = bytearray(WRITERS[name.removeprefix("a")](ROWS))
        for _ in range(data.draw(st.integers(1, 4))):
            at = data.draw(st.integers(0, len(content)))
            new = data.draw(st.lists(st.sampled_from(b'{}[]",:\\\n\r\0\xff\xed 1'), max_size=3))
            content[at : at + data.draw(st.integers(0, 3))] = bytes(new)
        with suppress(DataError):
            read = found(tmp_path_factory.mktemp("rows"), name, bytes(content))
            assert all(isinstance(row, Row | Dropped) for row in read)

    @pytest.mark.parametrize("ending", WRITERS)
    @pytest.mark.parametrize("packed", [".gz", ".zst"])
    def test_a_packed_file_that_is_cut_is_never_read_as_whole(self, tmp_path, ending, packed):
        content = PACKERS[packed](WRITERS[ending](ROWS * 9))
        for length in range(0, len(content), 7):
            assert refusal(tmp_path, f"a{ending}{packed}", content[:length])

    def test_an_array_or_a_parquet_file_that_is_cut_is_never_read_as_whole(self, tmp_path):
        for ending in (".json", ".parquet"):
            content = WRITERS[ending](ROWS)
            for length in range(0, len(content), 13):
                assert refusal(tmp_path, f"a{ending}", content[:length])


class TestStreaming:
    @pytest.mark.parametrize("name", ["a.jsonl", "a.jsonl.gz", "a.csv", "a.json"])
    def test_memory_does_not_grow_with_the_rows(self, tmp_path, monkeypatch, name):
        monkeypatch.setattr(json_rows, "CHUNK", 1 << 16)
        _, ending, *packed = name.split(".")
        content = WRITERS[f".{ending}"]([{"prompt": f"{i} {'x' * 100}"} for i in range(50_000)])
        (tmp_path / name).write_bytes(gz(content, 1) if packed else content)
        assert len(content) > 5 << 20
        del content
        tracemalloc.start()
        assert sum(1 for _ in read_rows(tmp_path / name)) == 50_000
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        assert peak < 2 << 20

    def test_rows_come_before_the_faults_behind_them(self, tmp_path):
        path = tmp_path / "a.jsonl.gz"
        path.write_bytes(gz(lines([{"a": os.urandom(99).hex()} for _ in range(9999)]))[:-99])
        read = read_rows(path)
        assert isinstance(next(read), Row)
        with pytest.raises(DataError, match="damaged gzip file"):
            list(read)

    def test_an_element_much_larger_than_a_chunk_is_read_in_few_attempts(self, tmp_path, monkeypatch):
        attempts = []
        parse = json_rows._parse
        monkeypatch.setattr(json_rows, "CHUNK", 1000)
        monkeypatch.setattr(json_rows, "_parse", lambda text, at: attempts.append(at) or parse(text, at))
        values = [{"a": "x" * 1_000_000}, {"b": "y" * 100}]
        assert [value for _, value in rows(tmp_path, "a.json", json.dumps(values))] == values
        assert len(attempts) < 20


DEEP = '{"a": ' + "[" * 5000 + "]" * 5000 + "}"
DEEP_OBJECTS = '{"a": ' * 5000 + "1" + "}" * 5000
LONG_NUMBER = '{"a": ' + "1" * 5000 + "}"
TOO_DEEP = ("too_deep", "nested deeper than 100 levels; flatten the row", "")


@pytest.mark.parametrize(("row", "drop"), [
    ("3", ("bad_type", "the row is a number; expected an object with named fields", "")),
    ("[{}]", ("bad_type", "the row is a list; expected an object with named fields", "")),
    ("null", ("bad_type", "the row is null; expected an object with named fields", "")),
    (DEEP, TOO_DEEP),
    (DEEP_OBJECTS, TOO_DEEP),
    ('{"a": ' + "[" * 100 + "]" * 100 + "}", TOO_DEEP),
    ('{"a": 1, "b": {"c": 1, "c": "\\""}}',
     ("repeated_field", "field 'c' appears twice in one object; keep one of them", "c")),
    (LONG_NUMBER, ("malformed_json", "a whole number has thousands of digits; repair the row", "")),
    ('{"a": {"\\uD83d!": 1}}',
     ("bad_encoding", "\\ud83d is half a surrogate pair and no character; repair the escape", "")),
    (b'{"a": "caf\xe9"}',
     ("bad_encoding", "not UTF-8 (byte 0xe9 after '{\"a\": \"caf'); save the file as UTF-8", "")),
    (b'{"\xed\xa0\x80": 1}',
     ("bad_encoding", "not UTF-8 (byte 0xed after '{\"'); save the file as UTF-8", "")),
], ids=label)  # fmt: skip
class TestRowsThatAreDropped:
    def test_from_lines(self, tmp_path, row, drop):
        row = row if isinstance(row, bytes) else row.encode()
        before, dropped, after = found(tmp_path, "a.jsonl", b"{}\n" + row + b"\n{}")
        assert dropped[:4] == ("a.jsonl:2", *drop)
        assert (
            dropped.excerpt == row[:200].decode("utf-8", "surrogateescape").encode("utf-8", "backslashreplace").decode()
        )
        assert (before.where, after.where) == ("a.jsonl:1", "a.jsonl:3")

    @pytest.mark.parametrize("chunk", [1, 10, 1 << 20])
    def test_from_arrays(self, tmp_path, monkeypatch, row, drop, chunk):
        monkeypatch.setattr(json_rows, "CHUNK", chunk)
        row = row if isinstance(row, bytes) else row.encode()
        before, dropped, after = found(tmp_path, "a.json", b"[{}, " + row + b" ,\n{}]")
        assert dropped[:4] == ("a.json[1]", *drop)
        assert (before.where, after.where) == ("a.json[0]", "a.json[2]")

    def test_even_if_they_are_alone(self, tmp_path, row, drop):
        row = row if isinstance(row, bytes) else row.encode()
        assert [dropped[1:4] for dropped in found(tmp_path, "a.json", b"[" + row + b"]")] == [drop]


@pytest.mark.parametrize(("line", "message"), [
    ('{"a" 1}', "column 6 (expecting ':' delimiter; found '1}')"),
    ('{"a": "b', "column 7 (unterminated string starting at; found '\"b')"),
    ('{"a": 1', "column 8 (expecting ',' delimiter; found the end)"),
    ("{} {}", "column 4 (expecting one JSON object a line; found '{}')"),
    ('{"a": "\0"}', "column 8 (invalid control character at; found '\\x00\"}')"),
    ("a,b", "column 1 (expecting value; found 'a,b')"),
], ids=label)  # fmt: skip
def test_malformed_lines_are_dropped(tmp_path, line, message):
    _, dropped, after = found(tmp_path, "a.jsonl", f'{{"a": 1}}\n{line}\n{{}}')
    assert dropped[:3] == ("a.jsonl:2", "malformed_json", f"malformed JSON at {message}; repair the row")
    assert dropped.excerpt == line.replace("\0", " ")
    assert after == Row("a.jsonl:3", {})


def test_a_nesting_of_100_levels_is_read(tmp_path):
    assert rows(tmp_path, "a.jsonl", '{"a": ' + "[" * 99 + "]" * 99 + "}")


@pytest.mark.parametrize(("row", "drop", "shown"), [
    ("1", ("ragged_row", "the row has 1 cells; expected 3 as in the header; quote cells that hold the separator", ""), "1"),
    ("1,2,3,4",
     ("ragged_row", "the row has 4 cells; expected 3 as in the header; quote cells that hold the separator", ""), "1,2,3,4"),
    ('1,"a"b,3', ("malformed_csv", "malformed CSV (',' expected after '\"'); repair the row", ""), '1,"a"b,3'),
    (b"1,caf\xe9,3",
     ("bad_encoding", "not UTF-8 (byte 0xe9 after 'caf'); save the file as UTF-8", "prompt"), "1,caf\\udce9,3"),
    ('1,2,"{""x"": 1, ""x"": 2}"',
     ("repeated_field", "field 'x' appears twice in one object; keep one of them", "x"), '1,2,{"x": 1, "x": 2}'),
    ("1,2," + "[" * 5000 + "]" * 5000, (*TOO_DEEP[:2], "messages"), "1,2," + "[" * 196),
    ("1,\"[{'role': 'user', 'content': 'x'}]\",3",
     ("bad_type", "the messages are printed by Python; expected JSON; write the cell with json.dumps", "prompt"),
     "1,[{'role': 'user', 'content': 'x'}],3"),
], ids=label)  # fmt: skip
def test_rows_of_a_table_that_are_dropped(tmp_path, row, drop, shown):
    row = row if isinstance(row, bytes) else row.encode()
    _, dropped, after = found(tmp_path, "a.csv", b'id,prompt,messages\nx,"y\ny",z\n' + row + b"\nx,y,z\n")
    assert dropped == Dropped("a.csv:4", *drop, shown)
    assert after == Row("a.csv:5", {"id": "x", "prompt": "y", "messages": "z"})


@pytest.mark.parametrize(("column", "drop"), [
    (pa.array([b"a", None]),
     ("bad_type", "field 'a' holds bytes; expected text, numbers, lists or objects; convert it", "a")),
    (pa.array([[{"x": b"a"}], None]),
     ("bad_type", "field 'a' holds bytes; expected text, numbers, lists or objects; convert it", "a")),
    (pa.array([b"\xff", None]).view(pa.string()),
     ("bad_encoding", "not UTF-8 (invalid start byte); save the text as UTF-8", "")),
], ids=label)  # fmt: skip
def test_rows_of_parquet_that_are_dropped(tmp_path, column, drop):
    dropped, after = found(tmp_path, "a.parquet", parquet(pa.table({"a": column, "b": ["x", "y"]})))
    assert dropped[:4] == ("a.parquet[0]", *drop)
    assert after == Row("a.parquet[1]", {"b": "y"})


CUT = "the file ends in the middle of a row"
AGAIN = "it seems truncated; copy it again"
TABLE = "expected a list of rows, or one row a line; write it so"


@pytest.mark.parametrize(("name", "content", "message"), [
    ("a.jsonl", "", "the file is empty; expected at least one row"),
    ("a.jsonl", " \n\n", "the file is empty; expected at least one row"),
    ("a.json", "[ ]", "the file is empty; expected at least one row"),
    ("a.csv", "prompt,chosen\n\n", "the file is empty; expected at least one row"),
    ("a.jsonl.gz", gz(b""), "the file is empty; expected at least one row"),
    ("a.jsonl.zst", "", "the file is empty; expected at least one row"),
    ("a.parquet", parquet(pa.table({"a": pa.array([], pa.string())})), "the file is empty; expected at least one row"),
    ("a.txt", "{}", f"unknown file type; expected one of {EXPECTED}"),
    ("a.gz", "{}", f"unknown file type; expected one of {EXPECTED}"),
    # cut
    ("a.jsonl", '{"a": 1}\n{"a": "b', f"{CUT} (line 2); {AGAIN}"),
    ("a.jsonl", '{"a": 1}\n{"a": tr', f"{CUT} (line 2); {AGAIN}"),
    ("a.jsonl", '{"a": 1}\n{"a": "\\u00e9', f"{CUT} (line 2); {AGAIN}"),
    ("a.jsonl", '{"a": "é'.encode()[:-1], f"{CUT} (line 1); {AGAIN}"),
    ("a.json", '[{},\n{"a": 1.', f"{CUT} (line 2, column 8); {AGAIN}"),
    ("a.json", "[{}", f"{CUT} (line 1, column 4); {AGAIN}"),
    ("a.json", "[{}, ", f"{CUT} (line 1, column 6); {AGAIN}"),
    ("a.json", '{\n "a": 1', f"{CUT} (line 2, column 8); {AGAIN}"),
    ("a.csv", 'a,b\n1,2\n3,"4\n5,6\n',
     "the file ends inside the quotes of a row (line 3); close the quotes, or copy the file again"),
    # syntax behind which nothing can be trusted
    ("a.json", '\n[{"a": 1},\n {"a":}]',
     "[1]: malformed JSON at line 3, column 7 (expecting value; found '}]'); repair the file"),
    ("a.json", "[{}\n {}]",
     "[0]: malformed JSON at line 2, column 2 (expecting ',' or ']' after the element; found '{}]'); repair the file"),
    ("a.json", "[{}]\n]", "malformed JSON at line 2, column 1 (expecting nothing after the array; found ']'); repair the file"),
    ("a.json", '{\n "a": 1\n}\n{"b": 2}',
     "malformed JSON at line 4, column 1 (expecting a list of rows, or one row a line; found '{\"b\": 2}'); repair the file"),
    ("a.json", '{"data": [{"a": 1}]}', f"the file is an object with all rows in its field 'data'; {TABLE}"),
    ("a.json", '{\n "data": [{"a": 1}]}', f"the file is an object with all rows in its field 'data'; {TABLE}"),
    ("a.json", '{"prompt": ["a", "b"], "chosen": ["c", "d"]}', f"the file is an object of columns; {TABLE}"),
    # tables
    ("a.csv", "a,b,a\n1,2,3", "the column 'a' appears twice; rename or remove one of them"),
    ("a.parquet", parquet(pa.table([[1], [2]], ["a", "a"])), "the column 'a' appears twice; rename or remove one of them"),
    ("a.csv", "a;b\n1;2", "the header has semicolons; expected commas between columns; save it so"),
    ("a.csv", "a\tb\n1\t2", "the header has tabs; expected commas between columns; save it so"),
    ("a.tsv", "a,b\n1,2", "the header has commas; expected tabs between columns; save it so"),
    ("a.csv", b"caf\xe9,b\n1,2", "the header is not UTF-8 (byte 0xe9 after 'caf'); save the file as UTF-8"),
    ("a.csv", '"a"b,c\n1,2', ":1: malformed CSV (',' expected after '\"'); repair the row"),
], ids=label)  # fmt: skip
def test_refusals(tmp_path, name, content, message):
    assert refusal(tmp_path, name, content) == (name + message if message[0] in "[:" else f"{name}: {message}")


@pytest.mark.parametrize(("name", "content", "what", "advice"), [
    ("a.jsonl", gz(b"{}"), "a gzip file", "rename it to a.jsonl.gz"),
    ("a.json", zstd(b"{}"), "a Zstandard file", "rename it to a.json.zst"),
    ("a.jsonl.zst", gz(b"{}"), "a gzip file", "rename it to a.jsonl.gz"),
    ("a.jsonl.gz", gz(gz(b"{}")), "compressed twice", "decompress it once"),
    ("a.jsonl.gz", "{}", "not compressed", "rename it to a.jsonl"),
    ("a.parquet.zst", "a,b", "not compressed", "rename it to a.csv"),
    ("a.csv", parquet(ROWS), "a Parquet file", "rename it to a.parquet"),
    ("a.csv.gz", gz(parquet(ROWS)), "a Parquet file", "rename it to a.parquet.gz"),
    ("a.parquet.gz", parquet(ROWS), "a Parquet file", "rename it to a.parquet"),
    ("a.parquet", "{}", "JSON lines", "rename it to a.jsonl"),
    ("a.jsonl", b"PK\3\4", "a zip archive", "unpack it"),
    ("a.jsonl", b"BZh9", "a bzip2 file", "unpack it"),
    ("a.jsonl", b"\xfd7zXZ\0", "an xz file", "unpack it"),
    ("a.csv", b"SQLite format 3\0", "an SQLite database", "export the table as CSV"),
    ("a.parquet", b"ARROW1", "an Arrow file", "write it as Parquet"),
    ("a.parquet", "version https://git-lfs.github.com/spec/v1", "a pointer to a file in Git LFS", "fetch it with git lfs pull"),
    ("a.jsonl", "{}".encode("utf-16"), "UTF-16 or UTF-32 text", "save it as UTF-8"),
    ("a.csv", "a,b".encode("utf-16-le"), "UTF-16 or UTF-32 text", "save it as UTF-8"),
    ("a.json", "[]".encode("utf-32-be"), "UTF-16 or UTF-32 text", "save it as UTF-8"),
    ("a.jsonl", bytes(99), "filled with NUL bytes", "copy it again"),
    ("a.jsonl", '\n"a","b"\n', "a table with commas (it begins with '\"a\",\"b\"')", "rename it to a.csv"),
    ("a.json", "a\tb\n", "a table with tabs (it begins with 'a b')", "rename it to a.tsv"),
    ("a.jsonl", "hello\n{}", "some other text (it begins with 'hello')", "convert it"),
    ("a.jsonl", "<html>", "a web page or XML (it begins with '<html>')", "download the file itself"),
    ("a.csv", '{"a": 1}', "JSON lines (it begins with '{\"a\": 1}')", "rename it to a.jsonl"),
    ("a.tsv.gz", gz(b"[{}]"), "a JSON array (it begins with '[{}]')", "rename it to a.json.gz"),
], ids=label)  # fmt: skip
def test_files_that_are_not_what_their_name_says(tmp_path, name, content, what, advice):
    expected = name.removeprefix("a")
    assert refusal(tmp_path, name, content) == f"{name}: is {what}; expected {expected} as its name says; {advice}"


@pytest.mark.parametrize(("name", "content", "message"), [
    ("a.jsonl.gz", gz(lines(ROWS))[:-9], r"damaged gzip file \(.+\); copy or compress it again"),
    ("a.jsonl.gz", gz(lines(ROWS))[:-8] + bytes(8), r"damaged gzip file \(.+\); copy or compress it again"),
    ("a.jsonl.gz", gz(lines(ROWS)) + b"junk", r"damaged gzip file \(.+\); copy or compress it again"),
    ("a.csv.zst", zstd(b"a,b\n1,2\n")[:-1], r"damaged Zstandard file \(.+\); copy or compress it again"),
    ("a.jsonl.zst", zstd(b"{}") + b"junk", r"damaged Zstandard file \(.+\); copy or compress it again"),
    ("a.parquet", b"PAR1", r"damaged or truncated Parquet file \(.+\); copy it again"),
    ("a.parquet", parquet(ROWS)[:-1], r"damaged or truncated Parquet file \(.+\); copy it again"),
    ("a.parquet.gz", gz(parquet(ROWS))[:-9], r"damaged gzip file \(.+\); copy or compress it again"),
], ids=label)  # fmt: skip
def test_damaged_files(tmp_path, name, content, message):
    assert re.fullmatch(f"{re.escape(name)}: {message}", refusal(tmp_path, name, content))


def test_a_page_of_parquet_that_is_not_as_it_was_written(tmp_path):
    content = bytearray(
        parquet(
            [{"a": "x" * 999}],
            compression="none",
            use_dictionary=False,
            write_page_checksum=True,
            write_statistics=False,
        )
    )
    content[content.index(b"x" * 999) + 500] ^= 1
    assert "damaged or truncated Parquet file" in refusal(tmp_path, "a.parquet", bytes(content))


def test_columns_in_each_line_are_rows(tmp_path):
    line = '{"a": ["x"], "b": ["y"]}\n'
    assert [where for where, _ in rows(tmp_path, "a.jsonl", line + "\n\n" + line)] == ["a.jsonl:1", "a.jsonl:4"]


def test_a_missing_file_suggests_its_neighbours(tmp_path):
    (tmp_path / "pairs.jsonl").write_text("{}")
    with pytest.raises(DataError, match=r"pairs.json: no such file; did you mean pairs.jsonl\?$"):
        next(read_rows(tmp_path / "pairs.json"))
    with pytest.raises(DataError, match=r"zzzz.jsonl: no such file; check the name$"):
        next(read_rows(tmp_path / "nowhere" / "zzzz.jsonl"))


def test_a_directory(tmp_path):
    with pytest.raises(DataError, match=f"^{re.escape(str(tmp_path))}: is a directory; name a file in it"):
        next(read_rows(tmp_path))


def test_an_unreadable_file(tmp_path, monkeypatch):
    path = tmp_path / "a.jsonl"
    path.write_text("{}")

    def refuse(*_):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr("softq.data.files.FileIO", refuse)
    with pytest.raises(DataError, match=r"a.jsonl: can not be read: Permission denied$"):
        next(read_rows(path))


@pytest.mark.parametrize(("value", "shown"), [
    ("  a\n\x1b[0m\u2028b\n", "a  [0m b"),
    ("\udcff", "\\udcff"),
    ("x" * 10**6, "x" * 200),
    ({"a": "é", "b": [1, None, {"c": True}]}, '{"a": "é", "b": [1, null, {"c": true}]}'),
    ({"a": "x" * 10**6}, '{"a": "' + "x" * 193),
    ({"a": [0] * 10**6}, '{"a": [' + "0, " * 64 + "0"),
    ({"a": b"x", "d": datetime.date(2024, 1, 2)}, "{\"a\": \"b'x'\", \"d\": \"2024-01-02\"}"),
], ids=label)  # fmt: skip
def test_excerpts(value, shown):
    assert excerpt(value) == shown
