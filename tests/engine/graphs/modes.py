"""The ways in which vLLM uses graphs, as compilation configurations for the driver's engines."""

from typing import Any

FULL = ("FULL_DECODE_ONLY", "FULL")
"""One graph for a whole step: those that decode alone, or all. Nothing is compiled."""

PIECEWISE = ("PIECEWISE", "FULL_AND_PIECEWISE")
"""Graphs between the layers' attention, of models that are split there; the second is vLLM's default on a GPU."""


def graphed(mode: str, backend: str = "eager") -> dict[str, Any]:
    """What `Engine(..., graphs=...)` takes.

    Args:
        mode: vLLM's name of a mode.
        backend: what compiles the pieces of a model, in modes that have pieces: "eager" leaves them as traced.
    """
    # A decoding step has 16 requests at most, any step 64 tokens.
    sizes = [1, 2, 4, 8, 16]
    if mode == "FULL_DECODE_ONLY":
        return {"mode": 0, "cudagraph_mode": mode, "cudagraph_capture_sizes": sizes}
    sizes += [32, 64]
    if mode == "FULL":
        return {"mode": 0, "cudagraph_mode": mode, "cudagraph_capture_sizes": sizes}
    return {"mode": 3, "backend": backend, "cudagraph_mode": mode, "cudagraph_capture_sizes": sizes}
