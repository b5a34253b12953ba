"""The embedded engine over PyTorch and Hugging Face models."""

from motet.server.engines.torch.core import EngineCore
from motet.server.engines.torch.engine import TorchEngine, TorchGeneration
from motet.server.engines.torch.model import Member, ModelLoadError, load_member
from motet.server.engines.torch.scheduler import EngineSettings

__all__ = ["EngineCore", "EngineSettings", "Member", "ModelLoadError", "TorchEngine", "TorchGeneration", "load_member"]
