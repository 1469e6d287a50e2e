"""The engine by itself: turns, failures, ends, and the slots underneath."""

from __future__ import annotations

import json
import queue
import shutil
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch

from atelier.diffusion.families.stable_diffusion import StableDiffusion
from atelier.diffusion.slots import InferenceSlots, InferenceSlotsConfig, PackedFactors
from atelier.errors import (
    CancelledError,
    DeadlineExceededError,
    InternalError,
    InvalidArgumentError,
    UnavailableError,
)
from services.inference.engine import EngineConfig
from services.inference.generation import Event, Failed, Finished, Generation, Stepped
from services.inference.models import Model, load_model
from services.inference.slot_table import SlotTable
from services.inference.validation import GenerationSpec
from tests.harness.inference import EMOJI_SD, random_factors

MAX_ROWS = 4


@pytest.fixture(scope="module")
def model(base: StableDiffusion) -> Iterator[Model]:
    """A warm model with room for two adapters, and two images under guidance at once."""
    model = load_model("emoji-sd", EMOJI_SD, EngineConfig(num_slots=3, max_rank=4, max_batch_rows=MAX_ROWS))
    yield model
    model.engine.stop()


class Run:
    """A request that was handed to an engine."""

    def __init__(
        self,
        model: Model,
        adapters: Mapping[str, PackedFactors] | None = None,
        *,
        deadline: float | None = None,
        **fields: Any,
    ) -> None:
        usual = {
            "prompt": "a cat face",
            "negative_prompt": "",
            "adapters": (),
            "seed": 3,
            "steps": 3,
            "guidance_scale": 4.0,
            "scheduler": "",
            "num_images": 1,
            "width": 128,
            "height": 128,
        }
        self._events: queue.Queue[Event] = queue.Queue()
        self.generation = Generation(
            tracks=model.prepare(GenerationSpec(**{**usual, **fields})),
            adapters=adapters or {},
            weights=[(digest, 1.0) for digest in adapters or {}],
            deadline=deadline,
            correlation_id="test",
            notify=self._events.put,
        )
        model.engine.submit(self.generation)

    def begun(self) -> Run:
        """Waits for the first step."""
        assert isinstance(self._events.get(timeout=60), Stepped)
        return self

    def end(self) -> Finished | Failed:
        """Waits for the last event."""
        while isinstance(event := self._events.get(timeout=60), Stepped):
            pass
        return event

    def images(self) -> torch.Tensor:
        """The images of a request that must succeed."""
        event = self.end()
        assert isinstance(event, Finished)
        return event.images

    def error(self) -> Exception:
        """The error of a request that must fail."""
        event = self.end()
        assert isinstance(event, Failed)
        return event.error


def packed(bank: InferenceSlots, base: StableDiffusion, *seeds: int) -> dict[str, PackedFactors]:
    """Small adapters by a name for their digest."""
    return {f"a{seed}": bank.pack(random_factors(base, seed=seed, layers="attn", strength=0.2)) for seed in seeds}


def test_an_exception_in_a_step_ends_its_requests_and_leaves_no_adapter_bound(
    model: Model, base: StableDiffusion
) -> None:
    bare = Run(model).images()
    adapters = packed(model.engine.bank, base, 1, 2)

    def fail(module: torch.nn.Module, inputs: Sequence[torch.Tensor]) -> None:
        if inputs[0].shape[-1] == 16:  # of 128 pixels
            raise RuntimeError("no memory")

    survivor = Run(model, width=64, height=64, steps=8).begun()
    hook = model.engine.base.unet.conv_out.register_forward_pre_hook(fail)
    try:
        error = Run(model, adapters).error()
    finally:
        hook.remove()
    assert isinstance(error, InternalError)
    assert (error.reason, "no memory" in error.message) == ("ENGINE_FAILED", False)
    assert len(survivor.images()) == 1
    assert torch.equal(Run(model).images(), bare)
    assert len(Run(model, packed(model.engine.bank, base, 3, 4)).images()) == 1  # the slots are free again


