"""Families of language models, each made tiny from its config, with random weights."""

from __future__ import annotations

from typing import Any

import torch

SPECIAL = {"eos_token_id": 1, "bos_token_id": 2, "pad_token_id": 0}
SIZES: dict[str, Any] = {
    "vocab_size": 264,
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "max_position_embeddings": 64,
    "initializer_range": 0.2,
    "pad_token_id": 0,
    "eos_token_id": 1,
    "bos_token_id": 2,
}
KEY_VALUE: dict[str, Any] = {"num_key_value_heads": 2, "head_dim": 8}
GPT2_SIZES: dict[str, Any] = {
    **SPECIAL,
    "vocab_size": 264,
    "initializer_range": 0.2,
    "n_embd": 32,
    "n_layer": 4,
    "n_head": 4,
    "n_positions": 64,
}
NARROW: dict[str, Any] = {"vocab_size": 264, "hidden_size": 32, **SPECIAL}
STATES: dict[str, Any] = {**NARROW, "num_hidden_layers": 4, "initializer_range": 0.2}
MAMBA: dict[str, Any] = {
    "mamba_n_heads": 8,
    "mamba_d_head": 8,
    "mamba_d_state": 8,
    "mamba_n_groups": 1,
    "mamba_chunk_size": 8,
}
EXPERTS: dict[str, Any] = {
    "num_experts": 4,
    "num_experts_per_tok": 2,
    "moe_intermediate_size": 16,
}

