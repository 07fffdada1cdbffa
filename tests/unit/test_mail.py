"""Model data in files: what the ServerApp writes and reads, and what the service opens in a folder of others."""

from __future__ import annotations

import copy
import errno
import io
import mmap
import os
import pickle
from pathlib import Path

import numpy as np
import pytest
from federator.framing import BadFrame, framed, split
from federator.parcel import halved, letter_of, may_halve
from flwr.app import Array, ArrayRecord, MetricRecord, RecordDict
from flwr.supercore.inflatable.inflatable_object import get_all_nested_objects

from hub_service.aggregators.mail import MAIL_FOLDER, NoSuchMail, create_mail, open_mail, remove_mail
from hub_service.aggregators.mailbox import BeyondHalf, Mailbox
from hub_service.aggregators.mapped_array import MappedArray, data_of, is_halved, numpy_view, size_of

NAME = "0123456789abcdef" * 2


@pytest.fixture
def mailbox(tmp_path: Path) -> Mailbox:
    return Mailbox(tmp_path)


def model() -> ArrayRecord:
    return ArrayRecord(
        {
            "w": Array(np.arange(12, dtype=np.float32).reshape(3, 4)),
            "fortran": Array(np.asfortranarray(np.arange(6.0).reshape(2, 3))),
            "empty": Array(np.zeros((0, 3))),
            "steps": Array(np.array(7)),
            "bytes": Array("uint8", (3,), "my-own", b"abc"),
        }
    )


def answered(tmp_path: Path, content: RecordDict, name: str = NAME) -> str:
    """As the gateway: a site's answer in a file of the mail."""
    arrays = [array.data for record in content.array_records.values() for array in record.values()]
    with create_mail(tmp_path, name) as file:
        file.writelines(framed([letter_of(content, lambda _: "").packed(), *arrays]))
    return name


# --- the ServerApp's side


def test_a_posted_model_is_the_same_and_lies_in_the_file(mailbox: Mailbox, tmp_path: Path) -> None:
    record, before = model(), model()
    name = mailbox.post(record)
    assert split((tmp_path / MAIL_FOLDER / name).read_bytes()) == [array.data for array in before.values()]
    for key, array in record.items():
        assert isinstance(array, MappedArray)
        assert (array.dtype, array.shape, array.stype, array.data) == (
            before[key].dtype,
            before[key].shape,
            before[key].stype,
            before[key].data,
        )
        assert "data" not in vars(array)


def test_a_model_is_posted_once(mailbox: Mailbox, tmp_path: Path) -> None:
    """Evaluating a model and training from it next are two messages with one blob."""
    record = model()
    name = mailbox.post(record)
    assert mailbox.post(record) == name
    assert mailbox.post(ArrayRecord()) != mailbox.post(ArrayRecord())
    part = ArrayRecord()
    part["w"] = record["w"]
    assert mailbox.post(part) != name
    swapped = ArrayRecord()
    swapped["steps"], swapped["w"] = record["steps"], record["w"]
    assert mailbox.post(swapped) != name


def test_a_model_that_has_changed_is_posted_again(mailbox: Mailbox) -> None:
    record = model()
    name = mailbox.post(record)
    record["w"].data = Array(np.ones(12, np.float32).reshape(3, 4)).data
    assert type(record["w"]) is Array
    assert record["w"].numpy().sum() == 12
    assert mailbox.post(record) != name


def test_blobs_go_when_nobody_asks_for_them_and_arrays_stay(mailbox: Mailbox, tmp_path: Path) -> None:
    record = model()
    old, new = mailbox.post(record), mailbox.post(model())
    mailbox.keep_only([new])
    assert [path.name for path in (tmp_path / MAIL_FOLDER).iterdir()] == [new]
    assert record["w"].numpy()[2, 3] == 11
    assert mailbox.post(record) not in (old, new)


