"""softq.data.read and ledger: files to tokens, every row and token accounted for."""

import gzip
import json
import re
from functools import cache

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

from softq.data.encode import Account
from softq.data.formats import Dropped
from softq.data.ledger import Ledger
from softq.data.read import boundaries, read
from softq.data.rows import DataError

H, A = "\n\nHuman:", "\n\nAssistant:"
DIALOGUES = [
    (f"{H} Where is the pen?{A} On the table.", f"{H} Where is the pen?{A} I do not know."),
    (f"{H} Hi{A} Hello!{H} What now?{A} Rest.", f"{H} Hi{A} Hello!{H} What now?{A} Work, and then rest."),
    (f"{H} Hi{A} Hello!{H} What now?{A} Rest.", f"{H} Hi{A} Hello!"),
    (f"{H} Hi{A}", f"{H} Hi{A} Hello!"),
    (f"{H} Hi{A} Hello!", f"{H} Ho{A} Hello!"),
    (f"{H} Where is the pen?{A} On the table.", f"{H} Where is the pen?{A} I do not know."),
]
SHAREGPT = {
    "conversations": [{"from": "human", "value": "Where is the pen?"}],
    "chosen": {"from": "gpt", "value": "On the table."},
    "rejected": {"from": "gpt", "value": "I do not know."},
}


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
    data = "\n".join(json.dumps(row) for row in rows).encode()
    path.write_bytes(gzip.compress(data) if name.endswith(".gz") else data)
    return path


def dialogues(folder, name: str = "a.jsonl.gz"):
    rows = [{"chosen": chosen, "rejected": rejected, "source": "s"} for chosen, rejected in DIALOGUES]
    return lines(folder, [{**rows[0], "id": 3}, *rows[1:]], name)


def test_hh_dialogues_with_every_row_and_token_accounted_for(tmp_path):
    path = dialogues(tmp_path)
    dataset = read(path, tokenizer())
    assert (dataset.kind, dataset.format, dataset.template_ends) == ("pairs", "hh", set())
    assert dataset.other_columns == ("source", "id")
    assert [record.where for record in dataset.records] == [f"{path}:{n}" for n in (1, 2, 6)]
    prompts = [text[: text.rfind(A) + len(A)] for text, _ in DIALOGUES]
    used, unused = [0, 1, 5], [3]
    words = [[text.removeprefix(prompts[n]) for text in DIALOGUES[n]] for n in range(6)]
    scored = sum(count(text) + 1 for n in used for text in words[n])
    context = sum(2 * count(prompts[n]) for n in used)
    assert dataset.ledger.as_dict() == {
        "rows": {
            "in": 6,
            "used": 3,
            "dropped": {
                "later_user_turn": [f"{path}:3"],
                "empty_completion": [f"{path}:4"],
                "no_shared_prompt": [f"{path}:5"],
            },
        },
        "tokens": {
            "in": scored + context + sum(count(text) + 1 for n in unused for text in DIALOGUES[n]),
            "scored": scored,
            "context": context,
            "cut": 0,
            "template_tail": 0,
            "dropped": sum(count(text) + 1 for n in unused for text in DIALOGUES[n]),
        },
        "shared": context // 2,
        "merged": [],
        "duplicates": 1,
    }
    json.dumps(dataset.ledger.as_dict())


def test_the_records_say_what_the_file_says(tmp_path):
    dataset = read(dialogues(tmp_path), tokenizer())
    for record, n in zip(dataset.records, (0, 1, 5), strict=True):
        for completion, text in zip(record.completions, DIALOGUES[n], strict=True):
            assert tokenizer().decode(completion.ids) == text + "<eos>"
            said = tokenizer().decode(completion.ids[1:][completion.action])
            assert said == text[text.rfind(A) + len(A) :] + "<eos>"


def test_several_files_are_one_data_set(tmp_path):
    first, second = dialogues(tmp_path), dialogues(tmp_path, "b.jsonl")
    dataset = read([first, str(second)], tokenizer())
    assert dataset.ledger.rows == 12
    assert dataset.ledger.duplicates == 4
    assert [record.where for record in dataset.records][3] == f"{second}:1"
    other = lines(tmp_path, [{"prompt": "a", "chosen": "b", "rejected": "c"}], "c.jsonl")
    with pytest.raises(DataError, match=r"c.jsonl:1: the row is in format 'preference'; expected 'hh'"):
        read([first, other], tokenizer())
    with pytest.raises(DataError, match=r"^no data file was given; name one$"):
        read([], tokenizer())


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
    with pytest.raises(
        DataError, match=r"no.jinja: the chat template can not be read \(No such file or directory\); give"
    ):
        read(path, tokenizer(), chat_template=tmp_path / "no.jinja")


def test_nothing_left_lists_the_reasons(tmp_path):
    rows = [{"chosen": chosen, "rejected": rejected} for chosen, rejected in DIALOGUES]
    path = lines(tmp_path, rows)
    message = "all 6 rows were dropped: 3 too_long, 1 later_user_turn, 1 empty_completion, 1 no_shared_prompt; nothing is left"
    with pytest.raises(DataError, match=f"^{re.escape(f'{path}: {message}')}"):
        read(path, tokenizer(), max_length=3)


