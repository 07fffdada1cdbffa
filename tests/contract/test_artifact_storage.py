"""One suite for every place of apps and models: a folder, and S3-compatible storage over HTTP."""

from __future__ import annotations

import asyncio
import hashlib
import logging
import os
import threading
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import ClassVar

import boto3
import pytest
from moto.server import ThreadedMotoServer

from hub_service import object_storage
from hub_service.artifact_uploads import Uploads
from hub_service.artifacts import Artifacts
from hub_service.domain.errors import Invalid, NotFound, Unavailable
from hub_service.object_storage import Bucket, ObjectStorage
from hub_service.settings import StateSettings
from hub_service.sweeper import UNNAMED_AFTER, Sweeper
from tests.fakes.aggregators import FakeAggregators
from tests.fakes.federation import Federation

BUCKET = "federation-artifacts"
KEY, SECRET = "AKIAKEYOFTHESERVICE1", "the-secret-that-nobody-may-see"
MODEL = b"weights" * 300_000  # more than one piece


class Storage:
    """An S3-compatible server of the test's own, with one bucket."""

    def __init__(self) -> None:
        self._server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
        self._server.start()
        host, port = self._server.get_host_and_port()
        self.endpoint = f"http://{host}:{port}"
        self.client = boto3.client(
            "s3",
            endpoint_url=self.endpoint,
            aws_access_key_id=KEY,
            aws_secret_access_key=SECRET,
            region_name="us-east-1",
        )

    def bucket(self, name: str = BUCKET) -> Bucket:
        return Bucket(f"s3://{name}/some/prefix", self.endpoint, KEY, SECRET)

    def objects(self) -> dict[str, int]:
        found = self.client.list_objects_v2(Bucket=BUCKET).get("Contents", [])
        return {one["Key"]: one["Size"] for one in found}

    def empty(self) -> None:
        for name in self.objects():
            self.client.delete_object(Bucket=BUCKET, Key=name)

    def stop(self) -> None:
        self.client.close()
        self._server.stop()


@pytest.fixture(scope="module")
def server() -> Iterator[Storage]:
    storage = Storage()
    storage.client.create_bucket(Bucket=BUCKET)
    yield storage
    storage.stop()


@pytest.fixture
def storage(server: Storage) -> Storage:
    server.empty()
    return server


Open = Callable[[str], Artifacts]


@pytest.fixture(params=["folder", "s3"])
def opened(request: pytest.FixtureRequest, tmp_path: Path, storage: Storage) -> Open:
    """Opens the artifacts, from a machine of this name: those in a bucket are there on any."""

    def open_on(machine: str) -> Artifacts:
        if request.param == "folder":
            return Artifacts(tmp_path / "artifacts")
        return Artifacts(tmp_path / machine, ObjectStorage(storage.bucket()))

    return open_on


def model_file(folder: Path, content: bytes = MODEL) -> Path:
    path = folder / "model.safetensors"
    path.write_bytes(content)
    return path


