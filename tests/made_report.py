"""A made-up report, as softq.inspection.page takes it: all kinds of text, and numbers that a test can tell beforehand."""

import base64
import gzip
import json
import random
import re
from typing import Any

from softq.inspection.packed import BLOCK

TOP, FEW = 4, 256  # FEW pairs are made; where more are asked for they come again
EVIL = "<script>window.hacked=1</script><img src=x onerror=window.hacked=1>"

LONG = "a-directory-with-a-long-name/" * 4
QUESTIONS = [
    ("Where should I stay near the old harbour?", "Marlow House", "Castle Inn"),
    ("Which café opens before seven in the morning?", "Blue Kettle", "Night Owl"),
    ("Name a quiet museum for a rainy afternoon.", "Clock Museum", "Arcade Hall"),
    ("What is the fastest way from the airport to the centre?", "Line 4", "Line 9"),
    ("Who painted the ceiling of the town hall?", "Ada Lindqvist", "Jon Berger"),
]
PATTERN = (
    "The best choice is {0}. It stands two streets from the water, it is calm at night, and the breakfast "
    "is served until eleven.\n\nAsk for a room that looks over the garden; it costs the same."
)
SPECIAL_PAIRS = [  # prompt, chosen tokens, rejected tokens
    (
        "ما هي عاصمة مصر؟",
        ["عاصمة", " مصر", " هي", " القا", "هرة", ".", "<|im_end|>"],
        ["لا", " أعرف", ".", "<|im_end|>"],
    ),
    (
        "東京で一番静かな公園は?",
        ["新", "宿", "御苑", "です", "。", "<|im_end|>"],
        ["渋谷", "の", "交差点", "。", "<|im_end|>"],
    ),
    (
        "Answer with emoji only 🙂",
        ["👩‍🚀", "", "", "", " to", " the", " 🌍", "", "\n", "\t", "ok", "  ", "<|im_end|>"],
        ["no", "<|im_end|>"],
    ),
    (
        f"Is this safe? {EVIL}",
        [EVIL, " <b>", "bold", "</b>", " &amp;", "<|im_end|>"],
        ["<script>", "alert", "(1)", "</script>"],
    ),
    ("A very long word", ["Donaudampfschifffahrts" * 12, "<|im_end|>"], ["x" * 400, "<|im_end|>"]),
    ("Nothing to say", ["<|im_end|>"], []),
    (
        "מה השעה? It is late",
        ["עכשיו", " שמונה", " (8:00 PM)", ",", " נדמה", " לי", ".", "<|im_end|>"],
        ["\u202eevil", "\u200b", "\x07", "\r\n", "<|im_end|>"],
    ),
]


def made(count: int = 40, *, compared: bool = True, kind: str = "pairs", other: bool = False) -> dict[str, Any]:
    """A whole report of `count` pairs or rows; `other`: with a second policy on the same data."""
    words = Words()
    pairs = [pair(number, words, compared=compared, kind=kind) for number in range(min(count, FEW))]
    second = [pair(number, words, compared=compared, kind=kind, seed=7) for number in range(len(pairs))]
    report = _whole(pairs, count, compared=compared, kind=kind)
    if other:
        theirs = _whole(second, count, compared=compared, kind=kind)
        names = ("facts", "verdict", "sections", "pairs", "blocks", "curves")
        report["other"] = {"title": "models/other against models/start", **{name: theirs[name] for name in names}}
        report["other"]["facts"]["policy"] = "models/other"
        share = figure("agreement/sign", 0.83, "share", "pairs that both policies order alike", (0.79, 0.87))
        report["agreement"] = {
            "name": "agreement",
            "title": "Agreement",
            "told": "Do both say the same?",
            "figures": [share],
            "findings": [],
        }
    report["strings"] = list(words)
    return report


class Words(dict[str, int]):
    """A number for each text, in the order in which they come."""

    def __missing__(self, text: str) -> int:
        self[text] = len(self)
        return self[text]


