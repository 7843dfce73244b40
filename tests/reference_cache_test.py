"""The reference's log-probs from a file are the reference's log-probs, whoever asks; and a file that is not right is refused."""

import json
import os
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import get_args

import numpy as np
import pytest
import torch
from safetensors import safe_open
from tiny import tiny, tokenizer
from torch import Tensor

from softq.data.encode import Completion, Encoded
from softq.data.store import Records, Store
from softq.lm.load import Lora, load
from softq.lm.score import Models, score
from softq.mdp.readouts import REF_LOGP
from softq.objectives import METHODS
from softq.records import Batch, Tokens, take
from softq.training import reference_cache
from softq.training.events import RunError
from softq.training.loop import train
from softq.training.reference_cache import ReferenceCache, cached_reference, row_key
from softq.training.settings import Settings
from softq.training.source import batch_of, batches


def completion(prompt: list[int], answer: list[int], ended: bool = True) -> Completion:
    ids = np.array(prompt + answer)
    return Completion(ids, np.arange(1, len(ids)) >= len(prompt), ended)


def pair(where: str, prompt: list[int], *answers: list[int]) -> Encoded:
    return Encoded(where, tuple(completion(prompt, answer) for answer in answers))


TURNS = Completion(np.array([5, 6, 40, 41, 9, 9, 12, 2]), np.array([0, 1, 1, 0, 0, 1, 1], dtype=bool), True)
PAIRS = [
    pair("a:1", [11, 4, 9, 30], [8, 12, 6, 2], [8, 12, 40, 41, 42, 2]),
    pair("a:2", [23], [14, 2], [50]),
    Encoded("a:3", (TURNS, completion([5, 6], [40, 3, 2]))),  # a context between two turns of the policy
    pair("a:4", [11, 4, 9, 30], [8, 12, 6, 2], [2]),  # its chosen side is a:1's
    pair("a:5", [33, 4], [19, 20, 21, 22, 23, 24, 25, 2], [19, 2]),
]
DPO = METHODS["dpo"](beta=0.5)


def made(dtype: torch.dtype = torch.float32) -> Models:
    """A policy, and a reference that is another model."""
    policy = load(tiny("llama", dtype), None, tokenizer=tokenizer()).policy
    other = tiny("llama", dtype)
    with torch.no_grad():
        for parameter in other.parameters():
            parameter.mul_(0.9)
    reference = load(other, None, tokenizer=tokenizer()).policy.requires_grad_(False)
    return Models({"policy": policy, "ref": reference})


@pytest.fixture
def models() -> Models:
    return made()


def cached(directory: Path, models: Models, records: Sequence[Encoded] = PAIRS, **more) -> tuple[ReferenceCache, str]:
    given = {"fingerprint": "f" * 32, "dtype": "float32", "tokens_per_micro": 40, **more}
    cache, notes = cached_reference(directory, records, models, **given)
    (note,) = notes
    return cache, note


def expected(models: Models, tokens: Tokens) -> Tensor:
    with torch.no_grad():
        return score(models, tokens, (REF_LOGP,))["ref_logp"]


def forwards(models: Models, name: str) -> list[int]:
    """A list that grows by the number of states with each forward pass of a model."""
    seen: list[int] = []
    states = models[name].states

    def counted(tree):
        seen.append(len(tree.token))
        return states(tree)

    models[name].states = counted  # pyright: ignore
    return seen


def padded(tokens: Tokens, width: int) -> Tokens:
    """The same rows with more padding, of an ordinary token."""
    ids = torch.nn.functional.pad(tokens.ids, (0, width), value=7)
    return Tokens(ids, torch.nn.functional.pad(tokens.action, (0, width)), tokens.ended, tokens.prompt + 100)


# The numbers