def test_a_disk_that_refuses_leaves_no_blob(mailbox: Mailbox, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("hub_service.aggregators.mailbox._write", full)
    with pytest.raises(OSError, match="No space left"):
        mailbox.post(model())
    assert list((tmp_path / MAIL_FOLDER).iterdir()) == []


def test_an_answer_is_read_from_its_file_which_goes(mailbox: Mailbox, tmp_path: Path) -> None:
    sent = RecordDict({"arrays": model(), "metrics": MetricRecord({"loss": 0.5}), "more": model()})
    content = mailbox.fetch(answered(tmp_path, sent))
    assert content["metrics"] == sent["metrics"]
    assert list(content) == list(sent)
    for record in content.array_records.values():
        assert [array.data for array in record.values()] == [array.data for array in model().values()]
    assert list((tmp_path / MAIL_FOLDER).iterdir()) == []


@pytest.mark.parametrize("key", ["w", "fortran", "steps"])
def test_an_answers_numbers_are_not_copied_for_the_first_who_asks(mailbox: Mailbox, tmp_path: Path, key: str) -> None:
    """Each has an array of its own, all the same: what one writes, nobody else sees."""
    array = mailbox.fetch(answered(tmp_path, RecordDict({"arrays": model()}))).array_records["arrays"][key]
    sent = model()[key]
    first, second = array.numpy(), array.numpy()
    assert (first.flags.owndata, second.flags.owndata) == (False, True)
    for mine in (first, second):
        np.testing.assert_array_equal(mine, sent.numpy())
        mine += 1
    np.testing.assert_array_equal(first, sent.numpy() + 1)
    np.testing.assert_array_equal(array.numpy(), sent.numpy())
    assert array.data == sent.data


def test_an_answer_is_read_where_the_system_promises_no_memory(
    mailbox: Mailbox, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As with vm.overcommit_memory = 2: many large answers may be more than there is."""
    plain = mmap.mmap

    def refuses(descriptor: int, size: int, *, access: int) -> mmap.mmap:
        if access == mmap.ACCESS_COPY:
            raise OSError(errno.ENOMEM, "Cannot allocate memory")
        return plain(descriptor, size, access=access)

    monkeypatch.setattr(mmap, "mmap", refuses)
    array = mailbox.fetch(answered(tmp_path, RecordDict({"arrays": model()}))).array_records["arrays"]["w"]
    array.numpy()[:] = 0
    np.testing.assert_array_equal(array.numpy(), model()["w"].numpy())


def test_an_answers_numbers_lie_where_they_are_read_fast(mailbox: Mailbox, tmp_path: Path) -> None:
    for length in range(8):
        content = RecordDict({"a" * length: MetricRecord({"loss": 0.5}), "arrays": model()})
        array = mailbox.fetch(answered(tmp_path, content)).array_records["arrays"]["w"]
        assert numpy_view(array).flags.aligned


@pytest.mark.parametrize("body", [b"", b"\x00" * 3, b"".join(framed([b"no letter"]))])
def test_an_answer_that_is_none_is_noticed(mailbox: Mailbox, tmp_path: Path, body: bytes) -> None:
    with create_mail(tmp_path, NAME) as file:
        file.write(body)
    with pytest.raises(BadFrame):
        mailbox.fetch(NAME)


# --- arrays in files


@pytest.fixture
def mapped(mailbox: Mailbox) -> ArrayRecord:
    record = model()
    mailbox.post(record)
    return record


@pytest.mark.parametrize("key", ["w", "fortran", "empty", "steps"])
def test_a_mapped_array_is_to_an_app_what_it_was(mapped: ArrayRecord, key: str) -> None:
    expected = model()[key].numpy()
    array = mapped[key].numpy()
    np.testing.assert_array_equal(array, expected)
    assert (array.dtype, array.shape, array.flags.writeable) == (expected.dtype, expected.shape, True)
    view = numpy_view(mapped[key])
    np.testing.assert_array_equal(view, expected)
    assert view.size == 0 or not view.flags.writeable
    assert numpy_view(model()[key]).tolist() == expected.tolist()
    assert size_of(mapped[key]) == len(model()[key].data) == len(data_of(model()[key]))


def test_a_mapped_array_becomes_flowers_objects(mapped: ArrayRecord) -> None:
    """As where an app sends a reply's arrays on to a stock node."""
    ours = {object_id: item.deflate() for object_id, item in get_all_nested_objects(mapped).items()}
    theirs = {object_id: item.deflate() for object_id, item in get_all_nested_objects(model()).items()}
    assert ours == theirs


def test_a_mapped_array_is_copied_as_an_ordinary_one(mapped: ArrayRecord) -> None:
    for twin in (copy.deepcopy(mapped["w"]), pickle.loads(pickle.dumps(mapped["w"]))):  # noqa: S301
        assert type(twin) is Array
        assert twin.data == model()["w"].data


def test_data_of_another_kind_are_no_numpy_array(mapped: ArrayRecord) -> None:
    with pytest.raises(TypeError, match="my-own"):
        numpy_view(mapped["bytes"])


def test_a_header_in_unicode_is_read_too() -> None:
    array = Array(np.zeros(2, np.dtype([("größe", np.float32)])))
    assert numpy_view(array)["größe"].tolist() == [0, 0]


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b"", "got 0"),
        (b"no array at all", "magic string is not correct"),
        (Array(np.arange(4.0)).data[:-1], "smaller than requested"),
        (Array(np.arange(4.0)).data.replace(b"(4,)", b"(9,)"), "smaller than requested"),
        (Array(np.arange(4.0)).data.replace(b"(4,), } ", b"(-4,), }"), "says that its shape is"),
        (Array(np.arange(4.0)).data.replace(b"(4,)", b"(-1,"), "multi-line"),
        (Array(np.arange(4.0)).data.replace(b"'<f8'", b"'|O' "), "has objects"),
    ],
)
def test_data_that_are_no_array_are_refused(data: bytes, reason: str) -> None:
    with pytest.raises(ValueError, match=reason):
        numpy_view(Array("float64", (4,), "numpy.ndarray", data))


