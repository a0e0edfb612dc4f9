import pytest

from hne_tf.errors import InputError
from hne_tf.exported import versions


def publish_file(base, version, text="new"):
    with versions.new_version(base, version) as folder:
        assert not folder.name.isdigit()
        assert not (base / str(version)).exists()
        (folder / "model").write_text(text)


def test_a_version_appears_when_it_is_complete(tmp_path):
    base = tmp_path / "model"
    publish_file(base, 3)
    assert [entry.name for entry in base.iterdir()] == ["3"]
    assert (base / "3/model").read_text() == "new"


def test_a_version_that_fails_leaves_nothing(tmp_path):
    def fail():
        with versions.new_version(tmp_path, 1) as folder:
            (folder / "model").write_text("half")
            raise RuntimeError

    with pytest.raises(RuntimeError):
        fail()
    assert list(tmp_path.iterdir()) == []


def test_an_existing_version_is_refused_and_kept(tmp_path):
    publish_file(tmp_path, 1, "old")
    with pytest.raises(InputError, match="never overwritten"):
        publish_file(tmp_path, 1)
    assert (tmp_path / "1/model").read_text() == "old"


def test_an_empty_folder_counts_as_existing(tmp_path):
    (tmp_path / "1").mkdir()
    with pytest.raises(InputError, match="never overwritten"):
        publish_file(tmp_path, 1)


def test_a_version_published_meanwhile_is_not_overwritten(tmp_path):
    def race():
        with versions.new_version(tmp_path, 1):
            publish_file(tmp_path, 1, "first")

    with pytest.raises(InputError, match="never overwritten"):
        race()
    assert (tmp_path / "1/model").read_text() == "first"


def test_writers_in_one_process_do_not_share_a_temporary_folder(tmp_path):
    def both():
        with versions.new_version(tmp_path, 1) as first:
            (first / "model").write_text("first")
            with versions.new_version(tmp_path, 1) as second:
                assert list(second.iterdir()) == []
            assert (first / "model").read_text() == "first"

    with pytest.raises(InputError, match="never overwritten"):
        both()
    assert [entry.name for entry in tmp_path.iterdir()] == ["1"]


def test_the_next_version_follows_the_largest_number(tmp_path):
    assert versions.next_version(tmp_path / "none") == 1
    for name in ("2", "10", "unpublished-11-1", "notes", "²", "٨٨", str(2**63)):
        (tmp_path / name).mkdir()
    assert versions.next_version(tmp_path) == 11


def test_a_base_path_that_is_a_file_is_refused(tmp_path):
    (tmp_path / "model").write_text("mine")
    with pytest.raises(InputError, match="must be a folder"):
        publish_file(tmp_path / "model", 1)
    assert (tmp_path / "model").read_text() == "mine"


def test_a_version_is_published_again_with_other_json(tmp_path):
    version = tmp_path / "model" / "7"
    (version / "extra").mkdir(parents=True)
    (version / "graph").write_bytes(b"\x00graph")
    (version / "extra/manifest.json").write_text("1")
    copy = versions.revise(version, {"extra/manifest.json": "2"})
    assert copy == tmp_path / "model" / "8"
    assert (copy / "graph").read_bytes() == b"\x00graph"
    assert (copy / "extra/manifest.json").read_text() == "2"
    assert (version / "extra/manifest.json").read_text() == "1"
    assert sorted(path.name for path in version.parent.iterdir()) == ["7", "8"]


def test_only_a_version_is_published_again(tmp_path):
    (tmp_path / "model").mkdir()
    with pytest.raises(InputError, match="a number"):
        versions.revise(tmp_path / "model", {})
    assert [path.name for path in tmp_path.iterdir()] == ["model"]


# Which version is read.


def folders(base, *names):
    for name in names:
        (base / name).mkdir()
    return base


def test_the_largest_integer_is_the_latest(tmp_path):
    assert versions.latest_version_path(folders(tmp_path, "9", "10", "2")).name == "10"


def test_what_is_no_integer_is_ignored(tmp_path):
    folders(tmp_path, "1", "tmp-5", "6.partial", ".7", "٨", str(2**63))
    (tmp_path / "9").write_text("a file")
    assert versions.latest_version_path(tmp_path).name == "1"


def test_an_empty_base_path_is_refused(tmp_path):
    with pytest.raises(InputError, match="must hold a folder per version"):
        versions.latest_version_path(folders(tmp_path, "latest"))


def test_a_missing_base_path_is_refused(tmp_path):
    with pytest.raises(InputError, match="must be a folder"):
        versions.latest_version_path(tmp_path / "absent")


def test_a_version_is_named_by_itself_or_by_its_model(tmp_path):
    for name in ("9", "10"):
        manifest = tmp_path / name / versions.MANIFEST
        manifest.parent.mkdir(parents=True)
        manifest.touch()
    assert versions.version_folder(tmp_path) == tmp_path / "10"
    assert versions.version_folder(str(tmp_path / "9")) == tmp_path / "9"
