"""An object store of one's own: a real HTTP server that speaks S3, for tests of what lies on `s3://`.

Import the fixture where it is wanted (`from tests.s3_server import s3_bucket`) and ask for it by its name.
"""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from unittest import mock

import pytest
import s3fs

BUCKET = "segue-tests"
PATIENCE_SECONDS = 60.0


@pytest.fixture(scope="session")
def s3_bucket() -> Iterator[str]:
    """URL of an empty bucket; credentials and address stand in the environment meanwhile."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    settings = {
        "AWS_ENDPOINT_URL": f"http://127.0.0.1:{port}",
        "AWS_ACCESS_KEY_ID": "tests",
        "AWS_SECRET_ACCESS_KEY": "tests",
        "AWS_DEFAULT_REGION": "us-east-1",
        "NO_PROXY": "127.0.0.1",
        "no_proxy": "127.0.0.1",
    }
    command = [sys.executable, "-m", "moto.server", "-H", "127.0.0.1", "-p", str(port)]
    server = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        with mock.patch.dict(os.environ, settings):
            _wait_for(port, server)
            s3fs.S3FileSystem.clear_instance_cache()  # instances remember an address
            s3fs.S3FileSystem(skip_instance_cache=True).mkdir(BUCKET)
            yield f"s3://{BUCKET}"
    finally:
        s3fs.S3FileSystem.clear_instance_cache()
        server.terminate()
        server.wait()


def _wait_for(port: int, server: subprocess.Popen[bytes]) -> None:
    end = time.monotonic() + PATIENCE_SECONDS
    while time.monotonic() < end:
        assert server.poll() is None, f"the S3 server ended with status {server.returncode}"
        try:
            socket.create_connection(("127.0.0.1", port), timeout=1).close()
            return
        except OSError:
            time.sleep(0.05)
    raise AssertionError("the S3 server does not answer")
