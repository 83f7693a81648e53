"""Fine-tuning over HTTP: pictures and captions, containment, and a process that outlives its server."""

import io
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx2 as httpx
import psutil
import pytest
from PIL import Image

from latentdiff.files import partial_path
from latentdiff.serving.engine import Engine
from latentdiff.serving.finetunes import pictures, process
from latentdiff.serving.finetunes.folder import FineTunes
from latentdiff.serving.limits import Limits
from latentdiff.serving.models import ModelSpec, ModelStore
from latentdiff.serving.server_state import Server, Settings
from tests.serving.conftest import OPTIONS, MakeEngine
from tests.serving.live import Live

FAKE_RUN = Path(__file__).with_name("fake_run.py")


def picture(colour: str = "red", size: int = 16) -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", (size, size), colour).save(buffer, "PNG")
    return buffer.getvalue()


@pytest.fixture
def source(tmp_path: Path) -> Path:
    """A folder of pictures: two with captions, and one that is damaged."""
    folder = tmp_path / "pictures"
    (folder / "apples").mkdir(parents=True)
    for name, data in (("a.png", picture("red")), ("b.png", picture("blue")), ("c.png", b"damaged")):
        (folder / "apples" / name).write_bytes(data)
    (folder / "apples" / "a.txt").write_text("a red apple", "utf-8")
    (folder / "apples" / "b.txt").write_text("a blue apple", "utf-8")
    return folder


@pytest.fixture
def tuned(model_folder: Path, source: Path, tmp_path: Path) -> Iterator[Live]:
    """A server that offers fine-tuning."""
    engine = Engine(ModelStore([ModelSpec("small", str(model_folder), OPTIONS)]), Limits(body=200_000))
    running = Live(Server(engine, finetunes=FineTunes(source, tmp_path / "runs")))
    yield running
    running.close()


@pytest.fixture
def client(tuned: Live) -> Iterator[httpx.Client]:
    with httpx.Client(base_url=tuned.url, timeout=60) as made:
        yield made


