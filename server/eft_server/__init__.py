"""An OpenAI-compatible inference server for emulated fine-tuning on vLLM.

Importing the package is cheap: torch, vLLM, transformers and FastAPI load only where they are used.
"""

from eft_server.local import Answer, LoadedFamily, load

__version__ = "0.1.0"

__all__ = ["Answer", "LoadedFamily", "__version__", "load"]
