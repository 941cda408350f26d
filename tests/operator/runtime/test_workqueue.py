import asyncio
import random

from operator_runs import eventually
from quire_operator.runtime.workqueue import WorkQueue


async def test_a_waiting_worker_gets_a_key_at_once() -> None:
    queue: WorkQueue[str] = WorkQueue(clock=lambda: 7.0)
    taking = asyncio.create_task(queue.take())
    await asyncio.sleep(0)

    queue.add("a")

    assert await taking == ("a", 0.0)


async def test_a_delayed_key_wakes_a_worker_that_already_waits() -> None:
    queue: WorkQueue[str] = WorkQueue()
    queue.add("late", delay_s=3600.0)
    taking = asyncio.create_task(queue.take())
    await asyncio.sleep(0)

    queue.add("soon", delay_s=0.01)

    assert (await taking)[0] == "soon"


async def test_many_workers_never_share_a_key_and_miss_no_addition() -> None:
    queue: WorkQueue[int] = WorkQueue()
    active: set[int] = set()
    version = dict.fromkeys(range(10), 0)
    seen = dict.fromkeys(range(10), -1)

    async def work() -> None:
        while True:
            key, _ = await queue.take()
            assert key not in active
            active.add(key)
            looked_at = version[key]
            await asyncio.sleep(random.uniform(0, 0.002))
            seen[key] = looked_at
            active.remove(key)
            queue.done(key)

    async with asyncio.TaskGroup() as group:
        workers = [group.create_task(work()) for _ in range(8)]
        for _ in range(400):
            key = random.randrange(10)
            version[key] += 1
            queue.add(key, delay_s=random.choice((0.0, 0.0, 0.001)))
            if random.random() < 0.2:
                await asyncio.sleep(0.001)
        wanted = {key: value or -1 for key, value in version.items()}
        await eventually("every addition is seen", lambda: seen == wanted)
        for worker in workers:
            worker.cancel()

    queue.schedule.check()


async def test_cancelled_takers_take_nothing_with_them() -> None:
    queue: WorkQueue[str] = WorkQueue()
    taking = asyncio.create_task(queue.take())
    await asyncio.sleep(0)
    queue.add("a")
    taking.cancel()
    await asyncio.gather(taking, return_exceptions=True)

    assert (await queue.take())[0] == "a"