def test_no_step_has_more_rows_than_allowed_and_all_requests_take_turns(model: Model) -> None:
    rows: list[int] = []
    hook = model.engine.base.unet.register_forward_pre_hook(lambda module, inputs: rows.append(len(inputs[0])))
    try:
        runs = [Run(model, num_images=5, steps=6), *(Run(model, steps=2, seed=seed) for seed in range(4))]
        small = [run.images() for run in runs[1:]]
        assert len(runs[0].images()) == 5
    finally:
        hook.remove()
    assert max(rows) <= MAX_ROWS
    assert all(len(images) == 1 for images in small)
    assert sum(rows) == 2 * (5 * 6 + 4 * 2)


def test_images_do_not_depend_on_being_split_over_steps(model: Model) -> None:
    together = Run(model, num_images=5, seed=20).images()
    for index in range(5):
        alone = Run(model, seed=20 + index).images()[0]
        assert (together[index].int() - alone.int()).abs().max() <= 2


def test_cancelled_and_late_requests_are_dropped_wherever_they_are(model: Model, base: StableDiffusion) -> None:
    holder = Run(model, packed(model.engine.bank, base, 1, 2), steps=200).begun()
    waiting = Run(model, packed(model.engine.bank, base, 3))
    late = Run(model, packed(model.engine.bank, base, 4), deadline=time.monotonic())
    assert isinstance(late.error(), DeadlineExceededError)
    waiting.generation.cancel()
    assert isinstance(waiting.error(), CancelledError)
    running_late = Run(model, steps=200, deadline=time.monotonic() + 0.3).begun()
    assert isinstance(running_late.error(), DeadlineExceededError)
    holder.generation.cancel()
    assert isinstance(holder.error(), CancelledError)
    assert len(Run(model).images()) == 1


def test_an_engine_that_stops_ends_its_requests(base: StableDiffusion) -> None:
    model = load_model("emoji-sd", EMOJI_SD, EngineConfig(num_slots=2, max_rank=1))
    run = Run(model, steps=200).begun()
    model.engine.stop()
    assert isinstance(run.error(), UnavailableError)


@pytest.mark.parametrize(
    "changes",
    [{"_class_name": "LMSDiscreteScheduler"}, {"_class_name": "PNDMScheduler", "rescale_betas_zero_snr": True}],
    ids=["unknown", "not for zero terminal SNR"],
)
def test_a_base_whose_own_scheduler_is_not_supported_is_refused(tmp_path: Path, changes: dict[str, object]) -> None:
    folder = shutil.copytree(EMOJI_SD, tmp_path / "copy")
    path = folder / "scheduler" / "scheduler_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))
    with pytest.raises(InvalidArgumentError, match=f"is a {changes['_class_name']}; supported are DDIMScheduler, DPM"):
        load_model("copy", folder, EngineConfig(num_slots=2, max_rank=1))


@pytest.fixture
def table(base: StableDiffusion) -> Iterator[SlotTable]:
    """A table of two slots."""
    bank = InferenceSlots(base.unet, InferenceSlotsConfig(num_slots=3, max_rank=4))
    yield SlotTable(bank)
    bank.close()


def test_slots_in_use_are_never_taken_and_idle_ones_by_last_use(
    table: SlotTable, model: Model, base: StableDiffusion
) -> None:
    adapters = packed(model.engine.bank, base, 1, 2, 3, 4)

    def acquire(*names: str) -> dict[str, int] | None:
        return table.acquire({name: adapters[name] for name in names})

    assert acquire("a1") == {"a1": 1}
    assert acquire("a1") == {"a1": 1}  # shared
    assert acquire("a2", "a3") is None  # all or none
    assert table.resident("a2") is None
    assert acquire("a2") is not None
    table.release(["a2"])
    assert table.resident("a2") is not None  # idle adapters stay
    assert acquire("a3") is not None
    assert (table.resident("a2"), table.resident("a1")) == (None, adapters["a1"])
    assert acquire("a4") is None
    table.release(["a1"])
    assert acquire("a4") is None  # one user of two is left
    table.release(["a1"])
    assert acquire("a4") == {"a4": 1}
