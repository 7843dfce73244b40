"""How TRL is asked for a method of ours: the trainer, its settings, and which of its settings a parameter of ours is."""

from collections.abc import Mapping
from typing import Any, NamedTuple


class Way(NamedTuple):
    """One method in TRL."""

    trainer: str
    settings: Mapping[str, Any]
    names: Mapping[str, str]  # our parameter -> TRL's; one that is not here can not be said there


def _dpo(loss: str, names: str = "", **settings: Any) -> Way:
    """A loss of DPOTrainer. names: "ours=theirs" of the parameters beside β."""
    return Way("DPOTrainer", {"loss_type": loss, **settings}, {"beta": "beta", **_named(names)})


def _named(names: str) -> dict[str, str]:
    return {ours: theirs or ours for ours, _, theirs in (each.partition("=") for each in names.split())}


WAYS: Mapping[str, Way] = {
    "dpo": _dpo("sigmoid", "label_smoothing"),
    "hinge": _dpo("hinge"),
    "ipo": _dpo("ipo"),
    "exo": _dpo("exo_pair", "label_smoothing"),
    "nca": _dpo("nca_pair"),
    "robust": _dpo("robust", "label_smoothing"),
    "bco_pair": _dpo("bco_pair"),
    "sppo_hard": _dpo("sppo_hard"),
    "aot": _dpo("aot", "label_smoothing"),
    "aot_unpaired": _dpo("aot_unpaired", "label_smoothing"),
    "apo_zero": _dpo("apo_zero"),
    "apo_down": _dpo("apo_down"),
    "discopop": _dpo("discopop", "tau=discopop_tau"),
    "sft": _dpo("sft"),
    "dpo_norm": _dpo("sigmoid_norm"),
    "forward_kl_dpo": _dpo("sigmoid", f_divergence_type="forward_kl"),
    "js_dpo": _dpo("sigmoid", f_divergence_type="js_divergence"),
    "alpha_dpo": _dpo("sigmoid", "alpha=f_alpha_divergence_coef", f_divergence_type="alpha_divergence"),
    "ld_dpo": _dpo("sigmoid", "alpha=ld_alpha"),
    "wpo": _dpo("sigmoid", use_weighting=True),
    "kto": Way("KTOTrainer", {"loss_type": "kto"}, _named("beta desirable_weight undesirable_weight")),
    "apo_unpaired": Way("KTOTrainer", {"loss_type": "apo_zero_unpaired"}, _named("beta")),
    "cpo": Way("CPOTrainer", {"loss_type": "sigmoid"}, _named("beta alpha=cpo_alpha")),
    "simpo": Way("CPOTrainer", {"loss_type": "simpo", "cpo_alpha": 0.0}, _named("beta gamma=simpo_gamma")),
    "alphapo": Way("CPOTrainer", {"loss_type": "alphapo"}, _named("beta gamma=simpo_gamma alpha")),
    "rm": Way("RewardTrainer", {}, _named("center=center_rewards_coefficient")),
    "orpo": Way("ORPOTrainer", {}, _named("beta")),
}


def asked(method: str, parameters: Mapping[str, Any]) -> tuple[str, dict[str, Any]] | None:
    """The trainer and its settings for a method, or for a sum "a+b" as `parameters` give it; None: TRL has none.

    Parameters that TRL can not be told are left out.
    """
    names = method.split("+")
    ways = [WAYS[name] for name in names if name in WAYS]
    own = [parameters[name] if len(names) > 1 else parameters for name in names]
    if len(ways) < len(names) or (len(names) > 1 and any(way.trainer != "DPOTrainer" for way in ways)):
        return None
    settings = {
        way.names[key]: value
        for way, given in zip(ways, own, strict=True)
        for key, value in given.items()
        if key in way.names
    }
    if len(names) > 1:
        losses = [way.settings["loss_type"] for way in ways]
        return ways[0].trainer, {"loss_type": losses, "loss_weights": parameters["weights"], **settings}
    return ways[0].trainer, {**ways[0].settings, **settings}
