"""What a Generate call streams, and which models it can be asked for."""

from __future__ import annotations

import grpc
import pytest

from atelier.client import InferenceClient, RegistryClient
from atelier.diffusion.base import Base
from atelier.errors import FailedPreconditionError
from atelier.pb.inference.v1.inference_pb2_grpc import InferenceServiceStub
from tests.harness.inference import InferenceServer, difference, pixels, publish, random_factors, request


def test_streams_progress_then_images_in_order_then_a_summary(inference: InferenceClient, base: Base) -> None:
    answers = list(inference.stream(request(num_images=3, num_inference_steps=24)))
    kinds = [answer.WhichOneof("content") for answer in answers]
    assert kinds[-4:] == ["image", "image", "image", "summary"]
    assert set(kinds[:-4]) == {"progress"}
    steps = [answer.progress.step for answer in answers[:-4]]
    assert steps[:2] == [0, 1]
    assert steps[-1] == 24
    assert steps == sorted(set(steps))
    assert {answer.progress.total_steps for answer in answers[:-4]} == {24}
    assert [(answer.image.index, answer.image.seed) for answer in answers[-4:-1]] == [(0, 7), (1, 8), (2, 9)]
    summary = answers[-1].summary
    assert (summary.base_model.model, summary.base_model.digest) == ("emoji-sd", base.digest)
    assert not summary.adapters
    assert min(summary.wait_seconds, summary.denoise_seconds, summary.decode_seconds) > 0


def test_image_i_is_the_image_of_seed_plus_i_alone(inference: InferenceClient) -> None:
    together = inference.generate(request(num_images=5, seed=30)).images
    alone = inference.generate(request(seed=together[4].seed)).images[0]
    assert alone.seed == 34
    assert difference(together[4].png, alone.png) <= 2
    assert difference(together[3].png, alone.png) > 20


def test_the_same_request_gives_the_same_bytes(inference: InferenceClient) -> None:
    one, other = (inference.generate(request(num_images=2)).images for _ in range(2))
    assert [image.png for image in one] == [image.png for image in other]


def test_without_a_seed_each_request_draws_its_own_and_tells_it(inference: InferenceClient) -> None:
    wanted = request()
    wanted.ClearField("seed")
    one, other = (inference.generate(wanted).images[0] for _ in range(2))
    assert one.seed != other.seed
    assert inference.generate(request(seed=one.seed)).images[0].png == one.png


def test_sizes_other_than_the_models_own(inference: InferenceClient) -> None:
    image = inference.generate(request(width=256, height=72, num_inference_steps=2)).images[0]
    assert pixels(image.png).shape == (72, 256, 3)


def test_the_highest_seed_and_a_single_step_are_served(inference: InferenceClient) -> None:
    image = inference.generate(request(seed=2**53 - 1, num_inference_steps=1)).images[0]
    assert image.seed == 2**53 - 1


def test_lists_its_models_with_what_they_accept(inference: InferenceClient, base: Base) -> None:
    (model,) = inference.models()
    assert (model.base_model.model, model.base_model.digest) == ("emoji-sd", base.digest)
    assert (model.default_size, model.size_factor, model.max_size, model.max_rank) == (128, 8, 256, 16)
    assert model.schedulers[0] == "ddim"


def test_values_that_are_nan_end_the_request_alone(
    base: Base, registry: RegistryClient, inference: InferenceClient
) -> None:
    factors = random_factors(base, seed=1, strength=1e30)
    publish(registry, base, "wild", factors)
    with pytest.raises(FailedPreconditionError, match="NaN or infinite") as caught:
        inference.generate(request("wild"))
    assert caught.value.reason == "IMAGE_NOT_FINITE"
    assert inference.generate(request()).images


def test_calls_need_a_token(inference_server: InferenceServer) -> None:
    with grpc.insecure_channel(inference_server.address) as channel:
        call = InferenceServiceStub(channel).Generate(request())
        with pytest.raises(grpc.RpcError) as caught:
            next(call)
        assert caught.value.code() == grpc.StatusCode.UNAUTHENTICATED


def test_metrics_count_images_and_name_nobody(
    inference_server: InferenceServer, inference: InferenceClient, tenant: str
) -> None:
    before = inference_server.metrics()
    inference.generate(request(num_images=2))
    after = inference_server.metrics()
    rose = {name: after[name] - before[name] for name in before}
    assert rose["atelier_inference_images_total"] == 2
    assert rose["atelier_inference_step_rows_sum"] == 5 * 4
    assert rose["atelier_inference_step_seconds_count"] == 5
    assert after["atelier_inference_queued_requests"] == 0
    assert not any(tenant in name for name in after)
