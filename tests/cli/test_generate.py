"""`atelier generate` against a server that says what the test wants."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import grpc
import pytest

from atelier.cli.main import run
from atelier.pb.inference.v1 import inference_pb2 as pb
from atelier.pb.inference.v1.inference_pb2_grpc import InferenceServiceServicer, add_InferenceServiceServicer_to_server


class InterruptedInference(InferenceServiceServicer):
    """Sends one image, then Ctrl-C to the caller, then nothing until the call has ended."""

    def __init__(self) -> None:
        self.ended = threading.Event()

    def Generate(self, request: pb.GenerateRequest, context: grpc.ServicerContext) -> Iterator[pb.GenerateResponse]:
        context.add_callback(self.ended.set)
        yield pb.GenerateResponse(image=pb.Image(index=0, png=b"image", seed=7))
        os.kill(os.getpid(), signal.SIGINT)
        self.ended.wait()


def test_ctrl_c_ends_the_call_quietly_with_status_130(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    server, servicer = grpc.server(ThreadPoolExecutor(1)), InterruptedInference()
    add_InferenceServiceServicer_to_server(servicer, server)
    monkeypatch.setenv("ATELIER_INFERENCE", f"127.0.0.1:{server.add_insecure_port('127.0.0.1:0')}")
    monkeypatch.setenv("ATELIER_TOKEN", "any")
    server.start()
    assert run(["generate", "--prompt", "a fox", "--out", str(tmp_path / "out")]) == 130
    assert servicer.ended.wait(10)
    server.stop(grace=0).wait()
    captured = capsys.readouterr()
    assert (captured.out, captured.err.strip()) == ("", "")
