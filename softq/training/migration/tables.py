"""What the keys of TRL's and LLaMA-Factory's configs are here. Data only; docs/migrate.md shows it and tests compare.

Three kinds of keys: READ (theirs -> our setting, or --option of the command), HARMLESS (not kept; the values at which that
changes nothing) and IDLE (changes no result whatever it is; a hint, or nothing). DEFAULTS are theirs, by version.
"""

from collections.abc import Mapping
from typing import Any, NamedTuple

Hinted = Mapping[str, tuple[tuple[Any, ...], str]]


class Kind(NamedTuple):
    """A library whose configs are read."""

    name: str  # with the version whose defaults these are
    read: Mapping[str, str]
    harmless: Hinted
    idle: Mapping[str, str]
    defaults: Mapping[str, Any]
    parts: tuple[str, ...] = ()  # how keys begin that say more of what another key, accounted for, turns on


OTHER_NAMES = {
    "evaluation_strategy": "eval_strategy",
    "torch_dtype": "dtype",
    "max_seq_length": "max_length",
    "activation_checkpointing": "gradient_checkpointing",
}
"""Names of earlier and later versions -> those of the tables."""

NULLS = ("max_length", "max_grad_norm")
"""Keys whose null is a value; any other null is as if the key were not there."""

COPIED = ("learning_rate", "weight_decay", "adam_beta1", "adam_beta2", "num_train_epochs", "seed")
"""Same name, same meaning, in all three."""

_SHARED_READ = {name: name for name in COPIED} | {
    "output_dir": "output",
    "per_device_train_batch_size": "batch_size",
    "gradient_accumulation_steps": "batch_size",
    "max_steps": "max_steps, num_train_epochs",
    "lr_scheduler_type": "lr_scheduler_type",
    "warmup_steps": "warmup_steps",
    "warmup_ratio": "warmup_steps",
    "max_grad_norm": "max_grad_norm",
    "bf16": "bf16",
    "fp16": "bf16",
    "eval_strategy": "eval_data, eval_fraction, eval_steps",
    "eval_steps": "eval_steps",
    "save_strategy": "save_every",
    "save_steps": "save_every",
    "save_total_limit": "keep",
    "load_best_model_at_end": "best",
    "metric_for_best_model": "best",
    "greater_is_better": "best",
    "fsdp": "shard",
    "logging_steps": "--logging-steps",
    "report_to": "--report-to",
    "push_to_hub": "--push-to-hub",
    "hub_model_id": "--push-to-hub",
    "overwrite_output_dir": "--overwrite",
    "resume_from_checkpoint": "--resume",
    "trust_remote_code": "--trust-remote-code",
}
_SHARED_DEFAULTS: dict[str, Any] = {
    "weight_decay": 0.0,
    "adam_beta1": 0.9,
    "adam_beta2": 0.999,
    "num_train_epochs": 3.0,
    "seed": 42,
    "per_device_train_batch_size": 8,
    "gradient_accumulation_steps": 1,
    "max_steps": -1,
    "lr_scheduler_type": "linear",
    "warmup_steps": 0.0,
    "warmup_ratio": 0.0,  # of versions that had it
    "max_grad_norm": 1.0,
    "fp16": False,
    "eval_strategy": "no",
    "save_strategy": "steps",
    "save_steps": 500.0,
    "load_best_model_at_end": False,
    "report_to": "none",
    "push_to_hub": False,
    "overwrite_output_dir": False,
    "trust_remote_code": False,
}
_SHARED_HARMLESS: Hinted = {
    "optim": (("adamw_torch", "adamw_torch_fused"), "AdamW is the one optimiser"),
    "optim_args": ((), ""),
    "optim_target_modules": ((), ""),
    "adam_epsilon": ((1e-8,), "1e-8 here"),
    "lr_scheduler_kwargs": (({},), ""),
    "label_smoothing_factor": ((0.0,), "a method's label_smoothing is another thing"),
    "neftune_noise_alpha": ((), ""),
    "auto_find_batch_size": ((False,), "batch_size is what it says"),
    "dataloader_drop_last": ((False,), "every record is used"),
    "data_seed": ((), "one seed here"),
    "eval_delay": ((0,), "evaluation begins at once"),
    "fp8": ((False,), ""),
    "train_sampling_strategy": (("random", "sequential"), "steps are drawn at random"),
    "group_by_length": ((False,), "steps are drawn at random"),
    "hub_revision": ((), ""),
    "average_tokens_across_devices": ((True,), "means are over the whole step"),
    "parallelism_config": ((), ""),
    "use_cpu": ((False,), "set CUDA_VISIBLE_DEVICES= to stay on the CPU"),
}
_LAUNCH = "start with accelerate launch or torchrun"
_LAYOUT = "layout and the model decide"
_SHARED_IDLE = {
    "deepspeed": "shard: true spreads weights and optimiser over processes",
    "use_liger_kernel": _LAYOUT,
    "enable_jit_checkpoint": "SIGTERM saves",
    "hub_private_repo": "a new repository is private",
    "per_device_eval_batch_size": "tokens_per_micro bounds memory",
} | dict.fromkeys(
    "liger_kernel_config tf32 bf16_full_eval fp16_full_eval activation_checkpointing_kwargs "
    "gradient_checkpointing_kwargs torch_compile torch_compile_backend torch_compile_mode use_cache torch_empty_cache_steps "
    "logging_strategy logging_first_step log_on_each_node logging_nan_inf_filter include_num_input_tokens_seen log_level "
    "log_level_replica disable_tqdm run_name project trackio_space_id trackio_bucket_id trackio_static_space_id logging_dir "
    "prediction_loss_only eval_on_start eval_do_concat_batches eval_use_gather_object eval_accumulation_steps "
    "include_for_metrics batch_eval_metrics save_only_model save_on_each_node save_safetensors hub_token hub_strategy "
    "hub_always_push ignore_data_skip restore_callback_states_from_checkpoint full_determinism accelerator_config "
    "dataloader_num_workers dataloader_pin_memory dataloader_persistent_workers dataloader_prefetch_factor "
    "dataloader_multiprocessing_context dataloader_in_order remove_unused_columns label_names length_column_name "
    "ddp_find_unused_parameters ddp_bucket_cap_mb ddp_broadcast_buffers ddp_static_graph ddp_backend ddp_timeout "
    "fsdp_config debug skip_memory_metrics do_train do_eval do_predict local_rank".split(),
    "",
)

