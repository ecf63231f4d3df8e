"""The real data of the catalogue's files: features, bytes and graphs are what the models were taught on."""

from __future__ import annotations

import wave
from pathlib import Path

import numpy as np
import pytest

from models.real_files import data, molecules, sounds
from models.real_files.catalogue import FILES
from models.real_files.pictures import HEIGHT, WIDTH, line_picture


def test_every_file_with_norms_has_a_maker() -> None:
    assert {file.data for file in FILES} - {None} <= set(data.MAKERS)
    assert all(file.data is not None for file in FILES if file.norms)
    assert len({file.name for file in FILES}) == len(FILES) >= 20
    assert sum(file.norms > 0 for file in FILES) >= 12


def write_wav(path: Path, values: np.ndarray, rate: int, channels: int = 1) -> Path:
    with wave.open(str(path), "wb") as file:
        file.setnchannels(channels)
        file.setsampwidth(2)
        file.setframerate(rate)
        file.writeframes(np.round(values * 2**15).astype("<i2").tobytes())
    return path


def test_a_tone_of_8_khz_is_the_same_tone_at_16(tmp_path: Path) -> None:
    def tone(rate: int) -> np.ndarray:
        return 0.5 * np.sin(2 * np.pi * 440 * np.arange(rate) / rate)

    heard = sounds.read_wav(write_wav(tmp_path / "tone.wav", tone(8000), 8000))
    assert heard.dtype == np.float32 and heard.shape == (16_000,)
    np.testing.assert_allclose(heard, tone(16_000), atol=1e-3)


@pytest.mark.parametrize(("rate", "channels"), [(44_100, 1), (8000, 2)])
def test_other_recordings_are_refused(tmp_path: Path, rate: int, channels: int) -> None:
    path = write_wav(tmp_path / "music.wav", np.full(64, 0.25), rate, channels)
    with pytest.raises(ValueError, match=r"music\.wav: not one channel"):
        sounds.read_wav(path)


def test_noise_is_a_tenth_as_loud() -> None:
    heard = np.sin(np.arange(20_000) / 7).astype(np.float32)
    added = sounds.noisy(heard, np.random.default_rng(0)) - heard
    assert np.std(added) == pytest.approx(0.1 * np.sqrt(0.5), rel=0.05)


@pytest.mark.parametrize(
    ("where", "long", "short"),
    [("begin", [0, 1, 2, 3], [7, 8, 256, 256]), ("middle", [3, 4, 5, 6], [256, 7, 8, 256]),
     ("end", [6, 7, 8, 9], [256, 256, 7, 8])],
)  # fmt: skip
def test_bytes_of_a_place(where: str, long: list[int], short: list[int]) -> None:
    assert data.part(bytes(range(10)), 4, where).tolist() == long
    assert data.part(bytes([7, 8]), 4, where).tolist() == short


def test_the_ester_has_the_atoms_of_acid_and_alcohol_less_water() -> None:
    acid, alcohol, ester = molecules.acid(2), molecules.alcohol(3), molecules.ester(2, 3)
    assert sorted((*acid.atoms, *alcohol.atoms)) == sorted((*ester.atoms, *molecules.WATER.atoms))
    hydrogens = sum(acid.hydrogens) + sum(alcohol.hydrogens)
    assert hydrogens == sum(ester.hydrogens) + sum(molecules.WATER.hydrogens) == 6 + 8
    valences = [ester.hydrogens[atom] + sum(atom in bond for bond in ester.bonds) for atom in range(len(ester.atoms))]
    # One C=O counts once among the bonds, so that its carbon has 3 neighbours and its oxygen 1.
    assert valences == [3, 1, 2, 4, 4, 4, 4, 4]


def test_distances_count_bonds() -> None:
    distances = molecules.ester(2, 1).distances()  # C(=O)(O-C)-C-C: its atoms are C, =O, O, C, C, C of the alcohol
    assert distances.max() == 4 and distances[4, 5] == 4 and distances[1, 5] == 3
    np.testing.assert_array_equal(distances, distances.T)


def test_a_reaction_stays_within_the_models_tables() -> None:
    sample = molecules.reactions(500)[-1]  # the longest chains
    size = sample["atoms"].shape[1]
    assert sample["distances"].shape == (1, size, size)
    tables = {"atoms": 121, "neighbors": 17, "distances": 13, "roles": 4}
    assert all(sample[name].min() >= 0 and sample[name].max() < rows for name, rows in tables.items())
    assert sample["distances"].max() == 12 and (sample["distances"][0, 0, 1:] == molecules.APART).all()


@pytest.mark.parametrize("number", [0, 3])
def test_a_line_is_ink_on_paper_and_nothing_behind_it(number: int) -> None:
    pytest.importorskip("matplotlib")
    picture = line_picture("Read me", number)
    assert picture.shape == (1, 3, HEIGHT, WIDTH) and picture.dtype == np.float32
    written = picture[0, 0, :, : np.flatnonzero(np.any(picture[0, 0], axis=0))[-1] + 1]
    assert WIDTH // 8 < written.shape[1] < WIDTH // 2
    assert np.median(written) > 0.3 if number == 0 else np.median(written) < -0.3
    assert written.max() - written.min() > 0.8 and written.min() >= -1 and written.max() <= 1
