"""Downloads from a web server on loopback that misbehaves in every way it can."""

import hashlib
import io
import subprocess
import sys
import zipfile

import pytest

from rwkv_lab.config.errors import UserError
from rwkv_lab.data import load
from rwkv_lab.data.corpora import enwik8
from rwkv_lab.data.corpora import simplebooks as simplebooks_module
from rwkv_lab.data.download import fetch
from tests.data.configs import data_config, tokenizer_config

BODY = b"a file of some length " * 1000
SHA256 = hashlib.sha256(BODY).hexdigest()


@pytest.fixture(autouse=True)
def no_waiting(monkeypatch):
    monkeypatch.setattr("pooch.core.time.sleep", lambda seconds: None)


def zipped(members):
    archive = io.BytesIO()
    with zipfile.ZipFile(archive, "w", zipfile.ZIP_DEFLATED) as file:
        for name, content in members.items():
            file.writestr(name, content)
    return archive.getvalue()


def test_success_is_kept_and_not_asked_for_again(server, cache):
    server.script["/f"] = [(200, BODY)]
    for _ in range(2):
        target = fetch("f", [f"{server.url}/f"], SHA256, cache, "enwik8")
        assert target.read_bytes() == BODY
    assert server.asked == ["/f"]
    assert [file.name for file in target.parent.iterdir()] == ["f"]


def test_two_times_unavailable_then_success(server, cache):
    server.script["/f"] = [(503, b""), (503, b""), (200, BODY)]
    assert fetch("f", [f"{server.url}/f"], SHA256, cache, "enwik8").read_bytes() == BODY
    assert len(server.asked) == 3


def test_cut_connection_is_tried_again(server, cache):
    server.script["/f"] = [(200, BODY, 5000), (200, BODY)]
    assert fetch("f", [f"{server.url}/f"], SHA256, cache, "enwik8").read_bytes() == BODY


def test_connection_always_cut(server, cache):
    server.script["/f"] = [(200, BODY, 5000)]
    with pytest.raises(UserError, match="connection was cut"):
        fetch("f", [f"{server.url}/f"], SHA256, cache, "enwik8")
    assert list((cache / "downloads").iterdir()) == []


def test_second_address_when_the_first_has_nothing(server, cache):
    server.script |= {"/gone": [(404, b"")], "/f": [(200, BODY)]}
    assert fetch("f", [f"{server.url}/gone", f"{server.url}/f"], SHA256, cache, "enwik8").read_bytes() == BODY
    assert server.asked == ["/gone", "/f"]


def test_wrong_hash_says_which_file_to_put_where(server, cache):
    server.script["/f"] = [(200, BODY + b"!")]
    with pytest.raises(UserError) as mistake:
        fetch("f", [f"{server.url}/f"], SHA256, cache, "enwik8")
    for part in ("data=enwik8", "sha256", f"{server.url}/f", str(cache / "downloads" / "f"), "data.path="):
        assert part in str(mistake.value)
    assert not (cache / "downloads" / "f").exists()


def test_not_found(server, cache):
    server.script["/f"] = [(404, b"")]
    with pytest.raises(UserError, match="404"):
        fetch("f", [f"{server.url}/f"], SHA256, cache, "enwik8")
    assert len(server.asked) == 1


def test_offline(cache):
    with pytest.raises(UserError, match="no connection"):
        fetch("f", ["http://127.0.0.1:9/f"], SHA256, cache, "enwik8")


def test_a_file_put_there_by_hand_is_used_if_it_is_the_right_one(cache):
    target = cache / "downloads" / "f"
    target.parent.mkdir(parents=True)
    target.write_bytes(BODY)
    assert fetch("f", [], SHA256, cache, "enwik8") == target
    target.write_bytes(BODY + b"!")
    with pytest.raises(UserError, match="not the file expected"):
        fetch("f", [], SHA256, cache, "enwik8")


def test_trust_on_first_use(server, cache):
    server.script["/f"] = [(200, BODY), (200, BODY + b"!")]
    target = fetch("f", [f"{server.url}/f"], None, cache, "simplebooks_2")
    target.unlink()
    with pytest.raises(UserError, match="sha256"):
        fetch("f", [f"{server.url}/f"], None, cache, "simplebooks_2")
    assert not target.exists()


def test_left_over_by_a_killed_download_is_cleared(server, cache):
    server.script["/f"] = [(200, BODY)]
    left = cache / "downloads" / "f.partial"
    left.mkdir(parents=True)
    (left / "tmpabc").write_bytes(b"half")
    fetch("f", [f"{server.url}/f"], SHA256, cache, "enwik8")
    assert not left.exists()