_LORA: Hinted = {
    "use_rslora": ((False,), ""),
    "use_dora": ((False,), ""),
}

TRL = Kind(
    "TRL 1.16.0",
    {
        "model_name_or_path": "model",
        "dataset_name": "data",
        "dataset_config": "data",
        "dataset_train_split": "data",
        "dataset_test_split": "eval_data",
        "datasets": "data",
        "test_split_size": "eval_fraction",
        **_SHARED_READ,
        "max_length": "max_length",
        "truncation_mode": "truncate",
        "loss_type": "method",
        "loss_weights": "weights",
        "use_weighting": "method",
        "f_divergence_type": "method",
        "f_alpha_divergence_coef": "alpha",
        "ld_alpha": "method, alpha",
        "discopop_tau": "tau",
        "cpo_alpha": "alpha, weights",
        "simpo_gamma": "gamma",
        "alpha": "method",
        "beta": "beta",
        "label_smoothing": "label_smoothing",
        "desirable_weight": "desirable_weight",
        "undesirable_weight": "undesirable_weight",
        "precompute_ref_log_probs": "cache_reference",
        "sync_ref_model": "reference_mixup",
        "ref_model_mixup_alpha": "reference_mixup",
        "ref_model_sync_steps": "reference_every",
        "gradient_checkpointing": "gradient_checkpointing",
        "dtype": "dtype",
        "load_in_4bit": "dtype",
        "use_bnb_nested_quant": "dtype",
        "use_peft": "use_peft",
        "lora_r": "lora_r",
        "lora_alpha": "lora_alpha",
        "lora_target_modules": "lora_target_modules",
    },
    {
        **_SHARED_HARMLESS,
        **_LORA,
        "model_revision": (("main",), "download that revision and name its directory"),
        "model_init_kwargs": (({},), ""),
        "lora_target_parameters": ((), ""),
        "lora_modules_to_save": ((), ""),
        "lora_task_type": (("CAUSAL_LM",), ""),
        "load_in_8bit": ((False,), "dtype: nf4 is the one quantised form"),
        "bnb_4bit_quant_type": (("nf4",), ""),
        "disable_dropout": ((True,), "dropout is off"),
        "router_aux_loss_coef": ((0.0,), "no auxiliary loss of experts"),
        "pad_token": ((), "padding is never seen"),
        "packing": ((False,), "a step is batch_size records"),
        "completion_only_loss": ((True,), "only completions are learned"),
        "eos_token": ((), ""),
        "chat_template_path": ((), "chat_template: FILE"),
        "dataset_text_field": (("text",), "rename: [text=FIELD]"),
        "dataset_kwargs": (({},), ""),
        "max_prompt_length": ((), "max_length alone bounds a record"),
        "max_completion_length": ((), "max_length alone bounds a record"),
        "reference_free": ((False,), ""),
        "rpo_alpha": ((), "the method dpo+sft has that summand"),
        "ref_model_init_kwargs": (({},), ""),
        "env": ((), "set these variables where the command runs"),
    },
    {
        **_SHARED_IDLE,
        "attn_implementation": _LAYOUT,
        "padding_free": _LAYOUT,
        "precompute_ref_batch_size": "tokens_per_micro bounds memory",
        "accelerate_config": _LAUNCH,
        "num_processes": _LAUNCH,
        "lora_dropout": "dropout is off, there too by disable_dropout, but for sft",
        "assistant_only_loss": "here always, for messages",
    }
    | dict.fromkeys(
        "pad_to_multiple_of dataset_num_proc dataset_streaming streaming activation_offloading ignore_bias_buffers "
        "bnb_4bit_quant_storage shuffle_dataset eval_packing packing_strategy generate_during_eval "
        "force_use_ref_model is_encoder_decoder label_pad_token_id padding_value".split(),
        "",
    ),
    {
        **_SHARED_DEFAULTS,
        "learning_rate": 1e-6,
        "logging_steps": 10.0,
        "gradient_checkpointing": True,
        "dataset_train_split": "train",
        "dataset_test_split": "test",
        "max_length": 1024,
        "truncation_mode": "keep_start",
        "beta": 0.1,
        "label_smoothing": 0.0,
        "use_weighting": False,
        "f_divergence_type": "reverse_kl",
        "f_alpha_divergence_coef": 0.5,
        "discopop_tau": 0.05,
        "cpo_alpha": 1.0,
        "simpo_gamma": 0.5,
        "alpha": 0.0,
        "desirable_weight": 1.0,
        "undesirable_weight": 1.0,
        "precompute_ref_log_probs": False,
        "sync_ref_model": False,
        "ref_model_mixup_alpha": 0.6,
        "ref_model_sync_steps": 512,
        "dtype": "float32",
        "load_in_4bit": False,
        "use_bnb_nested_quant": False,
        "use_peft": False,
        "lora_r": 16,
        "lora_alpha": 32,
        "assistant_only_loss": False,
    },
)
"""Of `trl dpo`, `trl kto`, `trl sft` and of CPOTrainer and ORPOTrainer, which share these defaults but for what TRL_OWN says."""

