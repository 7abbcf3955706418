"""All client requests that this enclave remembers (SPEC 4.1), bounded: none may take everybody's room.

In memory only. One that was carried out is forgotten when neither its JWS nor an authorization of it can be valid any
more; one that was not, perhaps because another signer's gate takes its time, when the gate's deadline is over, too
(SPEC 6.9), or when there is no room.
"""

from __future__ import annotations

import heapq
from collections import Counter
from collections.abc import Callable, Iterable

import msgspec

from enclave.answers import Answers
from enclave.attempts import Attempt, RequestState
from enclave.errors import Refused
from enclave.wire import Answer, BatchShareReport

# Each for as long as it was signed (120 s by the Python client) and 60 s more: 364 a second, 182 of one client.
MAX_REQUESTS = 65_536
# Hashes of all remembered requests together: a batch counts for as many as it names.
MAX_ITEMS = 200_000
# Those of one client: nobody fills the memory alone.
MAX_REQUESTS_OF_CLIENT = MAX_REQUESTS // 2
MAX_ITEMS_OF_CLIENT = MAX_ITEMS // 2
# Requests of one client that were signed for longer than usual, to wait for approvals.
MAX_WAITING = 256
# What is needed still when its time is over is looked at again so much later.
LOOK_AGAIN_S = 10.0
LEAST_DUE = 1024


