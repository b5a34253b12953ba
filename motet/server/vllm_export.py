"""The operator's file as a folder that vLLM's own server serves: `motet vllm export`."""

from __future__ import annotations

from pathlib import Path

from motet.server.loading import find_sources
from motet.server.loading_vllm import checkpoints, inspect
from motet.server.operator_file import Configuration


def export(configuration: Configuration, out: Path) -> str:
    """Writes the composite's configuration and the first model's tokenizer; weights stay where they are.

    Returns:
        The command that serves the folder.

    Raises:
        ConfigError: models that cannot be read or do not belong together.
    """
    from motet.server.engines.vllm.config import write_composite
    from motet.server.engines.vllm.loading import CHECK, WORKER, composite

    sources = find_sources(configuration)
    tokenizers, infos = inspect(configuration, sources)
    write_composite(out, composite(checkpoints(sources, lambda _: None), infos))
    next(iter(tokenizers.values())).hf.save_pretrained(str(out))
    return (
        f"VLLM_USE_V2_MODEL_RUNNER=0 python -m vllm.entrypoints.openai.api_server --model {out} "
        f"--worker-cls {WORKER} --logits-processors {CHECK} --dtype {next(iter(infos.values())).dtype} "
        "--no-async-scheduling --disable-hybrid-kv-cache-manager"
    )