def test_a_row_has_the_log_probs_that_score_gives_it_whatever_stands_around_it(tmp_path: Path, models: Models) -> None:
    cache, _ = cached(tmp_path, models)
    batch = batch_of(PAIRS, range(5), DPO)
    want = expected(models, batch.tokens)
    assert want.abs().max() > 1
    got = cache.filled(batch).columns["ref_logp"]
    torch.testing.assert_close(got, want, rtol=1e-6, atol=1e-5)
    assert not got[~batch.tokens.action].any()
    wide = cache.filled(Batch(padded(batch.tokens, 9))).columns["ref_logp"]
    assert torch.equal(wide[:, : got.shape[1]], got)
    assert not wide[:, got.shape[1] :].any()
    some_rows = (torch.arange(10) > 3)[:, None]  # a row without an action needs no key
    bare = replace(batch.tokens, action=batch.tokens.action & some_rows)
    assert torch.equal(cache.filled(Batch(bare)).columns["ref_logp"], got * bare.action)
    rows = torch.tensor([9, 2, 4, 1])
    some = cache.filled(Batch(take(Batch(batch.tokens), rows)[0].tokens)).columns["ref_logp"]
    assert torch.equal(some, got[rows, : some.shape[1]])


@pytest.mark.parametrize(("tokens_per_micro", "rows"), [(1, 512), (40, 3), (10_000, 1)])
def test_no_split_changes_a_number_in_float64(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, tokens_per_micro: int, rows: int
) -> None:
    monkeypatch.setattr(reference_cache, "ROWS", rows)
    models = made(torch.float64)
    cache, _ = cached(tmp_path, models, dtype="float64", tokens_per_micro=tokens_per_micro)
    batch = batch_of(PAIRS, range(5), DPO)
    got = cache.filled(batch).columns["ref_logp"]
    torch.testing.assert_close(got, expected(models, batch.tokens), rtol=0, atol=1e-10)


class Seen:
    """Keeps each step's gradient, and moves nothing."""

    def __init__(self, models: Models) -> None:
        self.parameters = [parameter for parameter in models["policy"].parameters() if parameter.requires_grad]
        self.gradients: list[Tensor] = []
        self.backward = torch.Tensor.backward

    def __call__(self) -> Mapping[str, float]:
        gradients = [parameter.grad for parameter in self.parameters if parameter.grad is not None]
        self.gradients.append(torch.cat([gradient.flatten() for gradient in gradients]))
        for parameter in self.parameters:
            parameter.grad = None
        return {}


@pytest.mark.parametrize("method", ["dpo", "ipo"])
def test_training_sees_the_same_loss_and_gradient_and_runs_no_reference(tmp_path: Path, method: str) -> None:
    models = made(torch.float64)
    chosen = METHODS[method](beta=0.5) if method == "dpo" else METHODS[method]()
    source = batches(PAIRS, chosen, batch_size=2, epochs=2, seed=3)
    without, update = [], Seen(models)
    for step in train(models, chosen, source, update, tokens_per_micro=30):
        without.append(step.metrics)
    cache, _ = cached(tmp_path, models, dtype="float64")
    ran = forwards(models, "ref")

    def filled(of: Models) -> Iterator[Batch]:
        yield from map(cache.filled, source(of))

    with_cache, again = [], Seen(models)
    for step in train(models, chosen, filled, again, tokens_per_micro=30):
        with_cache.append(step.metrics)
    assert ran == []
    assert len(without) == 6
    for one, other in zip(without, with_cache, strict=True):
        assert one == pytest.approx(other, rel=1e-9, abs=1e-12)
    for one, other in zip(update.gradients, again.gradients, strict=True):
        assert one.norm() > 1e-3
        torch.testing.assert_close(one, other, rtol=1e-9, atol=1e-9 * one.norm().item())


def test_under_a_fresh_adapter_the_reference_is_the_model_without_it(tmp_path: Path) -> None:
    loaded = load(tiny("llama"), "start", tokenizer=tokenizer(), lora=Lora(r=4))
    with torch.no_grad():
        for name, parameter in loaded.policy.named_parameters():
            if "lora_B" in name:
                parameter.fill_(0.1)
    cache, _ = cached(tmp_path, loaded.models)
    batch = batch_of(PAIRS, range(5), DPO)
    scored = score(loaded.models, batch.tokens, (REF_LOGP,))
    assert (scored["logp"] - scored["ref_logp"]).abs().max() > 0.1
    got = cache.filled(batch).columns["ref_logp"].to(scored["ref_logp"])
    torch.testing.assert_close(got, scored["ref_logp"].detach(), rtol=0, atol=1e-5)