def test_two_processes_download_once(server, cache):
    server.script["/f"] = [(200, BODY)]
    command = (
        "from pathlib import Path; from rwkv_lab.data.download import fetch;"
        f"print(fetch('f', ['{server.url}/f'], '{SHA256}', Path({str(cache)!r}), 'enwik8'))"
    )
    racing = [subprocess.Popen([sys.executable, "-c", command], stderr=subprocess.DEVNULL) for _ in range(2)]
    assert [process.wait(60) for process in racing] == [0, 0]
    assert server.asked == ["/f"]


def simplebooks(text="One . Two . "):
    parts = {"train": text * 50, "valid": text * 5, "test": text * 5}
    return {f"simplebooks/simplebooks-2-raw/{name}.txt": content for name, content in parts.items()}


@pytest.fixture
def books(server, cache, monkeypatch):
    """data=simplebooks_2 from the loopback server; the members of its archive can be changed before it is loaded."""
    monkeypatch.setattr(simplebooks_module, "URLS", (f"{server.url}/simplebooks.zip",))

    def run(members):
        server.script["/simplebooks.zip"] = [(200, zipped(members))]
        return load(data_config("simplebooks_2", cache_dir=str(cache)), tokenizer_config("char"))

    return run


def test_simplebooks_from_download_to_splits(books, server):
    for _ in range(2):
        corpus = books(simplebooks())
        assert (len(corpus.train), len(corpus.val), len(corpus.test)) == (600, 60, 60)
        assert sorted(corpus.sha256) == ["test.txt", "train.txt", "valid.txt"]
        assert corpus.notes == []
    assert len(server.asked) == 1


def test_simplebooks_refused_when_a_part_changed(books, cache):
    books(simplebooks())
    part = cache / "corpora" / "simplebooks_2" / "simplebooks-2-raw" / "valid.txt"
    part.write_text("something else")
    with pytest.raises(UserError, match=r"valid\.txt is not the file expected"):
        books(simplebooks())


def test_names_inside_an_archive_are_not_trusted(books, tmp_path):
    hostile = {
        "../../simplebooks-2-raw/train.txt": "up",
        "/simplebooks-2-raw/valid.txt": "absolute",
        "..\\simplebooks-2-raw\\test.txt": "backslash",
        "../../escaped": "escaped",
    }
    corpus = books(hostile | simplebooks())
    assert len(corpus.train) == 600
    assert not [file for file in tmp_path.rglob("*") if file.name == "escaped"]
    assert not (tmp_path.parent / "escaped").exists()


def test_archive_without_the_files(books):
    with pytest.raises(UserError, match="exactly one file"):
        books({"../../simplebooks-2-raw/train.txt": "only a hostile name"})


def test_archive_with_a_file_too_large(books, monkeypatch):
    monkeypatch.setattr(simplebooks_module, "LIMIT", 100)
    with pytest.raises(UserError, match="larger than the 100 bytes"):
        books(simplebooks())


def test_archive_that_is_none(server, cache, monkeypatch):
    monkeypatch.setattr(simplebooks_module, "URLS", (f"{server.url}/f",))
    server.script["/f"] = [(200, BODY)]
    with pytest.raises(UserError, match="not a readable zip archive"):
        load(data_config("simplebooks_2", cache_dir=str(cache)), tokenizer_config("char"))


def test_enwik8_that_is_another_text_is_refused(server, cache, monkeypatch):
    archive = zipped({"enwik8": "not Wikipedia " * 100})
    monkeypatch.setattr(enwik8, "URLS", (f"{server.url}/enwik8.zip",))
    monkeypatch.setattr(enwik8, "ZIP_SHA256", hashlib.sha256(archive).hexdigest())
    server.script["/enwik8.zip"] = [(200, archive)]
    with pytest.raises(UserError, match="is not enwik8"):
        load(data_config("enwik8", split=[0.9, 0.05, 0.05], cache_dir=str(cache)), tokenizer_config("byte"))


def test_a_damaged_file_of_an_unpacked_archive_is_unpacked_again(tmp_path, cache):
    (tmp_path / "books.zip").write_bytes(zipped(simplebooks()))
    data = data_config("simplebooks_2", path=str(tmp_path / "books.zip"), cache_dir=str(cache))
    before = load(data, tokenizer_config("char"))
    (part,) = (cache / "corpora").glob("*/*/train.txt")
    part.write_text(part.read_text().replace("One", "Ane"))
    assert load(data, tokenizer_config("char")).sha256 == before.sha256
