"""What a client's channel repeats by itself when a server is UNAVAILABLE, and what it never repeats."""

from __future__ import annotations

from collections import Counter
from concurrent.futures import ThreadPoolExecutor

import grpc
import pytest

from atelier.client import Connection
from atelier.errors import UnavailableError
from tests.harness.calls import INFERENCE, REGISTRY, TRAINER, call, methods, request_for

WITH_ONE_REQUEST = [each for each in methods([*REGISTRY, *TRAINER, *INFERENCE]) if not each.client_streaming]
STREAMING = {each.name for each in WITH_ONE_REQUEST if each.server_streaming}
WITH_A_SECRET = {"CreateToken", "RotateToken"}
ATTEMPTS = 4


class AwayServer(grpc.GenericRpcHandler):
    """Counts the calls by method and answers each with UNAVAILABLE."""

    def __init__(self) -> None:
        self.calls: Counter[str] = Counter()
        self._server = grpc.server(ThreadPoolExecutor(1), handlers=[self])
        self.address = f"127.0.0.1:{self._server.add_insecure_port('127.0.0.1:0')}"
        self._server.start()

    def service(self, handler_call_details: grpc.HandlerCallDetails) -> grpc.RpcMethodHandler:
        self.calls[handler_call_details.method.rpartition("/")[2]] += 1
        return grpc.unary_unary_rpc_method_handler(self._refuse)

    def close(self) -> None:
        """Stops the server."""
        self._server.stop(0).wait()

    @staticmethod
    def _refuse(request: bytes, context: grpc.ServicerContext) -> None:
        context.abort(grpc.StatusCode.UNAVAILABLE, "away")


@pytest.fixture(scope="module")
def calls() -> Counter[str]:
    """How often each method of every service that takes one request was called, after one call through a channel."""
    server = AwayServer()

    def try_once(index: int) -> None:
        with Connection(server.address, "secret") as connection, pytest.raises(UnavailableError):
            call(connection, WITH_ONE_REQUEST[index], request_for(WITH_ONE_REQUEST[index], "-"))

    with ThreadPoolExecutor(len(WITH_ONE_REQUEST)) as pool:
        list(pool.map(try_once, range(len(WITH_ONE_REQUEST))))
    server.close()
    return server.calls


def test_calls_whose_answer_holds_a_secret_are_never_repeated(calls: Counter[str]) -> None:
    assert {name: calls[name] for name in WITH_A_SECRET} == dict.fromkeys(WITH_A_SECRET, 1)


def test_calls_that_stream_their_answer_are_never_repeated(calls: Counter[str]) -> None:
    assert "DownloadFile" in STREAMING
    assert {name: calls[name] for name in STREAMING} == dict.fromkeys(STREAMING, 1)


def test_all_others_are_repeated(calls: Counter[str]) -> None:
    others = {each.name for each in WITH_ONE_REQUEST} - WITH_A_SECRET - STREAMING
    assert {name: calls[name] for name in others} == dict.fromkeys(others, ATTEMPTS)
