"""Those who wait hear of a change, and nobody waits for one that has been."""

from __future__ import annotations

import asyncio

from hub_service.changes import Changes, project_topic, user_topic


async def test_a_waiter_hears_of_the_next_change() -> None:
    changes = Changes()
    topic = project_topic("1")
    waiter = asyncio.create_task(changes.wait(topic, seen=0, timeout=60))
    await asyncio.sleep(0)
    changes.announce(topic)
    assert await waiter == 1


async def test_a_change_that_was_missed_is_told_at_once() -> None:
    changes = Changes()
    changes.announce("t", "t")
    assert await changes.wait("t", seen=0, timeout=60) == 2


async def test_another_topic_wakes_nobody() -> None:
    changes = Changes()
    waiter = asyncio.create_task(changes.wait(user_topic("anna"), seen=0, timeout=60))
    await asyncio.sleep(0)
    changes.announce(user_topic("bert"), project_topic("anna"))
    await asyncio.sleep(0)
    assert not waiter.done()
    waiter.cancel()


async def test_without_a_change_the_wait_ends_with_the_same_revision() -> None:
    assert await Changes().wait("t", seen=0, timeout=0) == 0


async def test_all_waiters_of_a_topic_are_woken() -> None:
    changes = Changes()
    waiters = [asyncio.create_task(changes.wait("t", seen=0, timeout=60)) for _ in range(3)]
    await asyncio.sleep(0)
    changes.announce("t")
    assert await asyncio.gather(*waiters) == [1, 1, 1]


async def test_at_the_end_nobody_waits_any_more() -> None:
    changes = Changes()
    waiter = asyncio.create_task(changes.wait("t", seen=0, timeout=60))
    await asyncio.sleep(0)
    changes.close()
    assert await waiter == 0
    assert await changes.wait("t", seen=0, timeout=60) == 0
