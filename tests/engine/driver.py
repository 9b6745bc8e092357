"""A real engine in a process of its own, spoken to in JSON lines; so a test can choose its environment.

Model Runner V2's tests put a Triton backend on the path that no other test may see, and an engine that dies
must not take the test run with it. Each of the processes is forked from a nursery, which has imported vLLM once for
all of them; and the engine runs inside its process, unless the options spread it over several.
"""

import atexit
import functools
import json
import os
import select
import signal
import socket
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, TextIO

STUB = Path(__file__).parent / "triton_cpu"
ENVIRONMENT = {
    "VLLM_LOGGING_LEVEL": "WARNING",
    "VLLM_LOGGING_STREAM": "ext://sys.stderr",
    "VLLM_ALLOW_INSECURE_SERIALIZATION": "1",  # To ask the worker for its runner's name.
}
V2_ENVIRONMENT = {
    "TRITON_INTERPRET": "1",
    "VLLM_USE_V2_MODEL_RUNNER": "1",
    "PYTHONPATH": os.pathsep.join(filter(None, (str(STUB), os.environ.get("PYTHONPATH")))),
}


class Engine:
    """One running engine.

    `generate` takes requests as dictionaries: `prompt` (token ids or text) and keyword arguments of
    vLLM's SamplingParams; `coefficients` go where the server puts them.

    With `graphs`, a compilation configuration of vLLM's, the engine captures and replays emulated CUDA graphs; on Model
    Runner V2 alone.
    """

    def __init__(
        self,
        family: Path,
        overrides: Sequence[str] = (),
        v2: bool = False,
        environment: Mapping[str, str] | None = None,
        graphs: Mapping[str, Any] | None = None,
    ) -> None:
        self._log = Path(family).parent / f"engine-{'v2' if v2 else 'v1'}-{abs(hash(tuple(overrides)))}.log"
        environment = dict(environment or {}) | ({GRAPHS: json.dumps(graphs)} if graphs else {})
        # What is on the path is read by an interpreter as it starts.
        nursery = _nursery(v2, environment.get("PYTHONPATH"))
        self._socket = socket.socket(socket.AF_UNIX)
        self._socket.connect(nursery)
        self._replies = self._socket.makefile()
        self._send([str(family), *overrides], environment, str(self._log))
        self.facts = self._read()

    def generate(self, requests: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
        """Run requests as one batch; outputs in their order."""
        self._send(*requests)
        return list(self._read())

    def close(self) -> None:
        """Stop the engine and wait for it; a second call does nothing."""
        if self._socket.fileno() < 0:
            return
        self._socket.shutdown(socket.SHUT_WR)
        self._socket.settimeout(120)
        assert self._replies.read() == "", "it says nothing more, and its end closes the connection"
        self._socket.close()

    def _send(self, *items: Any) -> None:
        self._socket.sendall((json.dumps(items) + "\n").encode())

    def _read(self) -> Any:
        if line := self._replies.readline():
            return json.loads(line)
        raise RuntimeError(f"the engine died:\n{self._log.read_text()[-6000:]}")


@functools.cache
def _nursery(v2: bool, path: str | None) -> str:
    """Start a process that engines are forked from; the address at which it can be asked for one.

    It ends with this process, however that ends, and all of its engines with it.
    """
    variables = os.environ | ENVIRONMENT | (V2_ENVIRONMENT if v2 else {})
    variables |= {} if path is None else {"PYTHONPATH": path}
    folder = tempfile.TemporaryDirectory(prefix="eft-nursery-")
    address = str(Path(folder.name) / "socket")
    process = subprocess.Popen(
        [sys.executable, __file__, address],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        env=variables,
        start_new_session=True,
    )
    atexit.register(folder.cleanup)
    atexit.register(process.communicate)
    assert process.stdout is not None
    assert process.stdout.readline() == b"ready\n"
    return address


def rear(address: str) -> None:
    """The nursery's side: fork an engine for each connection, until standard input ends."""
    from eft_server.engine.launcher import fork_server

    fork_server.import_engine()
    for module in ("vllm.entrypoints.llm", "eft_server.family.inspection", "eft_server.engine.launcher.plan"):
        __import__(module)
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # Nobody waits for them.
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(address)
        listener.listen()
        os.write(1, b"ready\n")
        os.dup2(2, 1)
        while sys.stdin not in select.select([listener, sys.stdin], [], [])[0]:
            connection = listener.accept()[0]
            if os.fork() == 0:
                listener.close()
                _live(connection)
            connection.close()
    os.killpg(0, signal.SIGKILL)


def _live(connection: socket.socket) -> None:
    """An engine's side, from its birth to its end."""
    status = 1
    try:
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)
        with connection.makefile("rw") as lines:
            (arguments, environment, log) = json.loads(lines.readline())
            os.environ.update(environment)
            with open(log, "w") as file:
                os.dup2(file.fileno(), 1)
                os.dup2(file.fileno(), 2)
            serve(lines, *arguments)
        status = 0
    except BaseException:
        sys.excepthook(*sys.exc_info())
    finally:
        os._exit(status)