class TestArtifacts:
    def test_what_was_put_comes_back_also_after_the_machine_is_another(self, opened: Open, tmp_path: Path) -> None:
        artifacts = opened("one")
        fab_hash = artifacts.put_fab(b"app")
        sha256, size = artifacts.put_model(model_file(tmp_path))
        assert (fab_hash, sha256) == (hashlib.sha256(b"app").hexdigest(), hashlib.sha256(MODEL).hexdigest())
        assert size == len(MODEL)
        artifacts.upload()
        for again in (artifacts, opened("two")):
            assert again.fab(fab_hash) == b"app"
            assert again.model(sha256).read_bytes() == MODEL
            assert again.file(f"models/{sha256}").read_bytes() == MODEL
            assert set(again.names()) == {f"fabs/{fab_hash}", f"models/{sha256}"}
            assert again.waiting == 0
            again.check()

    @pytest.mark.parametrize("name", ["0" * 64, "", "../secret", "..", "/etc/passwd"])
    def test_nothing_but_what_was_kept_is_found(self, opened: Open, name: str) -> None:
        artifacts = opened("one")
        with pytest.raises(NotFound):
            artifacts.fab(name)
        with pytest.raises(NotFound):
            artifacts.model(name)
        with pytest.raises(NotFound):
            artifacts.put_model(Path("nowhere") / "model")

    def test_what_is_removed_is_gone_everywhere(self, opened: Open) -> None:
        artifacts = opened("one")
        fab_hash = artifacts.put_fab(b"app")
        artifacts.upload()
        waits = artifacts.put_fab(b"not there yet")
        names = (f"fabs/{fab_hash}", f"fabs/{waits}", "models/none")
        artifacts.written(*names)
        artifacts.let_go(names)
        artifacts.remove()
        artifacts.upload()
        for again in (artifacts, opened("two")):
            assert again.names() == {}
            with pytest.raises(NotFound):
                again.fab(fab_hash)

    def test_what_is_put_stays_until_a_row_names_it(self, opened: Open) -> None:
        artifacts = opened("one")
        name = f"fabs/{artifacts.put_fab(b'app')}"
        artifacts.let_go([name])
        artifacts.remove()
        assert set(artifacts.names()) == {name}

    def test_what_is_put_again_before_it_is_removed_stays(self, opened: Open) -> None:
        """As when a deleted project's app is added to another one, while the sweeper is at work."""
        artifacts = opened("one")
        fab_hash = artifacts.put_fab(b"app")
        artifacts.upload()
        artifacts.written(f"fabs/{fab_hash}")
        artifacts.let_go([f"fabs/{fab_hash}"])
        artifacts.put_fab(b"app")
        artifacts.written(f"fabs/{fab_hash}")
        artifacts.remove()
        artifacts.upload()
        for again in (artifacts, opened("two")):
            assert again.fab(fab_hash) == b"app"

    def test_another_content_under_a_name_is_refused(self, opened: Open, tmp_path: Path) -> None:
        artifacts = opened("one")
        with model_file(tmp_path).open("rb") as file, pytest.raises(Unavailable, match="damaged"):
            artifacts.put_named(f"models/{'0' * 64}", file)
        assert artifacts.names() == {}