TRL_OWN: Mapping[str, Mapping[str, Any]] = {
    "dpo": {"loss_type": "sigmoid"},
    "kto": {"loss_type": "kto"},
    "sft": {"loss_type": "nll", "learning_rate": 2e-5},
    "cpo": {"loss_type": "sigmoid"},
    "orpo": {},
}

FACTORY = Kind(
    "LLaMA-Factory 0.9.5",
    {
        "stage": "method",
        "model_name_or_path": "model",
        "adapter_name_or_path": "model",
        "ref_model": "reference",
        "dataset": "data",
        "dataset_dir": "data",
        "eval_dataset": "eval_data",
        "val_size": "eval_fraction",
        **_SHARED_READ,
        "cutoff_len": "max_length, truncate",
        "template": "chat_template",
        "pref_loss": "method",
        "pref_beta": "beta",
        "pref_ftx": "weights",
        "dpo_label_smoothing": "label_smoothing",
        "kto_chosen_weight": "desirable_weight",
        "kto_rejected_weight": "undesirable_weight",
        "simpo_gamma": "gamma",
        "finetuning_type": "use_peft",
        "lora_rank": "lora_r",
        "lora_alpha": "lora_alpha",
        "lora_target": "lora_target_modules",
        "quantization_bit": "dtype",
        "pure_bf16": "dtype",
        "disable_gradient_checkpointing": "gradient_checkpointing",
    },
    {
        **_SHARED_HARMLESS,
        **_LORA,
        "model_revision": (("main",), "download that revision and name its directory"),
        "quantization_type": (("nf4",), ""),
        "quantization_method": (("bnb", "bitsandbytes"), ""),
        "mix_strategy": (("concat",), "data is joined; weight= says how often"),
        "enable_thinking": ((True,), "the row's chat_template_kwargs say"),
        "pref_bco_weight": ((0.0,), ""),
        "max_samples": ((), "cut the file, or use max_steps"),
        "early_stopping_steps": ((), "best keeps the best evaluation's weights"),
        "lora_dropout": ((0.0,), "dropout is off"),
        "double_quantization": ((True,), "the scales of nf4 are quantised too"),
    }
    | dict.fromkeys(
        "use_galore use_apollo use_badam use_llama_pro use_adam_mini use_mca use_hyper_parallel use_muon use_dft_loss "
        "use_asft_loss use_eaft_loss disable_shuffling train_on_prompt mask_history packing neat_packing shift_attn "
        "train_from_scratch resize_vocab split_special_tokens pissa_init create_new_adapter preserve_thinking "
        "use_kt".split(),
        ((False,), ""),
    )
    | dict.fromkeys(
        "additional_target loraplus_lr_ratio interleave_probs tool_format default_system rope_scaling mixture_of_depths "
        "add_tokens add_special_tokens new_special_tokens_config moe_aux_loss_coef ref_model_adapters ld_alpha "
        "ref_model_quantization_bit tokenized_path adapter_folder media_dir".split(),
        ((), ""),
    ),
    {**_SHARED_IDLE, "flash_attn": _LAYOUT, "use_unsloth": _LAYOUT, "enable_liger_kernel": _LAYOUT}
    | dict.fromkeys(
        "plot_loss overwrite_cache preprocessing_num_workers preprocessing_batch_size low_cpu_mem_usage use_fast_tokenizer "
        "cache_dir streaming buffer_size compute_accuracy include_effective_tokens_per_second "
        "use_unsloth_gc use_reentrant_gc upcast_layernorm upcast_lmhead_output use_kv_cache print_param_status "
        "hf_hub_token ms_hub_token om_hub_token data_shared_file_system use_swanlab ignore_pad_token_for_loss "
        "eval_on_each_dataset eval_num_beams predict_with_generate offload_folder gradient_checkpointing "
        "quantization_device_map".split(),
        "",
    ),
    {
        **_SHARED_DEFAULTS,
        "learning_rate": 5e-5,
        "logging_steps": 500.0,
        "bf16": False,
        "stage": "sft",
        "finetuning_type": "lora",
        "dataset_dir": "data",
        "val_size": 0.0,
        "cutoff_len": 2048,
        "pref_loss": "sigmoid",
        "pref_beta": 0.1,
        "pref_ftx": 0.0,
        "dpo_label_smoothing": 0.0,
        "kto_chosen_weight": 1.0,
        "kto_rejected_weight": 1.0,
        "simpo_gamma": 0.5,
        "lora_rank": 8,
        "lora_target": "all",
        "pure_bf16": False,
        "disable_gradient_checkpointing": False,
    },
    tuple(
        "freeze_ pissa_ oft_ module_dropout ppo_ reward_model galore_ apollo_ badam_ swanlab_ hyper_parallel_ asft_ eaft_ "
        "loraplus_lr_embedding image_ video_ audio_ crop_to_ use_audio_ export_ vllm_ sglang_ kt_ ray_ master_ profile "
        "enable_torch_profiler fp8_ infer_ init_special_tokens use_v1_kernels".split()
    ),
)
"""Of `llamafactory-cli train`, stages dpo, kto and sft."""

OTHERS = {
    "base_model": "axolotl's",
    "pretrain": "OpenRLHF's",
    "rlhf_type": "ms-swift's",
    "dataset_mixer_list": "open-instruct's",
    "method": "softq's own (read it with --config)",
}
"""A key that gives away whose config it is."""
