"""Completions to imitate."""

from plain.arithmetic import mean


def sft(x: dict, p: dict) -> float:
    shown = sorted(set(x["chosen"])) if "chosen" in x else range(len(x["logp"]))
    return -mean([logp for row in shown for logp in x["logp"][row]])


LOSSES = {"sft": sft}
