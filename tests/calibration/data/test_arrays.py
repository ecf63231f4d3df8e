"""Samples of ready arrays: .npz files, folders of them, Python iterables, and how they are joined."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from dynorm_onnx.calibration.data import signature
from dynorm_onnx.calibration.data.arrays import join_samples, read_folder, read_iterable, read_npz
from dynorm_onnx.errors import DataError
from tests.calibration.data.test_signature import parsed
from tests.calibration.tiny_models import language_model

TEXT = signature(language_model())
ROWS = np.arange(40).reshape(10, 4) % 23


def rng() -> np.random.Generator:
    return np.random.default_rng(0)


def rows_of(samples: list[dict[str, np.ndarray]]) -> list[list[int]]:
    return sorted(row.tolist() for sample in samples for row in sample["input_ids"])


def test_npz_in_random_order(tmp_path: Path) -> None:
    np.savez(tmp_path / "a.npz", input_ids=ROWS, attention_mask=np.ones_like(ROWS))
    samples = read_npz(tmp_path / "a.npz", TEXT, rng())
    assert rows_of(samples) == sorted(ROWS.tolist())
    assert [sample["input_ids"][0, 0] for sample in samples] != ROWS[:, 0].tolist()
    assert all(sample["attention_mask"].shape == (1, 4) for sample in samples)


def test_npz_in_the_batches_that_the_model_fixes(tmp_path: Path) -> None:
    np.savez(tmp_path / "a.npz", input_ids=ROWS)
    samples = read_npz(tmp_path / "a.npz", signature(language_model("3, 4")), rng())
    assert [sample["input_ids"].shape for sample in samples] == [(3, 4)] * 3


def test_npz_for_a_model_without_a_batch(tmp_path: Path) -> None:
    model = signature(parsed("(int64[n] input_ids) => (int64[n] y) { y = Identity(input_ids) }"))
    np.savez(tmp_path / "a.npz", input_ids=ROWS)
    samples = read_npz(tmp_path / "a.npz", model, rng())
    assert sorted(sample["input_ids"].tolist() for sample in samples) == sorted(ROWS.tolist())
    assert len(join_samples(samples, model)) == len(samples)


def test_folder_of_batches_and_of_single_samples(tmp_path: Path) -> None:
    np.savez(tmp_path / "a.npz", input_ids=ROWS[:9])
    np.savez_compressed(tmp_path / "b.npz", input_ids=ROWS[9])
    assert rows_of(read_folder(tmp_path, TEXT, 100, rng())) == sorted(ROWS.tolist())


def test_folder_is_read_as_far_as_needed(tmp_path: Path) -> None:
    for index in range(6):
        np.savez(tmp_path / f"{index}.npz", input_ids=ROWS)
    assert len(read_folder(tmp_path, TEXT, 15, rng())) == 20


def test_iterables_are_read_as_far_as_needed() -> None:
    def endless() -> Any:
        while True:
            yield {"input_ids": ROWS[:4]}

    assert len(read_iterable(endless(), TEXT, 10)) == 12


def test_calibration_data_reader() -> None:
    class Reader:
        def __init__(self) -> None:
            self.rows = iter(ROWS)

        def get_next(self) -> dict[str, np.ndarray] | None:
            row = next(self.rows, None)
            return None if row is None else {"input_ids": row[None]}

    assert rows_of(read_iterable(Reader(), TEXT, 100)) == sorted(ROWS.tolist())


def test_samples_of_one_shape_are_joined_within_bounds() -> None:
    samples = [{"input_ids": np.zeros((1, length), np.int64)} for length in (600, 300, 600, 300, 600, 600)]
    shapes = [batch["input_ids"].shape for batch in join_samples(samples, TEXT)]
    assert shapes == [(3, 600), (1, 600), (2, 300)]


def test_what_belongs_to_the_whole_batch_is_not_joined() -> None:
    model = signature(parsed("(float[b, 4] x, float[4] scale) => (float[b, 4] y) { y = Mul(x, scale) }"))
    ones, scale = np.ones((2, 4), np.float32), np.arange(4, dtype=np.float32)
    samples = read_iterable([{"x": ones, "scale": scale}, {"x": ones, "scale": 2 * scale}], model, 10)
    batches = join_samples(samples, model)
    assert [batch["x"].shape for batch in batches] == [(2, 4), (2, 4)]
    np.testing.assert_array_equal(batches[1]["scale"], 2 * scale)


def test_pickled_objects_are_never_loaded(tmp_path: Path) -> None:
    class Trap:
        def __reduce__(self) -> tuple[Any, ...]:
            return Path.touch, (tmp_path / "loaded",)

    np.savez(tmp_path / "a.npz", input_ids=np.array([Trap()], object), allow_pickle=True)
    with pytest.raises(DataError, match=r"a\.npz cannot be read as an \.npz of plain arrays"):
        read_npz(tmp_path / "a.npz", TEXT, rng())
    assert not (tmp_path / "loaded").exists()


@pytest.mark.parametrize("content", [b"", b"PK\x03\x04 no zip", b"plain text", b"\x93NUMPY"])
def test_files_that_are_no_npz(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "a.npz").write_bytes(content)
    with pytest.raises(DataError, match=r"a\.npz cannot be read as an \.npz of plain arrays"):
        read_npz(tmp_path / "a.npz", TEXT, rng())


def test_truncated_npz(tmp_path: Path) -> None:
    np.savez(tmp_path / "a.npz", input_ids=ROWS)
    (tmp_path / "a.npz").write_bytes((tmp_path / "a.npz").read_bytes()[:200])
    with pytest.raises(DataError, match=r"a\.npz cannot be read"):
        read_npz(tmp_path / "a.npz", TEXT, rng())


def test_a_single_array_under_the_name_of_npz(tmp_path: Path) -> None:
    np.save(tmp_path / "a.npy", ROWS)
    (tmp_path / "a.npy").rename(tmp_path / "a.npz")
    with pytest.raises(DataError, match=r"a\.npz is a single array"):
        read_npz(tmp_path / "a.npz", TEXT, rng())


def test_unknown_name(tmp_path: Path) -> None:
    np.savez(tmp_path / "a.npz", labels=ROWS)
    with pytest.raises(DataError, match=r"a\.npz has 'labels', but the model's inputs are input_ids, attention_mask"):
        read_npz(tmp_path / "a.npz", TEXT, rng())


def test_different_numbers_of_samples(tmp_path: Path) -> None:
    np.savez(tmp_path / "a.npz", input_ids=ROWS, attention_mask=np.ones((9, 4), np.int64))
    with pytest.raises(DataError, match="different numbers of samples: 10 of 'input_ids', 9 of 'attention_mask'"):
        read_npz(tmp_path / "a.npz", TEXT, rng())


def test_no_samples_at_all(tmp_path: Path) -> None:
    np.savez(tmp_path / "a.npz", input_ids=ROWS[:0])
    with pytest.raises(DataError, match=r"a\.npz holds no samples"):
        read_npz(tmp_path / "a.npz", TEXT, rng())


def test_fewer_samples_than_the_model_takes_at_once(tmp_path: Path) -> None:
    np.savez(tmp_path / "a.npz", input_ids=ROWS)
    with pytest.raises(DataError, match=r"a\.npz holds 10 samples, fewer than the 16 that the model takes at once"):
        read_npz(tmp_path / "a.npz", signature(language_model("16, 4")), rng())


def test_empty_folder(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"holds no \.npz files"):
        read_folder(tmp_path, TEXT, 10, rng())


def test_empty_iterable() -> None:
    with pytest.raises(DataError, match="the data is empty"):
        read_iterable([], TEXT, 10)


def test_items_that_are_no_feeds() -> None:
    with pytest.raises(DataError, match="item 2 of the data is a list, not a dict of arrays by input name"):
        read_iterable([{"input_ids": ROWS}, [1, 2]], TEXT, 100)


def test_an_object_that_is_no_iterable() -> None:
    with pytest.raises(DataError, match="a int is no data: expected a path, an iterable of feeds"):
        read_iterable(3, TEXT, 100)