FAMILIES: dict[str, tuple[str, str, dict[str, Any]]] = {
    # name: (class of the model, class of its config, settings)
    "Llama": ("LlamaForCausalLM", "LlamaConfig", {**SIZES, **KEY_VALUE}),
    "Llama 4": (
        "Llama4ForCausalLM",
        "Llama4TextConfig",
        {**SIZES, **KEY_VALUE, "intermediate_size_mlp": 64, "num_local_experts": 2},
    ),
    "Mistral": ("MistralForCausalLM", "MistralConfig", {**SIZES, **KEY_VALUE, "sliding_window": 4}),
    "Ministral": (
        "MinistralForCausalLM",
        "MinistralConfig",
        {**SIZES, **KEY_VALUE, "sliding_window": 4},
    ),
    "Mixtral": (
        "MixtralForCausalLM",
        "MixtralConfig",
        {**SIZES, **KEY_VALUE, "num_local_experts": 4},
    ),
    "Qwen2": ("Qwen2ForCausalLM", "Qwen2Config", {**SIZES, "num_key_value_heads": 2}),
    "Qwen3": ("Qwen3ForCausalLM", "Qwen3Config", {**SIZES, **KEY_VALUE}),
    "Qwen3-MoE": ("Qwen3MoeForCausalLM", "Qwen3MoeConfig", {**SIZES, **KEY_VALUE, **EXPERTS}),
    "Qwen3-Next": (
        "Qwen3NextForCausalLM",
        "Qwen3NextConfig",
        {
            **SIZES,
            **KEY_VALUE,
            **EXPERTS,
            "shared_expert_intermediate_size": 16,
            "linear_num_key_heads": 2,
            "linear_num_value_heads": 4,
            "linear_key_head_dim": 8,
            "linear_value_head_dim": 8,
            "layer_types": ["linear_attention", "full_attention"] * 2,
        },
    ),
    "Qwen3.5": (
        "Qwen3_5ForCausalLM",
        "Qwen3_5TextConfig",
        {
            **SIZES,
            **KEY_VALUE,
            "linear_num_key_heads": 2,
            "linear_num_value_heads": 4,
            "linear_key_head_dim": 8,
            "linear_value_head_dim": 8,
            "layer_types": ["linear_attention", "full_attention"] * 2,
        },
    ),
    "Gemma": ("GemmaForCausalLM", "GemmaConfig", {**SIZES, **KEY_VALUE}),
    "Gemma 2": ("Gemma2ForCausalLM", "Gemma2Config", {**SIZES, **KEY_VALUE, "sliding_window": 4}),
    "Gemma 3": (
        "Gemma3ForCausalLM",
        "Gemma3TextConfig",
        {
            **SIZES,
            **KEY_VALUE,
            "sliding_window": 4,
            "layer_types": ["sliding_attention", "full_attention"] * 2,
        },
    ),
    "Gemma 3, with images": ("Gemma3ForConditionalGeneration", "Gemma3Config", {}),
    "Gemma 3n": (
        "Gemma3nForCausalLM",
        "Gemma3nTextConfig",
        {
            **SIZES,
            **KEY_VALUE,
            "vocab_size_per_layer_input": 264,
            "hidden_size_per_layer_input": 8,
            "num_kv_shared_layers": 0,
            "laurel_rank": 4,
            "activation_sparsity_pattern": [0.0] * 4,
            "intermediate_size": 64,
            "layer_types": ["sliding_attention", "full_attention"] * 2,
            "sliding_window": 4,
        },
    ),
    "Gemma 4": (
        "Gemma4ForCausalLM",
        "Gemma4TextConfig",
        {
            **SIZES,
            **KEY_VALUE,
            "global_head_dim": 8,
            "vocab_size_per_layer_input": 264,
            "hidden_size_per_layer_input": 8,
            "sliding_window": 4,
            "layer_types": ["sliding_attention", "full_attention"] * 2,
        },
    ),
    "Phi": ("PhiForCausalLM", "PhiConfig", SIZES),
    "Phi-3": ("Phi3ForCausalLM", "Phi3Config", {**SIZES, "num_key_value_heads": 2}),
    "Falcon": ("FalconForCausalLM", "FalconConfig", {**SIZES, "new_decoder_architecture": False}),
    "Falcon, with ALiBi": ("FalconForCausalLM", "FalconConfig", {**SIZES, "alibi": True}),
    "Falcon-H1": (
        "FalconH1ForCausalLM",
        "FalconH1Config",
        {**SIZES, **KEY_VALUE, **MAMBA, "mamba_d_ssm": 64},
    ),
    "Bamba": (
        "BambaForCausalLM",
        "BambaConfig",
        {**SIZES, **KEY_VALUE, **MAMBA, "attn_layer_indices": [1, 3]},
    ),
    "Jamba": (
        "JambaForCausalLM",
        "JambaConfig",
        {
            **SIZES,
            "num_key_value_heads": 2,
            "attn_layer_period": 2,
            "attn_layer_offset": 1,
            "num_experts": 2,
            "expert_layer_period": 2,
            "expert_layer_offset": 1,
            "mamba_d_state": 8,
            "mamba_dt_rank": 4,
            "use_mamba_kernels": False,
        },
    ),
    "Granite": (
        "GraniteForCausalLM",
        "GraniteConfig",
        {
            **SIZES,
            "num_key_value_heads": 2,
            "embedding_multiplier": 3.0,
            "residual_multiplier": 0.5,
            "logits_scaling": 2.0,
        },
    ),
    "Granite-MoE": (
        "GraniteMoeForCausalLM",
        "GraniteMoeConfig",
        {
            **SIZES,
            "num_key_value_heads": 2,
            "embedding_multiplier": 3.0,
            "num_local_experts": 4,
            "num_experts_per_tok": 2,
        },
    ),
    "Granite 4 hybrid": (
        "GraniteMoeHybridForCausalLM",
        "GraniteMoeHybridConfig",
        {
            **SIZES,
            **MAMBA,
            "num_key_value_heads": 2,
            "embedding_multiplier": 3.0,
            "num_local_experts": 0,
            "shared_intermediate_size": 64,
            "layer_types": ["mamba", "attention"] * 2,
        },
    ),
    "LFM2": (
        "Lfm2ForCausalLM",
        "Lfm2Config",
        {**SIZES, "num_key_value_heads": 2, "layer_types": ["conv", "full_attention"] * 2},
    ),
    "OLMo": ("OlmoForCausalLM", "OlmoConfig", SIZES),
    "OLMo 2": ("Olmo2ForCausalLM", "Olmo2Config", SIZES),
    "OLMo 3": ("Olmo3ForCausalLM", "Olmo3Config", {**SIZES, "sliding_window": 4}),
    "OLMoE": (
        "OlmoeForCausalLM",
        "OlmoeConfig",
        {**SIZES, "num_experts": 4, "num_experts_per_tok": 2},
    ),
    "Cohere": ("CohereForCausalLM", "CohereConfig", SIZES),
    "Cohere 2": ("Cohere2ForCausalLM", "Cohere2Config", {**SIZES, "sliding_window": 4}),
    "StableLM": ("StableLmForCausalLM", "StableLmConfig", {**SIZES, "num_key_value_heads": 4}),
    "StarCoder2": (
        "Starcoder2ForCausalLM",
        "Starcoder2Config",
        {**SIZES, "num_key_value_heads": 2},
    ),
    "SmolLM3": ("SmolLM3ForCausalLM", "SmolLM3Config", {**SIZES, "num_key_value_heads": 2}),
    "EXAONE 4": (
        "Exaone4ForCausalLM",
        "Exaone4Config",
        {**SIZES, "num_key_value_heads": 2, "sliding_window": 4},
    ),
    "GLM 4": ("Glm4ForCausalLM", "Glm4Config", {**SIZES, **KEY_VALUE}),
    "ERNIE 4.5": ("Ernie4_5ForCausalLM", "Ernie4_5Config", {**SIZES, **KEY_VALUE}),
    "DeepSeek-V3": (
        "DeepseekV3ForCausalLM",
        "DeepseekV3Config",
        {
            **SIZES,
            "num_key_value_heads": 4,
            "n_routed_experts": 4,
            "num_experts_per_tok": 2,
            "n_group": 1,
            "topk_group": 1,
            "moe_intermediate_size": 16,
            "first_k_dense_replace": 1,
            "kv_lora_rank": 8,
            "q_lora_rank": 8,
            "qk_rope_head_dim": 4,
            "qk_nope_head_dim": 4,
            "v_head_dim": 8,
        },
    ),
    "gpt-oss": (
        "GptOssForCausalLM",
        "GptOssConfig",
        {
            **SIZES,
            **KEY_VALUE,
            "num_local_experts": 4,
            "num_experts_per_tok": 2,
            "sliding_window": 4,
        },
    ),
    "Nemotron": ("NemotronForCausalLM", "NemotronConfig", {**SIZES, **KEY_VALUE}),
    "HunYuan": ("HunYuanDenseV1ForCausalLM", "HunYuanDenseV1Config", {**SIZES, **KEY_VALUE}),
    "Seed-OSS": ("SeedOssForCausalLM", "SeedOssConfig", {**SIZES, **KEY_VALUE}),
    "Apertus": ("ApertusForCausalLM", "ApertusConfig", {**SIZES, "num_key_value_heads": 2}),
    "Helium": ("HeliumForCausalLM", "HeliumConfig", {**SIZES, **KEY_VALUE}),
    "GPT-2": ("GPT2LMHeadModel", "GPT2Config", GPT2_SIZES),
    "GPT-Neo": (
        "GPTNeoForCausalLM",
        "GPTNeoConfig",
        {
            **NARROW,
            "initializer_range": 0.2,
            "max_position_embeddings": 64,
            "num_layers": 4,
            "num_heads": 4,
            "attention_types": [[["global", "local"], 2]],
            "window_size": 4,
        },
    ),
    "GPT-NeoX": ("GPTNeoXForCausalLM", "GPTNeoXConfig", SIZES),
    "GPT-J": ("GPTJForCausalLM", "GPTJConfig", {**GPT2_SIZES, "rotary_dim": 4}),
    "GPT-BigCode": ("GPTBigCodeForCausalLM", "GPTBigCodeConfig", GPT2_SIZES),
    "CodeGen": ("CodeGenForCausalLM", "CodeGenConfig", {**GPT2_SIZES, "rotary_dim": 4}),
    "OpenAI-GPT": ("OpenAIGPTLMHeadModel", "OpenAIGPTConfig", GPT2_SIZES),
    "OPT": (
        "OPTForCausalLM",
        "OPTConfig",
        {**SIZES, "ffn_dim": 64, "word_embed_proj_dim": 32, "init_std": 0.2},
    ),
    "OPT-350m": (
        "OPTForCausalLM",
        "OPTConfig",
        {
            **SIZES,
            "ffn_dim": 64,
            "word_embed_proj_dim": 16,
            "init_std": 0.2,
            "do_layer_norm_before": False,
        },
    ),
    "BLOOM": (
        "BloomForCausalLM",
        "BloomConfig",
        {**NARROW, "initializer_range": 0.2, "n_layer": 4, "n_head": 4},
    ),
    "MPT": (
        "MptForCausalLM",
        "MptConfig",
        {
            **SPECIAL,
            "vocab_size": 264,
            "d_model": 32,
            "n_heads": 4,
            "n_layers": 4,
            "max_seq_len": 64,
            "initializer_range": 0.2,
        },
    ),
    "BioGPT": ("BioGptForCausalLM", "BioGptConfig", SIZES),
    "XGLM": (
        "XGLMForCausalLM",
        "XGLMConfig",
        {
            **SPECIAL,
            "vocab_size": 264,
            "max_position_embeddings": 64,
            "d_model": 32,
            "ffn_dim": 64,
            "num_layers": 4,
            "attention_heads": 4,
            "init_std": 0.2,
        },
    ),
    "Mamba": ("MambaForCausalLM", "MambaConfig", {**STATES, "state_size": 8}),
    "Mamba-2": (
        "Mamba2ForCausalLM",
        "Mamba2Config",
        {**STATES, "state_size": 8, "num_heads": 8, "head_dim": 8, "n_groups": 1, "chunk_size": 8},
    ),
    "RecurrentGemma": (
        "RecurrentGemmaForCausalLM",
        "RecurrentGemmaConfig",
        {
            **SIZES,
            "num_key_value_heads": 1,
            "lru_width": 32,
            "attention_window_size": 64,
            "block_types": ["recurrent", "attention"],
        },
    ),
    "RWKV": (
        "RwkvForCausalLM",
        "RwkvConfig",
        {**NARROW, "attention_hidden_size": 32, "num_hidden_layers": 4, "context_length": 64},
    ),
}


