"""What vLLM loads in each of its processes (entry point `vllm.general_plugins`)."""

from __future__ import annotations

from motet.engines.vllm.internals import check_version, touch


def register() -> None:
    """Makes the composite known to transformers and vLLM; harmless when repeated.

    Raises:
        VllmUnavailable: an unsupported version.
    """
    from transformers import AutoConfig

    from motet.engines.vllm.config import ARCHITECTURE, MODEL_TYPE, CompositeConfig

    check_version()
    AutoConfig.register(MODEL_TYPE, CompositeConfig, exist_ok=True)
    registry = touch("ModelRegistry")
    if ARCHITECTURE not in registry.get_supported_archs():
        registry.register_model(ARCHITECTURE, "motet.engines.vllm.model:MotetCompositeForCausalLM")
