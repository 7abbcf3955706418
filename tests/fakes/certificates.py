"""A certified key made by a trusted dealer: what a roster of honest signers would acknowledge."""

from __future__ import annotations

import base64
import random
from collections.abc import Callable
from dataclasses import dataclass

import coincurve
import msgspec
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, utils

from appliance.api import models
from appliance.api.certificates import encode_acknowledgement
from enclave import wire
from policies.roster import Roster, RosterSigner, describe_scheme

ORDER = 0xFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFEBAAEDCE6AF48A03BBFD25E8CD0364141
KEY_ID = "key_" + "ab" * 16


@dataclass(frozen=True)
class Dealer:
    """Identity keys of `n` signers, their roster, and one key of degree `t` whose secret the dealer knows."""

    roster: Roster
    identities: tuple[ec.EllipticCurvePrivateKey, ...]
    coefficients: tuple[int, ...]
    chain_code: bytes = bytes(range(32))

    @classmethod
    def make(cls, n: int = 3, t: int = 1, seed: int = 1, degree: int | None = None) -> Dealer:
        """`degree` differs from `t` for a key that is shared wrongly."""
        identities = tuple(ec.generate_private_key(ec.SECP256R1()) for _ in range(n))
        signers = tuple(
            RosterSigner(
                index=i,
                name=f"signer-{i}",
                operator=f"Operator {i}",
                identity_key=base64.b64encode(
                    key.public_key().public_bytes(
                        serialization.Encoding.X962, serialization.PublicFormat.UncompressedPoint
                    )
                ).decode(),
            )
            for i, key in enumerate(identities, start=1)
        )
        source = random.Random(seed)
        coefficients = tuple(source.randrange(1, ORDER) for _ in range((t if degree is None else degree) + 1))
        return cls(Roster(version=1, network="test", tolerate=t, signers=signers), identities, coefficients)

    @property
    def secret(self) -> coincurve.PrivateKey:
        """The dealt key."""
        return coincurve.PrivateKey(self.coefficients[0].to_bytes(32, "big"))

    def share_point(self, j: int) -> bytes:
        """`X_j`, compressed."""
        value = sum(c * pow(j, power, ORDER) for power, c in enumerate(self.coefficients)) % ORDER
        return coincurve.PrivateKey(value.to_bytes(32, "big")).public_key.format()

    def acknowledgement(self) -> wire.Acknowledgement:
        """What signer 1 acknowledges."""
        return wire.Acknowledgement(
            network=self.roster.network,
            roster_digest=self.roster.digest(),
            key_id=KEY_ID,
            label="treasury",
            curve="secp256k1",
            public_key=self.secret.public_key.format(),
            public_shares=tuple(self.share_point(j) for j in self.roster.indices),
            chain_code=self.chain_code,
            tolerate=self.roster.tolerate,
            key_epoch=1,
            index=1,
        )

    def sign(self, ack: wire.Acknowledgement) -> wire.SignedAcknowledgement:
        """`ack` signed by the identity key of the signer that it names."""
        der = self.identities[ack.index - 1].sign(ack.digest(), ec.ECDSA(utils.Prehashed(hashes.SHA256())))
        r, s = utils.decode_dss_signature(der)
        return wire.SignedAcknowledgement(ack, r.to_bytes(32, "big") + s.to_bytes(32, "big"))

    def certificate(
        self, change: Callable[[wire.Acknowledgement], wire.Acknowledgement] = lambda ack: ack
    ) -> list[wire.SignedAcknowledgement]:
        """All `n` signed acknowledgements, all changed alike by `change` before they are signed."""
        changed = change(self.acknowledgement())
        return [self.sign(msgspec.structs.replace(changed, index=i)) for i in self.roster.indices]

    def key_answer(self) -> models.Key:
        """The key as the API shows it."""
        ack = self.acknowledgement()
        return models.Key(
            request_id="req_1",
            status=models.KeyState.ACTIVE,
            scheme="ECDSA",
            curve="secp256k1",
            signers=self.roster.n,
            tolerate=self.roster.tolerate,
            scheme_statement=describe_scheme(self.roster.n, self.roster.tolerate),
            label=ack.label,
            external_id="first",
            created_at="2026-01-01T00:00:00Z",
            id=ack.key_id,
            public_key="0x" + ack.public_key.hex(),
            chain_code="0x" + ack.chain_code.hex(),
            certificate=models.Certificate(
                acknowledgements=tuple(encode_acknowledgement(signed) for signed in self.certificate())
            ),
        )
