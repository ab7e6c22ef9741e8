import datetime as dt
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import dsa, ec, ed25519, rsa

from p2pnode.errors import HandshakeError
from p2pnode.security.tls import TlsIdentity, verify_chain
from p2pnode.security.tls.certificates import EXTENSION
from p2pnode.security.tls.signed_key import SignedKey
from p2pnode.testing.keys import KINDS, ForeignKey
from p2pnode.wire.keys import PrivateKey

NOW = 1_800_000_000.0
MOMENT = dt.datetime.fromtimestamp(NOW, dt.UTC)
KEY = PrivateKey.from_seed(bytes(32))
VECTORS = dict(
    line.split()
    for line in (Path(__file__).parent / "spec_vectors.txt").read_text().splitlines()
    if not line.startswith("#")
)


def load(name):
    return x509.load_der_x509_certificate(bytes.fromhex(VECTORS[name]))


def certificate(
    own_key=None,
    *,
    signer=None,
    signed=None,
    identity=KEY,
    prefix=b"libp2p-tls-handshake:",
    begin=MOMENT - dt.timedelta(days=1),
    end=MOMENT + dt.timedelta(days=1),
    digest=None,
    extension=True,
    critical=False,
    others=(),
):
    """A certificate like ours, wrong where a test says so."""
    own_key = own_key or ec.generate_private_key(ec.SECP256R1())
    public = own_key.public_key()
    spki = public.public_bytes(
        serialization.Encoding.DER, serialization.PublicFormat.SubjectPublicKeyInfo
    )
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "any")])
    builder = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(public)
        .serial_number(1)
        .not_valid_before(begin)
        .not_valid_after(end)
    )
    if extension:
        value = signed or SignedKey(identity.public_key.protobuf, identity.sign(prefix + spki))
        data = value if isinstance(value, bytes) else value.to_bytes()
        builder = builder.add_extension(x509.UnrecognizedExtension(EXTENSION, data), critical)
    for each, is_critical in others:
        builder = builder.add_extension(each, is_critical)
    if digest is None and not isinstance(own_key, ed25519.Ed25519PrivateKey):
        digest = hashes.SHA256()
    return builder.sign(signer or own_key, digest)


@pytest.mark.parametrize(
    ("name", "peer_id"),
    [
        ("ed25519", "12D3KooWM6CgA9iBFZmcYAHA6A2qvbAxqfkmrYiRQuz3XEsk4Ksv"),
        ("ecdsa", "QmfXbAwNjJLXfesgztEHe8HwgVDCMMpZ9Eax1HYq6hn9uE"),
        ("secp256k1", "16Uiu2HAkutTMoTzDw1tCvSRtu6YoixJwS46S1ZFxW8hSx9fWHiPs"),
    ],
)
def test_the_certificates_of_the_specification_prove_their_peer_ids(name, peer_id):
    assert str(verify_chain([load(name)], NOW).peer_id) == peer_id


def test_the_bad_certificate_of_the_specification_is_refused():
    with pytest.raises(HandshakeError, match="has not signed it"):
        verify_chain([load("mismatch")], NOW)


@pytest.mark.parametrize("kind", ["Ed25519", *KINDS])
def test_our_certificates_prove_identities_of_every_kind(kind):
    key = KEY if kind == "Ed25519" else ForeignKey.generate(kind)
    made = TlsIdentity(key, NOW)
    assert verify_chain([made.certificate], NOW) == key.public_key
    again = x509.load_der_x509_certificate(
        made.certificate.public_bytes(serialization.Encoding.DER)
    )
    assert verify_chain([again], NOW) == key.public_key


def test_each_identity_gets_a_key_of_its_own():
    one, other = TlsIdentity(KEY), TlsIdentity(KEY)
    assert one.certificate.public_key() != other.certificate.public_key()
    assert one.verify([other.certificate]) == KEY.public_key


@pytest.mark.parametrize(
    "own_key",
    [
        ec.generate_private_key(ec.SECP384R1()),
        ed25519.Ed25519PrivateKey.generate(),
        rsa.generate_private_key(65537, 2048),
    ],
    ids=["P-384", "Ed25519", "RSA"],
)
def test_certificates_with_keys_of_other_kinds_are_taken(own_key):
    assert verify_chain([certificate(own_key)], NOW) == KEY.public_key


def test_extensions_that_are_unknown_or_harmless_are_taken():
    unknown = x509.UnrecognizedExtension(x509.ObjectIdentifier("1.2.3.4"), b"x")
    usual = x509.BasicConstraints(ca=False, path_length=None)
    made = certificate(critical=True, others=[(unknown, False), (usual, True)])
    assert verify_chain([made], NOW) == KEY.public_key


def test_a_peer_whose_clock_is_half_an_hour_behind_takes_a_fresh_certificate():
    made = TlsIdentity(KEY, NOW)
    assert verify_chain([made.certificate], NOW - 1800) == KEY.public_key


UNKNOWN = x509.UnrecognizedExtension(x509.ObjectIdentifier("1.2.3.4"), b"x")
CONSTRAINED = x509.NameConstraints([x509.DNSName("a.example")], None)


@pytest.mark.parametrize(
    ("made", "reason"),
    [
        (lambda: certificate(begin=MOMENT + dt.timedelta(hours=2)), "only from"),
        (lambda: certificate(end=MOMENT - dt.timedelta(hours=2)), "only until"),
        (lambda: certificate(signer=ec.generate_private_key(ec.SECP256R1())), "not sign itself"),
        (lambda: certificate(extension=False), "names no libp2p identity"),
        (lambda: certificate(signed=b"\x30\x00"), "malformed"),
        (lambda: certificate(prefix=b"libp2p-tls-handshake"), "has not signed it"),
        (lambda: certificate(signed=SignedKey(b"\x08\x01\x12\x01x", b"")), "identity .* is bad"),
        (lambda: certificate(others=[(UNKNOWN, True)]), r"demands 1\.2\.3\.4"),
        (lambda: certificate(others=[(CONSTRAINED, True)]), r"demands 2\.5\.29\.30"),
        (lambda: certificate(rsa.generate_private_key(65537, 1024)), "RSA key of 1024 bits"),
        (lambda: certificate(dsa.generate_private_key(2048)), "DSA"),
        (lambda: certificate(digest=hashes.SHA224()), "sha224"),
    ],
)
def test_a_certificate_that_breaks_a_rule_is_refused(made, reason):
    with pytest.raises(HandshakeError, match=reason):
        verify_chain([made()], NOW)


@pytest.mark.parametrize("count", [0, 2, 3])
def test_other_numbers_of_certificates_than_one_are_refused(count):
    with pytest.raises(HandshakeError, match=f"{count} certificates instead of one"):
        verify_chain([TlsIdentity(KEY, NOW).certificate] * count, NOW)


def test_an_extension_taken_from_another_certificate_proves_nothing():
    stolen = TlsIdentity(KEY, NOW).certificate.extensions.get_extension_for_oid(EXTENSION)
    with pytest.raises(HandshakeError, match="has not signed it"):
        verify_chain([certificate(signed=stolen.value.value)], NOW)