def test_each_content_is_scored_once_and_nothing_but_the_reference_runs(tmp_path: Path, models: Models) -> None:
    ran, policy = forwards(models, "ref"), forwards(models, "policy")
    cache, _ = cached(tmp_path, models, [*PAIRS, *PAIRS])
    # States up to each last action, shared starts of a record once: a:1 7 + 3, a:2 2 (23, 14; 50 is no state),
    # a:3 7 + 1 (5 6 40 | 41 9 9 12 | 3), a:4 4 of its rejected side alone, a:5 9 (its rejected side's are the chosen's).
    assert (sum(ran), policy) == (7 + 3 + 2 + 7 + 1 + 4 + 9, [])
    assert len(cache.key) == 9
    assert len(cache.values) == sum(c.action.sum() for record in PAIRS for c in record.completions) - 4
    assert np.array_equal(np.sort(cache.key), cache.key)


def test_groups_and_one_record_and_records_of_a_store(tmp_path: Path, models: Models) -> None:
    group = Encoded("g:1", tuple(completion([5], [n, 2]) for n in (3, 4, 7)), {"reward": (0.1, 0.9, -1.0)})
    with Store(tmp_path / "data") as store:
        store.add(group)
        store.finish({})
    cache, note = cached(tmp_path, models, Records(tmp_path / "data"))
    batch = batch_of([group], [4], METHODS["infonca"]())
    torch.testing.assert_close(
        cache.filled(batch).columns["ref_logp"], expected(models, batch.tokens), rtol=1e-6, atol=1e-5
    )
    assert "of 1 record: scored" in note
    assert "; 1 row recomputed, at most" in cached(tmp_path, models, [group])[1]


def test_a_key_is_of_content_up_to_the_last_action() -> None:
    ids, action = np.array([5, 6, 7, 2, 9]), np.array([False, True, True, False])
    key = row_key(ids, action)
    assert len(key) == 16
    assert row_key(np.array([5, 6, 7, 2]).astype(np.int32), action[:3]) == key
    assert row_key(np.array([5, 6, 7, 2, 0, 0]), np.array([False, True, True, False, False])) == key
    others = [
        row_key(ids, np.array([True, True, True, False])),
        row_key(ids, np.array([False, False, True, False])),
        row_key(ids, np.array([False, True, True, True])),
        row_key(np.array([5, 6, 7, 3, 9]), action),
        row_key(np.array([6, 5, 7, 2, 9]), action),
    ]
    assert len({key, *others}) == 6


def test_keys_that_end_in_zeros_are_found() -> None:
    keys = [b"a" + bytes(15), bytes(16), b"a\0b" + bytes(13), b"ab" + bytes(14)]
    cache = object.__new__(ReferenceCache)
    cache.key = np.sort(np.frombuffer(b"".join(keys), reference_cache.KEY))  # pyright: ignore
    cache.start, cache.length = np.arange(4), np.ones(4, int)  # pyright: ignore
    cache.values = np.array([0.0, 1.0, 2.0, 3.0])  # pyright: ignore
    assert [float(found[0]) for found in cache.logp(keys) if found is not None] == [1, 0, 2, 3]
    assert cache.logp([b"b" + bytes(15), b"a" + bytes(14) + b"\1"]) == [None, None]


# The file


def test_a_second_run_reads_what_the_first_one_scored(tmp_path: Path, models: Models) -> None:
    first, said = cached(tmp_path, models)
    ran = forwards(models, "ref")
    second, said_then = cached(tmp_path, models, tokens_per_micro=25)
    assert said == f"reference log-probs of 5 records: scored and kept in {first.file}"
    assert said_then.startswith(
        f"reference log-probs of 5 records: read from {first.file}, of an earlier run; 5 rows recomputed, at most "
    )
    assert 0 < sum(ran) <= 5 * 9
    assert float(said_then.split()[-3]) < 1e-5
    ran.clear()
    other_seed = batches(PAIRS, METHODS["ipo"](), batch_size=3, seed=9)
    for batch in other_seed(models):
        torch.testing.assert_close(
            second.filled(batch).columns["ref_logp"], expected(models, batch.tokens), rtol=1e-6, atol=1e-5
        )
    assert list((tmp_path / "reference").iterdir()) == [first.file]


def test_another_reference_dtype_or_data_has_a_file_of_its_own(tmp_path: Path, models: Models) -> None:
    files = {
        cached(tmp_path, models)[0].file,
        cached(tmp_path, models, fingerprint="e" * 32)[0].file,
        cached(tmp_path, models, dtype="float32+bf16 autocast")[0].file,
        cached(tmp_path, models, PAIRS[:4])[0].file,
        cached(tmp_path, models, PAIRS[::-1])[0].file,
    }
    assert len(files) == 5
    assert set((tmp_path / "reference").iterdir()) == files


