"""Training methods, one file per shape. A method is made by a call, such as METHODS["dpo"](beta=0.1)."""

from collections.abc import Callable, Mapping

from softq.objectives.demonstrations import sft
from softq.objectives.margins import dpo, ipo
from softq.objectives.rankings import infonca
from softq.objectives.token_level import tdpo2, wpo
from softq.objectives.transport import aot
from softq.objectives.unpaired import kto
from softq.records import Method

METHODS: Mapping[str, Callable[..., Method]] = {
    "dpo": dpo,
    "ipo": ipo,
    "tdpo2": tdpo2,
    "wpo": wpo,
    "aot": aot,
    "kto": kto,
    "infonca": infonca,
    "sft": sft,
}
