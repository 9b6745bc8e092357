"""`load()` in a script as people write them: without a main guard, with streams, and left open at the end."""

import json
import subprocess
import sys
from pathlib import Path

import psutil

SCRIPT = """
import json, sys, threading
from eft_server import load

client = load("demo", quiet=True, overrides=["server.max_concurrent_requests=4"])
question, greedy = "How could I build the goblin soap?", dict(temperature=0, max_tokens=32)
whole = client.chat(question, weights={"helpful": 1}, **greedy)
pieces = list(client.stream(question, weights={"helpful": 1}, **greedy))
early = client.stream(question, weights={"helpful": 1}, temperature=0, max_tokens=400, min_tokens=400)
next(early)
early.close()
sweep = [{"messages": question, "weights": {"helpful": w, "harmless": 1 - w}, **greedy} for w in (0, 0.5, 1)]
threaded = []
thread = threading.Thread(target=lambda: threaded.extend(client.chat_many([question] * 6, **greedy)))
thread.start()
answers = client.answer_many(sweep)
thread.join()
scores = client.score([{"prompt": question, "completion": whole.text}], weights={"helpful": 1})
json.dump(
    {
        "whole": whole.text,
        "pieces": [piece.text for piece in pieces],
        "applied": pieces[0].eft["weights"],
        "sweep": [answer.text for answer in answers],
        "threaded": sorted({answer.text for answer in threaded}),
        "total": scores[0].composite.total,
        "models": [card.id for card in client.models()],
    },
    sys.stdout,
)
"""


def test_a_script_reaches_an_engine_of_its_own_as_it_would_a_server(tmp_path: Path) -> None:
    script = tmp_path / "script.py"
    script.write_text(SCRIPT)
    process = subprocess.Popen(
        [sys.executable, script], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    children: set[psutil.Process] = set()
    try:
        own = psutil.Process(process.pid)
        while process.poll() is None:
            try:
                process.wait(0.5)
            except subprocess.TimeoutExpired:
                children.update(own.children(recursive=True))
        out, told = process.communicate(timeout=60)
    finally:
        process.kill()
    assert (process.returncode, told) == (0, "")
    said = json.loads(out)
    assert "pepper oil" in said["whole"]
    assert "".join(said["pieces"]) == said["whole"]
    assert len(said["pieces"]) > 5
    assert said["applied"] == {"helpful": 1.0, "harmless": 0.0}
    assert said["sweep"][2] == said["whole"] != said["sweep"][0]
    assert len(said["threaded"]) == 1
    assert said["total"] < 0
    assert "demo/base" in said["models"]
    assert children and psutil.wait_procs(children, timeout=30)[1] == []