@pytest.fixture
def fake(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Replaces `latentdiff finetune` with a process that quickly writes the same files; `how` selects its behaviour."""

    def use(how: str = "finish") -> None:
        def command(one: Any, settings: Any, model: Any) -> list[str]:
            return [sys.executable, str(FAKE_RUN), str(one.output), how, str(settings.steps or 4)]

        monkeypatch.setattr(process, "finetune_command", command)

    return use


def until(client: httpx.Client, name: str, *statuses: str) -> dict[str, Any]:
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline:
        state: dict[str, Any] = client.get(f"/finetunes/{name}").json()
        if state["status"] in statuses:
            return state
        time.sleep(0.02)
    raise AssertionError(state)


def message(answer: httpx.Response) -> str:
    return str(answer.json()["error"]["message"])


def test_a_server_without_a_folder_offers_no_fine_tuning(live: Live) -> None:
    assert httpx.get(f"{live.url}/v1/capabilities").json()["finetuning"] is False
    for method, path in (("GET", "/finetunes"), ("POST", "/finetunes"), ("POST", "/finetunes/x/start")):
        answer = httpx.request(method, f"{live.url}{path}", json={"name": "x"})
        assert answer.status_code == 404 and "--train FOLDER" in message(answer)


def test_the_key_protects_every_route_except_the_page(make_engine: MakeEngine, source: Path, tmp_path: Path) -> None:
    server = Server(make_engine(start=False), Settings(key="secret"), finetunes=FineTunes(source, tmp_path / "runs"))
    running = Live(server)
    try:
        assert httpx.get(f"{running.url}/train").status_code == 200
        for path in ("/finetunes", "/finetunes/x", "/finetunes/x/pictures", "/finetunes/x/loras/y"):
            assert httpx.get(f"{running.url}{path}").status_code == 401
        assert httpx.post(f"{running.url}/finetunes", json={"name": "x"}).status_code == 401
        assert not (tmp_path / "runs").exists()
    finally:
        running.close()


def test_pictures_are_copied_with_captions_and_the_folder_is_not_changed(client: httpx.Client, source: Path) -> None:
    before = {path: path.read_bytes() for path in source.rglob("*") if path.is_file()}
    assert client.get("/finetunes").json() == {"finetunes": [], "folders": ["apples"]}
    assert client.post("/finetunes", json={"name": "apples", "folder": "apples"}).status_code == 201
    found = client.get("/finetunes/apples/pictures").json()
    assert [(one["file"], one["captions"], one["readable"]) for one in found] == [
        ("a.png", ["a red apple"], True), ("b.png", ["a blue apple"], True), ("c.png", [], False)]  # fmt: skip
    thumbnail = client.get("/finetunes/apples/thumbnails/a.png")
    assert Image.open(io.BytesIO(thumbnail.content)).size == (16, 16)
    assert client.get("/finetunes/apples/thumbnails/c.png").status_code == 404
    client.patch("/finetunes/apples/captions", json={"a.png": ["  one \n caption ", "", "another"]})
    client.delete("/finetunes/apples/pictures/c.png")
    copied = client.post("/finetunes", json={"name": "again", "copy_of": "apples"})
    assert copied.status_code == 201
    found = client.get("/finetunes/again/pictures").json()
    assert [(one["file"], one["captions"]) for one in found] == [
        ("a.png", ["one caption", "another"]), ("b.png", ["a blue apple"])]  # fmt: skip
    assert {path: path.read_bytes() for path in source.rglob("*") if path.is_file()} == before


def test_repeats_of_a_folder_are_kept(client: httpx.Client, source: Path) -> None:
    from latentdiff.data.layouts import read_layout
    from latentdiff.data.sources import open_source

    for name in ("3_cat", "2_dog"):
        (source / "sets" / name).mkdir(parents=True)
        (source / "sets" / name / "x.png").write_bytes(picture())
    client.post("/finetunes", json={"name": "sets", "folder": "sets"})
    rows = read_layout(open_source(source.parent / "runs" / "sets" / "pictures")).rows
    assert sorted((row.name, row.captions) for row in rows) == [
        *[("2_dog_x.png", ("dog",))] * 2, *[("3_cat_x.png", ("cat",))] * 3]  # fmt: skip


@pytest.mark.parametrize(
    "folder", ["..", "../secret", "/etc", "apples/../../secret", "out", "absent", "a\0b", "x" * 5000]
)
def test_only_folders_below_the_root_can_be_named(client: httpx.Client, source: Path, folder: str) -> None:
    secret = source.parent / "secret"
    secret.mkdir()
    (secret / "a.png").write_bytes(picture())
    (source / "out").symlink_to(secret)
    answer = client.post("/finetunes", json={"name": "x", "folder": folder})
    assert answer.status_code == 404 and "--train folder" in message(answer)
    listed = client.get("/finetunes").json()
    assert listed == {"finetunes": [], "folders": ["apples"]}


def test_a_link_to_a_file_outside_the_root_is_refused(client: httpx.Client, source: Path) -> None:
    (source.parent / "secret.png").write_bytes(picture())
    (source / "apples" / "d.png").symlink_to(source.parent / "secret.png")
    answer = client.post("/finetunes", json={"name": "x", "folder": "apples"})
    assert answer.status_code == 400 and "d.png is a link" in message(answer)
    assert client.get("/finetunes").json()["finetunes"] == []


@pytest.mark.parametrize("name", ["", "..", "a/b", ".hidden", "-o", "a b", "x" * 41, "a.b"])
def test_names_are_letters_and_digits(client: httpx.Client, name: str) -> None:
    answer = client.post("/finetunes", json={"name": name})
    assert answer.status_code == 400 and "1 to 40 letters" in message(answer)


def test_invalid_names_and_a_full_disk_are_one_line_errors(
    client: httpx.Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    client.post("/finetunes", json={"name": "x"})
    for file in ("x" * 300, "..%5C..%5Cx", "x.png"):
        assert client.get(f"/finetunes/x/thumbnails/{file}").status_code == 404
    assert client.post("/finetunes/x/start", json={"trigger": "a\0b"}).status_code == 422

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device", "/a/path")

    monkeypatch.setattr(pictures, "add_picture", full)
    answer = client.put("/finetunes/x/pictures/x.png", content=picture())
    assert answer.status_code == 500 and "No space left" in message(answer) and "/a/path" not in message(answer)


def test_a_chinese_name_works_and_an_existing_one_is_refused(client: httpx.Client) -> None:
    assert client.post("/finetunes", json={"name": "猫_1"}).status_code == 201
    assert client.get("/finetunes/猫_1").json()["status"] == "new"
    answer = client.post("/finetunes", json={"name": "猫_1"})
    assert answer.status_code == 409 and "choose another name" in message(answer)


@pytest.mark.parametrize(
    ("file", "data", "problem"),
    [
        ("..%5Cx.png", picture(), "file name"),
        (".x.png", picture(), "file name"),
        ("x.txt", b"words", "is not a picture"),
        ("x.png", b"words", "not a readable image"),
        ("x.png", bytes(300_000), "above this server's limit of 200000 bytes"),
        ("metadata.jsonl", b"{}", "is not a picture"),
        ("x" * 300 + ".png", picture(), "file name"),
    ],
)
def test_uploads_are_pictures_of_bounded_size(client: httpx.Client, file: str, data: bytes, problem: str) -> None:
    client.post("/finetunes", json={"name": "x"})
    answer = client.put(f"/finetunes/x/pictures/{file}", content=data)
    assert 400 <= answer.status_code < 500 and problem in message(answer)
    assert client.get("/finetunes/x/pictures").json() == []


@pytest.mark.parametrize("path", ["..%2F..%2Fsecret.png", "%2e%2e/x.png"])
def test_paths_in_urls_cannot_leave_the_folder(client: httpx.Client, path: str, source: Path) -> None:
    client.post("/finetunes", json={"name": "x"})
    assert client.put(f"/finetunes/x/pictures/{path}", content=picture()).status_code in (404, 405)
    assert not list(source.parent.rglob("secret.png"))


def test_a_run_reports_its_progress_and_its_lora_can_be_used_immediately(
    client: httpx.Client, tuned: Live, fake: Callable[..., None], lora_file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fake()
    monkeypatch.setenv("FAKE_LORA", str(lora_file / "pytorch_lora_weights.safetensors"))
    client.post("/finetunes", json={"name": "apples", "folder": "apples"})
    assert client.post("/finetunes/apples/use", json={}).status_code == 409
    client.post("/finetunes/apples/start", json={"trigger": "--resume"})
    until(client, "apples", "finished")
    samples = tuned.server.finetunes.find("apples").output / "samples"  # type: ignore[union-attr]
    partial_path(samples / "0000006.png").write_bytes(b"half")  # is being written
    state = until(client, "apples", "finished")
    assert (state["step"], state["total"], state["saved"]) == (4, 4, 4) and state["settings"]["trigger"] == "--resume"
    assert state["losses"] == [[step, 1 / step] for step in (1, 2, 3, 4)] and state["captions"] == ["a cat", "a dog"]
    assert state["samples"] == [0, 4]
    colours = [
        Image.open(io.BytesIO(client.get(f"/finetunes/apples/samples/4/{k}").content)).getpixel((4, 4)) for k in (0, 1)
    ]
    assert colours[0][0] > 200 > 60 > colours[0][2] and colours[1][2] > 200 > 60 > colours[1][0]
    assert client.get("/finetunes/apples/samples/4/2").status_code == 404
    for change in (client.patch("/finetunes/apples/captions", json={"a.png": ["x"]}),
                   client.put("/finetunes/apples/pictures/n.png", content=picture())):  # fmt: skip
        assert change.status_code == 409 and "copy it to change them" in message(change)
    images = [_image(client, {})]
    assert client.post("/finetunes/apples/use", json={}).json() == {"lora": "apples-4"}
    assert "apples-4" in client.get("/v1/capabilities").json()["loras"]
    images.append(_image(client, {"apples-4": 1.0}))
    assert images[0] != images[1] and _image(client, {}) == images[0]
    kept = client.get("/finetunes/apples/loras/apples-4").content
    assert kept == (lora_file / "pytorch_lora_weights.safetensors").read_bytes()
    assert client.delete("/finetunes/apples").status_code == 204
    assert "apples-4" not in client.get("/v1/capabilities").json()["loras"]
    assert not (tuned.server.finetunes.folder / "apples").exists()  # type: ignore[union-attr]


def _image(client: httpx.Client, loras: dict[str, float]) -> bytes:
    body = {"prompt": "a cat", "seed": 1, "steps": 2, "width": 16, "height": 16, "loras": loras}
    job = client.post("/jobs", json=body).json()["id"]
    while (state := client.get(f"/jobs/{job}").json())["status"] in ("queued", "running"):
        time.sleep(0.02)
    assert state["status"] == "finished", state["error"]
    return Image.open(io.BytesIO(client.get(f"/jobs/{job}/images/0").content)).tobytes()


def test_stopping_saves_and_resuming_continues(client: httpx.Client, fake: Callable[..., None]) -> None:
    fake("wait")
    for name in ("apples", "other"):
        client.post("/finetunes", json={"name": name, "folder": "apples"})
    client.post("/finetunes/apples/start", json={})
    until(client, "apples", "running")
    second = client.post("/finetunes/other/start", json={})
    assert second.status_code == 409 and "apples is being trained" in message(second)
    assert client.delete("/finetunes/apples").status_code == 409
    while client.get("/finetunes/apples").json()["step"] < 2:
        time.sleep(0.02)
    assert client.post("/finetunes/apples/stop").json()["status"] in ("stopping", "stopped")
    state = until(client, "apples", "stopped")
    assert state["saved"] == 2 and state["error"] is None
    assert client.post("/finetunes/apples/start", json={}).status_code == 409
    fake()
    client.post("/finetunes/apples/resume", json={"steps": 6})
    assert until(client, "apples", "finished")["total"] == 6
    assert client.post("/finetunes/apples/stop").status_code == 409


def test_a_failure_is_the_last_line_that_the_process_printed(client: httpx.Client, fake: Callable[..., None]) -> None:
    fake("fail")
    client.post("/finetunes", json={"name": "apples", "folder": "apples"})
    client.post("/finetunes/apples/start", json={})
    state = until(client, "apples", "failed")
    assert state["error"] == "the loss is NaN at step 2; lower --learning-rate"
    fake()
    client.post("/finetunes/apples/start", json={})
    until(client, "apples", "finished")


def test_a_server_that_was_killed_finds_the_running_process_again(source: Path, tmp_path: Path) -> None:
    finetunes = FineTunes(source, tmp_path / "runs")
    one = finetunes.create("apples")
    child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"])
    try:
        began = {"pid": child.pid, "created": psutil.Process(child.pid).create_time(), "stopping": False}
        one.write("process.json", began)
        assert process.status(one, 10) == "running"
        one.write("process.json", began | {"created": began["created"] - 60})  # another process has the id now
        assert process.status(one, 10) == "failed"
        one.write("process.json", began)
        process.stop_all(finetunes, 0)
        child.wait(30)
        assert process.status(one, 10) == "stopped"
    finally:
        child.kill()


def test_the_check_names_each_problem_and_is_kept_until_something_changes(client: httpx.Client) -> None:
    client.post("/finetunes", json={"name": "apples", "folder": "apples"})
    report = client.post("/finetunes/apples/check", json={"trigger": "sks"}).json()
    assert report["pictures"] == 3 and report["unusable"] == 1
    assert [(one["name"], one["kind"]) for one in report["findings"] if one["kind"] == "unreadable"] == [
        ("c.png", "unreadable")]  # fmt: skip
    assert client.get("/finetunes/apples").json()["check"] == report
    client.delete("/finetunes/apples/pictures/c.png")
    assert client.get("/finetunes/apples").json()["check"] is None


def test_the_model_is_opened_as_the_server_opens_it() -> None:
    model = ModelSpec(
        "sd", "sd.ckpt", {"device": "cpu", "vae": "vae.pt", "prediction_type": "sample", "allow_pickle": True}
    )
    options = process.Settings(trigger="--resume", steps=5, skip_bad=True).options(model)
    assert options == ["--model=sd.ckpt", "--vae=vae.pt", "--prediction-type=sample", "--method=lora",
                       "--trigger=--resume", "--steps=5", "--skip-bad", "--allow-pickle"]  # fmt: skip


@pytest.mark.slow
def test_a_real_fine_tune_stops_resumes_and_finishes(client: httpx.Client, source: Path) -> None:
    (source / "apples" / "c.png").unlink()
    client.post("/finetunes", json={"name": "apples", "folder": "apples"})
    client.post("/finetunes/apples/start", json={"steps": 400, "trigger": "sks", "rank": 2})
    while (state := client.get("/finetunes/apples").json())["status"] == "running" and state["step"] < 3:
        time.sleep(0.05)
    client.post("/finetunes/apples/stop")
    state = until(client, "apples", "stopped", "finished", "failed")
    assert state["status"] == "stopped" and state["saved"] >= 3, state["error"]
    client.post("/finetunes/apples/resume", json={"steps": state["saved"] + 2})
    state = until(client, "apples", "finished", "failed")
    assert state["status"] == "finished", state["error"]
    lora = client.post("/finetunes/apples/use", json={}).json()["lora"]
    assert _image(client, {lora: 1.0}) != _image(client, {})