# --- half precision


@pytest.fixture
def half_mailbox(tmp_path: Path) -> Mailbox:
    mailbox = Mailbox(tmp_path)
    mailbox.half = True
    return mailbox


def fine_model() -> ArrayRecord:
    """One whose numbers half precision cannot hold exactly."""
    record = model()
    record["w"] = Array(np.linspace(-1, 1, 3000, dtype=np.float32))
    return record


def answered_in_half(tmp_path: Path, record: ArrayRecord) -> str:
    """As `answered`, by a node whose letter said so."""
    letter = letter_of(RecordDict({"arrays": record}), lambda _: "", half=True).packed()
    data = [halved(one.numpy(), beyond="ignore") if may_halve(one) else one.data for one in record.values()]
    with create_mail(tmp_path, NAME) as file:
        file.writelines(framed([letter, *data]))
    return NAME


def test_a_model_in_half_precision_goes_out_as_such_and_stays_exact_here(half_mailbox: Mailbox, tmp_path: Path) -> None:
    record, before = fine_model(), fine_model()
    held = record["w"].data
    letter = half_mailbox.letter(RecordDict({"arrays": record}))
    assert letter.half
    blob = split((tmp_path / MAIL_FOLDER / letter.blobs[0]).read_bytes())
    kept = {key: np.load(io.BytesIO(data)).dtype for key, data in zip(record, blob, strict=True) if key != "bytes"}
    assert kept == {key: "float16" if may_halve(before[key]) else before[key].dtype for key in kept}
    assert [size_of(array) for array in record.values()] == [len(data) for data in blob]
    assert record["w"].data is held
    for key, array in record.items():
        assert (array.dtype, array.shape, array.stype, array.data) == (
            before[key].dtype,
            before[key].shape,
            before[key].stype,
            before[key].data,
        )
    np.testing.assert_array_equal(record["w"].numpy(), before["w"].numpy())
    assert record["w"].numpy().flags.writeable
    assert numpy_view(record["w"]).base is not None
    assert pickle.loads(pickle.dumps(record["w"])).data == before["w"].data  # noqa: S301
    ours = {object_id: item.deflate() for object_id, item in get_all_nested_objects(record).items()}
    assert ours == {object_id: item.deflate() for object_id, item in get_all_nested_objects(before).items()}


def test_a_model_in_half_precision_is_posted_once_unless_it_has_changed(half_mailbox: Mailbox, tmp_path: Path) -> None:
    record = fine_model()
    name = half_mailbox.post(record)
    assert half_mailbox.post(record) == name
    record["w"].data = Array(np.ones(3000, np.float32)).data
    assert type(record["w"]) is Array
    other = half_mailbox.post(record)
    assert other != name
    half_mailbox.keep_only([])
    assert half_mailbox.post(record) not in (name, other)
    assert record["w"].numpy().sum() == 3000


