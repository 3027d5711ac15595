"""Files written in one step, their checksums, and manifests that notice damage."""

import os

import pytest

from rwkv_lab.util import hashing, io


def test_an_error_leaves_the_old_file_and_nothing_else(tmp_path):
    file = tmp_path / "a.txt"
    io.write_atomic(file, b"old")
    with pytest.raises(RuntimeError), io.writing(file) as partial:
        partial.write(b"new")
        raise RuntimeError
    assert [path.name for path in tmp_path.iterdir()] == ["a.txt"] and file.read_bytes() == b"old"


@pytest.mark.parametrize("write", [io.write_atomic, lambda path, content: io.write_json(path, content.decode())])
def test_content_is_flushed_before_the_rename_and_the_folder_after(tmp_path, monkeypatch, write):
    events = []
    fsync, replace = os.fsync, os.replace

    def flushed(number):
        events.append(os.path.basename(os.readlink(f"/proc/self/fd/{number}")))
        fsync(number)

    def replaced(source, target):
        events.append("replace")
        replace(source, target)

    monkeypatch.setattr(os, "fsync", flushed)
    monkeypatch.setattr(os, "replace", replaced)
    write(tmp_path / "a", b"content")
    assert events == [f"a.{os.getpid()}.partial", "replace", tmp_path.name]


@pytest.mark.parametrize("size", [0, 1, 3 * hashing.BLOCK + 5])
def test_a_checksum_finds_every_kind_of_damage(tmp_path, size):
    file = tmp_path / "a"
    content = bytes(i % 251 for i in range(1024)) * (size // 1024) + b"x" * (size % 1024)
    file.write_bytes(content)
    recorded = hashing.checksum(file)
    assert hashing.intact(file, recorded) and hashing.intact(file, None)
    changed = [content + b"\0", *([content[:-1], bytes([content[0] ^ 1]) + content[1:]] if size else [])]
    for damaged in changed:
        file.write_bytes(damaged)
        assert not hashing.intact(file, recorded)
    file.unlink()
    assert not hashing.intact(file, recorded)


def test_every_flipped_bit_of_a_sealed_manifest_is_found(tmp_path):
    file = tmp_path / "meta.json"
    value = {"format": 2, "name": "é", "splits": {"train": 5}}
    hashing.write_sealed(file, value)
    content = file.read_bytes()
    assert hashing.read_sealed(file) == value
    for place in range(len(content)):
        for bit in range(8):
            file.write_bytes(content[:place] + bytes([content[place] ^ 1 << bit]) + content[place + 1 :])
            try:
                assert hashing.read_sealed(file) == value
            except ValueError:
                continue


def test_a_damaged_note_of_a_hash_is_not_believed(tmp_path, monkeypatch):
    monkeypatch.setattr(hashing, "LARGE", 1)
    file, memo = tmp_path / "text", tmp_path / "memo"
    file.write_bytes(b"some text")
    found = hashing.file_sha256(file, memo=memo)
    (note,) = memo.iterdir()
    note.write_text(note.read_text().replace(found[0], "0" if found[0] != "0" else "1"))
    hashing._hash.cache_clear()
    assert hashing.file_sha256(file, memo=memo) == found