GRAPHS = "EFT_TEST_GRAPHS"
"""Names the environment's variable with the compilation configuration under which graphs are emulated."""

PLAIN = "--plain"
"""Instead of overrides: the path is a checkpoint, for plain vLLM."""


def start(path: str, overrides: Sequence[str]) -> Any:
    """Start the composite, or plain vLLM with the same settings."""
    if os.environ.get("TRITON_INTERPRET") == "1":
        from interpreted import patch_once

        patch_once()
    compilation = json.loads(os.environ.get(GRAPHS, "null"))
    if compilation:
        from graphs.replacements import install

        install()
    if PLAIN in overrides:
        from vllm import LLM

        _stay_in_this_process()  # As the composite does: with other threads, sums are taken in another order.
        return LLM(
            model=path,
            dtype="float32",
            enforce_eager=not compilation,
            compilation_config=compilation or {},
            max_model_len=256,
            max_num_seqs=16,
            max_num_batched_tokens=64,
            block_size=32,
            kv_cache_memory_bytes=1 << 26,
            disable_log_stats=False,
        )
    from eft_server.engine.launcher import fork_server
    from eft_server.engine.launcher.launch import open_offline
    from eft_server.engine.launcher.plan import plan
    from eft_server.family.inspection import inspect_family
    from eft_server.family.load import load_config

    graphed = ["vllm.enforce_eager=false", f"vllm.compilation_config={json.dumps(compilation)}"]
    config = load_config(path, [*overrides, *(graphed if compilation else [])])
    fork_server.start()
    if not config.vllm.get("tensor_parallel_size"):
        _stay_in_this_process()
    return open_offline(plan(config, inspect_family(config)))


def _stay_in_this_process() -> None:
    import torch

    os.environ["VLLM_ENABLE_V1_MULTIPROCESSING"] = "0"
    torch.set_num_threads(1)  # Two engines may run at once, each in a test of its own.


def serve(lines: TextIO, path: str, *overrides: str) -> None:
    """Start an engine and answer batches until the other side has no more."""
    llm = start(path, overrides)
    runner = llm.collective_rpc(_runner_name)[0]
    facts = {"runner": runner, "kv_bytes_per_token": llm.collective_rpc(_kv_bytes_per_token)}
    _reply(lines, facts | {"graphs": _graphs()["captured"], "ahead_of_time": _ahead_of_time()})
    while line := lines.readline():
        _reply(lines, _generate(llm, json.loads(line)))
    llm.llm_engine.engine_core.shutdown()


def _runner_name(worker: Any) -> str:
    kind = type(worker.model_runner)
    return f"{kind.__module__}.{kind.__name__}"


