"""What engines say of a registry's failures, word for word, and what users are told; progress that fits a screen."""

from __future__ import annotations

import pytest

from repro.engines import registry
from repro.engines.registry import NotThereError
from repro.errors import BadInputError

REF = "reg.example.com:5000/team/my-tf:0123456789abcdef"
DIGEST = "reg.example.com:5000/team/my-tf@sha256:" + "1" * 64

DOWN = "reg.example.com:5000 cannot be reached"
HTTP = "speaks plain HTTP"
TLS = "does not trust the TLS certificate of reg.example.com:5000"
LOGIN = "does not accept your credentials, or wants some"
DENIED = "does not allow it"
NO_NAME = "has no repository of that name"
NO_TAG = "has no such tag"
GONE = "its digest is gone"

# (what the engine said, what it means); 20.10 = 20.10.24, 28c = 28.5.2 with the containerd store; 28 alone says
# what 20.10 says
SAID = [
    ('Get "https://reg.example.com:5000/v2/": dial tcp 127.0.0.1:5000: connect: connection refused', DOWN),  # 20.10
    ('Get "https://reg.example.com:5000/v2/": dial tcp: lookup reg.example.com: no such host', DOWN),
    ('Get "https://reg.example.com:5000/v2/": dial tcp 10.1.1.1:5000: connect: network is unreachable', DOWN),
    ('Get "https://reg.example.com:5000/v2/": net/http: TLS handshake timeout', DOWN),
    ('Get "https://reg.example.com:5000/v2/": net/http: request canceled (Client.Timeout exceeded)', DOWN),
    ('Get "https://reg.example.com:5000/v2/": EOF', DOWN),
    ("received unexpected HTTP status: 503 Service Unavailable", DOWN),
    (
        (
            'failed to resolve reference "reg.example.com:5000/x:1": failed to do request: Head '
            '"https://reg.example.com:5000/v2/x/manifests/1": dial tcp 127.0.0.1:5000: connect: connection refused'
        ),  # 28c
        DOWN,
    ),
    ('Get "https://reg.example.com:5000/v2/": http: server gave HTTP response to HTTPS client', HTTP),  # 20.10, 28c
    ('Get "https://reg.example.com:5000/v2/": x509: certificate signed by unknown authority', TLS),  # 20.10
    ('Get "https://reg.example.com:5000/v2/": tls: failed to verify certificate: x509: certificate is not valid', TLS),
    ('Head "https://reg.example.com:5000/v2/team/my-tf/manifests/1": no basic auth credentials', LOGIN),  # 20.10
    ("no basic auth credentials", LOGIN),
    ("unauthorized: authentication required", LOGIN),  # 20.10
    (
        (
            "push access denied, repository does not exist or may require authorization: authorization failed: "
            "no basic auth credentials"
        ),  # 28c
        LOGIN,
    ),
    (
        (
            "unknown: unexpected status from HEAD request to http://reg.example.com:5000/v2/team/my-tf/blobs/x: "
            "401 Unauthorized"
        ),  # 28c
        LOGIN,
    ),
    ("denied: requested access to the resource is denied", DENIED),
    (
        (
            "pull access denied for team/my-tf, repository does not exist or may require 'docker login': denied: "
            "requested access to the resource is denied"
        ),
        DENIED,
    ),
    ("unexpected status from POST request to https://reg.example.com:5000/v2/x/blobs/uploads/: 403 Forbidden", DENIED),
    ("unsupported: The operation is unsupported.", DENIED),
    ("name unknown: repository name not known to registry", NO_NAME),
    ("name unknown: The repository with name 'my-tf' does not exist in the registry with id '1'", NO_NAME),
    ("manifest unknown: manifest unknown", NO_TAG),  # 20.10, 28c
    ("manifest for reg.example.com:5000/team/my-tf:1 not found: manifest unknown: manifest unknown", NO_TAG),  # 20.10
    ('failed to resolve reference "reg.example.com:5000/x:1": reg.example.com:5000/x:1: not found', NO_TAG),  # 28c
    ("toomanyrequests: You have reached your pull rate limit.", "ask less often"),
    ("write /var/lib/docker/tmp/GetImageBlob1: no space left on device", "a disk is full"),
    (
        'Credentials store error: StoreError("docker-credential-x not installed or not available in PATH")',
        "credentials",
    ),
]


@pytest.mark.parametrize(("said", "means"), SAID)
def test_what_an_engine_says_is_told_in_one_sentence_with_its_own_words_below(said: str, means: str) -> None:
    error = registry.failure("pulled", REF, said, ["build it here"])
    assert error.what.startswith(f"{REF} cannot be pulled: ")
    assert means in error.what
    assert error.evidence == (said,)
    assert error.hints[-1] == "build it here"
    assert isinstance(error, NotThereError) == (means in (NO_NAME, NO_TAG))
    if means == LOGIN:
        assert "`docker login reg.example.com:5000`" in error.hints


@pytest.mark.parametrize("said", [said for said, means in SAID if means == NO_TAG])
def test_a_digest_that_is_not_there_is_gone(said: str) -> None:
    assert GONE in registry.failure("pulled", DIGEST, said).what


def test_what_nobody_has_heard_before_is_told_as_it_is() -> None:
    error = registry.failure("pushed", REF, "the moon is full")
    assert (error.what, error.evidence) == (f"{REF} cannot be pushed", ("the moon is full",))


@pytest.mark.parametrize(
    ("ref", "host"),
    [
        ("reg.example.com/a/b:1", "reg.example.com"),
        ("localhost/a", "localhost"),
        ("reg:5000/a@sha256:1", "reg:5000"),
        ("tensorflow/tensorflow:2.21.0", "docker.io"),
        ("debian", "docker.io"),
    ],
)
def test_the_registry_of_a_name_is_the_one_that_docker_asks(ref: str, host: str) -> None:
    assert registry.host_of(ref) == host


@pytest.mark.parametrize(
    "name", ["reg.example.com", "localhost", "localhost:5000/team", "10.0.0.1:5000/a/b-c_d.e", "r:1"]
)
def test_a_registry_is_a_host_with_port_and_path(name: str) -> None:
    assert registry.check(name) == name


@pytest.mark.parametrize(
    "name", ["team", "https://reg.example.com", "user:secret@reg.example.com", "reg.io/", "reg.io/A"]
)
def test_what_is_no_registry_is_refused(name: str) -> None:
    with pytest.raises(BadInputError) as caught:
        registry.check(name)
    assert "host[:port][/path]" in str(caught.value)
    assert "secret" not in str(caught.value)


def test_thousands_of_events_are_a_few_lines() -> None:
    said: list[str] = []
    events = [
        {"status": "Pushing", "id": f"layer{number % 5}", "progressDetail": {"current": number}}
        for number in range(5000)
    ]
    events += [{"status": "Pushed", "id": f"layer{number}"} for number in range(5)]
    events += [{"status": f"latest: digest: sha256:{'a' * 64} size: 100"}]
    assert registry._follow(iter(events), "pushed", said.append) == f"sha256:{'a' * 64}"
    assert len(said) < 3