VISION = {
    "hidden_size": 16,
    "intermediate_size": 16,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "image_size": 28,
    "patch_size": 14,
}

OWN_CACHE = {
    *("Qwen3-Next", "Qwen3.5", "Falcon-H1", "Bamba", "Jamba", "Granite 4 hybrid", "LFM2"),
    "RecurrentGemma",
}
"""Sampled with a cache made for their config: layers that keep a state."""
GENERATE = {"Mamba", "Mamba-2", "OpenAI-GPT"}
"""Sampled by transformers' own loop."""
REFUSED = {"RWKV": "because it reads the padding", "Gemma 3n": "several hidden states to a token"}
"""Refused when a policy is made, and why."""
IN_EVERY_PASS = {
    *("Llama 4", "Gemma 4", "OPT-350m", "XGLM", "Mamba", "Mamba-2"),
    *OWN_CACHE,
}
"""Frozen layers are computed in every pass: no going on from states between two layers."""


def family(name: str) -> Any:
    """A tiny language model of that family, with random weights."""
    import transformers as hf

    cls, config_cls, sizes = FAMILIES[name]
    if name == "Gemma 3, with images":
        text = FAMILIES["Gemma 3"][2]
        tokens = {"image_token_index": 263, "boi_token_index": 262, "eoi_token_index": 261}
        sizes = {"text_config": text, "vision_config": VISION, "mm_tokens_per_image": 4, **tokens}
    config = getattr(hf, config_cls)(**sizes)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return getattr(hf, cls)(config).eval()


def table() -> str:
    """The families as docs/families.md prints them."""
    rows = ["| family | class | sampled with | frozen layers |", "| --- | --- | --- | --- |"]
    for name, (cls, _, _) in sorted(FAMILIES.items(), key=lambda item: item[0].lower()):
        if name in REFUSED:
            sampled, frozen = f"refused: {REFUSED[name]}", ""
        else:
            sampled = "keys and values"
            if name in OWN_CACHE:
                sampled = "a cache made for its config"
            elif name in GENERATE:
                sampled = "transformers' `generate`"
            frozen = "in every pass" if name in IN_EVERY_PASS else "once"
        rows.append(f"| {name} | `{cls}` | {sampled} | {frozen} |")
    return "\n".join(rows)
