"""Many requests at once on one engine: nobody's output depends on anybody else."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import grpc
import pytest

from atelier.client import InferenceClient, RegistryClient
from atelier.diffusion.base import Base
from atelier.errors import ResourceExhaustedError
from atelier.local.process import wait_until
from atelier.pb.inference.v1 import inference_pb2 as pb
from atelier.pb.inference.v1.inference_pb2_grpc import InferenceServiceStub
from atelier.rpc.status import from_rpc_error
from tests.harness.inference import MAX_DIFFERENCE, InferenceServer, difference, publish, random_factors, request
from tests.inference.conftest import MAX_QUEUED_REQUESTS

ENDLESS = 200
"""Steps of a request that is always cancelled before its end."""


@pytest.fixture
def three_adapters(base: Base, registry: RegistryClient) -> None:
    """`a0`, `a1` and `a2` with other layers and ranks: as many as there are slots."""
    publish(registry, base, "a0", random_factors(base, seed=10, layers="attn", strength=0.2))
    publish(registry, base, "a1", random_factors(base, seed=11, layers="resnets", rank=8))
    publish(registry, base, "a2", random_factors(base, seed=12, rank=2))


def begin(stub: InferenceServiceStub, wanted: pb.GenerateRequest) -> grpc.Call:
    """Starts a call and returns it when its first step begins."""
    call = stub.Generate(wanted)
    assert next(call).progress.step == 0
    return call


@pytest.mark.usefixtures("three_adapters")
def test_a_mixed_batch_equals_each_request_alone(inference: InferenceClient, inference_server: InferenceServer) -> None:
    wanted = [
        request(("a0", 1.0), seed=1),
        request(("a1", 0.7), ("a2", -0.5), seed=2, scheduler="euler", num_inference_steps=7),
        request(seed=3, guidance_scale=1.0, num_images=2),
        request(("a2", 1.5), seed=4, scheduler="dpmpp-2m", negative_prompt="stripes"),
    ]
    solo = [inference.generate(one).images for one in wanted]
    before = inference_server.metrics()
    with ThreadPoolExecutor(len(wanted)) as pool:
        mixed = list(pool.map(lambda one: inference.generate(one).images, wanted))
    after = inference_server.metrics()
    steps = after["atelier_inference_step_seconds_count"] - before["atelier_inference_step_seconds_count"]
    assert steps < sum(one.num_inference_steps for one in wanted)  # they did share steps
    for one, other in zip(solo, mixed, strict=True):
        for image, twin in zip(one, other, strict=True):
            assert difference(image.png, twin.png) <= MAX_DIFFERENCE


@pytest.mark.usefixtures("three_adapters")
def test_an_adapter_that_arrives_does_not_touch_a_request_that_runs(
    base: Base, registry: RegistryClient, inference: InferenceClient, inference_stub: InferenceServiceStub
) -> None:
    wanted = request("a0", num_inference_steps=20)
    solo = inference.generate(wanted).images[0].png
    call = begin(inference_stub, wanted)
    publish(registry, base, "late", random_factors(base, seed=20))
    assert inference.generate(request("late", num_inference_steps=2)).images
    (shared,) = [answer.image.png for answer in call if answer.HasField("image")]
    assert difference(solo, shared) <= MAX_DIFFERENCE


@pytest.mark.usefixtures("three_adapters")
def test_a_cancelled_request_frees_its_slots(
    base: Base, registry: RegistryClient, inference: InferenceClient, inference_stub: InferenceServiceStub
) -> None:
    for index in range(3, 6):
        publish(registry, base, f"a{index}", random_factors(base, seed=index, layers="attn"))
    call = begin(inference_stub, request("a0", "a1", "a2", num_inference_steps=ENDLESS))
    call.cancel()
    assert inference.generate(request("a3", "a4", "a5", num_inference_steps=2)).images


@pytest.mark.usefixtures("three_adapters")
def test_a_request_waits_for_a_slot_while_the_bare_base_goes_past(
    base: Base,
    registry: RegistryClient,
    inference: InferenceClient,
    inference_stub: InferenceServiceStub,
    inference_server: InferenceServer,
) -> None:
    publish(registry, base, "fourth", random_factors(base, seed=4, layers="attn"))
    holder = begin(inference_stub, request("a0", "a1", "a2", num_inference_steps=ENDLESS))
    with ThreadPoolExecutor(1) as pool:
        waiting = pool.submit(inference.generate, request("fourth"))
        wait_until(lambda: queued(inference_server) == 1, timeout_seconds=30, what="the request waits")
        assert inference.generate(request(num_inference_steps=2)).images
        assert not waiting.done()
        holder.cancel()
        assert waiting.result(60).images


def test_a_deadline_ends_the_work(inference_stub: InferenceServiceStub, inference_server: InferenceServer) -> None:
    call = inference_stub.Generate(request(num_inference_steps=ENDLESS, num_images=16), timeout=1.0)
    with pytest.raises(grpc.RpcError) as caught:
        list(call)
    assert caught.value.code() == grpc.StatusCode.DEADLINE_EXCEEDED
    inference_server.wait_until_idle()


def test_a_request_with_more_rows_than_a_step_shares_the_engine(
    inference: InferenceClient, inference_stub: InferenceServiceStub
) -> None:
    big = begin(inference_stub, request(num_images=16, num_inference_steps=ENDLESS))
    assert inference.generate(request(num_inference_steps=2)).images
    assert big.is_active()
    big.cancel()


def test_more_requests_than_may_wait_are_refused_with_advice(
    inference: InferenceClient, inference_stub: InferenceServiceStub, inference_server: InferenceServer
) -> None:
    # Four are denoised at once, six may wait.
    calls = [inference_stub.Generate(request(num_inference_steps=ENDLESS)) for _ in range(MAX_QUEUED_REQUESTS + 6)]
    try:
        wait_until(lambda: any(call.done() for call in calls), timeout_seconds=30, what="a request is refused")
        refused = [from_rpc_error(call) for call in calls if call.done()]
        assert all(isinstance(error, ResourceExhaustedError) for error in refused)
        assert {error.reason for error in refused} == {"QUEUE_FULL"}
        assert all(error.retry_after_seconds for error in refused)
    finally:
        for call in calls:
            call.cancel()
    inference_server.wait_until_idle()
    assert queued(inference_server) == 0
    assert inference.generate(request()).images


def queued(server: InferenceServer) -> float:
    return server.metrics()["atelier_inference_queued_requests"]