def _kv_bytes_per_token(worker: Any) -> int:
    layers = worker.vllm_config.compilation_config.static_forward_context.values()
    caches = [layer.kv_cache for layer in layers if hasattr(layer, "kv_cache")]
    block_bytes = sum(cache.nbytes // len(cache) for cache in caches)
    return int(block_bytes // worker.vllm_config.cache_config.block_size)


def _reply(lines: TextIO, value: Any) -> None:
    lines.write(json.dumps(value) + "\n")
    lines.flush()


def _generate(llm: Any, requests: list[dict[str, Any]]) -> list[dict[str, Any]]:
    from vllm import SamplingParams

    from eft_server.engine.message import scoring_params

    prompts, params, given_up = [], [], []
    for request in requests:
        if request.pop("abort", False):
            _give_up(llm, request)
            given_up.append(request)
            continue
        prompt = request.pop("prompt")
        prompts.append({"prompt_token_ids": prompt} if isinstance(prompt, list) else prompt)
        if "scoring" in request:
            params.append(scoring_params(_scoring(request["scoring"]), request.get("prompts")))
            continue
        coefficients = request.pop("coefficients", None)
        extra = {"eft": coefficients} if coefficients is not None else {}
        if "prompts" in request:
            extra["eft_prompts"] = request.pop("prompts")
        if request.pop("report", False):
            extra["eft_report"] = True
        params.append(SamplingParams(**request, extra_args=extra))
    before = _metrics(llm)
    outputs = llm.generate(prompts, params, use_tqdm=False)
    after = _metrics(llm)
    metrics = {key: after[key] - before[key] for key in after} | _left(llm)
    answered = iter(outputs)
    return [
        {}
        if any(request is other for other in given_up)
        else _plain(output := next(answered), metrics) | _scored(output, request.get("scoring"), llm)
        for request in requests
    ]


def _give_up(llm: Any, request: dict[str, Any]) -> None:
    """Have a request scored, and abort it after a step, of which it needs several."""
    from eft_server.engine.message import scoring_params

    params = scoring_params(_scoring(request["scoring"]), request.get("prompts"))
    llm.llm_engine.add_request("given-up", {"prompt_token_ids": request["prompt"]}, params)
    llm.llm_engine.step()
    llm.llm_engine.abort_request(["given-up"])


def _left(llm: Any) -> dict[str, float]:
    hooks, states = zip(*llm.collective_rpc(_left_in_worker), strict=True)
    return {"hooks:left": sum(hooks), "states:left": sum(states)}


def _left_in_worker(worker: Any) -> tuple[int, int]:
    runner = worker.model_runner
    hooks = sum(len(module._forward_hooks) for module in runner.get_model().modules())
    owner = getattr(runner, "model_state", runner)
    return hooks, len(getattr(owner, "_states", ()))


def _scoring(asked: dict[str, Any]) -> Any:
    from eft_server.engine.activations import Activations
    from eft_server.engine.message import Explaining, Scoring

    explaining = Explaining(**asked["explaining"]) if "explaining" in asked else None
    return Scoring(
        asked["first"],
        tuple(asked["targets"]),
        tuple(asked["vectors"]),
        explaining,
        asked.get("statistics", False),
        Activations.read(asked["activations"]) if "activations" in asked else None,
    )


def _scored(output: Any, asked: dict[str, Any] | None, llm: Any) -> dict[str, Any]:
    from eft_server.engine.message import explained, scored

    if asked is None or output.outputs[0].finish_reason == "error":
        return {}
    scoring = _scoring(asked)
    found = {"prompt_logprobs": None, "scored": [asdict(item) for item in scored(output, scoring)]}
    if scoring.explaining is not None:
        values = vars(explained(output, scoring))
        found["explained"] = {name: None if item is None else item.tolist() for name, item in values.items()}
    if scoring.activations is not None:
        found["activations"] = _activations(output, scoring, llm)
    return found


def _activations(output: Any, scoring: Any, llm: Any) -> Any:
    """By member and layer; or the problem, in words."""
    from eft_server.engine.activations import ActivationError
    from eft_server.engine.message import Manifest, activations_of

    widths = Manifest.from_hf(llm.llm_engine.model_config.hf_config).widths
    try:
        found = activations_of(output, scoring, widths)
    except ActivationError as error:
        return str(error)
    return {member: {layer: rows.tolist() for layer, rows in own.items()} for member, own in found.items()}


def _metrics(llm: Any) -> dict[str, float]:
    metrics = {metric.name: metric.value for metric in llm.get_metrics() if hasattr(metric, "value")}
    return metrics | {"graphs:replayed": _graphs()["replayed"]}


def _ahead_of_time() -> dict[str, int]:
    from vllm.compilation.counter import compilation_counter

    counted = vars(compilation_counter)
    return {"compiled": counted["num_aot_compiles"], "loaded": counted["num_aot_artifacts_loaded"]}


def _graphs() -> dict[str, int]:
    if not os.environ.get(GRAPHS):
        return {"captured": 0, "replayed": 0}
    from graphs.recorder import CUDAGraph

    return {"captured": CUDAGraph.captures, "replayed": CUDAGraph.replays}


def _plain(output: Any, metrics: dict[str, float]) -> dict[str, Any]:
    return {
        "prompt_logprobs": _plain_logprobs(output.prompt_logprobs),
        "cached_tokens": output.num_cached_tokens,
        "metrics": metrics,
        "choices": [
            {
                "tokens": list(choice.token_ids),
                "text": choice.text,
                "finish_reason": choice.finish_reason,
                "logprobs": _plain_logprobs(choice.logprobs),
                "drafts": _plain_drafts(choice.spec_decode_metrics),
                "figures": None if choice.routed_experts is None else choice.routed_experts.tolist(),
            }
            for choice in output.outputs
        ],
    }


def _plain_drafts(metrics: Any) -> dict[str, int] | None:
    if metrics is None:
        return None
    accepted = sum(count * steps for count, steps in enumerate(metrics.histogram))
    return {"proposed": metrics.num_draft_tokens, "accepted": accepted}


def _plain_logprobs(positions: Any) -> Any:
    if positions is None:
        return None
    return [
        None if entry is None else {int(token): value.logprob for token, value in entry.items()}
        for entry in positions
    ]


if __name__ == "__main__":
    rear(sys.argv[1])
