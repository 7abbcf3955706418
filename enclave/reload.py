"""SPEC 4.12: a policy that takes the place of another while the enclave runs. What cannot be used changes nothing."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import msgspec

from enclave.config import EnclaveConfig
from enclave.errors import CallerError
from enclave.freezes import Freezes, Tell
from enclave.wire import PolicyTold
from policies.model import Policy
from policies.roster import Roster


@dataclass
class SigningRules:
    """What this enclave's own configuration says about signing. A reload replaces `policy` and `gate_deadline_s`."""

    roster: Roster
    policy: Policy
    gate_mode: str
    gate_deadline_s: int
    boot_s: int
    gate_key_creation: bool = False


class Reload:
    """Reads the configuration's files again, and says which policy is in force."""

    def __init__(
        self,
        config: EnclaveConfig,
        rules: SigningRules,
        freezes: Freezes,
        load: Callable[[], EnclaveConfig],
        wall_clock: Callable[[], float],
        tell: Tell,
    ) -> None:
        """`load()` raises `CallerError`. `tell(event, facts)`: for the log and the audit chain."""
        self.config = config
        self._rules, self._freezes, self._load, self._clock, self._tell = rules, freezes, load, wall_clock, tell
        self._digest, self._loaded_at_s, self._trouble = config.policy.digest(), int(wall_clock()), ""
        self.counters = {"policy_reloads|done": 0, "policy_reloads|failed": 0}

    def run(self) -> None:
        """Take policy and gate deadline from their files; where anything is wrong with any file, all stays as it is."""
        # SPEC 4.12
        before = self._rules.policy
        try:
            new = self._load()
            self._rules.policy = new.policy
            if new.policy.operators is not None:
                self._freezes.keep()
        except CallerError as error:
            self._rules.policy = before
            self._trouble = str(error)[:500]
            self.counters["policy_reloads|failed"] += 1
            self._tell("policy-not-reloaded", {"reason": self._trouble, "kept": self._digest.hex()})
            return
        self._rules.gate_deadline_s = new.file.gate.deadline_s
        self._digest, self._loaded_at_s, self._trouble = new.policy.digest(), int(self._clock()), ""
        self.counters["policy_reloads|done"] += 1
        facts: dict[str, str | int] = {"digest": self._digest.hex()}
        if later := _needs_restart(self.config, new):
            facts["restart_for"] = later
        self.config = _reloaded(self.config, new)
        self._tell("policy-reloaded", facts)

    def told(self) -> PolicyTold:
        """For `Status`."""
        return PolicyTold(self._digest, self._loaded_at_s, self._trouble)


def _reloaded(old: EnclaveConfig, new: EnclaveConfig) -> EnclaveConfig:
    """`old` with what a reload takes from `new`."""
    gate = msgspec.structs.replace(old.file.gate, deadline_s=new.file.gate.deadline_s)
    return old.with_policy(msgspec.structs.replace(old.file, gate=gate), new.policy)


def _needs_restart(old: EnclaveConfig, new: EnclaveConfig) -> str:
    """What else is different in the files, which only a restart takes up."""
    names = [
        name
        for name in new.file.__struct_fields__
        if name != "gate" and getattr(old.file, name) != getattr(new.file, name)
    ]
    gate = msgspec.structs.replace(new.file.gate, deadline_s=old.file.gate.deadline_s)
    names += ["gate"] if gate != old.file.gate else []
    names += ["the roster's content"] if old.roster != new.roster else []
    return ", ".join(names)