def test_safetensors_reads_the_file(tmp_path: Path, models: Models) -> None:
    cache, _ = cached(tmp_path, models)
    with safe_open(cache.file, "np") as file:
        said = file.metadata()
        key, start, length, logp = (file.get_tensor(name) for name in ("key", "start", "length", "logp"))
    assert {name: said[name] for name in ("format", "fingerprint", "dtype", "rows")} == {
        "format": "softq reference log-probs 1",
        "fingerprint": "f" * 32,
        "dtype": "float32",
        "rows": "9",
    }
    assert (key.dtype, key.shape, logp.dtype) == (np.uint8, (9, 16), np.float32)
    row = PAIRS[4].completions[0]
    (n,) = [n for n in range(9) if key[n].tobytes() == row_key(row.ids, row.action)]
    assert length[n] == 8
    batch = batch_of(PAIRS[4:], [0], DPO)
    np.testing.assert_allclose(logp[start[n] :][:8], expected(models, batch.tokens)[0, 1:], rtol=1e-6, atol=1e-5)
    assert int.from_bytes(cache.file.read_bytes()[:8], "little") % 8 == 0


def test_memory_holds_a_chunk_and_not_the_values(
    tmp_path: Path, models: Models, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Flat by construction: values are written chunk by chunk as one stream, and read from a map."""
    monkeypatch.setattr(reference_cache, "ROWS", 2)
    sizes: list[int] = []
    chunk_logp = reference_cache.chunk_logp

    def watched(records, chunk, models, budget) -> np.ndarray:
        sizes.append(len(chunk))
        return chunk_logp(records, chunk, models, budget)

    monkeypatch.setattr(reference_cache, "chunk_logp", watched)
    cache, _ = cached(tmp_path, models)
    assert sizes == [2, 2, 2, 2, 1]
    assert isinstance(cache.values, np.memmap)
    assert isinstance(cache.key, np.memmap)


# What is refused


def refused(tmp_path: Path, models: Models, **more) -> str:
    with pytest.raises(RunError) as error:
        cached(tmp_path, models, **more)
    assert "\n" not in str(error.value)
    return str(error.value)


def test_a_file_under_anothers_name_is_stale(tmp_path: Path, models: Models) -> None:
    one, other = cached(tmp_path, models)[0].file, cached(tmp_path, models, fingerprint="e" * 32)[0].file
    other.write_bytes(one.read_bytes())
    said = refused(tmp_path, models, fingerprint="e" * 32)
    fingerprints = f"its fingerprint is {'f' * 32}, asked was {'e' * 32}"
    assert said == f"{other} is stale: {fingerprints}; delete it, and it is made again"
    other.unlink()
    assert "scored and kept" in cached(tmp_path, models, fingerprint="e" * 32)[1]
    fewer = cached(tmp_path, models, records=PAIRS[:3])[0].file
    fewer.write_bytes(one.read_bytes())
    assert f"{fewer} is stale: its content is" in refused(tmp_path, models, records=PAIRS[:3])


def test_every_flipped_byte_is_noticed(tmp_path: Path, models: Models) -> None:
    file = cached(tmp_path, models)[0].file
    whole = file.read_bytes()
    header = 8 + int.from_bytes(whole[:8], "little")
    for at in [*range(0, header, 7), *range(header, len(whole), 11), len(whole) - 1]:
        file.write_bytes(whole[:at] + bytes([whole[at] ^ 1]) + whole[at + 1 :])
        said = refused(tmp_path, models)
        assert said.startswith(str(file))
        assert said.endswith("delete it, and it is made again")
        if at >= header:
            assert "is damaged: its contents do not fit their digest" in said


@pytest.mark.parametrize(
    "content", [b"", b"{}", b'\x08\0\0\0\0\0\0\0{"a": 1}', b"\xff" * 5000, b"\xff" * 8 + b"[" * 5000]
)
def test_another_files_content_is_no_cache(tmp_path: Path, models: Models, content: bytes) -> None:
    file = cached(tmp_path, models)[0].file
    file.write_bytes(content)
    said = refused(tmp_path, models)
    assert said.startswith(f"{file} is damaged: it has no header of 'softq reference log-probs 1'")


def test_a_file_that_is_too_short_or_too_long_is_damaged(tmp_path: Path, models: Models) -> None:
    file = cached(tmp_path, models)[0].file
    whole = file.read_bytes()
    for content in (whole[:-1], whole[: len(whole) // 2], whole + b"\0"):
        file.write_bytes(content)
        assert "is damaged: it has " in refused(tmp_path, models)


def test_values_of_another_model_under_a_right_digest_are_found_by_the_sample(tmp_path: Path, models: Models) -> None:
    file = cached(tmp_path, models)[0].file
    with torch.no_grad():
        models["ref"].transformer.get_input_embeddings().weight.mul_(1.01)
    said = refused(tmp_path, models)
    assert f"{file} is stale: a:" in said
    assert "nats a token from what the reference says of it now (at most 1e-04 is rounding)" in said


def test_what_rounding_is_depends_on_the_dtype_and_how_far_rows_are_is_said(tmp_path: Path, models: Models) -> None:
    for dtype in ("float32", "float32+bf16 autocast"):
        cached(tmp_path, models, dtype=dtype)
    with torch.no_grad():
        models["ref"].head.weight.mul_(1.001)
    said = refused(tmp_path, models)
    off = float(said.partition(" is stale: ")[2].split(" is ")[1].split()[0])
    assert 1e-4 < off < 0.1
    note = cached(tmp_path, models, dtype="float32+bf16 autocast")[1]
    assert 1e-4 < float(note.split()[-3]) < 0.5


def test_a_row_that_the_file_lacks_is_named(tmp_path: Path, models: Models) -> None:
    cache, _ = cached(tmp_path, models, PAIRS[:3])
    with pytest.raises(
        RunError, match=r"holds no log-probs of prompt number 44 \(row 3 of its batch\): the data changed"
    ):
        cache.filled(batch_of([PAIRS[0], PAIRS[3]], [11, 44], DPO))


def test_a_reference_that_is_not_finite_is_named_and_leaves_no_file(tmp_path: Path, models: Models) -> None:
    with torch.no_grad():
        models["ref"].transformer.get_input_embeddings().weight[50] = torch.inf
    records = [*PAIRS[:1], pair("a:6", [23], [50, 2], [14])]
    said = refused(tmp_path, models, records=records)
    assert said == "the reference gives a:6 (completion 1) a log-probability that is not finite"
    assert list((tmp_path / "reference").iterdir()) == []


def test_a_full_disk_is_one_line_and_leaves_no_file(
    tmp_path: Path, models: Models, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(handle: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    said = refused(tmp_path, models)
    assert said.endswith(".safetensors can not be written: No space left on device; make room, or set SOFTQ_CACHE")
    assert list((tmp_path / "reference").iterdir()) == []


def test_leftovers_of_killed_builders_are_removed_after_a_day(tmp_path: Path, models: Models) -> None:
    directory = tmp_path / "reference"
    directory.mkdir()
    old, new, other = directory / ".partial-old", directory / ".partial-new", directory / "mine.txt"
    for path in (old, new, other):
        path.write_text("")
    day_ago = time.time() - 90_000
    os.utime(old, (day_ago, day_ago))
    os.utime(other, (day_ago, day_ago))
    file = cached(tmp_path, models)[0].file
    assert set(directory.iterdir()) == {new, other, file}


def test_data_without_a_completion_has_nothing_to_keep(tmp_path: Path, models: Models) -> None:
    bare = Encoded("p:1", (Completion(np.array([5, 6]), np.zeros(1, bool), False),))
    assert "no completion" in refused(tmp_path, models, records=[bare])


def test_the_header_is_json_of_one_form(tmp_path: Path, models: Models) -> None:
    content = cached(tmp_path, models, dtype="float64")[0].file.read_bytes()
    size = int.from_bytes(content[:8], "little")
    head = json.loads(content[8 : 8 + size])
    assert head["logp"]["dtype"] == "F64"
    assert head["logp"]["data_offsets"][1] == len(content) - 8 - size


def test_every_dtype_of_a_run_has_a_tolerance() -> None:
    """Four-bit weights compute in bfloat16."""
    found = {dtype: reference_cache._tolerance(dtype) for dtype in get_args(Settings.model_fields["dtype"].annotation)}
    assert found["nf4"] == found["bfloat16"] > found["float32"]
