"""Noticing at once that a client has gone."""

import asyncio
from collections.abc import Coroutine
from typing import Any, TypeVar

from starlette.types import Receive

T = TypeVar("T")


class ClientGone(Exception):
    """The client closed its connection, or does not read: nobody takes an answer."""


async def while_connected(
    receive: Receive, work: Coroutine[Any, Any, T], give_up: "asyncio.Future[None] | None" = None
) -> T:
    """Run `work`; when the client goes first, or `give_up` is done, cancel it and raise ClientGone.

    The request's body must have been read.
    """
    task = asyncio.ensure_future(work)
    gone = asyncio.ensure_future(_disconnected(receive))
    try:
        await asyncio.wait(
            {task, gone} | ({give_up} if give_up is not None else set()), return_when=asyncio.FIRST_COMPLETED
        )
        if not task.done():
            raise ClientGone
        return task.result()
    finally:
        task.cancel()
        gone.cancel()
        await asyncio.gather(task, gone, return_exceptions=True)


async def _disconnected(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass
