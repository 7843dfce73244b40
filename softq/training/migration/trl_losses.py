"""Which of TRL's trainers a config is for, and which method its loss is here, at which settings."""

from collections.abc import Mapping
from typing import Any

from softq.training.migration.reading import KL_OF_THE_STEP, Reading, method_of, number, own_settings
from softq.training.migration.tables import TRL_OWN

MARKS = {
    **dict.fromkeys("loss_weights use_weighting ld_alpha f_divergence_type discopop_tau".split(), ("dpo",)),
    "label_smoothing": ("dpo", "cpo"),
    **dict.fromkeys(("desirable_weight", "undesirable_weight"), ("kto",)),
    **dict.fromkeys(("cpo_alpha", "simpo_gamma"), ("cpo",)),
    **dict.fromkeys(
        "packing completion_only_loss assistant_only_loss dataset_text_field eos_token chat_template_path".split(),
        ("sft",),
    ),
}
"""Keys that only some of the trainers have."""

TOLD_BY = {
    **dict.fromkeys(("kto", "apo_zero_unpaired"), ("kto",)),
    **dict.fromkeys(("nll", "chunked_nll", "dft"), ("sft",)),
    **dict.fromkeys(("sigmoid", "hinge", "ipo"), ("dpo", "cpo")),
    **dict.fromkeys(("simpo", "alphapo"), ("cpo",)),
}
"""The trainers that have a loss_type; all others are DPOTrainer's only."""

LOSSES = {
    "dpo": {"sigmoid": "dpo", "exo_pair": "exo", "nca_pair": "nca", "sigmoid_norm": "dpo_norm"},
    "kto": {"apo_zero_unpaired": "apo_unpaired"},
    "sft": {"nll": "sft", "chunked_nll": "sft"},
}
"""By trainer, a loss_type whose name here is another; the others are looked up in METHODS as they are."""

DIVERGENCES = {"forward_kl": "forward_kl_dpo", "js_divergence": "js_dpo", "alpha_divergence": "alpha_dpo"}
"""What `sigmoid` is under another f_divergence_type."""

CPO_LOSSES = {"sigmoid": "cpo", "hinge": "slic", "simpo": "simpo"}
"""Of CPOTrainer, the losses that are methods here."""

SMOOTHED = ("robust", "exo_pair", "aot", "aot_unpaired")
"""The losses of TRL that read label_smoothing."""

Summands = list[tuple[str, float, dict[str, Any]]]  # a method's name, its weight in the sum, its settings


def trainer_of(given: Mapping[str, Any], method: str | None) -> str:
    """The trainer: the command's word for it, or what keys and losses tell."""
    if method is not None:
        if method not in TRL_OWN:
            known = ", ".join([*TRL_OWN][:-1]) + f" or {[*TRL_OWN][-1]}"
            raise ValueError(f"a config of TRL is for {known}, not for {method}; its loss_type says the rest")
        return method
    told = [set(trainers) for key, trainers in MARKS.items() if key in given]
    losses = given.get("loss_type")
    for loss in [losses] if isinstance(losses, str) else losses or []:
        told.append(set(TOLD_BY.get(str(loss), ("dpo",))))
    possible = [name for name in TRL_OWN if told and all(name in each for each in told)]
    if not possible:
        seen = sorted({name for each in told for name in each if len(each) == 1})
        why = f"its keys are of {' and of '.join(seen)}" if told else "its keys do not tell"
        raise ValueError(
            f"which of TRL's commands was it for? {why}; name {', '.join([*TRL_OWN][:-1])} or {[*TRL_OWN][-1]} before --from-trl"
        )
    return possible[0]


def method(read: Reading) -> tuple[list[str], list[float]]:
    """Names and weights of the summands."""
    found = {"cpo": _cpo, "orpo": _orpo}.get(read.trainer, _listed)(read)
    names = [name for name, _, _ in found]
    own_settings(read, names, [settings for _, _, settings in found])
    return names, [weight for _, weight, _ in found]


