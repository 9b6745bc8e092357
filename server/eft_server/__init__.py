"""An OpenAI-compatible inference server for emulated fine-tuning on vLLM.

Importing the package is cheap: torch, vLLM, transformers and FastAPI load only where they are used.
"""

from eft_server.local import load

__version__ = "0.1.0"

__all__ = ["__version__", "load"]