class RequestBook:
    """All requests that can still be valid, by digest. `wall_clock`: Unix seconds."""

    def __init__(self, wall_clock: Callable[[], float]) -> None:
        self._clock = wall_clock
        self._requests: dict[bytes, RequestState] = {}
        self._by_attempt: dict[tuple[str, bytes], RequestState] = {}
        # When to look whether a request may be forgotten, the next one first.
        self._due: list[tuple[float, bytes]] = []
        # By client, what is only waited for, the oldest first: it makes room.
        self._idle: dict[str, dict[bytes, RequestState]] = {}
        self._items = 0
        self._requests_of: Counter[str] = Counter()
        self._items_of: Counter[str] = Counter()
        self._waiting: Counter[str] = Counter()
        self.answers = Answers()

    def __len__(self) -> int:
        return len(self._requests)

    def get(self, digest: bytes) -> RequestState | None:
        """The request's state, if it was opened and can still be valid."""
        state = self._requests.get(digest)
        return state if state is not None and state.keep_until_s >= self._clock() else None

    def open(
        self, digest: bytes, keep_until_s: float, fresh_until_s: float, client_id: str = "", waits: bool = False
    ) -> RequestState:
        """The request's state, new or known. `waits`: it was signed for long, and so may be remembered for days. Raises
        `Refused` where the book is full, the client has its share of it, too many of its wait, or it is closed."""
        self._sweep()
        state = self.get(digest)
        if state is None:
            if digest in self._requests:
                self._forget(self._requests[digest])
            self._check_room(client_id, waits)
            state = RequestState(digest, keep_until_s, fresh_until_s, client_id, waits, int(self._clock()))
            self._requests[digest] = state
            self._requests_of[client_id] += 1
            self._waiting[client_id] += waits
            heapq.heappush(self._due, (fresh_until_s, digest))
        state.check_open()
        return state

    def begin(self, state: RequestState, attempt: Attempt) -> None:
        """`attempt` is now the newest one of the request. Raises `Refused` where too much would be remembered."""
        self._weigh(state, len(attempt.presignatures))
        self._forget_attempt(state)
        state.attempt = attempt
        self._by_attempt[attempt.coordinator, attempt.ceremony] = state

    def settle(self, state: RequestState) -> None:
        """An order was answered, and nothing was authorised: of its hashes only those are remembered that are approved
        or were answered. Else whoever is refused, again and again, would keep everybody else out."""
        if state.asking or state.answering:
            return
        if state.approval is not None and state.approval.until_s <= self._clock():
            state.lapse()
        if state.attempt is not None:
            state.attempt = msgspec.structs.replace(state.attempt, presignatures=())
        kept, answer = len(state.approval.items) if state.approval is not None else 0, self.answers.newest(state.name)
        if answer is not None and isinstance(answer.report, BatchShareReport):
            kept = max(kept, len(answer.report.s))
        self._set_weight(state, min(state.weight, kept))

    def claim(self, state: RequestState, name: bytes, body: bytes, stored: Answer | None) -> None:
        """The request asks for `body` under `name` (SPEC 4.10). `stored`, and what is raised: see `Answers.claim`."""
        if stored is not None and isinstance(stored.report, BatchShareReport):
            self._weigh(state, len(stored.report.s))
        self.answers.claim(state, name, body, stored)
        state.name, state.body = name, body

    def abandon(self, coordinator: str, ceremony: bytes) -> None:
        """Withdraw the unused authorization of an attempt."""
        state = self._by_attempt.get((coordinator, ceremony))
        if state is not None:
            state.withdraw()

    # --- room ---

    def _check_room(self, client_id: str, waits: bool) -> None:
        """For one request more. Raises `Refused`."""
        if self._requests_of[client_id] >= MAX_REQUESTS_OF_CLIENT and not self._forget_idle((client_id,)):
            told = f"{MAX_REQUESTS_OF_CLIENT} requests of {client_id} are remembered; try again in some minutes"
            raise Refused("busy", told)
        if len(self._requests) >= MAX_REQUESTS and not self._forget_idle(self._greediest()):
            raise Refused("busy", f"{MAX_REQUESTS} requests are remembered; try again in some minutes")
        if waits and self._waiting[client_id] >= MAX_WAITING:
            raise Refused("busy", f"{MAX_WAITING} requests of {client_id} wait for approvals")

    def _greediest(self) -> list[str]:
        """The clients, first of whom most is remembered."""
        return sorted(self._idle, key=lambda client_id: -self._requests_of[client_id])

    def _forget_idle(self, clients: Iterable[str]) -> bool:
        """Whether a request was forgotten that is only waited for: the oldest one of the first client that has one."""
        now_s = self._clock()
        for client_id in clients:
            for state in self._idle.get(client_id, {}).values():
                if not state.is_needed(now_s):
                    self._forget(state)
                    return True
        return False

    def _weigh(self, state: RequestState, items: int) -> None:
        """Never less than before: an approval remembers as many hashes as the attempt that it came with."""
        weight = max(state.weight, items)
        more = weight - state.weight
        if more and self._items_of[state.client_id] + more > MAX_ITEMS_OF_CLIENT:
            raise Refused("busy", f"{MAX_ITEMS_OF_CLIENT} hashes of {state.client_id} are remembered; try again later")
        if self._items + more > MAX_ITEMS and not self._make_room_for(more, state):
            raise Refused("busy", f"{MAX_ITEMS} hashes are remembered; try again in some minutes")
        self._set_weight(state, weight)

    def _make_room_for(self, items: int, but: RequestState) -> bool:
        """Whether so many hashes more have room, once some requests were forgotten that are only waited for."""
        now_s = self._clock()
        weighty = [
            state
            for client_id in self._greediest()
            for state in self._idle[client_id].values()
            if state.weight and state is not but and not state.is_needed(now_s)
        ]
        for state in weighty:
            if self._items + items <= MAX_ITEMS:
                break
            self._forget(state)
        return self._items + items <= MAX_ITEMS

    def _set_weight(self, state: RequestState, weight: int) -> None:
        self._items += weight - state.weight
        self._items_of[state.client_id] += weight - state.weight
        state.weight = weight

    # --- forgetting ---

    def _sweep(self) -> None:
        """Look at what is due, and at nothing else: there may be very many."""
        now_s = self._clock()
        while self._due and self._due[0][0] < now_s:
            _, digest = heapq.heappop(self._due)
            state = self._requests.get(digest)
            if state is not None and not self._is_forgotten(state, now_s):
                later_s = state.keep_until_s if digest in self._idle.get(state.client_id, ()) else now_s
                heapq.heappush(self._due, (max(later_s, now_s + LOOK_AGAIN_S), digest))
        if len(self._due) > 2 * len(self._requests) + LEAST_DUE:
            # Most are of requests that made room.
            self._due = [each for each in self._due if each[1] in self._requests]
            heapq.heapify(self._due)

    def _is_forgotten(self, state: RequestState, now_s: float) -> bool:
        needed = state.is_needed(now_s)
        if not (state.asking or state.answering) and (state.keep_until_s < now_s or (state.done and not needed)):
            self._forget(state)
            return True
        if not needed:
            self._idle.setdefault(state.client_id, {})[state.digest] = state
        return False

    def _forget(self, state: RequestState) -> None:
        del self._requests[state.digest]
        idle = self._idle.get(state.client_id, {})
        if idle.pop(state.digest, None) is not None and not idle:
            del self._idle[state.client_id]
        self._set_weight(state, 0)
        self._requests_of[state.client_id] -= 1
        self._waiting[state.client_id] -= state.waits
        self._forget_attempt(state)
        self.answers.forget(state.name, state.digest)

    def _forget_attempt(self, state: RequestState) -> None:
        if state.attempt is not None:
            self._by_attempt.pop((state.attempt.coordinator, state.attempt.ceremony), None)