def test_columns_are_read_by_those_who_read_them(tmp_path):
    row = {"prompt": "Where is", "chosen": " the pen?", "rejected": " the table?", "weight": 0.5}
    path = lines(tmp_path, [row])
    assert read(path, tokenizer(), reads=("weight",)).records[0].columns == {"weight": 0.5}
    with pytest.raises(DataError, match=r"a.jsonl:1: column 'weight' is known but dpo does not read it"):
        read(path, tokenizer(), method="dpo")


def test_duplicates_have_the_same_ids_and_not_only_the_same_lengths(tmp_path):
    rows = [{"prompt": "Q", "chosen": "a", "rejected": "b"}, {"prompt": "Q", "chosen": "b", "rejected": "a"}]
    assert read(lines(tmp_path, rows), tokenizer()).ledger.duplicates == 0
    assert read(lines(tmp_path, [*rows, rows[1]]), tokenizer()).ledger.duplicates == 1


def test_groups(tmp_path):
    path = lines(tmp_path, [{"prompt": "Where is", "completions": [" the pen?", " it?", " he?"], "scores": [3, 2, 1]}])
    dataset = read(path, tokenizer())
    assert (dataset.kind, dataset.records[0].scores, len(dataset.records[0].completions)) == (
        "groups",
        (3.0, 2.0, 1.0),
        3,
    )
    assert dataset.ledger.shared == 2 * count("Where is")


def test_boundaries_show_where_prompts_end(tmp_path):
    path = dialogues(tmp_path)
    shown = boundaries(read(path, tokenizer()), tokenizer(), n=2)
    assert len(shown) == 2
    assert shown[0].startswith(f"{path}:1: ")
    head, tail = shown[1].split("␟")
    assert head.endswith("now?\\n\\nAssistant:'")
    assert tail == "' Rest.<eos>'"


def test_a_merged_boundary_is_listed(tmp_path):
    row = {"prompt": "Where is ", "chosen": "the pen?", "rejected": "it?"}
    dataset = read(
        lines(tmp_path, [row, {**row, "prompt": "Where is", "chosen": " the pen?", "rejected": " it?"}]), tokenizer()
    )
    assert dataset.ledger.merged == [f"{tmp_path}/a.jsonl:1"]
    assert dataset.ledger.lines()[-1] == (
        f"boundary    1 rows with a token across it, split there: {tmp_path}/a.jsonl:1"
    )


def test_the_ledger_in_words(tmp_path):
    ledger = Ledger()
    record = read(dialogues(tmp_path), tokenizer()).records[0]
    ledger.add(record, Account(read=1234, scored=1000, context=200, cut=30, template_tail=4, shared=100))
    ledger.add(record, Account(read=6, scored=2, context=4))
    for n in range(7):
        ledger.add(Dropped(f"a:{n}", "too_long"), Account(read=10, scored=10))
    ledger.check()
    assert ledger.lines() == [
        "rows        9 = 2 used + 7 dropped",
        "dropped     7 too_long: a:0, :1, :2, :3, :4, ...",
        "tokens      1,310 = 1,002 scored + 204 context + 30 cut + 4 template_tail + 70 dropped",
        "shared      100 of them repeat a prompt",
        "duplicates  1 rows, kept",
    ]


def test_the_ledger_notices_a_loss(tmp_path):
    record = read(dialogues(tmp_path), tokenizer()).records[0]
    ledger = Ledger()
    ledger.add(record, Account(read=5, scored=2, context=2))
    with pytest.raises(AssertionError, match="the ledger lost tokens: 5 in"):
        ledger.check()
    ledger = Ledger(rows=1)
    with pytest.raises(AssertionError, match="the ledger lost rows: 1 in, 0 used, 0 dropped"):
        ledger.check()


TEXT = st.text("ab the<>\n", max_size=8)


def row(prompt: str, chosen: str, rejected: str, chat: bool) -> dict:
    if not chat:
        return {"prompt": prompt, "chosen": chosen, "rejected": rejected}
    answers = [{"role": "assistant", "content": text} for text in (chosen, rejected)]
    return {"prompt": [{"role": "user", "content": prompt}], "chosen": answers[:1], "rejected": answers[1]}


@settings(max_examples=60, deadline=None)
@given(st.lists(st.tuples(TEXT, TEXT, TEXT), max_size=5), st.integers(10, 20), st.booleans())
def test_nothing_is_lost(tmp_path_factory, texts, limit, chat):
    texts.append(("Where", " is", " the"))  # so that something is left
    path = lines(tmp_path_factory.mktemp("read"), [row(*text, chat) for text in texts])
    limit += 40 if chat else 0
    dataset = read(path, tokenizer(), max_length=limit, chat_template="chatml")
    completions = [completion for record in dataset.records for completion in record.completions]
    ledger = dataset.ledger
    ledger.check()
    assert ledger.rows == len(texts) == len(dataset.records) + sum(map(len, ledger.dropped.values()))
    assert ledger.tokens["scored"] == sum(int(c.action.sum()) for c in completions)
    assert ledger.tokens["scored"] + ledger.tokens["context"] == sum(len(c.ids) for c in completions)
    assert ledger.tokens["template_tail"] == (len(completions) if chat else 0)
    assert max(len(c.ids) for c in completions) <= limit
