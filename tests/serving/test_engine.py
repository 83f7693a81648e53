"""The engine: the same images under any load, turns, cancelling, deadlines, failures, several models."""

import threading
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from latentdiff import LatentDiffusionPipeline
from latentdiff.errors import InputError
from latentdiff.serving.engine import Engine
from latentdiff.serving.errors import CancelledError, DeadlineError, InternalError, QueueFullError, UnavailableError
from latentdiff.serving.group import EngineImage, Group, GroupKey
from latentdiff.serving.job import Job, Status
from latentdiff.serving.limits import Limits
from latentdiff.serving.models import ModelSpec, ModelStore
from tests.serving.conftest import OPTIONS, MakeEngine, request

WAIT = 60.0


def pixels(job: Job) -> list[np.ndarray]:
    return [np.asarray(image.image).astype(int) for image in job.wait(WAIT)]


PICTURE = Image.effect_noise((16, 16), 90).convert("RGB")
MASK = Image.new("L", (16, 16))
MASK.paste(255, (4, 4, 9, 9))
VARIED: list[dict[str, Any]] = [
    {"prompt": "a cat face", "seed": 2**40, "steps": 7, "sampler": "dpmpp_2m_sde", "guidance_scale": 1.0},
    {"prompt": "猫", "seed": 3, "steps": 2, "sampler": "heun", "negative_prompt": "wrong colours"},
    {"seed": 4, "steps": 4, "images": 3, "settings": {"guidance_interval": (0.3, 0.8)}},
    {"seed": 5, "height": 32},
    {"seed": 6, "steps": 4, "settings": {"image": PICTURE, "strength": 0.5}},
    {"seed": 7, "steps": 4, "settings": {"image": PICTURE, "mask_image": MASK, "strength": 1.0}},
]


def test_images_under_load_are_those_of_the_pipeline(make_engine: MakeEngine, model_folder: Path) -> None:
    pipe = LatentDiffusionPipeline.from_pretrained(model_folder, **OPTIONS)  # type: ignore[arg-type]
    engine = make_engine(start=False)
    jobs = [engine.submit(request(**values)) for values in VARIED * 4]
    engine.start()
    for values, job in zip(VARIED * 4, jobs, strict=True):
        images = job.wait(WAIT)
        assert [image.seed for image in images] == [values["seed"] + k for k in range(values.get("images", 1))]
        for k, image in enumerate(images):
            arguments = request(**values).arguments(k)
            (alone,) = pipe(**arguments).images
            assert np.abs(np.asarray(alone).astype(int) - np.asarray(image.image)).max() <= 1


def test_a_padded_batch_gives_identical_bits_alone_and_among_twenty_others(make_engine: MakeEngine) -> None:
    watched = request(seed=77, steps=5, sampler="dpmpp_2m_sde", settings={"guidance_interval": (0.2, 1.0)})
    quiet, busy = make_engine(exact_batch=8), make_engine(exact_batch=8, start=False)
    (alone,) = pixels(quiet.submit(watched))
    before = [busy.submit(request(**VARIED[k % 6] | {"seed": k})) for k in range(10)]
    job = busy.submit(watched)
    after = [busy.submit(request(**VARIED[k % 6] | {"seed": 100 + k})) for k in range(10)]
    busy.start()
    assert np.array_equal(pixels(job)[0], alone)
    assert all(other.wait(WAIT) for other in (*before, *after))


def test_an_exact_batch_of_one_is_refused(make_engine: MakeEngine) -> None:
    with pytest.raises(InputError, match="exact_batch=1 must be at least 2"):
        make_engine(exact_batch=1)


def ready_group(count: int, guided: bool = False) -> Group:
    class FakeRow:
        def __init__(self) -> None:
            self.evaluations, self.tokens = 1 + guided, 77
            self.state = type("S", (), {"latents": torch.zeros(4, 8, 8)})

    group = Group(GroupKey("small", (), (16, 16)))
    job = Job(request(images=count), WAIT)
    group.active = [EngineImage(job, k, row=FakeRow()) for k in range(count)]  # type: ignore[arg-type]
    return group


@pytest.mark.parametrize(("rows", "wanted"), [(1, 1), (2, 2), (3, 2), (5, 4), (8, 8)])
def test_batches_are_of_8_4_2_or_1_rows_and_rows_take_turns(rows: int, wanted: int) -> None:
    group = ready_group(rows)
    counts = dict.fromkeys(range(rows), 0)
    for _ in range(rows):
        batch = group.next_batch()
        assert len(batch) == wanted
        for picture in batch:
            counts[picture.index] += 1
    assert set(counts.values()) == {wanted}


@pytest.mark.parametrize(("guided", "wanted"), [(True, 4), (False, 8)])
def test_an_exact_batch_counts_evaluations(guided: bool, wanted: int) -> None:
    assert len(ready_group(8, guided).next_batch(8)) == wanted


