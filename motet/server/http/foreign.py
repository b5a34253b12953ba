"""What other servers and libraries call fields and endpoints: data alone, read by `unsupported`.

The names are those of OpenAI, vLLM (0.33), SGLang, llama.cpp's server, TGI and transformers' `generate`, Ollama,
Anthropic, TabbyAPI and OpenRouter, as of November 2026.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

NOTHING: tuple[Any, ...] = ("", [], {})  # ask for nothing, whatever the field is, as null does


class Foreign(NamedTuple):
    """A name that would change the answer. `instead`: what to send here; `harmless`: values that change nothing."""

    instead: str
    harmless: tuple[Any, ...] = (False,)


LEAVE = "Leave it out."
ADAPTER = "An adapter is a model of the operator's file: name it as 'model'."
SCHEMA = "Write response_format, or structured_outputs.json."
JSON_OBJECT = 'Write response_format: {"type": "json_object"}.'
BUDGET = "Write thinking_token_budget."
STATELESS = "This server stores no answers: send all turns as 'input'."
SERVERS_TOOLS = "This server runs no tools: offer the client's own as 'tools'."
NO_CODE = "A request carries no code."
TEMPLATE = "A request carries no code: set the template in the model's folder."

# the same thing under another name: name → ours, and the values that ask for nothing
SAME: Mapping[str, tuple[str, tuple[Any, ...]]] = {
    "repeat_penalty": ("repetition_penalty", (1, 1.0)),
    "rep_pen": ("repetition_penalty", (1, 1.0)),
    "max_new_tokens": ("max_tokens", ()),
    "max_length": ("max_tokens", ()),
    "max_output_tokens": ("max_tokens", ()),
    "max_tokens_to_sample": ("max_tokens", ()),
    "n_predict": ("max_tokens", (-1,)),
    "num_predict": ("max_tokens", (-1,)),
    "min_new_tokens": ("min_tokens", (0,)),
    "min_length": ("min_tokens", (0,)),
    "temp": ("temperature", ()),
    "stop_sequences": ("stop", ([],)),
    "stop_strings": ("stop", ([],)),
    "eos_token_id": ("stop_token_ids", ()),
    "num_return_sequences": ("n", (1,)),
    "num_choices": ("n", (1,)),
    "banned_strings": ("bad_words", ([],)),
    "bad_words_ids": ("bad_words", ([],)),
    "banned_tokens": ("logit_bias with −100", ([],)),
    "ban_eos_token": ("ignore_eos", (False,)),
    "cfg_scale": ("guidance_scale", (1, 1.0)),
    "guidance": ("guidance_scale", (1, 1.0)),
    "n_probs": ("logprobs", (0,)),
    "random_seed": ("seed", ()),
    "sampling_seed": ("seed", ()),
    "truncate": ("truncate_prompt_tokens", ()),
    "regex": ("structured_outputs.regex", ()),
    "ebnf": ("structured_outputs.grammar", ()),
    "grammar": ("structured_outputs.grammar", ("",)),
    "json_schema": ("response_format, or structured_outputs.json", ()),
    "structural_tag": ("structured_outputs", ()),
    "guided_decoding": ("structured_outputs", ()),
    "guided_options_request": ("structured_outputs", ()),
    "guided_whitespace_pattern": ("structured_outputs.whitespace_pattern", ()),
    "format": ("response_format", ("",)),
    "logits_all": ("prompt_logprobs", (False,)),
    "return_logprob": ("logprobs", (False,)),
    "token_ids_logprob": ("logprob_token_ids", ([],)),
    "top_logprobs_num": ("top_logprobs", (0,)),
    "system": ("a message of role 'system'", ("",)),
    "system_prompt": ("a message of role 'system'", ("",)),
    "prefill": ("continue_final_message", ()),
}

# what carries a composition elsewhere: nothing in it is read here
CARRIERS: Mapping[str, str] = {
    "extra_body": "It is an argument of the openai SDK, which sends what is in it: put its fields beside 'model'.",
    "vllm_xargs": "Write its fields beside 'model', a composition as an object.",
    "extra_args": "Write its fields beside 'model', a composition as an object.",
    "custom_params": "Write its fields beside 'model', a composition as an object.",
    "sampling_params": "Write its fields beside 'model'.",
    "sampling_parameters": "Write its fields beside 'model'.",
    "generation_config": "Write its fields beside 'model'.",
    "options": "Write its fields beside 'model'.",
    "parameters": "Write its fields beside 'model'.",
    "inputs": "Write 'messages' or 'prompt'.",
}

# what this server does not do
MISSING: Mapping[str, Foreign] = {
    "tools": Foreign("Use /v1/chat/completions."),
    "tool_choice": Foreign("Use /v1/chat/completions.", ("none", "auto")),
    "functions": Foreign("Write tools, to /v1/chat/completions."),
    "function_call": Foreign("Write tool_choice.", ("none", "auto")),
    "modalities": Foreign(LEAVE, (["text"],)),
    "audio": Foreign(LEAVE),
    "images": Foreign(LEAVE),
    "image_data": Foreign(LEAVE),
    "reasoning": Foreign("Write reasoning_effort."),
    "reasoning_effort": Foreign("Use /v1/chat/completions.", ("none",)),
    "thinking": Foreign("Write reasoning_effort or thinking_token_budget."),
    "think": Foreign("Write reasoning_effort."),
    "thinking_token_budget": Foreign("Use /v1/chat/completions."),
    "verbosity": Foreign(LEAVE, ("medium",)),
    "web_search_options": Foreign(LEAVE),
    "plugins": Foreign(LEAVE),
    "transforms": Foreign(LEAVE),
    "models": Foreign("One request has one 'model'; /v1/compare asks several."),
    "use_beam_search": Foreign(LEAVE),
    "thinking_budget": Foreign(BUDGET, (-1,)),
    "thinking_budget_tokens": Foreign(BUDGET, (-1,)),
    "reasoning_budget": Foreign(BUDGET, (-1,)),
    "thinking_config": Foreign("Write reasoning_effort or thinking_token_budget."),
    "enable_thinking": Foreign("It is a chat template's variable: write it into chat_template_kwargs.", ()),
    "chat_template_args": Foreign("Write chat_template_kwargs."),
    "response_schema": Foreign(SCHEMA),
    "schema": Foreign(SCHEMA),
    "json_mode": Foreign(JSON_OBJECT),
    "json_object": Foreign(JSON_OBJECT),
    "tool_config": Foreign("Write tool_choice, to /v1/chat/completions."),
    "instructions": Foreign("Write a message of role 'system'; /v1/responses reads it."),
    "input": Foreign("Write 'messages' or 'prompt'; /v1/responses reads it."),
    "ensemble": Foreign("Write a composition: 'mixture' and 'product' are ensembles."),
    "control_vector": Foreign(LEAVE),
    "control_vectors": Foreign(LEAVE),
    "detokenize": Foreign("Texts are always sent, ids beside them with return_token_ids.", (True,)),
    "num_beams": Foreign(LEAVE, (1,)),
    "early_stopping": Foreign(LEAVE),
    "length_penalty": Foreign(LEAVE, (0, 0.0, 1, 1.0)),
    "do_sample": Foreign("Write temperature 0 for the most likely tokens.", (True,)),
    "suffix": Foreign(LEAVE),
    "input_prefix": Foreign(LEAVE),
    "input_suffix": Foreign(LEAVE),
    "prompt_embeds": Foreign("A soft prompt is a model of the operator's file: name it as 'model'."),
    "input_embeds": Foreign(LEAVE),
    "documents": Foreign(LEAVE),
    "mm_processor_kwargs": Foreign(LEAVE),
    "mm_payload": Foreign(LEAVE),
    "logits_processors": Foreign(NO_CODE),
    "logits_processor": Foreign(NO_CODE),
    "custom_logit_processor": Foreign(NO_CODE),
    "chat_template": Foreign(TEMPLATE),
    "template": Foreign(TEMPLATE),
    "raw": Foreign("Use /v1/completions."),
    "lora_request": Foreign(ADAPTER),
    "lora_path": Foreign(ADAPTER),
    "adapter_id": Foreign(ADAPTER),
    "lora": Foreign(ADAPTER),
    "lora_name": Foreign(ADAPTER),
    "lora_adapters": Foreign(ADAPTER),
    "adapter": Foreign(ADAPTER),
    "adapter_name": Foreign(ADAPTER),
    "adapters": Foreign(ADAPTER),
    "session_params": Foreign(LEAVE),
    "no_stop_trim": Foreign("Write include_stop_str_in_output."),
    "stop_regex": Foreign("Write texts into 'stop'."),
    "no_repeat_ngram_size": Foreign("Write repetition_penalty.", (0,)),
    "encoder_repetition_penalty": Foreign(LEAVE, (1, 1.0)),
    "encoder_no_repeat_ngram_size": Foreign(LEAVE, (0,)),
    "repetition_detection": Foreign(LEAVE),
    "repeat_last_n": Foreign("Penalties look at the whole text.", (-1, 0)),
    "typical_p": Foreign(LEAVE, (1, 1.0)),
    "typical": Foreign(LEAVE, (1, 1.0)),
    "top_a": Foreign(LEAVE, (0, 0.0)),
    "tfs": Foreign(LEAVE, (1, 1.0)),
    "tfs_z": Foreign(LEAVE, (1, 1.0)),
    "epsilon_cutoff": Foreign(LEAVE, (0, 0.0)),
    "eta_cutoff": Foreign(LEAVE, (0, 0.0)),
    "top_n_sigma": Foreign(LEAVE, (-1, -1.0, 0, 0.0)),
    "smoothing_factor": Foreign(LEAVE, (0, 0.0)),
    "dynatemp_range": Foreign(LEAVE, (0, 0.0)),
    "dynamic_temperature": Foreign(LEAVE),
    "mirostat": Foreign(LEAVE, (0,)),
    "mirostat_mode": Foreign(LEAVE, (0,)),
    "dry_multiplier": Foreign(LEAVE, (0, 0.0)),
    "xtc_probability": Foreign(LEAVE, (0, 0.0)),
    "penalty_alpha": Foreign("Write a composition; contrastive search is none.", (0, 0.0)),
    "penalty_decay": Foreign(LEAVE),
    "samplers": Foreign(LEAVE),
    "n_keep": Foreign(LEAVE, (0,)),
    "n_discard": Foreign(LEAVE, (0,)),
    "return_token_offsets": Foreign("text_offset stands in the log-probs of completions."),
    "return_prompt_text": Foreign("Write 'echo', in completions."),
    "return_hidden_states": Foreign(LEAVE),
    "truncation_side": Foreign("The end of a prompt is kept.", ("left",)),
    "spaces_between_special_tokens": Foreign(LEAVE, (True,)),
    "watermark": Foreign(LEAVE),
    "watermarking": Foreign(LEAVE),
}

_ANTHROPICS: Mapping[str, Foreign] = {
    "container": Foreign(SERVERS_TOOLS),
    "mcp_servers": Foreign(SERVERS_TOOLS),
    "context_management": Foreign("Turns are never left out: send what is to be read."),
}

# what an endpoint has at its inventor's and this server does not do
OF_ENDPOINTS: Mapping[str, Mapping[str, Foreign]] = {
    "/v1/messages": _ANTHROPICS,
    "/v1/messages/count_tokens": _ANTHROPICS,
    "/v1/responses": {
        "previous_response_id": Foreign(STATELESS),
        "conversation": Foreign(STATELESS),
        "background": Foreign("This server stores no answers: wait for it, or stream it."),
        "prompt": Foreign("This server stores no prompts: write 'instructions' and 'input'."),
        "truncation": Foreign("Turns are never left out: send fewer, or write truncate_prompt_tokens.", ("disabled",)),
        "context_management": Foreign("Turns are never left out: send what is to be read."),
        "max_tool_calls": Foreign("It counts calls of tools that the server runs, and there are none.", ()),
    },
}

# What others leave on, so that `false` changes the answer.
ON_BY_DEFAULT = frozenset({"add_special_tokens", "add_generation_prompt", "skip_special_tokens"})

# of a message
OF_MESSAGES: Mapping[str, str] = {
    "function_call": "Write tool_calls.",
    "reasoning": "Write reasoning_content.",
    "thinking": "Write reasoning_content.",
    "refusal": "Write it as 'content'.",
    "audio": LEAVE,
    "images": LEAVE,
    "prefix": "Write continue_final_message, beside 'messages'.",
    "partial": "Write continue_final_message, beside 'messages'.",
    "text": "Write it as 'content'.",
    "weight": "It is for training.",
}

# endpoint of others → what does the same here
ENDPOINTS: Mapping[str, str] = {
    "/api/chat": "/v1/chat/completions",
    "/api/generate": "/v1/completions",
    "/api/tags": "/v1/models",
    "/completion": "/v1/completions",
    "/generate": "/v1/completions",
    "/generate_stream": "/v1/completions",
    "/v1/engines": "/v1/models",
    "/props": "/v1/models",
    "/get_model_info": "/v1/models",
    "/v1/tokenize": "/tokenize",
    "/v1/detokenize": "/detokenize",
    "/ping": "/health",
}

# Near to one of our names, but something else: they stay ignored.
HARMLESS = frozenset({
    "user", "metadata", "store", "service_tier", "safety_identifier", "prompt_cache_key", "prompt_cache_retention",
    "prediction", "priority", "request_id", "session_id", "chat_id", "trace_id", "stream_id", "stream_interval",
    "include_reasoning", "separate_reasoning", "stream_reasoning", "parallel_tool_calls", "return_full_text",
    "decoder_input_details", "details", "cache_prompt", "cache_control", "id_slot", "slot_id", "timings_per_token",
    "return_progress", "keep_alive", "guided_decoding_backend", "provider", "usage", "route", "kv_transfer_params",
    "ec_transfer_params", "use_cache", "rid", "data_parallel_rank", "mirostat_tau", "mirostat_eta", "dry_base",
    "dry_allowed_length", "dry_penalty_last_n", "dry_sequence_breakers", "xtc_threshold", "dynatemp_exponent",
    "mirostat_lr", "temperature_last", "top_n_tokens", "pad_token_id", "bos_token_id",
})  # fmt: skip
