"""Implicit prompts: where TRL's `extract_prompt` and softq cut a pair of texts that begin alike.

pip install -e '.[bench]'
python bench/implicit_prompts.py
"""

from collections.abc import Callable
from importlib.metadata import version
from typing import Any

from softq.data.example import Example
from softq.data.formats import Reading, parse_rows
from softq.data.rows import Row

CASES = {
    "TRL's own": ("The sky is blue.", "The sky is green."),
    "a shared beginning of a word": ("The sky is blue.", "The sky is black."),
    "identical": ("same", "same"),
    "one begins the other": ("The sky is blue", "The sky is blue and vast"),
    "an empty text": ("", "The sky is blue."),
    "nothing shared": ("Yes, it is.", "No, it is not."),
    "no spaces": ("天空是蓝色的。", "天空是黑色的。"),
    "a word that goes on": ("I like cats", "I like catsup"),
}


def main() -> None:
    """Print both cuts of each case as a table."""
    from trl.data_utils import extract_prompt  # pyright: ignore[reportMissingImports]

    print(f"| case | chosen / rejected | TRL {version('trl')} | softq |\n|---|---|---|---|")
    for name, (chosen, rejected) in CASES.items():
        row = {"chosen": chosen, "rejected": rejected}
        print(f"| {name} | `{chosen}` / `{rejected}` | {theirs(extract_prompt, row)} | {ours(row)} |")


def theirs(extract_prompt: Callable[..., Any], row: dict[str, str]) -> str:
    """TRL's cut."""
    try:
        cut = extract_prompt(dict(row))
    except Exception as error:  # whatever a user would see
        return type(error).__name__
    return shown(cut["prompt"], cut["chosen"], cut["rejected"])


def ours(row: dict[str, str]) -> str:
    """softq's cut, or the reason for which the row is dropped."""
    (example,) = parse_rows([Row("case:1", row)], Reading("implicit"))[1]
    if isinstance(example, Example):
        return shown(str(example.prompt), *map(str, example.completions))
    return f"dropped: {example.reason}"


def shown(prompt: str, chosen: str, rejected: str) -> str:
    """A cut, with its blanks to be seen."""
    return f"`{prompt}`␟`{chosen}` / `{rejected}`"


if __name__ == "__main__":
    main()
