"""Text for training: read with clear errors, cut into disjoint parts, encoded once, drawn by number."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from orchestrator.engine.task import TaskError
from orchestrator.engine.tasks import corpus as corpus_module
from orchestrator.engine.tasks.corpus import embedded_text, load_corpus, split_text

WORDS = "".join(f"line {i} of the text\n" for i in range(2000))


@given(st.lists(st.booleans(), max_size=3000), st.floats(0.01, 0.99))
def test_the_parts_are_the_text_and_share_nothing(line_ends: list[bool], fraction: float) -> None:
    text = "".join("\n" if end else chr(0x4E00 + i) for i, end in enumerate(line_ends))  # no character occurs twice
    train, held_out = split_text(text, fraction)
    if len(text) >= 200:
        assert train
        assert held_out
    parts = "".join(train), "".join(held_out)
    letters = [[c for c in part if c != "\n"] for part in parts]
    assert all(part == sorted(part) for part in letters)  # in the text's order
    assert sorted(letters[0] + letters[1]) == [c for c in text if c != "\n"]  # each in exactly one part
    assert len(parts[0]) + len(parts[1]) == len(text)


def test_unique_lines_land_in_one_part_only() -> None:
    train, held_out = ({*"".join(part).splitlines()} for part in split_text(WORDS, 0.1))
    assert not train & held_out
    assert train | held_out == {*WORDS.splitlines()}
    assert 0.05 < len(held_out) / len(WORDS.splitlines()) < 0.15


def test_the_embedded_text_is_real_and_large_enough(tmp_path: Path) -> None:
    assert len(embedded_text()) > 300_000
    corpus = load_corpus("", base_dir=tmp_path, val_fraction=0.1)
    assert corpus.train.dtype is torch.uint8
    assert corpus.train.numel() + corpus.held_out.numel() == corpus.text_bytes == len(embedded_text().encode())
    assert 0.07 < corpus.held_out.numel() / corpus.text_bytes < 0.13
    assert load_corpus("", base_dir=tmp_path, val_fraction=0.1) is corpus


def test_windows_lie_in_their_part_and_targets_follow_inputs(tmp_path: Path) -> None:
    corpus = load_corpus("", base_dir=tmp_path, val_fraction=0.2)
    for held_out, part in ((False, corpus.train), (True, corpus.held_out)):
        inputs, targets = corpus.windows(held_out=held_out, count=5, context=40, seed=7)
        assert inputs.shape == targets.shape == (5, 40)
        assert inputs.dtype is targets.dtype is torch.int64
        assert torch.equal(inputs[:, 1:], targets[:, :-1])
        data = bytes(part.tolist())
        assert all(bytes([*row.tolist(), int(last)]) in data for row, last in zip(inputs, targets[:, -1], strict=True))


def test_a_folder_is_read_in_order_without_hidden_files(tmp_path: Path) -> None:
    (tmp_path / "b").mkdir()
    (tmp_path / "b" / "x.txt").write_text("second " * 50)
    (tmp_path / "a.txt").write_text("first " * 50)
    (tmp_path / ".hidden").write_bytes(b"\xff")
    (tmp_path / ".git").mkdir()
    (tmp_path / ".git" / "y").write_bytes(b"\xff")
    corpus = load_corpus(".", base_dir=tmp_path, val_fraction=0.5)
    assert corpus.text_bytes == 50 * 7 + 50 * 6 + 2
    assert bytes(corpus.train.tolist()).startswith(b"first ")


def test_an_edited_file_is_read_again(tmp_path: Path) -> None:
    (tmp_path / "t.txt").write_text(WORDS)
    before = load_corpus("t.txt", base_dir=tmp_path, val_fraction=0.5)
    (tmp_path / "t.txt").write_text(WORDS + "more\n")
    assert load_corpus("t.txt", base_dir=tmp_path, val_fraction=0.5).text_bytes == before.text_bytes + 5


def test_bad_texts_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "empty.txt").write_text(" \n")
    (tmp_path / "latin.txt").write_bytes(b"caf\xe9 au lait")
    (tmp_path / "none").mkdir()

    def refused(name: str, fraction: float = 0.1) -> str:
        with pytest.raises(TaskError) as caught:
            load_corpus(name, base_dir=tmp_path, val_fraction=fraction)
        return str(caught.value)

    assert refused("empty.txt") == f"text: {tmp_path}/empty.txt is empty"
    assert refused("none") == f"text: the folder {tmp_path}/none has no files"
    assert refused("gone").startswith(f"text: there is no file or folder {tmp_path}/gone; relative paths start")
    assert refused("latin.txt").startswith(f"text: {tmp_path}/latin.txt is not UTF-8 (byte 3: ")
    assert refused("", fraction=1.0) == "val_fraction must be between 0 and 1, not 1.0"
    monkeypatch.setattr(corpus_module, "TEXT_BYTES_MAX", 5)
    assert "more than" in refused("latin.txt")
