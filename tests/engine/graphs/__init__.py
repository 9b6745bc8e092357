"""CUDA graphs emulated on the CPU: the same kernels on the same addresses, and none of the model's Python.

`arena` is the memory that graphs allocate from, `recorder` records a capture and replays it, and `replacements` puts
both where torch and vLLM have CUDA's.
"""
