"""Which layout `auto` picks for an architecture, and how far each layout stands from the model's own forward.

    python bench/layouts.py > docs/layouts.md

Models of two layers with weights ten times their initial size, in float32. Nine rows of five records: equal prompts, shared
starts of completions, prompts and completions of one token. Measured against transformers' forward on each row by itself.
"""

import sys
from pathlib import Path

import torch
import transformers
from torch import Tensor
from transformers import PreTrainedModel

from softq.lm.load import Loaded, load

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))
from tiny import ALONE, SHARING, alone, gradients, odd_rows, tiny, tokenizer  # pyright: ignore

HEADER = """\
How far softq's layouts stand from each model's own forward on each row by itself: the largest difference of a log-probability
in nats, and the difference of the gradient relative to its norm, in float32 on models of two layers with tenfold weights.
`auto` picks the layout of the second column (on a GPU padded in place of packed), and plain for the reason in the last one.

    python bench/layouts.py > docs/layouts.md     # transformers {transformers}, torch {torch}

| architecture | `auto` picks | plain | padded | packed | why plain |
|---|---|---|---|---|---|"""

LATENT = {"q_lora_rank": 8, "kv_lora_rank": 8, "qk_rope_head_dim": 8, "qk_nope_head_dim": 8, "v_head_dim": 8}
LINEAR = {"linear_num_key_heads": 2, "linear_num_value_heads": 2, "linear_key_head_dim": 8, "linear_value_head_dim": 8}
EXPERTS = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 16}
WINDOWS = {"sliding_window": 32, "layer_types": ["sliding_attention", "full_attention"]}
MORE: dict[str, dict] = {
    "apertus": {},
    "cohere2": WINDOWS,
    "deepseek_v3": {
        **LATENT,
        **EXPERTS,
        "n_routed_experts": 4,
        "n_group": 2,
        "topk_group": 1,
        "num_key_value_heads": 4,
    },
    "ernie4_5": {},
    "exaone4": WINDOWS,
    "glm4": {},
    "gpt_bigcode": {},
    "gptj": {"rotary_dim": 4},
    "granitemoe": {"num_local_experts": 4},
    "helium": {"head_dim": 8},
    "lfm2": {"layer_types": ["conv", "full_attention"]},
    "llama4_text": {"head_dim": 8, "num_local_experts": 4, "intermediate_size_mlp": 48},
    "mamba2": {"num_heads": 8, "head_dim": 8, "n_groups": 1},
    "olmo3": WINDOWS,
    "olmoe": {"num_experts": 4, "num_experts_per_tok": 2},
    "phimoe": {"num_local_experts": 4},
    "qwen3_5_text": {"head_dim": 8, **LINEAR, "layer_types": ["linear_attention", "full_attention"]},
    "qwen3_moe": {"head_dim": 8, **EXPERTS},
    "rwkv": {},
    "seed_oss": {},
}
"""Architectures that the tests do not run, and what their configuration needs."""


def fresh(name: str) -> PreTrainedModel:
    return tiny(name, torch.float32, **MORE.get(name, {}))


def loaded(name: str, layout: str) -> Loaded:
    return load(fresh(name), None, tokenizer=tokenizer(), layout=layout)


def distance(name: str, layout: str) -> str:
    """The largest |Δ log-prob| and the relative ‖Δ gradient‖, or a dash where the layout is not valid."""
    try:
        found = loaded(name, layout)
    except ValueError:
        return "–"
    tokens, model = odd_rows(), fresh(name)
    want, expected = gradients(model, lambda: alone(model, tokens))
    got, gradient = gradients(found.policy.transformer, lambda: found.models(tokens)["logp"])
    turned = (flat(gradient) - flat(expected)).norm() / flat(expected).norm()
    return f"{(got - want).abs().max():.1e}, {turned:.1e}"


def flat(gradient: dict[str, Tensor]) -> Tensor:
    return torch.cat([gradient[name].flatten() for name in sorted(gradient)])


def row(name: str) -> str:
    """One line of the table."""
    try:
        found = loaded(name, "auto")
    except ValueError as error:
        return f"| {name} | refused | – | – | – | {str(error).split(':')[1].split(';')[0].strip()} |"
    numbers = " | ".join(distance(name, layout) for layout in ("plain", "padded", "packed"))
    why = found.notes[0].removeprefix("layout plain, because ").split(":")[0] if found.notes else ""
    return f"| {name} | {found.policy.layout} | {numbers} | {why} |"


def main() -> None:
    torch.set_num_threads(1)
    transformers.logging.set_verbosity_error()
    print(HEADER.format(transformers=transformers.__version__, torch=torch.__version__.split("+")[0]))
    for name in sorted({*SHARING, *ALONE, *MORE}):
        print(row(name))


if __name__ == "__main__":
    main()