def test_rows_of_other_token_counts_wait_for_the_next_batch() -> None:
    group = ready_group(4)
    group.active[1].row.tokens = 154  # type: ignore[union-attr]
    batches = [{picture.index for picture in group.next_batch()} for _ in range(3)]
    assert batches[0] == {0, 2} and batches[1] == {1}


def hold(engine: Engine) -> threading.Event:
    """Make every decoding wait for an event."""
    event = threading.Event()
    engine.finisher._decoder.submit(lambda: event.wait(WAIT))
    return event


def test_decoding_does_not_delay_the_steps_of_others(make_engine: MakeEngine) -> None:
    engine = make_engine()
    release = hold(engine)
    first, second = engine.submit(request(steps=1)), engine.submit(request(steps=20, seed=2))
    deadline = time.monotonic() + WAIT
    while second.done[0] < 20 and time.monotonic() < deadline:
        time.sleep(0.005)
    assert second.done[0] == 20 and not first.over and not second.over
    release.set()
    assert first.wait(WAIT) and second.wait(WAIT)


def slow(engine: Engine, monkeypatch: pytest.MonkeyPatch, seconds: float = 0.01) -> None:
    """Steps that wait a little, so that a test can act between them."""
    deadline = time.monotonic() + WAIT
    while (pipe := engine.models.get("small")) is None and time.monotonic() < deadline:
        time.sleep(0.01)
    assert pipe is not None
    step = pipe.step

    def step_slowly(*args: Any) -> Any:
        time.sleep(seconds)
        return step(*args)

    monkeypatch.setattr(pipe, "step", step_slowly)


def until_step(job: Job, step: int = 1) -> None:
    deadline = time.monotonic() + WAIT
    while max(job.done) < step and time.monotonic() < deadline:
        time.sleep(0.002)
    assert max(job.done) >= step


def test_a_cancelled_job_leaves_its_batch_within_a_step(make_engine: MakeEngine, monkeypatch: Any) -> None:
    engine = make_engine()
    slow(engine, monkeypatch)
    job, other = engine.submit(request(steps=100)), engine.submit(request(steps=30, seed=2))
    until_step(job, 2)
    engine.cancel(job)
    seen = job.done[0]
    with pytest.raises(CancelledError, match="cancelled"):
        job.wait(WAIT)
    assert job.done[0] <= seen + 2 and job.status is Status.CANCELLED
    assert len(other.wait(WAIT)) == 1 and not engine.queue.jobs


def test_an_interrupted_job_ends_with_the_current_prediction(make_engine: MakeEngine, monkeypatch: Any) -> None:
    engine = make_engine()
    slow(engine, monkeypatch)
    job, unstarted = engine.submit(request(steps=100, images=9)), engine.submit(request(seed=50))
    until_step(job, 2)
    engine.stop_jobs([job, unstarted])
    images = job.wait(WAIT)
    assert len(images) == 8 and all(image.stopped for image in images)
    with pytest.raises(CancelledError, match="interrupted before its first step"):
        unstarted.wait(WAIT)
    assert not engine.queue.jobs


def test_a_job_has_a_deadline_also_while_it_waits(make_engine: MakeEngine, monkeypatch: Any) -> None:
    engine = make_engine()
    slow(engine, monkeypatch)
    running = engine.submit(request(steps=100), deadline=0.2)
    waiting = [engine.submit(request(steps=100, seed=k), deadline=0.2) for k in range(12)]
    for job in (running, *waiting):
        with pytest.raises(DeadlineError, match=r"within its deadline of 0.2 s"):
            job.wait(WAIT)


def test_the_error_of_a_full_queue_states_the_position_and_the_waiting_time(make_engine: MakeEngine) -> None:
    engine = make_engine(start=False, limits=Limits(queue=2))
    jobs = [engine.submit(request(images=5)) for _ in range(2)]
    with pytest.raises(QueueFullError, match="10 images are ahead, at most 2 may wait") as caught:
        engine.submit(request())
    assert int(caught.value.headers["Retry-After"]) >= 1
    assert [engine.queue.position(job) for job in jobs] == [1, 2]
    engine.start()
    assert all(job.wait(WAIT) for job in jobs) and engine.queue.position(jobs[1]) == 0
    assert engine.submit(request()).wait(WAIT)


def test_groups_take_turns(make_engine: MakeEngine, monkeypatch: Any) -> None:
    """A stream of one size does not starve another size."""
    monkeypatch.setattr("latentdiff.serving.turns.TURN_SECONDS", 0.05)
    engine = make_engine()
    slow(engine, monkeypatch)
    many = [engine.submit(request(steps=60, seed=k)) for k in range(40)]
    other = engine.submit(request(height=32, steps=10))
    assert other.wait(WAIT) and not many[-1].over
    for job in many:
        engine.cancel(job)


