"""By which names a server may be called."""

import pytest

from mlm_pytorch.play.guard import Hosts


@pytest.mark.parametrize(
    ("bound", "header", "allowed"),
    [
        ("127.0.0.1", "127.0.0.1:8000", True),
        ("127.0.0.1", "LOCALHOST", True),
        ("127.0.0.1", "[::1]", True),
        ("127.0.0.1", "::1", False),  # no Host header is written so
        ("127.0.0.1", "192.168.0.7:8000", False),
        ("127.0.0.1", "localhost:port", False),
        ("127.0.0.1", "localhost:123456", False),
        ("127.0.0.1", "localhost.", False),
        ("127.0.0.1", "local host", False),
        ("gpu-box.lan", "GPU-box.lan:8000", True),
        ("gpu-box.lan", "other.lan:8000", False),
        ("0.0.0.0", "192.168.0.7:8000", True),  # rebinding needs a name, and this is none
        ("0.0.0.0", "[fe80::1]:8000", True),
        ("0.0.0.0", "evil.example:8000", False),
        ("::", "[2001:db8::7]:8000", True),
    ],
)
def test_hosts(bound, header, allowed):
    assert Hosts.of(bound).allow(header) is allowed
