"""Training methods, one file per shape. A method is made by a call, such as METHODS["dpo"](beta=0.1)."""

from collections.abc import Callable, Mapping

from softq.objectives.anchored import dpo_anchor, dpop, rpo
from softq.objectives.demonstrations import sft
from softq.objectives.distillation import aligndistil
from softq.objectives.divergences import alpha_dpo, forward_kl_dpo, js_dpo
from softq.objectives.lengths import dpo_norm, ld_dpo, rdpo
from softq.objectives.margins import discopop, dpo, exo, hinge, ipo, robust
from softq.objectives.rankings import all_pairs, best_vs_rest, exo_k, infonca, nca_k, plackett_luce, sppo
from softq.objectives.reference_free import alphapo, cpo, gamma_dpo, orpo, simpo, slic
from softq.objectives.regression import kl_to_target, rebel, reward_regression, soft_preference
from softq.objectives.reward_model import rm
from softq.objectives.sides import apo_down, apo_zero, bco_pair, nca, sppo_hard
from softq.objectives.token_level import bmc, cringe, tdpo1, tdpo2, wpo
from softq.objectives.transport import aot, aot_unpaired
from softq.objectives.unpaired import apo_unpaired, bco, kto
from softq.objectives.values import soft_value, value
from softq.records import Method

METHODS: Mapping[str, Callable[..., Method]] = {
    "dpo": dpo,
    "robust": robust,
    "ipo": ipo,
    "hinge": hinge,
    "exo": exo,
    "discopop": discopop,
    "forward_kl_dpo": forward_kl_dpo,
    "js_dpo": js_dpo,
    "alpha_dpo": alpha_dpo,
    "dpo_norm": dpo_norm,
    "rdpo": rdpo,
    "ld_dpo": ld_dpo,
    "nca": nca,
    "bco_pair": bco_pair,
    "sppo_hard": sppo_hard,
    "apo_zero": apo_zero,
    "apo_down": apo_down,
    "dpop": dpop,
    "rpo": rpo,
    "dpo_anchor": dpo_anchor,
    "simpo": simpo,
    "alphapo": alphapo,
    "cpo": cpo,
    "orpo": orpo,
    "slic": slic,
    "gamma_dpo": gamma_dpo,
    "tdpo1": tdpo1,
    "tdpo2": tdpo2,
    "wpo": wpo,
    "bmc": bmc,
    "cringe": cringe,
    "aot": aot,
    "aot_unpaired": aot_unpaired,
    "kto": kto,
    "bco": bco,
    "apo_unpaired": apo_unpaired,
    "infonca": infonca,
    "nca_k": nca_k,
    "exo_k": exo_k,
    "plackett_luce": plackett_luce,
    "best_vs_rest": best_vs_rest,
    "all_pairs": all_pairs,
    "sppo": sppo,
    "reward_regression": reward_regression,
    "rebel": rebel,
    "soft_preference": soft_preference,
    "kl_to_target": kl_to_target,
    "aligndistil": aligndistil,
    "sft": sft,
    "rm": rm,
    "value": value,
    "soft_value": soft_value,
}