def _listed(read: Reading) -> Summands:
    """Of DPOTrainer, KTOTrainer, SFTTrainer: loss_type, one or several, and what changes its meaning."""
    losses = [read("loss_type")] if isinstance(read("loss_type"), str) else list(read("loss_type"))
    weights = [number("loss_weights", weight) for weight in read("loss_weights") or [1.0] * len(losses)]
    names = [method_of(loss, LOSSES[read.trainer], "loss_type") for loss in losses]
    if len(weights) != len(names) or len(set(names)) != len(names):
        raise ValueError(f"loss_type {losses} with loss_weights {weights}: expected a weight for each, and each once")
    names, altered = _altered(read, losses, names)
    if len(names) == 1 and weights != [1.0]:
        read.lost.append(f"loss_weights {weights} of one loss: softq has weights in sums only, so it is 1")
    shared = {"beta": read("beta"), **{key: read(key) for key in ("desirable_weight", "undesirable_weight")}}
    smoothed = [loss in SMOOTHED for loss in losses]
    own = [
        {**shared, "tau": read("discopop_tau"), **altered}
        | ({"label_smoothing": read("label_smoothing")} if smooth else {})
        for smooth in smoothed
    ]
    if read("label_smoothing") and not any(smoothed):
        read.idle.append(f"label_smoothing: TRL's {', '.join(losses)} does not read it; dpo here would (cDPO)")
    if read.trainer == "sft":
        _of_demonstrations(read)
    if names == ["kto"]:
        read.changed.append(KL_OF_THE_STEP)
    if names == ["apo_unpaired"] and {read("desirable_weight"), read("undesirable_weight")} != {1.0}:
        read.lost.append("desirable_weight, undesirable_weight: apo_unpaired has no weights of classes")
    return list(zip(names, weights, own, strict=True))


def _altered(read: Reading, losses: list[str], names: list[str]) -> tuple[list[str], dict[str, Any]]:
    """What `sigmoid` is under another divergence, with a weight on tails, or on typical pairs; and the settings of that."""
    turned = {}
    if (divergence := read("f_divergence_type")) != "reverse_kl":
        turned["f_divergence_type"] = method_of(str(divergence), DIVERGENCES, "f_divergence_type")
    if read("ld_alpha") is not None:
        turned["ld_alpha"] = method_of("ld_dpo", {}, "ld_alpha")
    if read("use_weighting"):
        turned["use_weighting"] = method_of("wpo", {}, "use_weighting")
    if not turned:
        return names, {}
    if len(turned) > 1:
        raise ValueError(f"{' and '.join(turned)} together are no method here; each by itself is one")
    ((key, name),) = turned.items()
    if "sigmoid" not in losses or set(losses) - {"sigmoid", *(() if key == "use_weighting" else ("sft",))}:
        raise ValueError(f"{key} with another loss than sigmoid is no method here; with sigmoid it is {name}")
    if key == "use_weighting":
        read.lost.append("use_weighting: wpo clamps a pair's weight at 1, as its authors' code does; TRL does not")
    alpha = {"ld_dpo": "ld_alpha", "alpha_dpo": "f_alpha_divergence_coef"}.get(name)
    return [name if loss == "sigmoid" else kept for loss, kept in zip(losses, names, strict=True)], (
        {"alpha": number(alpha, read(alpha))} if alpha else {}
    )


def _of_demonstrations(read: Reading) -> None:
    if not read("assistant_only_loss"):
        read.lost.append(
            "of `messages`, what the assistant says is learned; TRL learns all, unless assistant_only_loss"
        )
    read.lost.append("dropout is off, where the model has any; TRL leaves it on for sft (that of an adapter too)")


def _cpo(read: Reading) -> Summands:
    """Of CPOTrainer: a loss of log π without a reference, and cpo_alpha of the chosen completions' NLL."""
    loss, beta, alpha, bend = str(read("loss_type")), read("beta"), read("cpo_alpha"), read("alpha")
    if loss == "alphapo":  # which is simpo, by its alpha, alone
        loss, alpha = "simpo", 0.0
    if loss not in CPO_LOSSES or (bend and loss != "simpo"):
        what = f"alpha with loss_type {loss!r}" if bend else f"loss_type {loss!r} of CPOTrainer"
        raise ValueError(f"{what} is no method here; there are {', '.join(CPO_LOSSES)}, and alphapo")
    if read("label_smoothing") and loss != "hinge":
        read.lost.append(f"label_smoothing {read('label_smoothing'):g}: {CPO_LOSSES[loss]} has none here")
    if loss == "sigmoid":
        return [("cpo", 1.0, {"beta": beta, "alpha": alpha})]
    if loss == "simpo":
        shape = {"alpha": bend} if bend else {}
        summands = [("alphapo" if bend else "simpo", 1.0, {"beta": beta, "gamma": read("simpo_gamma"), **shape})]
    else:  # max(0, 1 - βm) is β max(0, 1/β - m)
        summands = [("slic", beta, {"delta": 1 / beta, "alpha": 0.0})]
        if not alpha:
            read.lost.append(f"loss_type hinge: slic here is {1 / beta:g} times that loss, and so is its gradient")
    return summands + ([("sft", alpha, {})] if alpha else [])


def _orpo(read: Reading) -> Summands:
    """Of ORPOTrainer, which has one loss."""
    read.lost.append("ORPO's likelihood term is of the completion here, there of prompt and completion")
    return [("orpo", 1.0, {"beta": read("beta")})]
