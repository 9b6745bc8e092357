"""The CPU, whose ranks Ray schedules by GPUs that a test makes up."""

from vllm.platforms.cpu import CpuPlatform


class RayCpuPlatform(CpuPlatform):
    """VLLM's CPU platform with the name of a resource."""

    ray_device_key = "GPU"