def test_an_error_in_one_job_affects_no_other(make_engine: MakeEngine) -> None:
    engine = make_engine(start=False)
    bad, good = engine.submit(request(sampler="eule")), engine.submit(request())
    engine.start()
    with pytest.raises(Exception, match="did you mean 'euler'"):
        bad.wait(WAIT)
    assert good.wait(WAIT)
    with pytest.raises(InputError, match="did you mean 'euler'"):  # the model is loaded: refused at once
        engine.submit(request(sampler="eule"))


def test_a_failed_step_fails_its_jobs_and_the_engine_continues(make_engine: MakeEngine, monkeypatch: Any) -> None:
    engine = make_engine()
    assert engine.submit(request()).wait(WAIT)
    pipe = engine.models.get("small")
    with monkeypatch.context() as patch:
        patch.setattr(pipe, "step", lambda *_: (_ for _ in ()).throw(MemoryError()))
        with pytest.raises(InternalError, match="out of memory; request a smaller image"):
            engine.submit(request()).wait(WAIT)
    with monkeypatch.context() as patch:
        patch.setattr(pipe, "finish", lambda *_, **__: (_ for _ in ()).throw(RuntimeError("broken")))
        with pytest.raises(InternalError, match="RuntimeError: broken"):
            engine.submit(request()).wait(WAIT)
    assert engine.submit(request()).wait(WAIT) and not engine.queue.jobs


def test_a_model_starts_images_before_it_makes_room_for_another(
    make_engine: MakeEngine, model_folder: Path, monkeypatch: Any
) -> None:
    engine = make_engine({"small": model_folder, "second": model_folder})
    assert engine.submit(request()).wait(WAIT)
    engine.models.limit = int(engine.models.size * 1.5)
    events: list[tuple[str, str]] = []
    add_loras, start = ModelStore._add_loras, Engine._start_images

    def watch_load(store: ModelStore, name: str, pipe: LatentDiffusionPipeline) -> None:
        events.append(("load", name))
        add_loras(store, name, pipe)

    def watch_start(self: Engine, group: Group, pipe: LatentDiffusionPipeline) -> None:
        time.sleep(0.02)
        start(self, group, pipe)
        events.append(("start", group.key.model))

    monkeypatch.setattr(ModelStore, "_add_loras", watch_load)
    monkeypatch.setattr(Engine, "_start_images", watch_start)
    jobs = [engine.submit(request(model=("second", "small")[k % 2], seed=k, steps=1)) for k in range(24)]
    assert all(job.wait(WAIT) for job in jobs)
    loads = [index for index, (kind, _) in enumerate(events) if kind == "load"]
    assert len(loads) >= 2 and engine.models.size <= engine.models.limit
    for first, end in zip(loads, [*loads[1:], len(events)], strict=True):
        assert ("start", events[first][1]) in events[first:end], events


def test_models_share_a_memory_limit_and_a_broken_model_affects_no_other(
    make_engine: MakeEngine, model_folder: Path, tmp_path: Path
) -> None:
    (tmp_path / "broken").mkdir()
    models = {"small": model_folder, "second": model_folder, "broken": tmp_path / "broken"}
    engine = make_engine(models)
    assert engine.submit(request()).wait(WAIT)
    engine.models.limit = int(engine.models.size * 1.5)
    jobs = [engine.submit(request(model=name, seed=k)) for k, name in enumerate(["second", "broken", "small"] * 2)]
    for job in jobs:
        if job.request.model == "broken":
            with pytest.raises(InternalError, match=r"model_index\.json"):
                job.wait(WAIT)
        else:
            assert job.wait(WAIT)
        assert len(engine.models.loaded) <= 1 or engine.models.size <= engine.models.limit
    engine.models.limit = 10
    engine.models.unload("second"), engine.models.unload("small")
    with pytest.raises(InternalError, match="above the memory limit of 10; raise the limit"):
        engine.submit(request()).wait(WAIT)


def test_draining_finishes_accepted_jobs_and_accepts_no_more(make_engine: MakeEngine) -> None:
    engine = make_engine()
    jobs = [engine.submit(request(seed=k, steps=10)) for k in range(12)]
    assert engine.queue.drain(WAIT) and all(job.status is Status.FINISHED for job in jobs)
    with pytest.raises(UnavailableError, match="stopping"):
        engine.submit(request())


def test_closing_ends_unfinished_jobs(make_engine: MakeEngine, monkeypatch: Any) -> None:
    engine = make_engine()
    slow(engine, monkeypatch)
    job = engine.submit(request(steps=150))
    engine.close()
    with pytest.raises(UnavailableError, match="the server stopped"):
        job.wait(WAIT)


def test_two_models_of_one_name_are_refused() -> None:
    with pytest.raises(InputError, match="same name"):
        ModelStore([ModelSpec("a"), ModelSpec("a")])
