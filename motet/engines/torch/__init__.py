"""The embedded engine over PyTorch and Hugging Face models."""

from motet.engines.torch.core import EngineCore
from motet.engines.torch.engine import TorchEngine, TorchGeneration
from motet.engines.torch.loading import ModelLoadError, load_member
from motet.engines.torch.model import Member
from motet.engines.torch.scheduler import EngineSettings

__all__ = ["EngineCore", "EngineSettings", "Member", "ModelLoadError", "TorchEngine", "TorchGeneration", "load_member"]
