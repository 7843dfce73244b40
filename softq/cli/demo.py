"""softq demo [--output DIR] [--seed S]"""

from pathlib import Path

from rich.console import Console
from rich.style import Style
from rich.text import Text

from softq.cli.parser import Parser
from softq.cli.show import Show
from softq.inspection.colour import ink, shade
from softq.studies.credit import Answer
from softq.studies.demo import Result, demo, examples
from softq.studies.small_model import END


def run(words: list[str]) -> int:
    """The tour, shown as it goes; what it found as colours and in words."""
    parser = Parser(
        prog="softq demo",
        description="Train a small model from nothing on a generated world, align it by preferences over whole answers, "
        "and see which single words its implicit reward blames. At most four minutes on two cores, no downloads.",
    )
    parser.add_argument(
        "--output", default="demo", metavar="DIR", help="where to write models, data and figures [demo]"
    )
    parser.add_argument("--seed", default=0, type=int, metavar="S", help="of the world, its texts and all training [0]")
    options = parser.parse_args(words)
    if options.seed < 0:
        raise ValueError(f"--seed: {options.seed} is negative; expected 0 or more")
    directory = Path(options.output)
    if directory.exists() and not directory.is_dir():
        raise ValueError(f"--output {directory} is a file; give a directory")
    show = Show(every=50)
    for event in demo(directory, options.seed):
        if isinstance(event, Result):
            tell(show.console, event)
        else:
            show.one(event)
    return 0


def tell(console: Console, result: Result) -> None:
    """Some held-out answers in colour, then every figure in plain words."""
    found = result.figures
    console.print("\nHeld-out answers with one wrong name put in. Red: the implicit reward blames the word.")
    for answer in examples(result.answers, 4):
        console.print()
        console.print(Text(" ".join(answer.prompt), style="dim"))
        console.print(coloured(answer))
    percent = {name: f"{value:.0%}" for name, value in found.items() if isinstance(value, float)}
    console.print(
        f"""
What was measured (world and training of seed {found["seed"]}):
  names right, sampled at T = 1      {percent["accuracy_before"]:>5} before, {percent["accuracy_after"]} after DPO
  names right, greedy                {percent["greedy_accuracy_before"]:>5} before, {percent["greedy_accuracy_after"]} after
  true reward of a sampled answer    {found["sampled_reward_before"]:5.2f} before, {found["sampled_reward_after"]:.2f} after
  lowest token is the wrong name     {percent["localisation_top1"]:>5} by implicit reward log π/π_ref
                                     {percent["control_top1"]:>5} by the fine-tuned model's log-prob (control)
                                     {percent["control_dpo_top1"]:>5} by the DPO model's log-prob (control)
  first wrong word against the rest  {found["localisation_auc"]:.3f} AUC by implicit reward
                                     {found["control_auc"]:.3f} by the fine-tuned model's log-prob (control)
                                     {found["control_dpo_auc"]:.3f} by the DPO model's log-prob (control)
No word was ever labelled: the {found["pairs"]:,} labels say which of two whole answers is better, with noise.
The world is built so that common errors are likelier than rare harmless words; it shows the mechanism,
and is no evidence about large models. It took {found["seconds"]:.0f} seconds.
In {result.directory}/: demo.json, answers.svg, pairs.jsonl, injected.jsonl (these answers, right and with the error, as pairs),
and the models sft/ and dpo/, which load in transformers. As a page, token by token:
  softq inspect {result.directory}/dpo          # the run, and its held-out pairs
  softq score --policy {result.directory}/dpo --data {result.directory}/injected.jsonl --output {result.directory}/scores
  softq inspect {result.directory}/scores       # the answers above, beside the right ones"""
    )


def coloured(answer: Answer) -> Text:
    """The answer's words on the colour of their implicit reward; the wrong name underlined."""
    scale = max(abs(value) for value in answer.reward)
    text = Text()
    for n, (word, value) in enumerate(zip([*answer.injected.answer, END], answer.reward, strict=True)):
        colour = shade(value, scale)
        background, foreground = "#{:02x}{:02x}{:02x}".format(*colour), ink(colour)
        text.append(f" {word} ", Style(bgcolor=background, color=foreground, underline=n in answer.injected.span))
    return text
