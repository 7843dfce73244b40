"""An explicit reward: the last value of a row."""

from plain.arithmetic import h, over_pairs


def rm(x: dict, p: dict) -> float:
    def value(k: int, w: int, low: int) -> float:
        better, worse = x["value"][w][-1], x["value"][low][-1]
        z = better - worse - (x["margin"][k] if "margin" in x else 0.0)
        sure = x["label_probability"][k] if "label_probability" in x else 1.0
        return sure * h(z) + (1 - sure) * h(-z) + p["center"] * (better + worse) ** 2

    return over_pairs(x, value)


LOSSES = {"rm": rm}