def test_an_answer_in_half_precision_has_its_dtypes_again(half_mailbox: Mailbox, tmp_path: Path) -> None:
    sent = fine_model()
    got = half_mailbox.fetch(answered_in_half(tmp_path, sent)).array_records["arrays"]
    for key in ("w", "fortran", "empty", "steps"):
        for values in (got[key].numpy(), numpy_view(got[key]), np.load(io.BytesIO(got[key].data))):
            assert (values.dtype, values.shape) == (sent[key].numpy().dtype, sent[key].shape)
            np.testing.assert_allclose(values, sent[key].numpy(), atol=1e-3)
        assert got[key].numpy().flags.writeable
        assert is_halved(got[key]) == may_halve(sent[key])
    assert got["bytes"].data == b"abc"
    assert size_of(got["w"]) < size_of(sent["w"]) * 0.6
    assert not np.array_equal(got["w"].numpy(), sent["w"].numpy())


def test_an_answer_in_half_precision_can_be_sent_on(half_mailbox: Mailbox, tmp_path: Path) -> None:
    got = half_mailbox.fetch(answered_in_half(tmp_path, fine_model())).array_records["arrays"]
    values = got["w"].numpy()
    for mailbox in (half_mailbox, Mailbox(tmp_path)):
        mailbox.post(got)
        np.testing.assert_array_equal(got["w"].numpy(), values)
    assert data_of(got["w"]) == Array(values).data


def test_a_model_beyond_half_precision_is_named_and_leaves_no_blob(half_mailbox: Mailbox, tmp_path: Path) -> None:
    record = fine_model()
    record["variance"] = Array(np.array([1.0, 1e5], np.float32))
    with pytest.raises(BeyondHalf, match=r"array 'variance' .*; use wire-precision = exact"):
        half_mailbox.post(record)
    assert list((tmp_path / MAIL_FOLDER).iterdir()) == []
    assert type(record["w"]) is Array


def test_an_answer_that_only_says_that_it_is_in_half_precision_is_noticed(
    half_mailbox: Mailbox, tmp_path: Path
) -> None:
    record = ArrayRecord({"w": Array(np.ones(3, np.float32))})
    with create_mail(tmp_path, NAME) as file:
        letter = letter_of(RecordDict({"arrays": record}), lambda _: "", half=True).packed()
        file.writelines(framed([letter, b"no array at all"]))
    got = half_mailbox.fetch(NAME).array_records["arrays"]
    with pytest.raises(ValueError, match="magic string is not correct"):
        numpy_view(got["w"])


# --- the service's side


def test_the_service_reads_what_the_serverapp_posted(mailbox: Mailbox, tmp_path: Path) -> None:
    name = mailbox.post(model())
    with open_mail(tmp_path, name) as file:
        assert split(file.read()) == [array.data for array in model().values()]


@pytest.mark.parametrize("name", ["", "..", "../events.jsonl", NAME.upper(), NAME + "0", "/etc/passwd"])
def test_no_name_leads_elsewhere(mailbox: Mailbox, tmp_path: Path, name: str) -> None:
    (tmp_path / "events.jsonl").write_text("secret")
    with pytest.raises(NoSuchMail):
        open_mail(tmp_path, name)


def test_no_link_and_no_pipe_is_followed(mailbox: Mailbox, tmp_path: Path) -> None:
    secret = tmp_path / "secret"
    secret.write_text("of another tenant")
    place = tmp_path / MAIL_FOLDER / NAME
    place.symlink_to(secret)
    with pytest.raises(NoSuchMail):
        open_mail(tmp_path, NAME)
    with pytest.raises(FileExistsError):
        create_mail(tmp_path, NAME)
    place.unlink()
    os.mkfifo(place)
    with pytest.raises(NoSuchMail):
        open_mail(tmp_path, NAME)
    assert secret.read_text() == "of another tenant"


def test_no_folder_that_is_a_link_is_used(tmp_path: Path) -> None:
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    (elsewhere / NAME).write_text("of another tenant")
    run_folder = tmp_path / "run"
    run_folder.mkdir()
    (run_folder / MAIL_FOLDER).symlink_to(elsewhere)
    with pytest.raises(NoSuchMail):
        open_mail(run_folder, NAME)
    with pytest.raises(NoSuchMail):
        create_mail(run_folder, "f" * 32)
    remove_mail(run_folder, NAME)
    assert [path.name for path in elsewhere.iterdir()] == [NAME]


def test_removing_is_no_error_twice(mailbox: Mailbox, tmp_path: Path) -> None:
    create_mail(tmp_path, NAME).close()
    remove_mail(tmp_path, NAME)
    remove_mail(tmp_path, NAME)
    assert list((tmp_path / MAIL_FOLDER).iterdir()) == []
