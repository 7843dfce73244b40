"""softq.data.rows: true line numbers, and one clear line for each way in which a file can be wrong."""

import gzip
import json
import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from softq.data.rows import DataError, read_rows


def rows(folder, name: str, content: str | bytes):
    data = content.encode() if isinstance(content, str) else content
    path = folder / name
    path.write_bytes(gzip.compress(data) if name.endswith(".gz") else data)
    return [(where.removeprefix(f"{folder}/"), value) for where, value in read_rows(path)]


def refusal(folder, name: str, content: str | bytes) -> str:
    with pytest.raises(DataError) as error:
        rows(folder, name, content)
    assert "\n" not in str(error.value)
    return str(error.value).removeprefix(f"{folder}/")


@pytest.mark.parametrize("name", ["a.jsonl", "a.json", "a.jsonl.gz", "a.json.gz", "A.JSONL"])
def test_json_lines_count_blank_lines(tmp_path, name):
    found = rows(tmp_path, name, '\n{"a": 1}\r\n   \n\n{"a": "\u2028\x85"}')
    assert found == [(f"{name}:2", {"a": 1}), (f"{name}:5", {"a": "\u2028\x85"})]


@pytest.mark.parametrize("name", ["a.json", "a.json.gz"])
def test_arrays_count_elements_from_0(tmp_path, name):
    found = rows(tmp_path, name, '\n [{"a": [1, "]"]},\n\n {"b": {}} ]\n')
    assert found == [(f"{name}[0]", {"a": [1, "]"]}), (f"{name}[1]", {"b": {}})]


@pytest.mark.parametrize(("name", "text"), [("a.jsonl", '{"a": "é"}'), ("a.json", '[{"a": "é"}]')])
def test_a_byte_order_mark_is_tolerated(tmp_path, name, text):
    assert rows(tmp_path, name, text.encode("utf-8-sig"))[0][1] == {"a": "é"}


def test_lines_are_streamed(tmp_path):
    path = tmp_path / "a.jsonl"
    path.write_text('{"a": 1}\nnonsense')
    assert next(read_rows(path)).value == {"a": 1}


@given(st.lists(st.dictionaries(st.text(max_size=3), st.text() | st.none() | st.floats(allow_nan=False)), min_size=1))
def test_every_value_survives_both_layouts(tmp_path_factory, values):
    folder = tmp_path_factory.mktemp("rows")
    lines = "\n".join(json.dumps(value, ensure_ascii=False) for value in values)
    assert [value for _, value in rows(folder, "a.jsonl", lines)] == values
    assert [value for _, value in rows(folder, "a.json", json.dumps(values, indent=1))] == values


@pytest.mark.parametrize(("name", "content", "message"), [
    ("a.jsonl", "", "a.jsonl: the file is empty; expected at least one row"),
    ("a.jsonl", " \n\n", "a.jsonl: the file is empty; expected at least one row"),
    ("a.json", "[ ]", "a.json: the file is empty; expected at least one row"),
    ("a.txt", "{}", "a.txt: unknown file type; expected one of .jsonl, .json, .jsonl.gz, .json.gz"),
    ("a.jsonl", "{}\n3", "a.jsonl:2: the row is a number; expected an object with named fields"),
    ("a.jsonl", "[{}]", "a.jsonl:1: the row is a list; expected an object with named fields"),
    ("a.json", "{}\n[{}]", "a.json:2: the row is a list; expected an object with named fields"),
    ("a.json", "[{}, null]", "a.json[1]: the row is null; expected an object with named fields"),
    ("a.jsonl", '{}\n{"a" 1}',
     "a.jsonl:2: malformed JSON at line 2, column 6 (expecting ':' delimiter; found '1}'); repair the row"),
    ("a.jsonl", '{"a": "b',
     "a.jsonl:1: malformed JSON at line 1, column 7 (unterminated string starting at; found '\"b'); repair the row"),
    ("a.jsonl", "{} {}",
     "a.jsonl:1: malformed JSON at line 1, column 4 (expecting one JSON object a line; found '{}'); repair the row"),
    ("a.json", '\n[{"a": 1},\n {"a":}]',
     "a.json[1]: malformed JSON at line 3, column 7 (expecting value; found '}]'); repair the row"),
    ("a.json", "[{}\n {}]",
     "a.json[0]: malformed JSON at line 2, column 2 (expecting ',' or ']' after the element; found '{}]'); repair the row"),
    ("a.json", "[{},", "a.json[1]: malformed JSON at line 1, column 5 (expecting value; found the end); repair the row"),
    ("a.json", "[{}]\n]",
     "a.json: malformed JSON at line 2, column 1 (expecting nothing after the array; found ']'); repair the row"),
    ("a.jsonl", '{}\n{"a": 1, "b": {"c": 1, "c": 2}}',
     "a.jsonl:2: field 'c' appears twice in one object; repair the row"),
    ("a.jsonl", '{}\n{"a": "\\ud83d!"}',
     "a.jsonl:2: \\ud83d is half a surrogate pair and no character; repair the escape"),
    ("a.jsonl", b'{}\n{"a": "\xe9"}', "a.jsonl: not UTF-8 (line 2, byte 8 is 0xe9); save the file as UTF-8"),
    ("a.json", b'[{},\n{"a":\n"\xff"}]', "a.json: not UTF-8 (line 3, byte 2 is 0xff); save the file as UTF-8"),
])  # fmt: skip
def test_refusals(tmp_path, name, content, message):
    assert refusal(tmp_path, name, content) == message


def test_a_whole_surrogate_pair_is_a_character(tmp_path):
    assert rows(tmp_path, "a.jsonl", '{"a": "\\ud83d\\ude00"}')[0][1] == {"a": "😀"}


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

    monkeypatch.setattr(type(path), "open", refuse)
    with pytest.raises(DataError, match=r"a.jsonl: can not be read: Permission denied$"):
        next(read_rows(path))


@pytest.mark.parametrize(
    "damage", [lambda data: data[:-9], lambda data: data[:12] + b"\0\0\0\0" + data[16:], lambda _: b"{}"]
)
def test_a_damaged_gzip_file(tmp_path, damage):
    path = tmp_path / "a.jsonl.gz"
    path.write_bytes(damage(gzip.compress(b'{"a": "some text"}\n' * 9)))
    with pytest.raises(DataError, match=r"a.jsonl.gz: damaged gzip file \(.+\); copy or compress it again$"):
        list(read_rows(path))
