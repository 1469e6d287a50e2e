"""Watching over a real connection, to a server that says what the test wants and comes and goes as a trainer does."""

from __future__ import annotations

import json
import os
import signal
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import grpc
import pytest

from atelier.cli import watch
from atelier.cli.main import run
from atelier.errors import InvalidArgumentError
from atelier.local.process import free_ports
from atelier.pb.trainer.v1 import trainer_pb2 as pb
from atelier.pb.trainer.v1.trainer_pb2_grpc import TrainerServiceServicer, add_TrainerServiceServicer_to_server
from atelier.rpc.status import to_status

Script = Callable[[grpc.ServicerContext], Iterator[pb.WatchJobResponse]]
Captured = pytest.CaptureFixture[str]


def at(state: pb.JobState, step: int = 0, **fields: Any) -> pb.WatchJobResponse:
    progress = pb.JobProgress(stage="training", step=step, total_steps=4, loss=0.5, images_per_second=2, eta_seconds=9)
    return pb.WatchJobResponse(job=pb.Job(name="tenants/t/jobs/j", state=state, progress=progress, **fields))


def done() -> pb.WatchJobResponse:
    scores = pb.Evaluation(base=pb.Scores(clip_i=0.25), adapter=pb.Scores(clip_i=0.75))
    return at(pb.JOB_STATE_SUCCEEDED, 4, adapter_version="tenants/t/adapters/fox/versions/3", evaluation=scores)


class ScriptedTrainer(TrainerServiceServicer):
    """Answers its n-th WatchJob call with the n-th script; has one batch, of the job that is done.

    `failures` says how many calls of a method end with DEADLINE_EXCEEDED first.
    """

    def __init__(self, port: int) -> None:
        self.scripts: list[Script] = []
        self.failures: dict[str, int] = {}
        self._server = grpc.server(ThreadPoolExecutor(4))
        add_TrainerServiceServicer_to_server(self, self._server)
        self._server.add_insecure_port(f"127.0.0.1:{port}")
        self._server.start()

    def WatchJob(self, request: pb.WatchJobRequest, context: grpc.ServicerContext) -> Iterator[pb.WatchJobResponse]:
        assert request.name == "tenants/-/jobs/j"
        return self.scripts.pop(0)(context)

    def CreateBatch(self, request: pb.CreateBatchRequest, context: grpc.ServicerContext) -> pb.Batch:
        return self._batch()

    def GetBatch(self, request: pb.GetBatchRequest, context: grpc.ServicerContext) -> pb.Batch:
        self._fail_first("GetBatch", context)
        return self._batch()

    def GetJob(self, request: pb.GetJobRequest, context: grpc.ServicerContext) -> pb.Job:
        self._fail_first("GetJob", context)
        return done().job

    def _batch(self) -> pb.Batch:
        return pb.Batch(name="tenants/t/batches/b", jobs=[done().job.name], job_counts={"SUCCEEDED": 1})

    def _fail_first(self, method: str, context: grpc.ServicerContext) -> None:
        if self.failures[method]:
            self.failures[method] -= 1
            context.abort(grpc.StatusCode.DEADLINE_EXCEEDED, "too slow")

    def stop(self) -> None:
        self._server.stop(grace=0).wait()


@pytest.fixture
def port(monkeypatch: pytest.MonkeyPatch) -> int:
    (port,) = free_ports(1)
    monkeypatch.setenv("ATELIER_TRAINER", f"127.0.0.1:{port}")
    monkeypatch.setenv("ATELIER_TOKEN", "any")
    monkeypatch.setattr(watch, "FIRST_PAUSE_SECONDS", 0.05)
    return port


@pytest.fixture
def trainer(port: int) -> Iterator[ScriptedTrainer]:
    trainer = ScriptedTrainer(port)
    yield trainer
    trainer.stop()


def test_a_job_is_followed_to_its_end(trainer: ScriptedTrainer, capsys: Captured) -> None:
    trainer.scripts = [lambda _: iter([at(pb.JOB_STATE_QUEUED), at(pb.JOB_STATE_RUNNING, 2), done()])]
    assert run(["jobs", "watch", "j"]) == 0
    captured = capsys.readouterr()
    assert captured.err.splitlines() == ["job j: queued", "job j: training", "job j: succeeded"]
    assert "0.250" in captured.out
    assert "0.750" in captured.out
    assert "version tenants/t/adapters/fox/versions/3" in captured.out