class TestBucket:
    def artifacts(self, folder: Path, storage: Storage, **options: int) -> Artifacts:
        return Artifacts(folder, ObjectStorage(storage.bucket()), **options)

    def test_a_damaged_copy_is_fetched_anew_and_a_damaged_object_refused(
        self, tmp_path: Path, storage: Storage
    ) -> None:
        artifacts = self.artifacts(tmp_path / "one", storage)
        sha256, _ = artifacts.put_model(model_file(tmp_path))
        artifacts.upload()
        (tmp_path / "one" / "models" / sha256).write_bytes(b"other")
        assert artifacts.model(sha256).read_bytes() == MODEL
        storage.client.put_object(Bucket=BUCKET, Key=f"some/prefix/models/{sha256}", Body=b"other")
        elsewhere = self.artifacts(tmp_path / "two", storage)
        with pytest.raises(Unavailable, match="damaged"):
            elsewhere.model(sha256)
        assert list((tmp_path / "two" / "models").iterdir()) == []

    def test_the_folder_holds_no_more_than_there_is_room_for(self, tmp_path: Path, storage: Storage) -> None:
        """Of what the bucket has; what it has not is never let go of, and the model that was asked for is there."""
        artifacts = self.artifacts(tmp_path / "one", storage, cache_bytes=2500)
        names = []
        for place in range(4):
            sha256, _ = artifacts.put_model(model_file(tmp_path, bytes([place]) * 1000))
            os.utime(tmp_path / "one" / "models" / sha256, (place, place))
            names.append(sha256)
        assert len(list((tmp_path / "one" / "models").iterdir())) == 4  # none is in the bucket yet
        artifacts.upload()
        assert {path.name for path in (tmp_path / "one" / "models").iterdir()} == set(names[2:])
        assert artifacts.model(names[0]).read_bytes() == bytes(1000)
        assert {path.name for path in (tmp_path / "one" / "models").iterdir()} == {names[0], names[3]}
        large, _ = artifacts.put_model(model_file(tmp_path, bytes(5000)))
        artifacts.upload()
        assert artifacts.model(large).stat().st_size == 5000
        assert set(artifacts.names()) == {f"models/{name}" for name in [*names, large]}

    async def test_what_others_keep_in_the_bucket_is_left_alone(self, tmp_path: Path, storage: Storage) -> None:
        theirs = (
            "report.pdf",
            "some/prefix/README",
            "some/prefix/models/theirs",
            "some/prefix/backups/models/" + "0" * 64,
        )
        for key in theirs:
            storage.client.put_object(Bucket=BUCKET, Key=key, Body=b"theirs")
        federation = Federation(tmp_path)
        federation.artifacts = self.artifacts(tmp_path / "one", storage)
        ours = hashlib.sha256(MODEL).hexdigest()
        storage.client.put_object(Bucket=BUCKET, Key=f"some/prefix/models/{ours}", Body=MODEL)
        federation.new_project()
        federation.clock.now = datetime.now(UTC) + 2 * UNNAMED_AFTER
        await Sweeper(
            store=federation.store,
            artifacts=federation.artifacts,
            backend=FakeAggregators(tmp_path / "runs"),
            changes=federation.changes,
            clock=federation.clock,
        ).sweep()
        assert set(storage.objects()) == set(theirs)

    def test_what_is_put_while_its_object_is_removed_is_brought_there_again(
        self, tmp_path: Path, storage: Storage, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        artifacts = self.artifacts(tmp_path / "one", storage)
        fab_hash = artifacts.put_fab(b"app")
        artifacts.upload()
        artifacts.written(f"fabs/{fab_hash}")
        remove = ObjectStorage.remove
        uploading = threading.Thread(target=artifacts.upload)

        def put_then_remove(bucket: ObjectStorage, name: str) -> None:
            artifacts.put_fab(b"app")
            uploading.start()
            uploading.join(1.0)  # it waits for us; else it would be through by now
            remove(bucket, name)

        monkeypatch.setattr(ObjectStorage, "remove", put_then_remove)
        artifacts.let_go([f"fabs/{fab_hash}"])
        artifacts.remove()
        uploading.join(60)
        assert storage.objects() == {f"some/prefix/fabs/{fab_hash}": 3}
        assert artifacts.waiting == 0

    def test_a_large_model_goes_in_parts_and_not_through_memory(
        self, tmp_path: Path, storage: Storage, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        artifacts = self.artifacts(tmp_path / "one", storage)
        content = os.urandom(1 << 20) * 120  # more than one part of s3fs
        sha256, size = artifacts.put_model(model_file(tmp_path, content))
        artifacts.upload()
        about = storage.client.head_object(Bucket=BUCKET, Key=f"some/prefix/models/{sha256}")
        assert about["ContentLength"] == size
        assert "-" in about["ETag"]  # of a multipart upload
        assert self.artifacts(tmp_path / "two", storage).model(sha256).stat().st_size == size

    async def test_while_the_storage_is_away_nothing_is_lost(
        self, tmp_path: Path, storage: Storage, caplog: pytest.LogCaptureFixture
    ) -> None:
        """A run's end and a new version need it not; what they put is brought there when it is back."""
        bucket = ObjectStorage(Bucket(f"s3://{BUCKET}/some/prefix", "http://127.0.0.1:1", KEY, SECRET))
        artifacts = Artifacts(tmp_path / "one", bucket)
        with caplog.at_level(logging.INFO):
            uploading = asyncio.create_task(Uploads(artifacts, first_wait_s=0.05).run())
            sha256 = await asyncio.to_thread(artifacts.put_fab, b"app")
            assert artifacts.fab(sha256) == b"app"
            with pytest.raises(Unavailable, match="does not answer"):
                await asyncio.to_thread(artifacts.upload)
            with pytest.raises(Unavailable, match="does not answer"):
                await asyncio.to_thread(artifacts.fab, "0" * 64)
            assert artifacts.waiting == 1
            artifacts._bucket = ObjectStorage(storage.bucket())  # it is back
            async with asyncio.timeout(60):
                while not storage.objects():  # noqa: ASYNC110 - another program's
                    await asyncio.sleep(0.05)
            uploading.cancel()
            await asyncio.wait({uploading})
        assert storage.objects() == {f"some/prefix/fabs/{sha256}": 3}
        assert SECRET not in caplog.text
        assert KEY not in caplog.text

    async def test_what_is_put_is_brought_to_the_bucket_at_once(self, tmp_path: Path, storage: Storage) -> None:
        artifacts = self.artifacts(tmp_path / "one", storage)
        uploading = asyncio.create_task(Uploads(artifacts).run())
        for content in (b"one", b"two"):
            sha256 = await asyncio.to_thread(artifacts.put_fab, content)
            async with asyncio.timeout(60):
                while f"some/prefix/fabs/{sha256}" not in storage.objects():  # noqa: ASYNC110 - another program's
                    await asyncio.sleep(0.02)
        uploading.cancel()
        await asyncio.wait({uploading})

    @pytest.mark.parametrize("what", ["put", "get", "names", "check", "remove"])
    def test_a_missing_bucket_is_named(self, tmp_path: Path, storage: Storage, what: str) -> None:
        bucket = ObjectStorage(storage.bucket("no-such-bucket"))
        source = model_file(tmp_path)
        acts: dict[str, Callable[[], object]] = {
            "put": lambda: bucket.put(source, "fabs/a"),
            "get": lambda: bucket.get("fabs/a", tmp_path / "target"),
            "names": bucket.names,
            "check": bucket.check,
            "remove": lambda: bucket.remove("fabs/a"),
        }
        with pytest.raises(Unavailable, match="no bucket no-such-bucket") as refused:
            acts[what]()
        assert refused.value.next_step

    def test_credentials_that_are_refused(
        self, tmp_path: Path, storage: Storage, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        bucket = ObjectStorage(storage.bucket())

        def refuse(*_: object, **__: object) -> None:
            raise PermissionError(f"The key {KEY} may not")

        monkeypatch.setattr(bucket._files, "put_file", refuse)  # moto takes any key
        with pytest.raises(Unavailable, match="refuses the service") as refused:
            bucket.put(model_file(tmp_path), "fabs/a")
        assert KEY not in f"{refused.value.message} {refused.value.next_step} {refused.value.debug}"

    def test_a_full_disk_is_not_taken_for_a_storage_that_is_away(
        self, tmp_path: Path, storage: Storage, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        artifacts = self.artifacts(tmp_path / "one", storage)
        sha256 = artifacts.put_fab(b"app")
        artifacts.upload()
        elsewhere = self.artifacts(tmp_path / "two", storage)

        def full(*_: object, **__: object) -> None:
            raise OSError(28, "No space left on device")

        monkeypatch.setattr(elsewhere._bucket._files, "get_file", full)  # type: ignore[union-attr]
        with pytest.raises(Unavailable, match="cannot write to its disk"):
            elsewhere.fab(sha256)
        assert list((tmp_path / "two" / "fabs").iterdir()) == []

    def test_without_the_extra_it_is_said_what_to_install(
        self, storage: Storage, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        def missing(*_: object, **__: object) -> None:
            raise ImportError("Install s3fs to access S3")

        monkeypatch.setattr(object_storage.fsspec, "filesystem", missing)
        with pytest.raises(Invalid, match="s3fs") as refused:
            ObjectStorage(storage.bucket())
        assert "pip install ./images/singleuser '.[s3]'" in refused.value.next_step


class TestSettings:
    ENVIRONMENT: ClassVar = {
        "FEDERATION_STATE_DIR": "/state",
        "FEDERATION_ARTIFACTS_URL": "s3://federation/artifacts/",
        "FEDERATION_ARTIFACTS_ENDPOINT": "https://s3.example",
        "FEDERATION_ARTIFACTS_KEY": KEY,
        "FEDERATION_ARTIFACTS_SECRET": SECRET,
        "FEDERATION_ARTIFACTS_CACHE_BYTES": "1000",
    }

    def test_they_come_from_the_environment_and_show_no_secret(self) -> None:
        settings = StateSettings.from_environment(self.ENVIRONMENT).artifacts
        assert settings.bucket == Bucket("s3://federation/artifacts/", "https://s3.example", KEY, SECRET)
        assert settings.bucket.root == "federation/artifacts"
        assert settings.cache_bytes == 1000
        assert SECRET not in repr(settings)
        assert KEY not in repr(settings)
        assert StateSettings.from_environment({"FEDERATION_STATE_DIR": "/state"}).artifacts.bucket is None

    def test_empty_ones_leave_it_to_what_the_account_has(self) -> None:
        nothing = {"FEDERATION_ARTIFACTS_KEY": "", "FEDERATION_ARTIFACTS_SECRET": ""}
        bucket = StateSettings.from_environment({**self.ENVIRONMENT, **nothing}).artifacts.bucket
        assert bucket is not None
        files = ObjectStorage(bucket)._files
        assert (files.key, files.secret) == (None, None)

    @pytest.mark.parametrize(
        "url", ["/var/artifacts", "gs://bucket", "s3://", "s3://UP", "s3://a/../b c", "s3://key:secret@b/p"]
    )
    def test_another_kind_of_place_is_refused(self, url: str) -> None:
        with pytest.raises(Invalid, match="no place for artifacts"):
            StateSettings.from_environment({**self.ENVIRONMENT, "FEDERATION_ARTIFACTS_URL": url})
