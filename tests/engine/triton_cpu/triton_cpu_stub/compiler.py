"""The backend's compiler half. Under TRITON_INTERPRET=1 nothing is compiled."""

from typing import Any

from triton.backends.compiler import BaseBackend, GPUTarget


class StubBackend(BaseBackend):
    """Satisfies the interface; compiling is an error."""

    @staticmethod
    def supports_target(target: GPUTarget) -> bool:
        return target.backend == "cpu"

    def hash(self) -> str:
        return "stub"

    def parse_options(self, options: dict[str, Any]) -> object:
        raise NotImplementedError("the stub interprets, it does not compile")

    def add_stages(self, stages: dict[str, Any], options: object, language: object) -> None:
        raise NotImplementedError("the stub interprets, it does not compile")

    def load_dialects(self, context: object) -> None:
        return None

    def get_module_map(self) -> dict[str, Any]:
        return {}