def test_json_prints_the_job_alone(trainer: ScriptedTrainer, capsys: Captured) -> None:
    trainer.scripts = [lambda _: iter([at(pb.JOB_STATE_RUNNING, 2), done()])]
    assert run(["jobs", "watch", "j", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["state"] == "JOB_STATE_SUCCEEDED"


def test_previews_become_files(trainer: ScriptedTrainer, tmp_path: Path) -> None:
    drawn = at(pb.JOB_STATE_RUNNING, 2)
    drawn.samples.extend(pb.Sample(prompt="p", step=2, png=content) for content in (b"one", b"two"))
    trainer.scripts = [lambda _: iter([drawn, done()])]
    assert run(["jobs", "watch", "j", "--previews", str(tmp_path / "previews")]) == 0
    written = {path.name: path.read_bytes() for path in (tmp_path / "previews").iterdir()}
    assert written == {"step-00002-0.png": b"one", "step-00002-1.png": b"two"}


def test_a_failed_job_ends_with_its_error_and_status_1(trainer: ScriptedTrainer, capsys: Captured) -> None:
    error = to_status(InvalidArgumentError("job.config.learning_rate", "makes the loss NaN", reason="LOSS_NOT_FINITE"))
    trainer.scripts = [lambda _: iter([at(pb.JOB_STATE_FAILED, error=error)])]
    assert run(["jobs", "watch", "j"]) == 1
    assert "Error: job.config.learning_rate: makes the loss NaN [LOSS_NOT_FINITE]" in capsys.readouterr().err


def test_a_cancelled_job_ends_with_status_1(trainer: ScriptedTrainer, capsys: Captured) -> None:
    trainer.scripts = [lambda _: iter([at(pb.JOB_STATE_CANCELLED)])]
    assert run(["jobs", "watch", "j"]) == 1
    assert "job j was cancelled" in capsys.readouterr().err


def test_watching_goes_on_after_the_service_broke_off(trainer: ScriptedTrainer) -> None:
    def breaks_off(context: grpc.ServicerContext) -> Iterator[pb.WatchJobResponse]:
        yield at(pb.JOB_STATE_RUNNING, 1)
        context.abort(grpc.StatusCode.UNAVAILABLE, "going away")

    def ends_early(_: grpc.ServicerContext) -> Iterator[pb.WatchJobResponse]:
        yield at(pb.JOB_STATE_RUNNING, 2)

    trainer.scripts = [breaks_off, ends_early, lambda _: iter([done()])]
    assert run(["jobs", "watch", "j"]) == 0
    assert not trainer.scripts


def test_watching_goes_on_after_the_service_was_restarted(port: int) -> None:
    first_told = threading.Event()

    def tells_and_hangs(context: grpc.ServicerContext) -> Iterator[pb.WatchJobResponse]:
        yield at(pb.JOB_STATE_RUNNING, 1)
        first_told.set()
        ended = threading.Event()
        context.add_callback(ended.set)
        ended.wait()

    before = ScriptedTrainer(port)
    before.scripts = [tells_and_hangs]
    with ThreadPoolExecutor(1) as pool:
        watching = pool.submit(run, ["jobs", "watch", "j"])
        assert first_told.wait(10)
        before.stop()
        after = ScriptedTrainer(port)
        after.scripts = [lambda _: iter([done()])]
        assert watching.result(60) == 0
    after.stop()


def test_a_service_that_never_answered_is_not_waited_for(port: int, capsys: Captured) -> None:
    assert port
    assert run(["jobs", "watch", "j"]) == 1
    assert "[UNAVAILABLE]" in capsys.readouterr().err


def test_a_batch_is_followed_through_answers_that_fail(
    trainer: ScriptedTrainer, capsys: Captured, tmp_path: Path
) -> None:
    trainer.failures = {"GetBatch": 1, "GetJob": 2}
    (tmp_path / "batch.yaml").write_text("jobs: [{method: m, dataset: d, adapter: a}]")
    assert run(["submit", str(tmp_path / "batch.yaml"), "--watch"]) == 0
    assert "SUCCEEDED" in capsys.readouterr().out
    assert trainer.failures == {"GetBatch": 0, "GetJob": 0}


def test_ctrl_c_says_that_the_job_goes_on(trainer: ScriptedTrainer, capsys: Captured) -> None:
    def interrupted(context: grpc.ServicerContext) -> Iterator[pb.WatchJobResponse]:
        yield at(pb.JOB_STATE_RUNNING, 1)
        os.kill(os.getpid(), signal.SIGINT)
        ended = threading.Event()
        context.add_callback(ended.set)
        ended.wait()

    trainer.scripts = [interrupted]
    assert run(["jobs", "watch", "j"]) == 130
    assert "job j goes on; see `atelier jobs watch j` or `atelier jobs cancel j`" in capsys.readouterr().err
