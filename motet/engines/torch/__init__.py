"""The embedded engine over PyTorch and Hugging Face models."""

from motet.engines.torch.adapters import Adapter, attach_adapter
from motet.engines.torch.core import EngineCore
from motet.engines.torch.engine import TorchEngine, TorchGeneration
from motet.engines.torch.loading import ModelLoadError, load_member
from motet.engines.torch.model import Member
from motet.engines.torch.scheduler import EngineSettings
from motet.engines.torch.soft_prompts import Model, SoftPrompt, soft_prompt

__all__ = [
    "Adapter",
    "EngineCore",
    "EngineSettings",
    "Member",
    "Model",
    "ModelLoadError",
    "SoftPrompt",
    "TorchEngine",
    "TorchGeneration",
    "attach_adapter",
    "load_member",
    "soft_prompt",
]
