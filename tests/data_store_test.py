"""softq.data.store: what is written comes back, a store is whole or it is nothing, and nothing is left behind."""

import gc
import json
import os

import numpy as np
import pytest
from chats import byte_level
from depth import tries
from hypothesis import given, settings
from hypothesis import strategies as st

from softq.data.encode import Completion, Encoded
from softq.data.read import read
from softq.data.rows import DataError
from softq.data.store import BUFFER, META, Records, Store, whole, write_text


def completion(ids: list[int], action: list[bool], ended: bool = True) -> Completion:
    return Completion(np.array(ids, np.int64), np.array(action, np.bool_), ended)


def plainly(record: Encoded):
    assert all(c.ids.dtype == np.int64 and c.action.dtype == np.bool_ for c in record.completions)
    said = [(c.ids.tolist(), c.action.tolist(), c.ended) for c in record.completions]
    return record.where, said, dict(record.columns), record.source


def stored(directory, records, **meta) -> Records:
    with Store(directory) as store:
        for record in records:
            store.add(record)
        store.finish(meta)
    return Records(directory)


def numbered(count: int) -> list[Encoded]:
    return [Encoded(f"a:{n}", (completion([n, n + 1], [True]),), {"label": (float(n),)}, n % 3) for n in range(count)]


COMPLETIONS = st.integers(1, 6).flatmap(
    lambda n: st.builds(
        completion,
        st.lists(st.integers(0, 2**31 - 1), min_size=n, max_size=n),
        st.lists(st.booleans(), min_size=n - 1, max_size=n - 1),
        st.booleans(),
    )
)
NUMBERS = st.lists(st.floats(allow_nan=False), min_size=0, max_size=3).map(tuple)


@st.composite
def data_sets(draw):
    names = draw(st.sampled_from([(), ("weight",), ("reward", "ref_logps")]))
    source = st.none() if draw(st.booleans()) else st.integers(0, 300)
    record = st.builds(
        Encoded,
        st.text(max_size=8),
        st.lists(COMPLETIONS, min_size=1, max_size=3).map(tuple),
        st.fixed_dictionaries(dict.fromkeys(names, NUMBERS)),
        source,
    )
    return draw(st.lists(record, min_size=1, max_size=6))


@settings(max_examples=tries(40), deadline=None)
@given(data_sets())
def test_what_is_written_comes_back(tmp_path_factory, records):
    directory = tmp_path_factory.mktemp("store") / "data"
    found = stored(directory, records)
    assert [plainly(record) for record in found] == [plainly(record) for record in records]
    assert len(found) == len(records)
    assert found.source.tolist() == [-1 if record.source is None else record.source for record in records]


