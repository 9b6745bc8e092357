"""What becomes of a handler's work when nobody waits for it any more."""

import asyncio
import gc
from types import SimpleNamespace

import pytest

from eft_server.api.edge.api_error import ApiError
from eft_server.api.edge.deadlines import UnderWay
from eft_server.api.serving.stream import answer


async def left() -> dict[str, str]:
    return {"type": "http.disconnect"}


@pytest.mark.parametrize("fails", [True, False])
async def test_work_for_a_client_that_has_left_is_ended_without_a_word(fails):
    heard, ended = [], []
    asyncio.get_running_loop().set_exception_handler(lambda loop, context: heard.append(context))

    async def work():
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            ended.append(True)
            if fails:  # As vLLM's handlers do.
                raise ApiError("Client disconnected") from None
            raise

    raw = SimpleNamespace(receive=left, app=SimpleNamespace(state=SimpleNamespace(under_way=UnderWay())))
    response = await answer(raw, work(), {}, 60.0)
    await asyncio.sleep(0)
    gc.collect()
    assert (response.status_code, ended, heard) == (499, [True], [])
