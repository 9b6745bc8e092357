"""Lets vLLM's Ray executor run on the CPU: it schedules ranks by a resource of Ray's, and the CPU has none."""


def platform() -> str:
    """The platform that vLLM takes in place of its own."""
    return "ray_cpu_stub.platform.RayCpuPlatform"
