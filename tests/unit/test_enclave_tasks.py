"""What a task leaves behind when it has ended."""

from __future__ import annotations

import weakref

import pytest

from enclave.tasks import Promise, Task
from policies.errors import Bug, KeymootError


class Held:
    """Stands for what a ceremony's frames hold."""


async def holding(promise: Promise[None], seen: list[weakref.ref[Held]]) -> None:
    held = Held()
    seen.append(weakref.ref(held))
    try:
        await promise
    except KeymootError as error:
        # As most errors are made: from what was caught, whose frames come along.
        raise KeymootError(f"{error}, {type(held).__name__}") from None


@pytest.mark.parametrize("how", ["cancelled", "rejected"])
def test_an_ended_task_keeps_no_frame_by_its_error(how: str) -> None:
    seen: list[weakref.ref[Held]] = []
    ended: list[Task[None]] = []
    promise: Promise[None] = Promise()
    task = Task(holding(promise, seen), ended.append)
    task.start()
    error = KeymootError("no end within 60 s")
    if how == "cancelled":
        task.cancel(error)
    else:
        promise.reject(error)
    assert ended == [task]
    assert str(task.outcome) == "no end within 60 s, Held"
    assert isinstance(task.outcome, KeymootError)
    assert (task.outcome.__traceback__, task.outcome.__context__) == (None, None)
    del error
    assert seen[0]() is None


def test_a_bug_keeps_where_it_came_from() -> None:
    async def broken() -> None:
        raise Bug("an invariant")

    with pytest.raises(Bug) as caught:
        Task(broken(), lambda task: None).start()
    assert [entry.name for entry in caught.traceback][-1] == "broken"


def test_a_task_that_ended_is_not_cancelled() -> None:
    async def done() -> int:
        return 7

    task: Task[int] = Task(done(), lambda task: None)
    task.start()
    task.cancel(KeymootError("too late"))
    assert (task.ended, task.outcome) == (True, 7)