def test_strange_places_and_large_files_come_back(tmp_path):
    long = completion(list(range(BUFFER // 2)), [True] * (BUFFER // 2 - 1), False)  # ids of two buffers
    places = ["", "\ud800", "päirs.jsonl:3", "a\nb"]
    records = [Encoded(where, (long, completion([1], []))) for where in places]
    assert [plainly(record) for record in stored(tmp_path / "data", records)] == [plainly(record) for record in records]


def test_parts_of_records(tmp_path):
    records = stored(tmp_path / "data", numbered(7))
    assert [record.where for record in records[2:6:2]] == ["a:2", "a:4"]
    assert [record.where for record in records[::-1]] == [f"a:{n}" for n in (6, 5, 4, 3, 2, 1, 0)]
    assert records[-1].where == records[np.int64(6)].where == "a:6"
    part = records.take([5, 1, 1])
    assert [record.where for record in part] == ["a:5", "a:1", "a:1"]
    assert part.source.tolist() == [2, 1, 1]
    assert [record.where for record in part.take([2, 0])] == ["a:1", "a:5"]
    assert part.take(np.array([0]))[0].columns == {"label": (5.0,)}
    assert (len(records.take([])), list(records[9:])) == (0, [])
    with pytest.raises(IndexError):
        records[7]
    with pytest.raises(IndexError):
        part[3]


def test_what_is_changed_in_a_record_does_not_change_the_store(tmp_path):
    records = stored(tmp_path / "data", numbered(1))
    records[0].completions[0].ids[:] = 9
    records[0].completions[0].action[:] = False
    assert plainly(records[0]) == plainly(numbered(1)[0])


def test_what_is_said_beside_the_records(tmp_path):
    with Store(tmp_path / "data") as store:
        store.add(numbered(1)[0])
        store.line("dropped.jsonl", {"file": "ä\u2028\ud800", "row": 3})
        store.line("dropped.jsonl", {"row": None})
        store.finish({"kind": "pairs", "name": "ä"})
    lines = (tmp_path / "data" / "dropped.jsonl").read_bytes().split(b"\n")
    assert json.loads(lines[0]) == {"file": "ä\u2028\ud800", "row": 3}
    assert lines[1:] == [b'{"row": null}', b""]
    said = whole(tmp_path / "data")
    assert (said["kind"], said["name"], said["columns"]) == ("pairs", "ä", ["label"])


def damage(path, how: str) -> None:
    if how == "cut":
        os.truncate(path, path.stat().st_size - 1)
    elif how == "longer":
        path.write_bytes(path.read_bytes() + b"\0")
    else:
        path.unlink()


NAMES = ["ids.bin", "ids.ends", "action.bin", "ended.bin", "record.ends", "where.bin", "where.ends", "source.bin"]
NAMES += ["column-label.bin", "column-label.ends"]


@pytest.mark.parametrize("how", ["cut", "longer", "gone"])
@pytest.mark.parametrize("name", NAMES)
def test_a_damaged_store_is_not_trusted(tmp_path, name, how):
    stored(tmp_path / "data", numbered(3), kind="pairs")
    assert whole(tmp_path / "data")["kind"] == "pairs"
    assert sorted(file.name for file in (tmp_path / "data").iterdir()) == sorted([*NAMES, META])
    damage(tmp_path / "data" / name, how)
    assert whole(tmp_path / "data") is None


@pytest.mark.parametrize("text", ["", "{", "[]", "null", "{}", '{"sizes": 3}', '{"sizes": null}', "\udcff"])
def test_a_damaged_description_is_not_trusted(tmp_path, text):
    stored(tmp_path / "data", numbered(3))
    (tmp_path / "data" / META).write_bytes(text.encode("utf-8", "surrogateescape"))
    assert whole(tmp_path / "data") is None
    assert whole(tmp_path / "nothing") is None


def test_an_unfinished_store_is_nothing(tmp_path):
    with Store(tmp_path / "deep" / "data") as store:
        store.add(numbered(1)[0])
        assert whole(store.partial) is None
        assert whole(store.directory) is None
    assert list((tmp_path / "deep").iterdir()) == []


def test_nothing_is_left_behind_an_error(tmp_path):
    def fail() -> None:
        with Store(tmp_path / "data") as store:
            store.add(numbered(1)[0])
            store.line("long", {"row": "a" * BUFFER})
            assert any(store.partial.iterdir())  # something was written
            raise KeyError

    with pytest.raises(KeyError):
        fail()
    assert list(tmp_path.iterdir()) == []


def test_a_damaged_store_is_replaced_and_the_last_of_two_writers_wins(tmp_path):
    stored(tmp_path / "data", numbered(3))
    damage(tmp_path / "data" / "ids.bin", "cut")
    with Store(tmp_path / "data") as one, Store(tmp_path / "data") as other:
        one.add(numbered(1)[0])
        other.add(numbered(2)[1])
        one.finish({})
        assert [record.where for record in Records(tmp_path / "data")] == ["a:0"]
        other.finish({})
    assert [record.where for record in Records(tmp_path / "data")] == ["a:1"]
    assert [file.name for file in tmp_path.iterdir()] == ["data"]


# Temporary stores


@pytest.fixture
def temporary(tmp_path, monkeypatch):
    """The folder that temporary files go to."""
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "temporary"))
    (tmp_path / "temporary").mkdir()
    return tmp_path / "temporary"


def pairs(folder, rejected: str = " no"):
    file = folder / "a.jsonl"
    file.write_text(json.dumps({"prompt": "Q:", "chosen": " yes", "rejected": rejected}) + "\n")
    return file


def test_a_temporary_store_lives_as_long_as_its_records(tmp_path, temporary):
    dataset = read(pairs(tmp_path), byte_level())
    directory, part = dataset.directory, dataset.records.take([0]).take([0])
    assert directory.is_relative_to(temporary)
    assert whole(directory)["kind"] == "pairs"
    del dataset
    gc.collect()
    assert part[0].where.endswith("a.jsonl:1")
    assert directory.exists()
    del part
    gc.collect()
    assert list(temporary.iterdir()) == []


def test_a_refusal_leaves_no_temporary_store(tmp_path, temporary):
    with pytest.raises(DataError, match="the only row was dropped"):
        read(pairs(tmp_path, rejected=" yes"), byte_level())
    assert list(temporary.iterdir()) == []


def test_text_replaces_a_file_and_nothing_else_and_leaves_nothing_half_written(tmp_path):
    file, pipe = tmp_path / "file", tmp_path / "pipe"
    os.mkfifo(pipe)
    write_text(file, "one")
    write_text(file, "two")
    with pytest.raises(FileExistsError, match="is no file"):
        write_text(pipe, "three")
    with pytest.raises(UnicodeEncodeError):
        write_text(file, "half \ud800")
    assert file.read_text() == "two"
    assert pipe.is_fifo()
    assert sorted(tmp_path.iterdir()) == [file, pipe]