def pair(number: int, words: Words, *, compared: bool = True, kind: str = "pairs", seed: int = 0) -> dict[str, Any]:
    """One record: its prompt, and its sides as a block has them."""
    rng = random.Random(1000 * seed + number)
    luck = rng.gauss(0.02, 0.03)
    if number % 13 == 3:
        prompt, chosen, rejected = SPECIAL_PAIRS[number // 13 % len(SPECIAL_PAIRS)]
    else:
        question, right, wrong = QUESTIONS[number % len(QUESTIONS)]
        prompt, (chosen, rejected) = question, (pieces(PATTERN.format(name)) for name in (right, wrong))
    sides = {"chosen": side(chosen, words, rng, compared, luck)}
    if kind == "pairs":
        sides["rejected"] = side(rejected, words, rng, compared, -luck)
    return {"prompt": prompt, "sides": sides}


def pieces(text: str) -> list[str]:
    """Tokens of a plain text, with an end."""
    return [*re.findall(r" ?[A-Za-z]{1,6}| ?\d+|\n+| ?[^\sA-Za-z\d]", text), "<|im_end|>"]


def side(tokens: list[str], words: Words, rng: random.Random, compared: bool, mean: float) -> dict[str, Any]:
    """One completion in units of 1e-4. Reward is a tenth of the difference of its log-probs, exactly."""
    logp = [-rng.randrange(100, 40000) for _ in tokens]
    move = [round(rng.gauss(mean, 0.08) * 1e5) * (3 if rng.random() < 0.06 else 1) for _ in tokens]
    ref = [min(0, p - m) for p, m in zip(logp, move, strict=True)]
    others = [" the", " a", " quiet", " <i>"]
    top = [[words[text], *(words[each] for each in rng.sample(others, TOP - 1))] for text in tokens]
    top_logp = [[min(p, -500), -12000, -23000, -34000] for p in logp]
    return {
        "text": [words[text] for text in tokens],
        "logp": logp,
        "ref_logp": ref if compared else None,
        "reward": [round((p - r) / 10) for p, r in zip(logp, ref, strict=True)] if compared else None,
        "entropy": [rng.randrange(0, 30000) for _ in tokens],
        "kl": [rng.randrange(0, 900) for _ in tokens] if compared else None,
        "rank": [rng.choice([0, 0, 0, 1, 2, 17]) for _ in tokens],
        "top": top,
        "top_logp": top_logp,
        "top_ref_logp": [[value - 300 for value in each] for each in top_logp] if compared else None,
    }


def packed(pairs: list[dict[str, Any]]) -> str:
    """A block: base64 of gzip of JSON."""
    sides = [pair["sides"] for pair in pairs]
    return base64.b64encode(gzip.compress(json.dumps(sides).encode(), 1, mtime=0)).decode()


def figure(
    name: str, value: float | None, unit: str, meaning: str, interval: tuple[float, float] | None = None, of: int = 512
) -> dict[str, Any]:
    """A figure as JSON."""
    return {
        "name": name,
        "value": value,
        "unit": unit,
        "of": of,
        "meaning": meaning,
        "interval": interval and list(interval),
    }


def finding(name: str, level: str, told: str, act: str = "", records: tuple[int, ...] = ()) -> dict[str, Any]:
    """A finding as JSON."""
    return {"name": name, "level": level, "told": told, "act": act, "records": list(records)}


def _columns(pairs: list[dict[str, Any]], count: int, compared: bool, kind: str) -> dict[str, list[Any]]:
    """One array a column; pairs repeat where there are fewer than `count`. Records are 0, 2, 4, …"""
    rows = []
    for number in range(count):
        of = pairs[number % len(pairs)]
        row = {
            "record": 2 * number,
            "where": f"{LONG if number == 3 else ''}pairs.jsonl:{2 * number + 1}",
            "source": ["guide", f"chat {EVIL}", None][number % 3],
            "prompt": of["prompt"],
            "ches": round(random.Random(number).gauss(0, 1), 4),
            "noise": round(random.Random(number + 1).random(), 4) if compared else None,
            "shared": _shared(of["sides"]),
        }
        for name, each in of["sides"].items():
            row[f"{name}_tokens"] = len(each["text"])
            row[f"{name}_reward"] = sum(each["reward"]) / 1e4 if compared else None
            row[f"{name}_moved"] = sum(each["logp"]) / 1e4 - sum(each["ref_logp"]) / 1e4 if compared else None
        if kind == "pairs":
            row["margin"] = round(row["chosen_reward"] - row["rejected_reward"], 4) if compared else None
        rows.append(row)
    return {name: [row[name] for row in rows] for name in rows[0]} if rows else {}


def _shared(sides: dict[str, Any]) -> int:
    one, two = sides["chosen"]["text"], sides.get("rejected", {"text": []})["text"]
    return next((n for n, (a, b) in enumerate(zip(one, two, strict=False)) if a != b), min(len(one), len(two)))


def _whole(pairs: list[dict[str, Any]], count: int, *, compared: bool, kind: str) -> dict[str, Any]:
    blocks = [packed(pairs[at : at + BLOCK]) for at in range(0, len(pairs), BLOCK)]
    needed = -(-count // BLOCK)
    return {
        "title": "models/aligned against models/start on guide.jsonl",
        "facts": {
            "policy": "models/aligned",
            "reference": "models/start" if compared else None,
            "beta": 0.1 if compared else None,
            "unit": "reward" if compared else "nats",
            "kind": kind,
            "records": count,
            "dropped": 3,
            "data": ["guide.jsonl"],
        },
        "verdict": _verdict(compared),
        "curves": _curves() if compared else [],
        "sections": _sections(compared),
        "reliability": _reliability() if compared and kind == "pairs" else [],
        "pairs": {"columns": _columns(pairs, count, compared, kind), "orders": _orders(compared, kind)},
        "blocks": [blocks[n % len(blocks)] for n in range(needed)] if blocks else [],
        "ledger": {
            "rows": count + 3,
            "used": count,
            "dropped": [
                ["too_long", 2, ["guide.jsonl:17", "guide.jsonl:90"]],
                ["same_completions", 1, ["guide.jsonl:4"]],
            ],
            "checks": [
                finding(
                    "data/length",
                    "watch",
                    "chosen completions are longer in 61% of the pairs [56%, 66%]",
                    "balance the lengths",
                )
            ],
        },
        "data": [
            finding(
                "noise/flipped",
                "act",
                "9% of the labels are probably wrong",
                "look at these pairs; leave them out or swap them",
                (4, 10, 22, 36),
            ),
            finding("data/<b>markup</b>", "watch", f"2 prompts carry markup: {EVIL}", "", (6,)),
        ],
        "settings": [["beta", "0.1"], ["dtype", "float32"], ["learning_rate", "5e-07"], ["note", EVIL]],
        "versions": [["softq", "0.1.0"], ["torch", "2.13.0"]],
        "method": {"name": "dpo", "formula": "−log σ(β·(log π/π_ref(y_w) − log π/π_ref(y_l)))"},
        "other": None,
    }


def _verdict(compared: bool) -> dict[str, Any]:
    if not compared:
        numbers = [
            figure(
                "accuracy/free/avg",
                0.561,
                "share",
                "of the pairs have the likelier chosen completion, a token",
                (0.52, 0.6),
            )
        ]
        return {
            "level": "watch",
            "told": "There is no reference: what was learned can not be told apart from what was there.",
            "act": "give --reference",
            "numbers": numbers,
        }
    return {
        "level": "expected",
        "told": "The policy prefers the chosen answer in 7 of 10 held-out pairs, and both became less likely, as DPO does.",
        "act": "nothing to do; look at the nine pairs that are most wrong before you train longer",
        "numbers": [
            figure(
                "accuracy/half_ties", 0.714, "share", "of the pairs are ordered as their label says", (0.673, 0.752)
            ),
            figure("margin/mean", 0.8312, "reward", "is the mean margin between chosen and rejected", (0.71, 0.952)),
            figure(
                "displacement/chosen",
                -1.904,
                "nats",
                "is how far the chosen answers moved away from the reference",
                (-2.31, -1.52),
            ),
        ],
    }


def _curves() -> list[dict[str, Any]]:
    def line(name: str, to: float, noise: float) -> dict[str, Any]:
        rng = random.Random(name)
        return {
            "name": name,
            "points": [[10 * n, round(to * (1 - 0.97**n) + rng.gauss(0, noise), 4)] for n in range(1, 121)],
        }

    return [
        {
            "title": "rewards",
            "unit": "reward",
            "x": "step",
            "from": "metrics.jsonl",
            "lines": [line("chosen", -0.19, 0.02), line("rejected", -1.02, 0.04)],
        },
        {
            "title": "margin",
            "unit": "reward",
            "x": "step",
            "from": "metrics.jsonl",
            "lines": [line("margin", 0.83, 0.05)],
        },
        {
            "title": "log-probs",
            "unit": "nats",
            "x": "step",
            "from": "metrics.jsonl",
            "lines": [line("chosen ", -1.9, 0.2), line("rejected ", -10.2, 0.4), line("chosen , held out", -2.1, 0.1)],
        },
        {
            "title": "KL",
            "unit": "nats",
            "x": "step",
            "from": "checkpoints",
            "lines": [{"name": "KL(π‖π_ref)", "points": [[0, 0.0], [400, 0.31], [800, None], [1200, 0.74]]}],
        },
    ]


def _sections(compared: bool) -> list[dict[str, Any]]:
    free = [
        figure(
            f"accuracy/free/{name}",
            0.52 + n / 50,
            "share",
            f"pairs right by {name} of log π",
            (0.48 + n / 50, 0.56 + n / 50),
        )
        for n, name in enumerate(("sum", "avg", "norm"))
    ]
    title = {
        "name": "accuracy",
        "title": "Accuracy of the implicit reward",
        "told": "Does the policy hold the chosen completion for the better one?",
    }
    if not compared:
        return [{**title, "figures": free, "findings": []}]
    lengths = [
        figure(
            f"accuracy/length/{n}",
            0.55 + 0.08 * n,
            "share",
            f"pairs of chosen less rejected from {10 * n - 20} to {10 * n - 11} tokens; a tie is half right",
            (0.45 + 0.08 * n, 0.65 + 0.08 * n),
            102,
        )
        for n in range(1, 5)
    ]
    return [
        {
            **title,
            "figures": [
                figure(
                    "accuracy/strict",
                    0.711,
                    "share",
                    "pairs whose chosen completion has the higher reward; a tie is wrong",
                    (0.67, 0.75),
                ),
                figure(
                    "accuracy/half_ties",
                    0.714,
                    "share",
                    "pairs whose chosen completion has the higher reward; a tie is half right",
                    (0.673, 0.752),
                ),
                figure("accuracy/large", -123456.7, "nats", "a figure with a long interval", (-1234567.8, 1234567.8)),
                figure("accuracy/nowhere", None, "share", "a measure that nothing could be said of", None, 0),
                *lengths,
                *free,
            ],
            "findings": [],
        },
        {
            "name": "displacement",
            "title": "Displacement",
            "told": "Did the chosen completions become less likely too?",
            "figures": [
                figure("displacement/chosen", -1.904, "nats", "mean Δ log π of the chosen completions", (-2.31, -1.52)),
                figure(
                    "displacement/rejected", -10.22, "nats", "mean Δ log π of the rejected completions", (-11.4, -9.1)
                ),
            ],
            "findings": [
                finding(
                    "displacement/verdict",
                    "expected",
                    "chosen completions lost 1.9 nats, rejected ones 10.2: the usual end of a contrast without an anchor",
                )
            ],
        },
        {
            "name": "calibration",
            "title": "Calibration",
            "told": "Is σ(margin) the probability that the label is right?",
            "figures": [figure("calibration/error", 0.041, "share", "expected calibration error", (0.02, 0.07))],
            "findings": [],
        },
        {
            "name": "credit",
            "title": "Credit",
            "told": "Which tokens does the margin come from?",
            "figures": [
                figure(
                    "credit/concentration/gini",
                    0.612,
                    "",
                    "Gini coefficient of |reward| over the tokens of a completion",
                    (0.6, 0.63),
                ),
                figure(
                    "credit/margin/first",
                    0.42,
                    "reward",
                    "mean part of the margin that is from the token where they part",
                    (0.31, 0.52),
                ),
                figure(
                    "credit/margin/end",
                    0.48,
                    "reward",
                    "mean part of the margin that is from the end token",
                    (0.41, 0.55),
                ),
            ],
            "findings": [
                finding(
                    "credit/end",
                    "watch",
                    "58% of the mean margin (0.831) is from the end tokens",
                    "compare the lengths of chosen and rejected",
                    (2, 8, 14),
                )
            ],
        },
    ]


def _reliability() -> list[dict[str, Any]]:
    bins = [[0.5 + n / 20, 0.55 + n / 20, 51, 0.5 + n / 22, 0.38 + n / 22, min(1.0, 0.62 + n / 22)] for n in range(10)]
    return [{"name": "", "bins": bins}]


def _orders(compared: bool, kind: str) -> list[dict[str, Any]]:
    plain = {"name": "as in the data", "by": "record", "descending": False, "told": "in the order of the file"}
    if not compared:
        return [plain]
    if kind != "pairs":
        return [
            plain,
            {"name": "most changed", "by": "chosen_moved", "descending": True, "told": "the largest Δ log π first"},
        ]
    return [
        {
            "name": "most wrong",
            "by": "margin",
            "descending": False,
            "told": "the smallest margin first: the reward says the contrary of the label",
        },
        {
            "name": "most displaced",
            "by": "chosen_moved",
            "descending": False,
            "told": "whose chosen completion lost most",
        },
        {"name": "suspected noise", "by": "noise", "descending": True, "told": "whose label is most probably wrong"},
        plain,
    ]
